"""How numbers are written, in texts and in LaTeX, and which exact number each is. Knows no answers."""

from __future__ import annotations

import re
from fractions import Fraction

_LONGEST = 400  # characters of a number that is read as one; longer ones stay text
_COMMA = r"(?:\{,\}|,(?:\\!)?|\\[,;:! ]|~)"  # 1,000 1{,}000 1,\!000 1\,000
_SPACE = r"[ \u00a0\u2009\u202f]"
# atomic groups: what was read as digits is never tried again shorter, so that a search is linear
_WHOLE = (
    rf"(?>\d{{1,3}}(?:{_COMMA}\d{{3}})+(?!\d)|\d{{1,2}}(?:,\d\d)+,\d{{3}}(?!\d)|\d{{1,3}}(?:{_SPACE}\d{{3}})+(?!\d)"
    rf"|\d{{1,3}}(?:['’]\d{{3}})+(?!\d)|\d{{1,3}}(?:_\d{{3}})+(?!\d)|\d{{1,3}}(?:\.\d{{3}}){{2,}}(?![\d.])|\d+)"
)
_COMMA_POINT = rf"(?>\d{{1,3}}(?:\.\d{{3}})+,\d+|\d{{1,3}}(?:{_SPACE}\d{{3}})+,\d{{1,2}}(?!\d))"  # 1.234,50
_PLAIN = rf"(?>{_COMMA_POINT}|{_WHOLE}(?:\.\d+)?|\.\d+)"
_POWER = r"(?:\^|\*\*)\s?(?:\{\s?[-+−]?\s?\d{1,3}\s?\}|\([-+−]?\d{1,3}\)|[-+−]?\d{1,3})|[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}"
_TIMES = r"\\times|\\cdot|[×·⋅*xX]"
_HALVES = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
}
_FRAC = r"\\[dtc]?frac\s?(?:\{\s?-?\d+\s?\}\s?\{\s?\d+\s?\}|\d\s?\d)"
_SIGN = rf"[{''.join(_HALVES)}]"
_PART = rf"(?:{_SIGN}|{_FRAC})"
_MIXED = rf"(?:{_SPACE}+\d+\s?/\s?\d+(?![\d/])|{_SPACE}?{_PART})"
_CURRENCY = r"(?:(?:US|C|A)?\\?\$|[€£¥₹₩])"
_SIZES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

UNSIGNED = (
    rf"{_CURRENCY}?\s?(?:[-+−])?(?:\d+{_MIXED}|{_PART}|"
    rf"{_PLAIN}(?:[eE][-+]?\d{{1,3}}\b|\s?(?:{_TIMES})\s?10(?:{_POWER})|\s?/\s?{_PLAIN}(?![\d/]))?)"
    rf"(?:\s?(?:\\?%|per\s?cent\b|pct\b)|\s(?:{'|'.join(_SIZES)})\b)?"
)
NUMBER = rf"(?:[-+−]\s?)?{UNSIGNED}"
_ONE = re.compile(
    rf"(?P<sign>[-+−])?\s?{_CURRENCY}?\s?(?P<inner>[-+−])?(?:(?P<whole>\d+)(?P<part>{_MIXED})|(?P<alone>{_PART})|"
    rf"(?P<plain>{_PLAIN})\.?(?:[eE](?P<e>[-+]?\d{{1,3}})|\s*(?:{_TIMES})\s*10\s*(?P<power>{_POWER})"
    rf"|\s*/\s*(?P<under>{_PLAIN}))?)"
    rf"(?:\s*(?P<percent>\\?%|per\s?cent|pct)|\s*(?P<size>{'|'.join(_SIZES)}))?\.?",
    re.IGNORECASE,
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻−", "0123456789+--")
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    " nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: i for i, word in enumerate(_UNITS.split())}
_WORDS |= {word: 10 * i for i, word in enumerate(_TENS.split(), 2)}


def value(text: str) -> tuple[Fraction, str] | None:
    """The exact number that the whole text is, and `%` if it is a share; None for what is no number."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    if (match := _ONE.fullmatch(text)) is None:
        said = _said(text)
        return None if said is None else (Fraction(said), "")
    number = _number(match)
    if number is None:
        return None
    number *= _SIZES.get((match["size"] or "").lower(), 1)
    minus = sum((match[name] or "") in ("-", "−") for name in ("sign", "inner"))
    return (-number if minus == 1 else number), "%" if match["percent"] else ""


def _number(match: re.Match[str]) -> Fraction | None:
    if part := match["part"] or match["alone"]:
        added = _part(part)
        return None if added is None else added + int(match["whole"] or 0)
    plain = _plain(match["plain"])
    if match["under"]:
        under = _plain(match["under"])
        return plain / under if under else None
    exponent = match["e"] or re.sub(r"[\^*(){}\s]", "", (match["power"] or "0").translate(_RAISED))
    return plain * Fraction(10) ** int(exponent)


def _part(written: str) -> Fraction | None:
    """A fraction below a mixed number's whole, in any of its spellings."""
    written = _HALVES.get(written.strip(), written)
    digits = re.findall(r"-?\d+", written)
    if len(digits) == 1:  # \frac12
        digits = list(digits[0])
    return Fraction(int(digits[0]), int(digits[1])) if int(digits[1]) else None


def _plain(written: str) -> Fraction:
    if re.fullmatch(_COMMA_POINT, written):
        written = re.sub(rf"\.|{_SPACE}", "", written).replace(",", ".")
    elif re.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}", written):
        written = written.replace(".", "")
    return Fraction(re.sub(r"[^\d.]", "", written))


def _said(text: str) -> int | None:
    """`seven`, `twenty-one`."""
    words = re.split(r"[-\s]", text.lower())
    if len(words) == 1:
        return _WORDS.get(words[0])
    if len(words) == 2 and words[0] in _TENS.split() and words[1] in _WORDS and 0 < _WORDS[words[1]] < 10:
        return _WORDS[words[0]] + _WORDS[words[1]]
    return None
