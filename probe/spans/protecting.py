"""Stretches of a text that no sentence rule may look into: code, formulas, tables, addresses; and tags. Knows no sentences."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

TAG = re.compile(
    r"</?(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|analysis|solution|answer|final_answer|seed:think)>"
    r"|◁/?think▷|\[/?THINK\]|<\|(?:begin|end)_of_(?:thought|solution)\|>|<\|(?:START|END)_(?:THINKING|RESPONSE)\|>"
    r"|(?:<\|(?:start|end)\|>(?:assistant)?){0,2}<\|channel\|>\w+<\|message\|>"
)
_CLOSES_THINKING = re.compile(
    r"</(?:think|thinking|thoughts?|reasoning|seed:think)>|◁/think▷|\[/THINK\]|<\|(?:end_of_thought|END_THINKING|channel)\|>"
)
_OPENS = re.compile(
    r"(?P<fence>^[ \t>]*(?:```+|~~~+))|(?P<display>\$\$|(?<!\\)\\\[|\\begin\{[A-Za-z]+\*?\})|(?P<round>\\\()"
    r"|(?P<dollar>(?<![\\\w$])\$(?=[^\s$])[^$\n]*?(?<=[^\s\\])\$(?![\w$]))|(?P<code>`++[^`\n]++`++)"
    r"|(?P<address>(?:https?://|www\.)[^\s<>\"')\]}]*[^\s<>\"')\]}.,;:!?])",
    re.MULTILINE,
)
_CELLS = r"[ \t>]*+\|[^\n]*\|[ \t\r]*"
_TABLE = re.compile(
    r"^[^|\n]*\|[^\n]*\n[ \t>]*+\|?[ \t]*+:?-++:?[ \t]*+(?:\|[ \t]*:?-*:?[ \t\r]*)+$(?:\n[^|\n]*\|[^\n]*)*"
    rf"|^{_CELLS}$(?:\n{_CELLS}$)+",
    re.MULTILINE,
)


class Zone(NamedTuple):
    """Characters [start, end) of one `kind`: fence, table, display (a formula on its own), formula, code or address."""

    start: int
    end: int
    kind: str


class Zones:
    """The protected stretches of a text, ascending and apart."""

    def __init__(self, found: Sequence[Zone]) -> None:
        self.found = tuple(found)
        self._starts = [zone.start for zone in found]

    def at(self, place: int) -> Zone | None:
        """The zone that covers the character, if any."""
        i = bisect_right(self._starts, place) - 1
        return self.found[i] if i >= 0 and self.found[i].end > place else None


def zones(text: str) -> Zones:
    """All protected stretches, in one pass. A formula or a block of code never reaches over the end of the thinking."""
    found = [Zone(*match.span(), "table") for match in _TABLE.finditer(text)] if "|" in text else []
    borders = [match.start() for match in _CLOSES_THINKING.finditer(text)]
    absent: set[str] = set()  # closings that don't occur any more: each is looked for once
    at = 0
    while match := _OPENS.search(text, at):
        zone = _zone(text, match, borders, absent)
        at = match.end() if zone is None else zone.end
        if zone is not None:
            found.append(zone)
    apart: list[Zone] = []
    for zone in sorted(found):
        if apart and zone.start < apart[-1].end:
            last = apart.pop()
            zone = Zone(last.start, max(last.end, zone.end), last.kind)
        apart.append(zone)
    return Zones(apart)


def _zone(text: str, match: re.Match[str], borders: Sequence[int], absent: set[str]) -> Zone | None:
    kind, opening = str(match.lastgroup), match[0]
    if kind in ("dollar", "code", "address"):
        return Zone(*match.span(), "formula" if kind == "dollar" else kind)
    i = bisect_left(borders, match.end())
    border = borders[i] if i < len(borders) else len(text)
    if kind == "fence":
        return _fence(text, match, border, absent)
    closing = {"$$": "$$", r"\[": r"\]", r"\(": r"\)"}.get(opening) or opening.replace(r"\begin", r"\end")
    end = -1 if closing in absent else text.find(closing, match.end())
    if end < 0:
        absent.add(closing)
    if not 0 <= end < border:
        return None
    return Zone(match.start(), end + len(closing), "formula" if kind == "round" else "display")


def _fence(text: str, match: re.Match[str], border: int, absent: set[str]) -> Zone:
    """A block of code up to its closing line; one that has none goes on to the end."""
    marks = match[0].lstrip(" \t>")
    start = match.end() - len(marks)
    end = -1 if marks in absent else text.find(marks, match.end())
    if end < 0:
        absent.add(marks)
    if not 0 <= end < border:
        return Zone(start, len(text[start:border].rstrip()) + start, "fence")
    return Zone(start, end + len(marks), "fence")
