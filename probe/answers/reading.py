"""Reads the answer out of what follows "the answer is": a formula, a number, or a few words. Characters only, linear."""

from __future__ import annotations

import re
from typing import NamedTuple

from probe.answers.numbers import NUMBER, UNSIGNED, value

_WORDS = 8  # a longer clause without a number explains, it doesn't answer
_FUNCTIONS = r"(?:sqrt|sin|cos|tan|log|ln|exp|pi|inf|infinity)\b"
_ATOM = re.compile(
    rf"(?P<number>(?<![A-Za-z.]){UNSIGNED})|(?P<command>\\(?!text|mathrm|mbox|quad|\)|\])(?:[A-Za-z]+|[{{}}%,;:! \\]))"
    rf"|(?P<name>{_FUNCTIONS}|[A-Za-zα-ωΑ-Ω](?![A-Za-z'’]))|(?P<open>[(\[{{])|(?P<close>[)\]}}])"
    r"|(?P<operator>[-+−*/^=<>≤≥≈≠±×÷·⋅&|]|!=)|(?P<after>[!°²³¹⁰⁴-⁹']+|_)|(?P<comma>,)|(?P<space>\s+)"
)
_RELATION = re.compile(r"(?<![<>!=≠])=(?!=)|≈|\\approx|\\equiv")
MATH = re.compile(
    r"\$\$(.{1,400}?)\$\$|\$(?=\S)([^$\n]{0,400}?[^$\s\\])\$(?!\d)|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL
)
_STOP = re.compile(
    r"[.!?](?=[\s\"'”*)]|\Z)|[。！？；]|\n|;|\s[—–]\s|—|,?\s(?:because|since|so|which|where|as|for|but|although|while"
    r"|given|due to|meaning"
    r"|that is|i\.e\.|therefore|hence|thus|when|if|is the|was the)\b|,?\s(?:and\s)?(?:not|rather than|instead of)\b"
    r"|\s\((?=[a-z]{2})"
)
_HEDGE = re.compile(
    r"(?:[\s*_:`\"“”]|(?:\\approx|\\sim|[≈~])|\\boxed\b|(?:approximately|about|around|roughly|exactly|precisely"
    r"|simply|just|only|therefore"
    r"|thus|hence|probably|likely|clearly|obviously|indeed|equal to|equals|given by|now|actually|definitely|certainly"
    r"|still|also"
    r"|then|the (?:number|value|sum|total|result)(?:\sis)?|a total of|that|as follows)\b[\s,]*)*",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"(?:(?:often|usually|then|simply|always|sometimes|not|also|still|now|already|indeed|only|just|being|clearly)\s+)*"
    r"(?:\w+(?:ed|ing)|found|given|known|shown|that|because|this|these|there|here|it|we|let|let's|to|in|on|by|at|from"
    r"|if|when|what|how"
    r"|why|you|i|they|as|of|for|with|the following|following|right|wrong|correct|incorrect|clear|obvious|simple|very"
    r"|more|so|up|all|both"
    r"|unclear|unknown|uncertain|different|ambiguous|likely|important|probably|below|above|and|or|is|was|be|about|i'm"
    r"|don't|do|sorry)\b",
    re.IGNORECASE,
)
_JOIN = re.compile(r"\$?\s*(?:,\s*(?:and|or)?|\band\b|\bor\b|\bto\b)\s*\$?\s*")
_PAIR = re.compile(r"(?:between|from)\s+\S{1,20}\s+(?:and|to)\s+[^\s,;]{1,20}", re.IGNORECASE)
SOLUTIONS = re.compile(r"(?<![A-Za-z])\$?[A-Za-z]\s*=\s*[^=,]{1,40}(?:,|\b(?:and|or)\b)\s*\$?[A-Za-z]\s*=\s*[^=,]{1,40}")
_AMOUNTS = re.compile(  # 3 hours and 20 minutes
    r"\d[\d,.]*\s?(?:hours?|hrs?|minutes?|mins?|days?|weeks?|months?|years?|feet|foot|ft"
    r"|pounds?|lbs?|dollars?|euros?|h|m|kg|km)"
    r"(?:,|\s+and)?\s+\d[\d,.]*\s?(?:minutes?|mins?|seconds?|secs?|hours?|days?|weeks?|months?|inch(?:es)?|in"
    r"|ounces?|oz|cents?|m|s|g|cm)\b"
)
_CLOCK = re.compile(r"\d{1,3}:\d{1,3}(?::\d\d)?(?:\s?[ap]\.?m\b)?", re.IGNORECASE)
_RULED = re.compile(r"\d{1,3},\d{1,2}(?![\d,])")  # 3,5
_VARIABLE = re.compile(r"[A-Za-z](?:_\{?\w+\}?|\([A-Za-z]\))?")


class Found(NamedTuple):
    """Characters [start, end) of an answer; `plainly` if nothing but it stood there."""

    start: int
    end: int
    plainly: bool


def clause_end(text: str, start: int, stop: int) -> int:
    """Where the clause that begins at `start` ends: with its sentence, or where an explanation begins; formulas stay whole."""
    at = start
    while (match := _STOP.search(text, at, stop)) is not None:
        math = next((m for m in MATH.finditer(text, at, stop) if m.start() < match.start() < m.end()), None)
        if math is not None:
            at = math.end()
        elif text[start : match.start()].strip(" *_:`\"'$\\[(") == "" and match[0] != ".":
            at = match.end()  # nothing was said yet
        else:
            return match.start()
    return stop


def read(text: str, start: int, stop: int) -> Found | None:
    """What the clause in characters [start, stop) answers."""
    begin, end = start, clause_end(text, start, stop)
    while (hedge := _HEDGE.match(text, begin, end)) is not None and hedge.end() > begin:
        begin = hedge.end()
    for whole in (_PAIR, SOLUTIONS, _AMOUNTS, _CLOCK):
        if (match := whole.match(text, begin, end)) is not None:
            return Found(*trimmed(text, *match.span()), True)
    return _maths(text, begin, end) or _words(text, begin, end)


def _maths(text: str, begin: int, end: int) -> Found | None:
    """A formula or number that the clause begins with, or that stands after its last `=`."""
    if (math := MATH.match(text, begin, end)) is not None:
        group = next(i for i in range(1, 5) if math[i] is not None)
        start, stop = formula(text, *math.span(group))
        if start < stop and (more := _joined(text, math.end(), end)) is not None:
            return Found(start, more, True)
        return Found(start, stop, not text[math.end() : end].strip(" .*")) if start < stop else None
    equals = _relations(text, begin, end)
    for at in [*([equals[-1]] if equals else []), begin]:
        at += len(text[at:end]) - len(text[at:end].lstrip(" $*"))
        currency = at - 1 if at > begin and text[at - 1] == "$" else at
        for first in dict.fromkeys((currency, at)):
            if (last := expression(text, first, end)) is not None:
                start, stop = formula(text, first, last)
                if at == begin or first == begin:
                    stop = _joined(text, stop, end) or stop
                return Found(start, stop, not text[stop:end].strip(" .*$"))
    return None


def _relations(text: str, begin: int, end: int) -> list[int]:
    """Where the right sides begin. An equation in brackets behind an answer explains it: `5 (3 + 2 = 5)`."""
    every = [match.span() for match in _RELATION.finditer(text, begin, end)]
    outside = [last for first, last in every if text.count("(", begin, first) <= text.count(")", begin, first)]
    bracketed = text[begin:end].lstrip(" \"'$*").startswith("(")
    return outside or ([last for _, last in every] if bracketed else [])


def _words(text: str, begin: int, end: int) -> Found | None:
    """A few words, or the first number among them."""
    start, stop = trimmed(text, begin, end)
    n = len(text[start:stop].split())
    number = next(iter(numbers(text, start, stop)), None)
    if number is not None and not (n <= 4 and text[start : start + 1].isupper()):
        return Found(number[0], expression(text, number[0], stop) or number[1], False)
    quoted = text[start - 1 : start] in ('"', "“")
    if not n or n > _WORDS or (not quoted and _NO_ANSWER.match(text, start, stop)) or not re.search(r"\w", text[start:stop]):
        return None
    return Found(start, stop, n <= 3)


def _joined(text: str, at: int, end: int) -> int | None:
    """The end of a list of numbers or formulas (`3 or 5`, `3, 5 and 7`, `5 to 10`) whose first ends at `at`."""
    last = None
    while (join := _JOIN.match(text, at, end)) is not None:
        stop = expression(text, join.end(), end)
        if stop is None or re.match(r"\s+[A-Za-z]{2}", text[stop : stop + 8]):
            break
        last = at = stop
    return last


def expression(text: str, start: int, end: int) -> int | None:
    """Where a formula or a number that begins at `start` ends; None if there is none."""
    if (match := _RULED.match(text, start, end)) is not None:
        return match.end()
    at, depth, last, operand = start, 0, None, False
    spaced = False
    while (match := _ATOM.match(text, at, end)) is not None:
        kind = str(match.lastgroup)
        if depth == 0 and operand and spaced and kind in ("number", "name", "open"):
            break  # a unit, a word or a parenthesis beside it
        if kind == "comma" and not (depth or re.match(r"\d", text[match.end() : match.end() + 1])):
            break
        if kind == "operator" and not operand and depth == 0 and match[0] not in "-+−±":
            break
        depth += (kind == "open") - (kind == "close")
        if depth < 0:
            break
        if kind != "space":
            word = kind == "command" and (match[0][-1].isalpha() or match[0] == "\\%")
            operand = word or kind in ("number", "name", "close", "after")
        spaced = kind == "space"
        at = match.end()
        if depth == 0 and operand and not spaced:
            last = at
    if last is None or (at < end and re.match(r"[A-Za-z]", text[at]) and not re.search(r"[\d\\)\]]", text[start:last])):
        return None
    return last if re.search(r"\d|\\[a-z]|[-+*/^=]", text[start:last]) else None


def formula(text: str, start: int, end: int) -> tuple[int, int]:
    """What a formula comes to: what stands after its last `=`, where that is a chain or names a variable."""
    relations = list(_RELATION.finditer(text, start, end))
    if relations and "," not in text[start:end]:
        after = trimmed(text, relations[-1].end(), end)
        if after[0] < after[1]:
            start, end = after
    start, end = trimmed(text, start, end)
    while end > start and text[end - 1] in ".,;:" and not text[start:end].endswith("\\,"):
        end -= 1
    return trimmed(text, start, end)


def content(text: str, start: int, end: int) -> tuple[int, int]:
    """What a box holds: its number without the unit's words, else all of it, without `x =`."""
    start, end = trimmed(text, start, end)
    if (
        wrapped := re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}\.?").fullmatch(text, start, end)
    ) is not None:
        start, end = trimmed(text, *wrapped.span(1))
    start, end = formula(text, start, end)
    number = _LEADING.match(text, start, end)
    if number is not None and value(text[start : number.end()]) is not None and _UNIT.fullmatch(text, number.end(), end):
        return start, number.end()
    return start, end


_LEADING = re.compile(NUMBER)
_UNIT = re.compile(
    r"(?:\\[,;:! ]|~|\s)*(?:\^\{?\\circ\}?|°|(?:\\(?:text|mathrm"
    r"|mbox)\s*\{)?\s*(?!(?:and|or|to|mod|times|of|sin|cos|log|pi|sqrt)\b)[A-Za-z]{2,20}"
    r"(?:\s(?!and\b|or\b|to\b)[A-Za-z]{2,20}){0,3}|(?:\\(?:text|mathrm|mbox)\s*\{)\s*[a-zA-Z/]+|\s?[kcm]?[mgsl])"
    r"(?:\^\{?[23]\}?|[²³])?(?:/[a-z]{1,4}(?:\^\{?\d\}?|[²³])?)?\}?(?:\^\{?[23]\}?)?[\s.]*"
)


def numbers(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Characters of every number, with what belongs to it: sign, currency, power of ten, fraction, percent."""
    found = []
    for match in _NUMBER.finditer(text, start, len(text) if end is None else end):
        a, b = trimmed(text, *match.span())
        # a minus after a number, or apart from its own, is arithmetic and no sign
        if text[a] in "-+−" and (text[a + 1].isspace() or re.search(r"[\d)}]\s*\Z|\w\Z", text[max(0, a - 8) : a])):
            a, b = trimmed(text, a + 1, b)
        if a < b:
            found.append((a, b))
    return found


_NUMBER = re.compile(rf"(?<![\w.]){NUMBER}(?!\.?\d)")


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without the white space, quotes and stars at both ends."""
    while start < end and (text[start].isspace() or text[start] in '*`"“”'):
        start += 1
    while end > start and (text[end - 1].isspace() or text[end - 1] in '*`"“”'):
        end -= 1
    return start, end
