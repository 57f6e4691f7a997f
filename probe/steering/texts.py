"""Sets of texts as token sequences; here one that cannot be run is an error, not a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probe.errors import BadOption
from probe.language_model.chat import Chat
from probe.tracing.encoding import encode_all
from probe.tracing.prompts import as_prompts
from probe.tracing.rows import Sequence

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def encoded(lm: LanguageModel, texts: Any, name: str) -> list[Sequence]:
    """Texts, or a `Path` to a file of them; `name` is what an error calls one. Raises `BadOption`, `BadPrompt`."""
    sequences, failed = encode_all(lm, as_prompts(texts), Chat())
    if failed:
        raise BadOption(f"a {name} text cannot be run: {failed[0].error.message}", hint=failed[0].error.hint)
    for sequence in sequences:
        sequence.finish(lm, None, "sentence")
    return sequences
