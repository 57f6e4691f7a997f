"""Where a text says that it answers: boxes, tags, "the answer is", ####, corrections, and the last number. Knows no keys."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from probe.answers import reading
from probe.answers.reading import trimmed

_FAR = 240  # characters after a denial in which its correction is looked for


class AnswerSpan(NamedTuple):
    """Characters [start, end) of an answer, and how sure that is: high, medium or low."""

    start: int
    end: int
    confidence: str


_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_TAG = re.compile(r"<(?:final_)?answer>\s*([^<]{1,400}?)\s*</(?:final_)?answer>", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_SAYS = re.compile(
    r"(?:(?:\banswers?\b|答案)(?:\s+(?:to|for|of)\s[^.\n:]{1,80}?)?[*_\"]{0,2}\s*(?P<verb>are|were|[是为：]|is(?:\s+not\b"
    r"|n['’]t\b)?|was(?:\s+not\b|n['’]t\b)?|:|="
    r"|equals|(?:would|should|must|could|might|may|will|can|cannot|can['’]t|won['’]t)(?:\s+not)?\s+be|comes? (?:out )?to)"
    r"|^[ \t]*#{1,6}[ \t]*\**(?:the[ \t]+)?(?:final[ \t]+)?answer\**[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_IS_ANSWER = re.compile(
    r"(?<=[^\s*])[\s*]{1,4}(?:is|was)\s(?:(?:therefore|thus|indeed)\s)?(?:the|our|my)\s(?:(?:final|correct|right)\s)?answer\b",
    re.IGNORECASE,
)
_DENIES = re.compile(r"\bnot\b|n['’]t\b|cannot", re.IGNORECASE)
_CORRECTS = re.compile(
    r"\b(?:wait|actually|oops|sorry|correction|hmm+|scratch that|i mean|rather|i made a mistake|(?:that|this"
    r"|it)(?:['’]s| is| was) (?:wrong"
    r"|incorrect|not right)|let me correct|no)\b[\s,.:;—–-]*(?:no\b[\s,]*)?",
    re.IGNORECASE,
)
_INSTEAD = re.compile(
    r"(?:\bbut(?:\srather)?|\b(?:it|that|this|which|answer)(?:['’]s|\s(?:is|was|equals|(?:must|should|would"
    r"|has to)\sbe))|\binstead)\b\s*:?\s*",
    re.IGNORECASE,
)


def boxed(text: str) -> Iterator[AnswerSpan]:
    """What stands in \\boxed{}, to its own closing brace."""
    closed: dict[int, int] = {}
    opened: list[int] = []
    for brace in re.finditer(r"[{}]", text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            closed[opened.pop()] = brace.start()
    for match in _BOX.finditer(text):
        if (end := closed.get(match.end() - 1)) is not None:
            start, end = reading.content(text, match.end(), end)
            if start < end:
                yield AnswerSpan(start, end, "high")


def tagged(text: str) -> Iterator[AnswerSpan]:
    """What stands between <answer> and </answer>."""
    for match in _TAG.finditer(text):
        start, end = reading.content(text, *match.span(1))
        if start < end:
            yield AnswerSpan(start, end, "high")


def hashed(text: str) -> Iterator[AnswerSpan]:
    """What stands after ####."""
    for match in _HASHES.finditer(text):
        start, end = reading.content(text, *match.span(1))
        if start < end:
            yield AnswerSpan(start, end, "high")


def said(text: str) -> Iterator[AnswerSpan]:
    """What follows "the answer is", or what corrects it; and what "is the answer"."""
    found: list[AnswerSpan] = []
    marks = list(_SAYS.finditer(text))
    for match, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=False):
        denied = _DENIES.search(match["verb"] or "") or re.match(
            r"\s*(?:certainly |definitely )?(?:neither|not\b(?! enough))", text[match.end() : match.end() + 20]
        )
        place = None if denied else reading.read(text, match.end(), end)
        if place is not None:
            found.append(AnswerSpan(place.start, place.end, "high" if place.plainly else "medium"))
        corrected = _corrected(text, place.end if place else match.end(), end, denied=bool(denied))
        if corrected is not None:
            found.append(corrected)
    for match in _IS_ANSWER.finditer(text):
        begin = max(text.rfind(mark, max(0, match.start() - 80), match.start()) for mark in ("\n", ". ", ", ", ": ")) + 1
        place = reading.read(text, begin, match.start()) or next(
            (reading.Found(*n, False) for n in reversed(reading.numbers(text, max(begin, match.start() - 20), match.start()))),
            None,
        )
        if place is not None and place.end >= match.start() - 2:
            found.append(AnswerSpan(place.start, place.end, "high"))
    yield from sorted(found, key=lambda place: place.end)


def _corrected(text: str, start: int, end: int, *, denied: bool) -> AnswerSpan | None:
    """What is said instead: after a denial the next "but …" or "it is …", else only after a word that takes something back."""
    end = min(end, start + (_FAR if denied else 4 * _FAR))
    begins = [start] if denied else [match.end() for match in _CORRECTS.finditer(text, start, end)]
    for begin in reversed(begins):
        places = [] if denied or not re.match(r"\W{0,3}\d", text[begin : begin + 4]) else [begin]
        for at in [*places, *(match.end() for match in _INSTEAD.finditer(text, begin, end))]:
            place = reading.read(text, at, end)
            if place is None:
                continue
            written = text[place.start : place.end]
            if place.start - at < 40 and (
                re.search(r"\d|\\", written) or (place.plainly and written[:1].isupper()) or len(written) == 1
            ):
                return AnswerSpan(place.start, place.end, "medium")
    return None


def last(text: str) -> Iterator[AnswerSpan]:
    """Every number that is not denied, with the formula or the tuple it stands in."""
    found: list[tuple[int, int]] = []
    spans, several = (list(form.finditer(text)) for form in (reading.MATH, reading.SOLUTIONS))
    for start, end in reading.numbers(text):
        if found and start < found[-1][1]:
            continue
        math = _holding(spans, start)
        if math is not None:
            group = next(i for i in range(1, 5) if math[i] is not None)
            whole = reading.formula(text, *math.span(group))
            start, end = whole if whole[0] < whole[1] else (start, end)
        elif (both := _holding(several, start)) is not None:
            start, end = both.span()
        elif (opened := re.search(r"[(\[]\s*\Z", text[max(0, start - 3) : start])) is not None:
            begin = max(0, start - 3) + opened.start()
            stop = reading.expression(text, begin, min(len(text), begin + 80))
            if stop is not None and "," in text[begin:stop]:
                start, end = begin, stop
        found.append((start, end))
    affirmed = [
        (a, b) for a, b in found if not re.search(r"\b(?:not|instead of|rather than)\s+\S{0,3}\Z", text[max(0, a - 20) : a])
    ]
    for start, end in affirmed or found:
        yield AnswerSpan(*trimmed(text, start, end), "low")


def _holding(matches: list[re.Match[str]], at: int) -> re.Match[str] | None:
    """The match, of ascending ones, that a character stands in."""
    i = bisect_right(matches, at, key=lambda match: match.start()) - 1
    return matches[i] if i >= 0 and at < matches[i].end() else None


def alone(text: str) -> Iterator[AnswerSpan]:
    """All of a text that is nothing but a letter, a formula, or yes or no."""
    start, end = trimmed(text, 0, len(text))
    if end - start > 200:
        return
    start, end = reading.content(text, start, end)
    if re.fullmatch(r"[(\[]{0,2}[A-J][)\]]{0,2}[.:]?|yes\.?|no\.?|true\.?|false\.?", text[start:end], re.IGNORECASE):
        yield AnswerSpan(start, end, "medium")
