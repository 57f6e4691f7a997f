"""Answers as keys: two answers are the same exactly if their keys are equal, so that classes are classes. Knows no model.

Numbers become exact fractions (never floats); what is not a number becomes plain lower-case text. `50%` is not `0.5`: one
says a share and the other a number, and a grader that merges them hides a mistake.
"""

from __future__ import annotations

import re
from fractions import Fraction

_LONGEST = 400  # digits of a number that is read as one; longer ones stay text
_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boxed|fbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)\s*(\d))")
_DROPPED = re.compile(
    r"\\(?:(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|[,!;:$ ])|[$]|\\\(|\\\)|\\\[|\\\]|\*\*|`"
)
_COMMANDS = {
    "\\times": "*", "\\cdot": "*", "\\div": "/", "\\%": "%", "\\pi": "pi", "\\infty": "inf", "\\pm": "+-", "−": "-", "–": "-",
    "×": "*", "÷": "/", "≠": "!=", "≤": "<=", "≥": ">=", "\\leq": "<=", "\\geq": ">=", "½": "1/2", "¼": "1/4", "¾": "3/4",
    "“": '"', "”": '"', "’": "'", "\\{": "{", "\\}": "}", "\u00a0": " ", "^\\circ": " degrees", "°": " degrees",
}  # fmt: skip
_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?\.?"
_PLAIN = re.compile(rf"(?P<number>{_NUMBER})(?:[eE](?P<exponent>[-+]?\d{{1,3}}))?")
_RATIO = re.compile(rf"(?P<top>{_NUMBER})\s*/\s*(?P<bottom>{_NUMBER})")
_TIMES_TEN = re.compile(rf"(?P<number>{_NUMBER})\s*\*\s*10\s*\^\s*\{{?(?P<exponent>[-+]?\d{{1,3}})\}}?")


def canonical(text: str) -> str:
    """The key of an answer as written: `1,000` and `1000`, `12.0` and `12`, `.5`, `1/2` and `\\frac12` are one each.

    Idempotent: the key of a key is itself.
    """
    plain = _plain(text)
    value, unit = _value(plain)
    if value is not None:
        return str(value) + unit
    return re.sub(r"\s*([,()\[\]{}=+*/^<>])\s*", r"\1", plain)


def equal(a: str, b: str) -> bool:
    """Whether two answers are in one class."""
    return canonical(a) == canonical(b)


def _plain(text: str) -> str:
    """Without markup, in lower case, with single spaces and no closing full stop."""
    for _ in range(8):  # nested wrappers, innermost first
        changed = _FRACTION.sub(_ratio, _WRAPPERS.sub(r"\1", text))
        if changed == text:
            break
        text = changed
    text = _DROPPED.sub("", text)
    for command, plain in _COMMANDS.items():
        text = text.replace(command, plain)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ",", text)
    text = re.sub(r"\s+", " ", text).lstrip(" \"'").rstrip(" \"'.,;:!")  # all at once: one may hide behind another
    return text.casefold()


def _ratio(match: re.Match[str]) -> str:
    top, bottom = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
    simple = all(re.fullmatch(r"-?[\w.]+", part.strip()) for part in (top, bottom))
    return f"{top.strip()}/{bottom.strip()}" if simple else f"({top})/({bottom})"


def _value(text: str) -> tuple[Fraction | None, str]:
    """The exact number that a text is, and `%` if it is a share; None for what is no number."""
    bare, unit = (text[:-1].rstrip(), "%") if text.endswith("%") else (text, "")
    sign = re.fullmatch(r"-\s+(\S.*)", bare)
    bare = "-" + sign[1] if sign else bare
    if len(bare) > _LONGEST:
        return None, ""
    if match := _RATIO.fullmatch(bare):
        top, bottom = _fraction(match["top"]), _fraction(match["bottom"])
        return (None, "") if top is None or not bottom else (top / bottom, unit)
    for form in (_PLAIN, _TIMES_TEN):
        if match := form.fullmatch(bare):
            value = _fraction(match["number"])
            return (None, "") if value is None else (value * Fraction(10) ** int(match["exponent"] or 0), unit)
    return None, ""


def _fraction(number: str) -> Fraction | None:
    digits = number.replace(",", "").rstrip(".")
    return Fraction(digits) if any(c.isdigit() for c in digits) else None
