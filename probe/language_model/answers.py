"""The token that an answer begins with: what a text that may follow a prompt is to a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probe.errors import BadOption
from probe.language_model.following import encoded_after, ids_after

if TYPE_CHECKING:
    from probe.language_model.model import LanguageModel


def first_token(lm: LanguageModel, text: str, name: str, *, after: Sequence[int]) -> tuple[int, list[str]]:
    """The first token of an answer that follows these ids, and what is to be said: that it has several, or that the
    tokenizer would cut the end of the prompt anew before it. Raises `BadOption` if it is empty or cannot be written there."""
    if not text:
        raise BadOption(f"--{name} is empty", hint="give the token that follows, with its space: ' Paris'")
    ids, said = encoded_after(lm, after, text), []
    if ids is None:
        ids = _spelt(lm, text, after)
        end = lm.token_text(after[-1]) if after else ""
        said.append(
            f"encoded together with --{name} {text!r}, the prompt ends in other tokens than {end!r}: the answer is the "
            f"tokens that spell it after the prompt as it is, from {lm.token_text(ids[0])!r} on"
        )
    if len(ids) > 1:
        said.append(f"--{name} {text!r} is {len(ids)} tokens: the first, {lm.token_text(ids[0])!r}, is used")
    return ids[0], said


def _spelt(lm: LanguageModel, text: str, after: Sequence[int]) -> list[int]:
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
    """The tokens of an answer and of the one it is held against, where they follow these ids, and what is to be said.

    Raises `BadOption` if they are one.
    """
    one, said = first_token(lm, answer, "answer", after=after)
    other, more = (None, []) if against is None else first_token(lm, against, "against", after=after)
    if one == other:
        what = "are the same" if answer == against else "begin with the same token"
        raise BadOption(
            f"--answer {answer!r} and --against {against!r} {what}", hint="they must differ in the first token"
        )
    return one, other, [*said, *more]
