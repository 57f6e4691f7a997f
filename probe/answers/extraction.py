"""Finds the answer in a text: by rules, the last match of the strongest rule wins. Knows no model and no right answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from probe.answers.canonical import canonical
from probe.errors import BadOption
from probe.patterns import Pattern

_WORDS = 3  # a longer clause without a number explains, it doesn't answer
NONE, TRUNCATED = "<none>", "<truncated>"
HOWS = ("auto", "last-number", "boxed", "choice", "yes-no", "regex=PATTERN")

_NUMBER = re.compile(
    r"(?<![\w.])[-−]?\s?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?!\.?\d)(?:[eE][-+]?\d+\b)?(?:\s?/\s?\d+(?![\d/]))?\s?%?"
    r"|\\[dtc]?frac\s*(?:\{[^{}]*\}\s*\{[^{}]*\}|\d\s*\d)"
)
_SAYS = re.compile(r"(?:final\s+)?answer\s*(?:is|:|=|would be|should be)\s*:?\s*", re.IGNORECASE)
_HASHES = re.compile(r"####\s*([^\n]+)")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_CHOICE = re.compile(r"(?:\(([A-J])\)|(?<![\w'’])([A-J])(?=[).:,\s]|\Z)(?!\s+[a-z]))")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


class Answer(NamedTuple):
    """An answer: its class `key`, its `text` as written, characters [start, end), and the `rule` that found it."""

    key: str
    text: str
    start: int
    end: int
    rule: str


class Candidate(NamedTuple):
    """One match of one rule, and whether it is the one that `extract` chose."""

    rule: str
    text: str
    key: str
    start: int
    end: int
    chosen: bool


def extract(text: str, how: str = "auto") -> Answer:
    """The answer that a text gives; key `<none>` if it gives none.

    how: `auto` (a \\boxed{}, else what follows "answer is", else what follows ####, else the last number), `last-number`,
    `boxed`, `choice` (a letter A to J), `yes-no`, or `regex=PATTERN` (its first group, or all of it). The last match wins.
    Raises `BadOption` for another `how`, or a pattern that is none.
    """
    for rule, find in _rules(how):
        found = list(find(text))
        if found:
            start, end = found[-1]
            return Answer(_key(rule, text[start:end]), text[start:end], start, end, rule)
    return Answer(NONE, "", 0, 0, "")


def explain(text: str, how: str = "auto") -> list[Candidate]:
    """Every match of every rule that `how` tries, strongest rule first."""
    chosen = extract(text, how)
    return [
        Candidate(rule, text[a:b], _key(rule, text[a:b]), a, b, (rule, a, b) == (chosen.rule, chosen.start, chosen.end))
        for rule, find in _rules(how)
        for a, b in find(text)
    ]


Finder = Callable[[str], Iterator[tuple[int, int]]]


def _rules(how: str) -> list[tuple[str, Finder]]:
    if how == "auto":
        return [("boxed", _boxed), ("answer is", _said), ("####", _hashed), ("last-number", _numbers)]
    if how.startswith("regex="):
        return [("regex", _pattern(how.removeprefix("regex=")))]
    known: dict[str, Finder] = {"last-number": _numbers, "boxed": _boxed, "choice": _choices, "yes-no": _yes_no}
    if how not in known:
        raise BadOption(f"unknown way to find answers '{how}'", hint=f"{', '.join(HOWS[:-1])} or {HOWS[-1]}")
    return [(how, known[how])]


def _key(rule: str, text: str) -> str:
    return text.upper() if rule == "choice" else canonical(text)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _numbers(text: str) -> Iterator[tuple[int, int]]:
    for match in _NUMBER.finditer(text):
        start, end = _trimmed(text, *match.span())
        # a minus after a number, or apart from its own, is arithmetic and no sign
        if text[start] in "-−" and (
            text[start + 1].isspace() or re.search(r"[\d)}]\s*\Z", text[max(0, start - 8) : start])
        ):
            start, end = _trimmed(text, start + 1, end)
        if start < end:
            yield start, end


def _boxed(text: str) -> Iterator[tuple[int, int]]:
    for match in _BOX.finditer(text):
        depth, at = 1, match.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth:
            start, end = _trimmed(text, match.end(), at - 1)
            if start < end:
                yield start, end


def _said(text: str) -> Iterator[tuple[int, int]]:
    """What follows "the answer is": the first number of the clause, else the clause, if it is as short as an answer."""
    for match in _SAYS.finditer(text):
        stop = re.search(r"(?<!\d)[.!?](?=\s|\Z)|[.!?](?=\s|\Z)|\n|<\|", text[match.end() :])
        end = match.end() + (stop.start() if stop else len(text) - match.end())
        clause = text[match.end() : end]
        number = next(_numbers(clause), None)
        start, end = _trimmed(text, match.end(), end)
        if number is not None:
            yield match.end() + number[0], match.end() + number[1]
        elif start < end and len(text[start:end].split()) <= _WORDS:
            yield start, end


def _hashed(text: str) -> Iterator[tuple[int, int]]:
    for match in _HASHES.finditer(text):
        yield _trimmed(text, *match.span(1))


def _choices(text: str) -> Iterator[tuple[int, int]]:
    for match in _CHOICE.finditer(text):
        yield match.span(1) if match[1] else match.span(2)


def _yes_no(text: str) -> Iterator[tuple[int, int]]:
    for match in _YES_NO.finditer(text):
        yield match.span()


def _pattern(pattern: str) -> Finder:
    compiled = Pattern(pattern, hint="write regex=PATTERN")

    def find(text: str) -> Iterator[tuple[int, int]]:
        return (span for span in compiled.groups(text) if span[0] < span[1])

    return find
