"""Where a text is cut into steps: by sentence, line, paragraph or pattern. Characters only; linear in the text.

A cut is a run of white space between two steps (or an empty place, as between two CJK sentences), so that a tokenizer that
glues a space to the next word and one that glues a newline to the full stop both find a token boundary in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from probe.errors import BadOption
from probe.patterns import Pattern
from probe.spans.imported import read_spans

HOWS = ("sentence", "line", "paragraph", "token", "regex:PATTERN", "spans:FILE")
SHORT = 12  # a sentence of fewer characters is a part of the one before it

_CLOSING = "\"'”’»)\\]}*_`"
_SENTENCE = re.compile(rf"(?P<end>[.?!…]+)[{_CLOSING}]*(?=\s)|(?P<cjk>[。！？]+[”’）」』】]*)")
_BLANK = re.compile(r"\n[ \t\r]*\n\s*")
_MARKER = re.compile(r"\n[ \t]*(?=(?:[-*+•][ \t]|\d{1,3}[.)][ \t]|#{1,6}[ \t]|(?:\*\*)?[Ss]tep \d+))")
_TAG = re.compile(r"</?(?:think|thinking|answer|reasoning)>")
_PROTECTED = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)"
    r"|\\begin\{(?P<env>[A-Za-z]+\*?)\}.*?\\end\{(?P=env)\}|(?<![\\\w$])\$(?=[^\s$])[^$\n]*?(?<=[^\s\\])\$(?![\w$])|`[^`\n]+`",
    re.DOTALL,
)
_ABBREVIATIONS = frozenset((
    "e.g", "i.e", "eg", "ie", "cf", "vs", "viz", "al", "approx", "ca", "etc", "fig", "figs", "eq", "eqs", "ref",
    "refs", "sec", "secs", "ch", "vol", "no", "nos", "pp", "ed", "eds", "thm", "lem", "prop", "def", "ex", "mr",
    "mrs", "ms", "dr", "prof", "st", "sr", "jr", "rev", "gen", "col", "sgt", "capt", "lt", "hon", "inc", "ltd",
    "co", "corp", "dept", "est", "min", "max", "avg",
    "ft", "lb", "lbs", "oz", "sq", "hr", "hrs", "mins", "resp", "jan", "feb", "mar", "apr", "jun", "jul", "aug",
    "sep", "sept", "oct", "nov", "dec", "mon", "tue", "wed", "thu", "fri", "sat", "sun", "a.m", "p.m", "u.s", "u.k",
    "u.n", "ph.d", "b.c", "a.d",
))  # fmt: skip
# these end a sentence if a capital follows
_ENDS_ANYWAY = frozenset((
    "etc", "a.m", "p.m", "u.s", "u.k", "u.n", "ph.d", "inc", "ltd", "co", "corp", "no", "min", "max", "al",
))  # fmt: skip
_REGEX = "write regex:PATTERN; a step ends where a match ends"
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘]+\Z")


class Cut(NamedTuple):
    """White space [low, high) between two steps; a `hard` one is never undone because a piece is short."""

    low: int
    high: int
    hard: bool = False


def check_split(how: str) -> None:
    """Raise `BadOption` unless `how` is sentence, line, paragraph, token, regex:PATTERN or spans:FILE."""
    name, colon, pattern = how.partition(":")
    if name == "regex" and colon:
        Pattern(pattern, hint=_REGEX)
        if not pattern:
            raise BadOption("the regex is empty", hint=_REGEX)
    elif name == "spans" and colon:
        read_spans(pattern)
    elif how not in HOWS[:-2]:
        raise BadOption(f"unknown split '{how}'", hint=f"{', '.join(HOWS[:-1])} or {HOWS[-1]}")


def split(text: str, how: str = "sentence") -> list[tuple[int, int]]:
    """Half-open character spans of the steps; they tile the text, white space belongs to the step before it."""
    edges = [0, *(cut.high for cut in cuts(text, how)), len(text)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def cuts(text: str, how: str = "sentence") -> list[Cut]:
    """Where the text is cut, ascending, none at either end. Raises `BadOption` for an unknown `how`; `token` cuts nothing."""
    check_split(how)
    if how == "token":
        return []
    if how.startswith("spans:"):
        return [Cut(start, start, True) for start, _ in read_spans(how.removeprefix("spans:"))[1:]]
    if how == "line":
        found = [Cut(m.start(), m.end(), True) for m in re.finditer(r"[ \t\r]*\n\s*", text)]
    elif how == "paragraph":
        found = [Cut(m.start(), m.end(), True) for m in _BLANK.finditer(text)] + list(_tags(text))
    elif how == "sentence":
        found = _merged(text, _ordered(text, [*_structure(text), *_sentences(text)]))
    else:
        found = [Cut(end, end, True) for _, end in Pattern(how.removeprefix("regex:"), hint=_REGEX).spans(text)]
    return _ordered(text, found)


def _ordered(text: str, found: list[Cut]) -> list[Cut]:
    """Ascending and apart: cuts that touch become one, as wide as both; none at the text's ends."""
    joined: list[Cut] = []
    for cut in sorted(found):
        if joined and cut.low <= joined[-1].high:
            last = joined.pop()
            cut = Cut(last.low, max(last.high, cut.high), last.hard or cut.hard)
        joined.append(cut)
    return [
        cut
        for cut in joined
        if cut.high > 0 and cut.low < len(text) and cut.high < len(text) and text[: cut.high].strip()
    ]


def _structure(text: str) -> Iterator[Cut]:
    """Cuts that no sentence rule decides: blank lines, list items, headings, tags; none inside code or a formula."""
    zones = _Zones(text)
    for pattern in (_BLANK, _MARKER):
        for match in pattern.finditer(text):
            low = match.start()
            while low > 0 and text[low - 1] in " \t\r":
                low -= 1
            if not zones.hold(match.start()):
                yield Cut(low, match.end(), True)
    yield from _tags(text)


def _tags(text: str) -> Iterator[Cut]:
    """A tag such as <think> is cut off from the text on both sides."""
    for match in _TAG.finditer(text):
        yield Cut(match.start(), match.start(), True)
        yield Cut(match.end(), _after_space(text, match.end()), True)


def _sentences(text: str) -> Iterator[Cut]:
    zones = _Zones(text)
    for match in _SENTENCE.finditer(text):
        if zones.hold(match.start()):
            continue
        high = _after_space(text, match.end())
        if match["cjk"] or _ends(text, match.start(), match["end"], high):
            yield Cut(match.end(), high)


def _ends(text: str, dot: int, mark: str, following: int) -> bool:
    """Whether these marks end a sentence: not in an abbreviation, an initial, a list number or a trailing-off '...'."""
    if mark[-1] in "?!":
        return True
    follower = text[following : following + 1]
    if len(mark) > 1 or mark == "…":
        return not follower.islower()
    word = _LAST_WORD.search(text, max(0, dot - 24), dot)
    if word is None:
        return True
    last = word[0]
    if last.lower() in _ABBREVIATIONS:
        return last.lower() in _ENDS_ANYWAY and follower.isupper()
    if len(last) == 1 and last.isupper() and last.isalpha() and last != "I":
        return not _is_initial(text, dot, follower)
    return not (last.isdigit() and _begins_line(text, dot - len(last)))


def _is_initial(text: str, dot: int, follower: str) -> bool:
    """A single capital before a name ('J. Smith'), and not the end of 'the answer is B. So …' or 'call it X. Then …'."""
    before = re.search(r"(\w+)\W*\Z", text[max(0, dot - 24) : dot - 1])
    known = {"is", "be", "option", "choice", "answer", "point", "by", "and", "it", "to", "of", "than", "letter"}
    return follower.isupper() and not (before and before[1].lower() in known)


def _begins_line(text: str, at: int) -> bool:
    while at > 0 and text[at - 1] in " \t*#":
        at -= 1
    return at == 0 or text[at - 1] == "\n"


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _merged(text: str, found: list[Cut]) -> list[Cut]:
    """Without the soft cuts before a short sentence, which joins the one before it."""
    kept: list[Cut] = []
    for i, cut in enumerate(found):
        end = found[i + 1].low if i + 1 < len(found) else len(text)
        if cut.hard or end - cut.high >= SHORT:
            kept.append(cut)
    return kept


class _Zones:
    """Code and formulas, asked for ascending places only."""

    def __init__(self, text: str) -> None:
        self._zones = [match.span() for match in _PROTECTED.finditer(text)]
        self._next = 0
        self._last = -1

    def hold(self, at: int) -> bool:
        """Whether a zone covers the character."""
        if at < self._last:
            self._next = 0
        self._last = at
        while self._next < len(self._zones) and self._zones[self._next][1] <= at:
            self._next += 1
        return self._next < len(self._zones) and self._zones[self._next][0] <= at
