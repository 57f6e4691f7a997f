"""Answers as keys: two answers are the same exactly if their keys are equal, so that classes are classes. Knows no model.

Numbers become exact fractions (never floats), formulas what `math-verify` reads in them, and what is neither plain
lower-case text. `50%` is not `0.5`: one says a share and the other a number, and a grader that merges them hides a mistake.
"""

from __future__ import annotations

import re
from functools import lru_cache

from probe.answers import algebra
from probe.answers.numbers import value

_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boxed|fbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)\s*(\d))")
_DROPPED = re.compile(r"\\(?:(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|[,!;:$ ])|[$]|\\\(|\\\)|\\\[|\\\]|\*\*|`")
_COMMANDS = {
    "\\times": "*", "\\cdot": "*", "\\div": "/", "\\%": "%", "\\pi": "pi", "\\infty": "inf", "\\pm": "+-", "−": "-", "–": "-",
    "×": "*", "÷": "/", "≠": "!=", "≤": "<=", "≥": ">=", "\\leq": "<=", "\\geq": ">=", "\\le ": "<=", "\\ge ": ">=",
    "½": "1/2", "¼": "1/4", "¾": "3/4", "π": "pi", "∞": "inf", "√": "\\sqrt ", "“": '"', "”": '"', "’": "'", "\\{": "{",
    "\\}": "}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "^\\circ": " degrees", "^{\\circ}": " degrees", "°": " degrees",
}  # fmt: skip
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_BASE = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_LETTER = re.compile(r"[(\[]?([a-j])[)\]]?")
_LIST = re.compile(r"([(\[{])(.*,.*)([)\]}])", re.DOTALL)
_NAMED = re.compile(r"[a-z](?:_\w|\([a-z]\))?\s*=\s*([^=<>]+)")
_RANGES = (
    re.compile(r"between\s(\S.{0,40}?)\sand\s(\S.{0,40})"), re.compile(r"(?:from\s)?(\S.{0,40}?)\sto\s(\S.{0,40})"),
    re.compile(r"(\d[\d.,]{0,20})-(\d[\d.,]{0,20})"),
)  # fmt: skip
_SEPARATOR = re.compile(r",?\s(?:and|or)\s|,\s")
_LONGEST = 2000  # characters of an answer whose parts are looked at
_ROUNDS = 8
_AROUND = " \"'*"


@lru_cache(1 << 16)
def canonical(text: str) -> str:
    """The key of an answer as written: `1,000` and `1000`, `12.0` and `12`, `.5`, `1/2` and `\\frac12` are one each.

    Idempotent by construction: it is applied until nothing changes.
    """
    seen = [_once(text)]
    while len(seen) < _ROUNDS and (further := _once(seen[-1])) != seen[-1]:
        if further in seen:  # a circle: any way into it gives the same key
            return min(seen[seen.index(further) :])
        seen.append(further)
    return seen[-1]


def equal(a: str, b: str) -> bool:
    """Whether two answers are in one class."""
    return canonical(a) == canonical(b)


def _once(text: str) -> str:
    if (number := _number(text)) is not None:
        return number
    plain = _plain(text)
    if (number := _number(plain)) is not None:
        return number
    if letter := _LETTER.fullmatch(plain):
        return letter[1].upper()
    if len(plain) > _LONGEST:
        return plain
    found = _listed(plain) or _named(plain) or _ranged(plain) or algebra.form(plain)
    return found or re.sub(r"\s*([,()\[\]{}=+*/^<>])\s*", r"\1", plain)


def _number(text: str) -> str | None:
    found = value(text)
    return None if found is None else f"{found[0]}{found[1]}"


def _plain(text: str) -> str:
    """Without markup, in lower case, with single spaces and no closing full stop."""
    text = re.sub(r"(?<=\d)(?=\\[dtc]?frac)", " ", text)  # 2\frac12 is two and a half
    for _ in range(_ROUNDS):  # nested wrappers, innermost first
        changed = _FRACTION.sub(_ratio, _WRAPPERS.sub(r"\1", text))
        if changed == text:
            break
        text = changed
    text = _DROPPED.sub("", text)
    text = _RAISED.sub(lambda match: "^" + match[0].translate(_BASE), text)
    for command, plain in _COMMANDS.items():
        text = text.replace(command, plain)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ",", text)
    text = re.sub(r"\s+", " ", text).lstrip(_AROUND)
    bare = text.rstrip(_AROUND + ".,;:!。！，；")  # all at once: one may hide behind another
    factorial = text[len(bare) :].startswith("!") and re.search(r"[\d)]\Z", bare)
    return (bare + "!" if factorial else bare).casefold()


def _ratio(match: re.Match[str]) -> str:
    top, bottom = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
    simple = all(re.fullmatch(r"-?[\w.]+", part.strip()) for part in (top, bottom))
    return f"{top.strip()}/{bottom.strip()}" if simple else f"({top})/({bottom})"


def _listed(plain: str) -> str | None:
    """`(1, 1/2)`, `[0, 1)`, `{3, 1}` with a key for each part, sets in order; `3 or 5` and `3, 5` as `3 and 5`."""
    if match := _LIST.fullmatch(plain):
        parts = _split(match[2])
        if parts is None:
            return None
        keys = [_once(part) for part in parts]
        if match[1] == "{":
            keys = sorted(set(keys))
        return match[1] + ",".join(keys) + match[3]
    parts = _SEPARATOR.split(plain)
    numbers = [value(_named(part) or part) for part in parts]
    if len(parts) < 2 or None in numbers:
        return None
    return " and ".join(f"{x}{unit}" for x, unit in sorted({number for number in numbers if number}))


def _split(inner: str) -> list[str] | None:
    """At commas outside brackets; None where there are none, or a part is empty, or brackets don't close."""
    depth, parts, begin = 0, [], 0
    for i, c in enumerate(inner):
        depth += (c in "([{") - (c in ")]}")
        if depth < 0:
            return None
        if c == "," and depth == 0:
            parts.append(inner[begin:i])
            begin = i + 1
    parts.append(inner[begin:])
    return parts if len(parts) > 1 and depth == 0 and all(part.strip() for part in parts) else None


def _named(plain: str) -> str | None:
    """`x = 5` says 5."""
    match = _NAMED.fullmatch(plain)
    return match[1].strip() if match else None


def _ranged(plain: str) -> str | None:
    """`between 5 and 10`, `from 5 to 10` and `5-10` say one thing."""
    for form in _RANGES:
        if match := form.fullmatch(plain):
            low, high = value(match[1]), value(match[2])
            if low and high and low[0] < high[0]:
                return f"{low[0]}{low[1]} to {high[0]}{high[1]}"
    return None
