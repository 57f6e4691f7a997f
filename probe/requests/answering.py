"""Answers that are sets of tokens, any of which will do, or are followed to their last token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from probe.errors import BadOption
from probe.requests.options import Option

REGEX = "re:"  # in front of a regular expression over the vocabulary
MEASURED = "After which token the answer is measured: last, 7, tok=Paris or step3."
SET_HINT = "single tokens, as ' 57| 58', or an expression over the vocabulary, as 're:^ ?[5-9][0-9]$'"


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Beside answers as text: sets of tokens, any of which will do."""

    answer_set: Annotated[
        str | None, Option("Any of these tokens: ' 57| 58', or 're:^ ?[5-9][0-9]$' over the vocabulary.", ("--answer-set",))
    ] = None
    against_set: Annotated[str | None, Option("Less any of these tokens.", ("--against-set",))] = None

    def check_answer(self, answer: str | None, against: str | None, *, name: str = "answer") -> None:
        """Raises `BadOption` where an answer is given twice, or nothing that the other could be held against."""
        for text, tokens, what in ((answer, self.answer_set, name), (against, self.against_set, "against")):
            if text is not None and tokens is not None:
                set_name = "answer" if what == name else what
                raise BadOption(f"--{what} and --{set_name}-set name one thing twice", hint="leave one out")
            if tokens is not None and not all([tokens[len(REGEX) :]] if tokens.startswith(REGEX) else tokens.split("|")):
                raise BadOption(f"a token of the set {tokens!r} is empty", hint=SET_HINT)
        if (against, self.against_set) != (None, None) and (answer, self.answer_set) == (None, None):
            raise BadOption("against which answer?", hint=f"give --{name} or --answer-set too")


@dataclass(frozen=True, kw_only=True)
class WholeAnswerOptions(AnswerOptions):
    """The same, and whether all tokens of an answer are followed."""

    whole_answer: Annotated[bool, Option("All tokens of an answer, each after those before it, not the first alone.")] = False

    def check_whole(self, answer: str | None, against: str | None, *, name: str = "answer") -> None:
        """Raises `BadOption` where no answer is a text that could have several tokens."""
        if self.whole_answer and (answer, against) == (None, None):
            raise BadOption("which answer is to be followed whole?", hint=f"--{name} or --against: a set's tokens are single")
