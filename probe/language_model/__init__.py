"""Models by name: found, fetched, converted, loaded, with their tokenizers. What is where in them is `anatomy`'s."""

from __future__ import annotations

from probe.language_model.loading import load
from probe.language_model.model import Encoded, LanguageModel
from probe.language_model.pieces import Pieces
from probe.language_model.provenance import check_model, model_of, same_tokenizer

__all__ = ["Encoded", "LanguageModel", "Pieces", "check_model", "load", "model_of", "same_tokenizer"]
