"""Text that follows tokens, as ids: as the tokenizer would cut it there; and an answer's there."""

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


def answer_ids(lm: LanguageModel, text: str, name: str, *, after: Sequence[int]) -> tuple[list[int], list[str]]:
    """The ids of an answer that follows these ids, all after them, and a note where the tokenizer would cut their end anew
    before it. Raises `BadOption` if it is empty or cannot be written there."""
    if not text:
        raise BadOption(f"--{name} is empty", hint="give the token that follows, with its space: ' Paris'")
    ids = encoded_after(lm, after, text)
    if ids is not None:
        return ids, []
    ids = _spelled(lm, text, after)
    end = lm.token_text(after[-1]) if after else ""
    return ids, [
        f"encoded together with --{name} {text!r}, the prompt ends in other tokens than {end!r}: the answer is the "
        f"tokens that spell it after the prompt as it is, from {lm.token_text(ids[0])!r} on"
    ]


def _spelled(lm: LanguageModel, text: str, after: Sequence[int]) -> list[int]:
    """The ids that read as the text after these; of a tokenizer that puts white space between all tokens, the word's own."""
    try:
        return ids_after(lm, after, text)
    except BadOption:
        ids = lm.ids_of(text)
        if lm.pieces([*ids, *ids]).text.split() == [text, text]:
            return ids
        raise
