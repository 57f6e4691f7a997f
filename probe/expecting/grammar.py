"""The grammar of an expectation: a value, a comparison, a value. Reads words; knows no table, and evaluates nothing.

expectation = term ("<" | "<=" | ">" | ">=" | "=" | "!=") term
            | term "~=" number ("+-" | "±") number
            | term "in" "[" number "," number "]"
term        = literal | path | ("max" | "min" | "mean" | "median" | "sum" | "count" | "any" | "all") "(" column ")"
path        = "summary" ("." name | "[" (integer | text) "]")+ | column
column      = table ["[" condition ("," condition)* "]"] ["." name]
condition   = name ("=" | "!=" | "<" | "<=" | ">" | ">=") literal
literal     = number | text in quotes | a word | "true" | "false"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from probe.errors import BadExpectation

Literal = float | str | bool

FUNCTIONS = ("max", "min", "mean", "median", "sum", "count", "any", "all")
ORDERS = ("<", "<=", ">", ">=")
COMPARISONS = (*ORDERS, "=", "!=")

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
           |(?P<word>[^\W\d][\w-]*)
           |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
           |(?P<mark><=|>=|!=|~=|==|\+-|[<>=±\[\](),.]))""",
    re.VERBOSE,
)


class Condition(NamedTuple):
    """Which rows: those whose column compares so with a value."""

    column: str
    comparison: str
    value: Literal


@dataclass(frozen=True)
class ColumnOf:
    """A column of some rows of a table; without a column, the rows. function: what they are reduced to; `all` of several
    rows have to be as expected where there is none."""

    table: str
    where: tuple[Condition, ...]
    column: str | None
    function: str = "all"


@dataclass(frozen=True)
class SummaryPath:
    """A value of the run's summary, by the keys and places that lead to it."""

    keys: tuple[str | int, ...]


@dataclass(frozen=True)
class ClosedRange:
    """From the least to the greatest value that is expected, both included."""

    low: float
    high: float


Term = float | str | bool | ColumnOf | SummaryPath


@dataclass(frozen=True)
class Expectation:
    """What was said, and what it says."""

    text: str
    left: ColumnOf | SummaryPath
    comparison: str  # one of COMPARISONS, or "in"
    right: Term | ClosedRange


def parse(text: str) -> Expectation:
    """The expectation that a text says. Raises `BadExpectation`, with a mark where it cannot be read on."""
    return _Reader(text).expectation()


class _Reader:
    """A recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []  # kind, token, where it begins
        at, end = 0, len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if found is None:
                raise self.wrong("a name, a number or a comparison", at + len(text[at:]) - len(text[at:].lstrip()))
            kind = str(found.lastgroup)
            self.tokens.append((kind, found[kind], found.start(kind)))
            at = found.end()
        self.tokens.append(("end", "", end))
        self.next = 0

    def wrong(self, wanted: str, at: int | None = None) -> BadExpectation:
        at = self.tokens[self.next][2] if at is None else at
        said = f"{self.text[:at]}⟨here⟩{self.text[at:]}"
        return BadExpectation(
            f"'{said}' cannot be read: {wanted} is wanted",
            hint="such as: effects.difference > 0.1, or head_kinds[layer=18, head=6].induction in [0.7, 0.9]",
        )

    def take(self, *wanted: str, kind: str | None = None) -> str | None:
        """The next token, if it is one of these marks and words, or of this kind."""
        its_kind, token, _ = self.tokens[self.next]
        if (its_kind == kind) if kind else (token in wanted and its_kind in ("mark", "word")):
            self.next += 1
            return token
        return None

    def need(self, *wanted: str, kind: str | None = None, called: str = "") -> str:
        token = self.take(*wanted, kind=kind)
        if token is None:
            raise self.wrong(called or " or ".join(f"'{one}'" for one in wanted))
        return token

    def number(self) -> float:
        return float(self.need(kind="number", called="a number"))

    def expectation(self) -> Expectation:
        left = self.term()
        if not isinstance(left, ColumnOf | SummaryPath):
            self.next = 0
            raise self.wrong("what is measured: a path into the summary or a column of a table")
        comparison = self.need(*COMPARISONS, "==", "~=", "in", called="a comparison").replace("==", "=")
        right: Term | ClosedRange
        if comparison == "in":
            self.need("[")
            low = self.number()
            self.need(",")
            right = self.range(low, self.number())
            self.need("]")
        elif comparison == "~=":
            comparison, middle = "in", self.number()
            self.need("+-", "±", called="'+-' and a tolerance")
            tolerance = self.number()
            right = self.range(middle - tolerance, middle + tolerance)
        else:
            right = self.term()
        if self.tokens[self.next][0] != "end":
            raise self.wrong("the end")
        return Expectation(self.text, left, comparison, right)

    def range(self, low: float, high: float) -> ClosedRange:
        if low > high:
            self.next -= 1
            raise self.wrong("a greater number")
        return ClosedRange(low, high)

    def term(self) -> Term:
        kind, token, _ = self.tokens[self.next]
        after = self.tokens[self.next + 1][1] if kind == "word" else ""
        if token in FUNCTIONS and after == "(":
            self.next += 2
            found = self.column(token)
            self.need(")")
            return found
        if after not in (".", "["):
            return self.literal()
        return self.path() if token == "summary" else self.column("all")

    def literal(self) -> Literal:
        if (number := self.take(kind="number")) is not None:
            return float(number)
        if (text := self.take(kind="text")) is not None:
            return re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), text[1:-1])
        word = self.need(kind="word", called="a value")
        return {"true": True, "false": False}.get(word, word)

    def path(self) -> SummaryPath:
        self.next += 1
        keys: list[str | int] = []
        while mark := self.take(".", "["):
            if mark == ".":
                keys.append(self.need(kind="word", called="a name"))
                continue
            place = self.literal()
            if isinstance(place, float) and not place.is_integer():
                self.next -= 1
                raise self.wrong("a whole number, or a text in quotes")
            keys.append(int(place) if isinstance(place, float) else str(place))
            self.need("]")
        if not keys:
            raise self.wrong("'.' and a name in the summary")
        return SummaryPath(tuple(keys))

    def column(self, function: str) -> ColumnOf:
        table = self.need(kind="word", called="a table")
        where: list[Condition] = []
        if self.take("["):
            while not where or self.take(","):
                column = self.need(kind="word", called="a column")
                comparison = self.need(*COMPARISONS, "==", called="a comparison").replace("==", "=")
                where.append(Condition(column, comparison, self.literal()))
            self.need("]")
        name = self.need(kind="word", called="a column") if self.take(".") else None
        if name is None and function != "count":
            raise self.wrong("'.' and a column")
        return ColumnOf(table, tuple(where), name, function)
