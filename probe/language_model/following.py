"""Text that follows tokens, as ids: as the tokenizer would cut it there. Runs no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from probe.errors import BadOption

if TYPE_CHECKING:
    from probe.language_model.model import LanguageModel

WINDOW = 24  # tokens of the prefix that a tokenizer is shown: no merge reaches further than a word
ANCHORS = ("\n", "a", "=", ".", "一")  # what a text may follow where nothing of the prefix will do


def encoded_after(lm: LanguageModel, prefix: Sequence[int], text: str) -> list[int] | None:
    """The ids of `text` where the end of the prefix and it are encoded together; None where that cuts the prefix anew.

    A text that begins like a word is one word with what it follows: a tokenizer that puts a space before every text would
    put one before this.
    """
    before = lm.pieces(list(prefix[-WINDOW:])).text
    whole, own = lm.ids_of(before + text), lm.ids_of(before)
    return whole[len(own) :] if whole[: len(own)] == own and len(whole) > len(own) else None


def ids_after(lm: LanguageModel, prefix: Sequence[int], text: str) -> list[int]:
    """Ids that, after the prefix, read as exactly `text`: as the tokenizer would cut it there, if that leaves the prefix alone.

    Raises `BadOption` if no cut reads so (a text that the tokenizer changes).
    """
    window = list(prefix[-WINDOW:])
    before = lm.pieces(window).text
    for ids in _cuts(lm, prefix, text):
        if lm.pieces([*window, *ids]).text == before + text:
            return ids
    raise BadOption(f"the tokenizer of '{lm.name}' cannot write {text!r} there", hint="spell it another way")


def _cuts(lm: LanguageModel, prefix: Sequence[int], text: str) -> Iterator[list[int]]:
    """Ways to cut a text, the most natural first."""
    together = encoded_after(lm, prefix, text)
    if together is not None:
        yield together
    yield lm.ids_of(text)
    for anchor in ANCHORS:
        whole, own = lm.ids_of(anchor + text), lm.ids_of(anchor)
        if whole[: len(own)] == own:
            yield whole[len(own) :]
