"""Where lines end a step by themselves: blank lines, list items, headings, code, tables, tags. Knows no sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from probe.spans.protecting import TAG, Zones
from probe.spans.words import GOES_ON

BLANK = re.compile(r"\n[ \t\r]*\n\s*")
BREAK = re.compile(r"\n\s*")
_ITEM = re.compile(
    r"[ \t>]*(?:[-*+•‣◦–—][ \t]|\(?\d{1,3}[.)][ \t]|\(?[A-Za-z][.)][ \t]|\(?[ivxIVX]{1,5}[.)][ \t]|(?:\*\*)?step \d+)",
    re.IGNORECASE,
)
_HEADING = re.compile(r"[ \t]*#{1,6}[ \t]|[ \t]*\*\*[^*\n]+\*\*:?[ \t\r]*\Z")
_RULER = re.compile(r"[ \t]*(?:={3,}|-{3,})[ \t\r]*\Z")
_LEAD = re.compile(r"[ \t>]*")
_WORD = re.compile(r"[^\W\d_]{2,}|[aà](?= [^\W\d_])")
_LAST = re.compile(r"([^\W\d_]+|=|\+)[ \t\r*_]*\Z")
_ENDED = re.compile(r"[.!?:。！？：।؟…][\"'”’»)\]*_`」』）]*[ \t\r]*\Z")


class StepBoundary(NamedTuple):
    """White space [low, high) between two steps; a `hard` one is never undone by what the words are."""

    low: int
    high: int
    hard: bool = False


def spaced(text: str, low: int, high: int) -> StepBoundary:
    """A hard cut, with the white space before `low` that belongs to it."""
    while low > 0 and text[low - 1].isspace():
        low -= 1
    return StepBoundary(low, high, True)


def tags(text: str, protected: Zones) -> Iterator[StepBoundary]:
    """A tag such as <think> is cut off from the text on both sides, unless it is quoted as code."""
    for match in TAG.finditer(text):
        if protected.at(match.start()) is None:
            high = match.end()
            while high < len(text) and text[high].isspace():
                high += 1
            yield spaced(text, match.start(), match.start())
            yield StepBoundary(match.end(), high, True)


def structure(text: str, protected: Zones) -> Iterator[StepBoundary]:
    """Cuts at line breaks and tags; a break inside a sentence is none."""
    for match in BREAK.finditer(text):
        cut = spaced(text, match.start(), match.end())
        if cut.low and protected.at(match.start()) is None:
            begin = text.rfind("\n", 0, cut.low) + 1
            own = text.rfind("\n", match.start(), match.end()) + 1
            end = text.find("\n", own)
            before, after = text[begin : cut.low], text[own : len(text) if end < 0 else end]
            zones = protected.at(cut.low - 1), protected.at(cut.high)
            kinds = ["" if zone is None else zone.kind for zone in zones]
            if match[0].count("\n") > 1 or _apart(before, after, *kinds):
                yield cut
    yield from tags(text, protected)


def _apart(before: str, after: str, kind_before: str, kind_after: str) -> bool:
    """Whether a line break between these lines ends a step."""
    if _RULER.match(after) and not kind_after:
        return False
    if {"fence", "table"} & {kind_before, kind_after} or _HEADING.match(before) or _RULER.match(before):
        return True
    if _ITEM.match(after) or _HEADING.match(after):
        return True
    lead = _LEAD.match(after)
    rest = after[lead.end() :] if lead else after
    if kind_before == "display":
        return not (rest[:1] in ",.;:)" or (_WORD.match(rest) and rest[:1].islower()))
    if kind_after == "display":
        return bool(_ENDED.search(before)) and not before.rstrip().endswith((":", "："))
    if before.rstrip().endswith((",", "，", "、")):
        return False
    ended = bool(_ENDED.search(before))
    last = _LAST.search(before)
    if not ended and last and (last[1].lower() in GOES_ON or last[1] in "=+"):
        return False
    return not (_WORD.match(rest) and rest[:1].islower())
