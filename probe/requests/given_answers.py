"""Which answers are scored as what follows a prompt, and against what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from probe.errors import BadOption
from probe.requests.options import Option


@dataclass(frozen=True, kw_only=True)
class GivenAnswers:
    """Answers that are given, not drawn: those of the options, or of a file's column `choices`."""

    answers: Annotated[
        str | Iterable[str],
        Option(
            "Score this text as what follows each prompt, with its space: ' Paris'; repeatable. A file's own: `choices`.",
            ("--answer",), shell=list[str] | None,
        ),
    ] = ()  # fmt: skip
    choice_lead: Annotated[
        str | None, Option("What is put between a prompt and a file's choices.", default="a space where neither has one")
    ] = None
    calibrate: Annotated[
        bool, Option("Less each answer's own log-prob after a neutral prompt (PMI, 2104.08315).", ("--calibrate",))
    ] = False  # fmt: skip
    premise: Annotated[
        str | None, Option("The neutral prompt of --calibrate, as 'Answer:'.", default="the token that begins a text")
    ] = None  # fmt: skip

    def check_answers(self) -> None:
        """Raises `BadOption` for an answer that is no text, and for a premise that nobody asks for."""
        if not all(self.answers):
            raise BadOption("an answer is empty", hint="give its text, with its space: --answer ' Paris'")
        if self.premise is not None and not self.calibrate:
            raise BadOption("a premise is for calibrated answers", hint="add --calibrate")
