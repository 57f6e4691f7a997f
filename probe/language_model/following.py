"""Text that follows tokens, as ids: as the tokenizer would cut it there; and the token that an answer begins with there."""

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


def first_token(lm: LanguageModel, text: str, name: str, *, after: Sequence[int]) -> tuple[int, list[str]]:
    """The first token of an answer that follows these ids, and notes: that it has several, or that the
    tokenizer would cut the end of the prompt anew before it. Raises `BadOption` if it is empty or cannot be written there."""
    if not text:
        raise BadOption(f"--{name} is empty", hint="give the token that follows, with its space: ' Paris'")
    ids, notes = encoded_after(lm, after, text), []
    if ids is None:
        ids = _spelled(lm, text, after)
        end = lm.token_text(after[-1]) if after else ""
        notes.append(
            f"encoded together with --{name} {text!r}, the prompt ends in other tokens than {end!r}: the answer is the "
            f"tokens that spell it after the prompt as it is, from {lm.token_text(ids[0])!r} on"
        )
    if len(ids) > 1:
        notes.append(f"--{name} {text!r} is {len(ids)} tokens: the first, {lm.token_text(ids[0])!r}, is used")
    return ids[0], notes


def _spelled(lm: LanguageModel, text: str, after: Sequence[int]) -> list[int]:
    """The ids that read as the text after these; of a tokenizer that puts white space between all tokens, the word's own."""
    try:
        return ids_after(lm, after, text)
    except BadOption:
        ids = lm.ids_of(text)
        if lm.pieces([*ids, *ids]).text.split() == [text, text]:
            return ids
        raise


def two_answers(
    lm: LanguageModel, answer: str, against: str | None, *, after: Sequence[int]
) -> tuple[int, int | None, list[str]]:
    """The tokens of an answer and of the one it is held against, where they follow these ids, and notes.

    Raises `BadOption` if they are one.
    """
    one, notes = first_token(lm, answer, "answer", after=after)
    other, more = (None, []) if against is None else first_token(lm, against, "against", after=after)
    if one == other:
        what = "are the same" if answer == against else "begin with the same token"
        raise BadOption(f"--answer {answer!r} and --against {against!r} {what}", hint="they must differ in the first token")
    return one, other, [*notes, *more]
