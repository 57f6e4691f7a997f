"""Steps as spans of tokens: character cuts moved to token boundaries; and what a step seems to do, by its words."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from probe.errors import BadOption
from probe.spans.cutting import StepBoundary, cuts, read_spans


class Span(NamedTuple):
    """Half-open range of characters."""

    start: int
    end: int


class Step(NamedTuple):
    """Tokens [start, end) and their characters [text_start, text_end). `mid_token`: the cut before it fell inside a token.

    Then the whole token belongs to this step.
    """

    start: int
    end: int
    text_start: int
    text_end: int
    kind: str
    text: str
    mid_token: bool


def steps(text: str, offsets: Sequence[tuple[int, int]], how: str = "sentence") -> list[Step]:
    """Steps of a text whose tokens have these character spans (ascending, tiling it). They tile the tokens; none is empty."""
    if how.startswith("spans:"):
        return from_spans(text, offsets, read_spans(how.removeprefix("spans:")))
    if how == "token":
        cuts("", how)
        return _steps(text, offsets, [(i, False) for i in range(1, len(offsets))])
    return _steps(text, offsets, _boundaries(offsets, cuts(text, how)))


def steps_from(text: str, offsets: Sequence[tuple[int, int]], first: int, how: str = "sentence") -> list[Step]:
    """Steps of the tokens from position `first` on; token and character spans count from the start of the whole text."""
    begin = offsets[first][0]
    own = [(start - begin, end - begin) for start, end in offsets[first:]]
    return [
        step._replace(
            start=step.start + first, end=step.end + first,
            text_start=step.text_start + begin, text_end=step.text_end + begin,
        )
        for step in steps(text[begin:], own, how)
    ]  # fmt: skip


def from_spans(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[Step]:
    """Steps from a user's own character spans, which must tile the text in order. Raises `BadOption` where they don't."""
    at = 0
    for i, (start, end) in enumerate(spans):
        if start != at or end <= start:
            what = "overlaps the one before" if start < at else "leaves a gap" if start > at else "is empty"
            raise BadOption(f"span {i} ({start}, {end}) {what}", hint=f"spans tile the text: this one starts at {at}")
        at = end
    if at != len(text):
        raise BadOption(f"the spans end at {at}, the text at {len(text)}", hint="spans tile the text")
    return _steps(text, offsets, _boundaries(offsets, [StepBoundary(start, start) for start, _ in spans[1:]]))


def _boundaries(offsets: Sequence[tuple[int, int]], found: Sequence[StepBoundary]) -> list[tuple[int, bool]]:
    """For each cut, the token that the next step begins with: the last one to begin in the cut, else the one around it."""
    starts = [start for start, _ in offsets]
    out: list[tuple[int, bool]] = []
    for cut in found:
        token = bisect_right(starts, cut.high) - 1
        # tokens without characters belong to the character before them, and so to the step before
        first = bisect_left(starts, starts[token])
        while first < len(offsets) - 1 and offsets[first][1] == offsets[first][0]:
            first += 1
        inside = starts[first] < cut.low
        last = out[-1][0] if out else 0
        if first > last:
            out.append((first, inside))
    return out


def _steps(text: str, offsets: Sequence[tuple[int, int]], boundaries: Sequence[tuple[int, bool]]) -> list[Step]:
    if not offsets:
        return []
    edges = [(0, False), *boundaries, (len(offsets), False)]
    found = []
    for (start, inside), (end, _) in pairwise(edges):
        low, high = offsets[start][0], offsets[end - 1][1]
        found.append(Step(start, end, low, high, kind(text[low:high]), text[low:high], inside))
    return found


_RULES = (
    ("final_answer_emission", r"\\boxed|final answer|\b(?:the )?answer is\b|^#### "),
    ("self_checking", r"\b(?:double[- ]check|verify|check (?:that|if|this|my)|let me check|re-?check|confirm|make sure)\b"),
    (
        "uncertainty_management",
        r"\b(?:wait|hmm|actually|alternatively|not sure|maybe|perhaps|confus|mistake|hold on|on second thought)",
    ),
    (
        "plan_generation",
        r"\b(?:let'?s|let me|i(?:'ll| will| need to| should| want to)|we (?:need|should|can|will)|first,|next,|step \d+"
        r"|to (?:find|solve|determine|calculate))\b",
    ),
    ("active_computation", r"\d\s*[-+*/×÷=^]\s*\$?\d|=\s*-?\$?\d|\b(?:plus|minus|times|multipl|divid|subtract|add)\w*"),
    (
        "result_consolidation",
        r"^(?:so|therefore|thus|hence|in total|altogether|this (?:means|gives)|in (?:summary|conclusion))\b",
    ),
    ("problem_setup", r"\b(?:the (?:problem|question)|we are given|given that|we have|asks?|asked|starts? with)\b"),
    ("fact_retrieval", r"\b(?:is|are|was|were|has|have|means|recall|remember|known|defined|formula|according to)\b"),
)
KINDS = (*(name for name, _ in _RULES), "unknown")
_COMPILED = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _RULES)


def kind(text: str) -> str:
    """The first label whose words occur in the step. A guess from words alone: label by hand or import labels to be sure."""
    text = text.strip()
    return next((name for name, pattern in _COMPILED if pattern.search(text)), "unknown")
