"""Where a text is cut into steps: by sentence, line, paragraph or pattern. Characters only; linear in the text.

A cut is a run of white space between two steps (or an empty place, as between two CJK sentences), so that a tokenizer that
glues a space to the next word and one that glues a newline to the full stop both find a token boundary in it.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

from probe.errors import BadOption
from probe.patterns import Pattern
from probe.spans.lines import BLANK, BREAK, StepBoundary, spaced, structure, tags
from probe.spans.protecting import Zones, zones
from probe.spans.sentences import language_of, masked, sentences

_FORM = "a JSON list of [start, end] character positions in the completion, the first 0, each beginning where the last ends"


def read_spans(path: str) -> list[tuple[int, int]]:
    """Half-open character spans of a file. Raises `BadOption` if it can't be read or holds something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadOption(f"cannot read spans from '{path}': {error}", hint=_FORM) from error
    fine = isinstance(found, list) and all(
        isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span) for span in found
    )
    if not fine or not found:
        raise BadOption(f"'{path}' holds no spans", hint=_FORM)
    return [(start, end) for start, end in found]


HOWS = ("sentence", "line", "paragraph", "token", "regex:PATTERN", "spans:FILE")
_REGEX = "write regex:PATTERN; a step ends where a match ends"


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


def of_other_texts(how: str) -> str:
    """How texts like one that was cut so are cut: the same way, but by sentences where a file says where that one is."""
    return "sentence" if how.startswith("spans:") else how


def cuts(text: str, how: str = "sentence") -> list[StepBoundary]:
    """Where the text is cut, ascending, none at either end. Raises `BadOption` for an unknown `how`; `token` cuts nothing."""
    check_split(how)
    if how == "token":
        return []
    if how.startswith("spans:"):
        return [StepBoundary(start, start, True) for start, _ in read_spans(how.removeprefix("spans:"))[1:]]
    if how == "line":
        found = [spaced(text, m.start(), m.end()) for m in BREAK.finditer(text)]
    elif how == "paragraph":
        found = [spaced(text, m.start(), m.end()) for m in BLANK.finditer(text)]
        found += tags(text, zones(text))
    elif how == "sentence":
        found = _worded(text, _by_sentence(text))
    else:
        found = [StepBoundary(end, end, True) for _, end in Pattern(how.removeprefix("regex:"), hint=_REGEX).spans(text)]
    return _ordered(text, found)


def _ordered(text: str, found: list[StepBoundary]) -> list[StepBoundary]:
    """Ascending and apart: cuts that touch become one, as wide as both; none at the text's ends."""
    joined: list[StepBoundary] = []
    for cut in sorted(found):
        if joined and cut.low <= joined[-1].high:
            last = joined.pop()
            cut = StepBoundary(last.low, max(last.high, cut.high), last.hard or cut.hard)
        joined.append(cut)
    first = len(text) - len(text.lstrip())
    return [cut for cut in joined if cut.high > first and cut.low < len(text) and cut.high < len(text)]


def _by_sentence(text: str) -> list[StepBoundary]:
    """Hard cuts of lines, blocks and tags, and between them those of sentences."""
    protected = zones(text)
    hard = _ordered(text, list(structure(text, protected)))
    shown, language = masked(text, protected), language_of(text)
    soft = []
    for low, high in pairwise([0, *(cut.high for cut in hard), len(text)]):
        soft += [_gap(text, low + end) for end in sentences(text[low:high], shown[low:high], language)]
    return _ordered(text, [*hard, *soft, *_displays(text, protected)])


def _displays(text: str, protected: Zones) -> list[StepBoundary]:
    """Ends of formulas on their own that a sentence follows on the same line."""
    ends = [zone.end for zone in protected.found if zone.kind == "display"]
    return [_gap(text, end) for end in ends if re.match(r"[ \t]+[A-Z][a-z]", text[end : end + 40])]


def _gap(text: str, low: int) -> StepBoundary:
    """A soft cut at the white space from `low` on."""
    high = low
    while high < len(text) and text[high].isspace():
        high += 1
    return StepBoundary(low, high)


def _worded(text: str, found: list[StepBoundary]) -> list[StepBoundary]:
    """Without cuts before a piece that holds no letter and no digit: a ruler, a stray bracket, a picture."""
    ends = [*(cut.low for cut in found), len(text)][1:]
    return [cut for cut, end in zip(found, ends, strict=True) if re.search(r"\w", text[cut.high : end])]
