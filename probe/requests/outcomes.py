"""How what was drawn becomes classes of outcomes: the options of all verbs that draw continuations, or read them again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from probe.errors import BadOption
from probe.outcomes import OutcomeRule, expected_class
from probe.requests.options import Option


def plain_path(path: Any) -> str | None:
    """A path as a manifest holds it."""
    return None if path is None else str(Path(path).absolute())


@dataclass(frozen=True, kw_only=True)
class OutcomeOptions:
    """How outcomes are read: as answers, by expressions, of a file, or by a command that is given each completion."""

    answer: Annotated[str, Option("auto, last-number, boxed, choice, yes-no or regex=PATTERN.", complete="answers")] = "auto"
    expect: Annotated[str | None, Option("The right answer, or the outcome that is counted.")] = None
    outcome: Annotated[
        str | Iterable[str],
        Option(
            "A class of outcomes, NAME=/PATTERN/; the first that matches counts, else <other>; repeatable.",
            shell=list[str] | None,
        ),
    ] = ()  # fmt: skip
    labels: Annotated[
        str | Path | None,
        Option("A file of outcomes by others: prompt_id, branch, outcome.", shell=Path | None, to_plain=plain_path),
    ] = None
    judge: Annotated[
        str | None, Option("A command that reads completions as JSON lines and answers each with its outcome.")
    ] = None
    judge_timeout: Annotated[
        float, Option("Seconds in which the judge must have said something.", minimum=0.001, stored=False)
    ] = 600.0

    @property
    def rule(self) -> OutcomeRule:
        """How a completion is read. Raises `BadOption`."""
        return OutcomeRule.parse(self.answer, (self.outcome,) if isinstance(self.outcome, str) else self.outcome)

    @property
    def labelled(self) -> bool:
        """Whether somebody else says what completions come to, once they are drawn."""
        return self.labels is not None or self.judge is not None

    def expected(self, own: str | None = None, known: Collection[str] = ()) -> str | None:
        """The class of right answers; own: of the problem; known: the outcomes that others gave. See `expected_class`."""
        return expected_class(self.rule, self.expect, own, labelled=self.labelled, known=known)

    def check_outcomes(self) -> None:
        """Raises `BadOption` for what can't be read, and for two ways to say what an outcome is."""
        rule = self.rule
        ways = [name for name in ("outcome", "labels", "judge") if getattr(self, name) not in (None, ())]
        if len(ways) > 1:
            raise BadOption(f"--{ways[0]} and --{ways[1]} both say what an outcome is", hint="leave one of them out")
        if self.judge is not None and not self.judge.strip():
            raise BadOption("the judge is an empty command", hint="write --judge 'python label.py'")
        if self.judge_timeout <= 0:
            raise BadOption(f"judge-timeout is {self.judge_timeout}", hint="it is more than 0 seconds")
        if self.expect is not None and rule.patterns:
            rule.expected(self.expect)
