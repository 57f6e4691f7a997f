"""The token that an answer begins with: what a text that may follow a prompt is to a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe.errors import BadOption

if TYPE_CHECKING:
    from probe.language_model.model import LanguageModel


def first_token(lm: LanguageModel, text: str, name: str) -> tuple[int, str]:
    """The first token of an answer, and what is to be said if it has several. Raises `BadOption` if it is empty."""
    ids = lm.ids_of(text)
    if not ids:
        raise BadOption(f"--{name} is empty", hint="give the token that follows, with its space: ' Paris'")
    if len(ids) == 1:
        return ids[0], ""
    return ids[0], f"--{name} {text!r} is {len(ids)} tokens: the first, {lm.token_text(ids[0])!r}, is used"


def two_answers(lm: LanguageModel, answer: str, against: str | None) -> tuple[int, int | None, list[str]]:
    """The tokens of an answer and of the one it is held against, and what is to be said. Raises `BadOption` if they are one."""
    one, said = first_token(lm, answer, "answer")
    other, more = (None, "") if against is None else first_token(lm, against, "against")
    if one == other:
        what = "are the same" if answer == against else "begin with the same token"
        raise BadOption(
            f"--answer {answer!r} and --against {against!r} {what}", hint="they must differ in the first token"
        )
    return one, other, [text for text in (said, more) if text]
