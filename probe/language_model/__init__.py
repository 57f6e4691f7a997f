"""Models by name: found, fetched, converted, loaded, with their tokenizers. What is where in them is `anatomy`'s.

Names load on first use: what a shell completes needs no more than `names`, `home` and `hub`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probe.language_model.loading import load
    from probe.language_model.model import Encoded, LanguageModel
    from probe.language_model.pieces import Pieces
    from probe.language_model.provenance import check_model, model_of, same_tokenizer
    from probe.language_model.tokenizers import tokenizer_of

__all__ = ["Encoded", "LanguageModel", "Pieces", "check_model", "load", "model_of", "same_tokenizer", "tokenizer_of"]

_HOME = {
    "Encoded": "model", "LanguageModel": "model", "Pieces": "pieces", "check_model": "provenance", "load": "loading",
    "model_of": "provenance", "same_tokenizer": "provenance",
    "tokenizer_of": "tokenizers",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
