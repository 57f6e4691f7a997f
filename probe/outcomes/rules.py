"""How a completion becomes a class of outcomes: by the answer it gives, or by expressions that are looked for in it. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from probe import answers
from probe.answers import NONE, TRUNCATED
from probe.errors import BadOption
from probe.patterns import Pattern

OTHER = "<other>"  # none of the expressions is there
UNLABELLED = "<unlabelled>"  # whoever labels gave it none
SILENT = frozenset({NONE, TRUNCATED, UNLABELLED})  # classes that say nothing
CUT_OFF = ("length", "context")  # stop reasons of a text that was not ended
FORM = "write NAME=/PATTERN/, as in 'refuse=/I can.t/'; after the slash i takes either case, t looks into the thinking too"
_WRITTEN = re.compile(r"(?P<name>[^=/]+)=(?:/(?P<pattern>.*)/(?P<flags>[a-z]*)|(?P<bare>.+))", re.DOTALL)


class Outcome(NamedTuple):
    """What a completion comes to: its class, the answer (or the match) as written, the rule that found it, and how sure that
    is."""

    key: str
    text: str | None = None
    rule: str | None = None
    confidence: str | None = None


class OutcomePattern(NamedTuple):
    """A class that completions with a match belong to. `thought`: what is thought is searched too."""

    name: str
    pattern: Pattern
    thought: bool = False

    @classmethod
    def parse(cls, written: str) -> OutcomePattern:
        """`NAME=/PATTERN/`. Raises `BadOption`."""
        found = _WRITTEN.fullmatch(written)
        name = found["name"].strip() if found else ""
        if found is None or not name or (name.startswith("<") and name.endswith(">")):
            raise BadOption(f"'{written}' is no class of outcomes", hint=FORM)
        flags = found["flags"] or ""
        if set(flags) - {"i", "t"}:
            raise BadOption(f"'{written}' ends in flags that are unknown: {flags}", hint=FORM)
        pattern = found["pattern"] if found["bare"] is None else found["bare"]
        if not pattern:
            raise BadOption(f"'{written}' has an empty pattern", hint=FORM)
        return cls(name, Pattern(f"(?i:{pattern})" if "i" in flags else pattern, hint=FORM), "t" in flags)


@dataclass(frozen=True)
class OutcomeRule:
    """How completions are read: by the first of `patterns` that matches, or, without any, by the answer that `answer` finds
    (see `answers.extract`)."""

    answer: str = "auto"
    patterns: tuple[OutcomePattern, ...] = ()

    @classmethod
    def parse(cls, answer: str = "auto", outcome: Iterable[str] = ()) -> OutcomeRule:
        """From what was written. Raises `BadOption` for what can't be read, and for a name that stands there twice."""
        patterns = tuple(OutcomePattern.parse(one) for one in outcome)
        names = [one.name for one in patterns]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise BadOption(f"the outcome '{twice}' is named twice", hint="join them: NAME=/this|that/")
        answers.extract("", answer)  # refuses what is no way to find answers
        return cls(answer, patterns)

    @property
    def names(self) -> tuple[str, ...]:
        """Classes that it can find; empty where answers are read: any may be."""
        return (*(one.name for one in self.patterns), OTHER) if self.patterns else ()

    def expected(self, written: str) -> str:
        """The class of the right answer. Raises `BadOption` for one that no pattern is of."""
        if not self.patterns:
            return answers.key(written, self.answer)
        if written not in self.names:
            raise BadOption(f"no outcome is called '{written}'", hint=f"they are {', '.join(self.names)}")
        return written

    def read(
        self, completion: str, *, stop_reason: str = "eos", ended: bool = True, thinking: bool = False,
        hidden: Iterable[tuple[int, int]] = (),
    ) -> Outcome:  # fmt: skip
        """What a completion comes to.

        One that ran out of tokens, or stops inside its thinking, is `<truncated>`; but a pattern that matches what there is
        of it counts. ended: the model ended it itself. thinking, hidden: as in `answers.extract`.
        """
        hidden = list(hidden)
        unfinished = stop_reason in CUT_OFF or (not ended and answers.speech(completion, opened=thinking).thinking)
        if self.patterns:
            found = self._matched(completion, thinking, hidden)
            return found or Outcome(TRUNCATED if unfinished else OTHER)
        if unfinished:
            return Outcome(TRUNCATED)
        answer = answers.extract(completion, self.answer, thinking=thinking, hidden=hidden)
        return Outcome(answer.key, answer.text or None, answer.rule or None, answer.confidence or None)

    def _matched(self, completion: str, thinking: bool, hidden: list[tuple[int, int]]) -> Outcome | None:
        said = answers.spoken(completion, opened=thinking, hidden=hidden)
        for one in self.patterns:
            if (span := one.pattern.search(completion if one.thought else said)) is not None:
                return Outcome(one.name, completion[slice(*span)], "outcome")
        return None


def expected_class(
    rule: OutcomeRule, said: str | None, own: str | None, *, labelled: bool = False, known: Collection[str] = ()
) -> str | None:
    """The class of right answers of a problem: of what was said for all problems, else of the problem's own.

    labelled: others give the outcomes, and `known` are those that they gave. A problem's own answer is the name of a class
    there, and where patterns are looked for, or it says nothing of outcomes: None. Raises `BadOption` as `rule.expected`.
    """
    if said is not None:
        return said if labelled else rule.expected(said)
    if own is None or not (labelled or rule.patterns):
        return None if own is None else rule.expected(own)
    return own if own in (known if labelled else rule.names) else None


def outcome_class(
    completion: str, rule: OutcomeRule | str = "auto", *, stop_reason: str = "eos", ended: bool = True,
    thinking: bool = False, hidden: Iterable[tuple[int, int]] = (),
) -> Outcome:  # fmt: skip
    """What a completion comes to by a rule, or by the answer that `rule` finds: see `OutcomeRule.read`."""
    rule = OutcomeRule(rule) if isinstance(rule, str) else rule
    return rule.read(completion, stop_reason=stop_reason, ended=ended, thinking=thinking, hidden=hidden)
