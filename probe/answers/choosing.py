"""Which letter a text chooses, and whether it says yes or no: the strongest kind of saying counts, in it the last one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from probe.answers.saying import AnswerSpan

_BARE = r"[(\[{*_`\"'\s]{0,20}"
_LETTER = rf"{_BARE}(?:\\(?:text|textbf|mathrm|mathbf)\s*\{{{_BARE})?(?P<letter>[A-Ja-j])(?![A-Za-z0-9'’])"
_END = r"(?=[)\]}*_`\"'\s]{0,20}(?:[.,:;!?)\]}]|\n|\Z|\s(?:because|since|as|and|with|is)\b|\s?[—–-]\s|[)\]*]))"
_BOXED = re.compile(rf"(?:\\(?:boxed|fbox)\s*\{{|\[\[|<answer>){_LETTER}", re.IGNORECASE)
_SAID = re.compile(
    r"(?i:(?:\b(?:answer|option|choice|letter|solution)\b(?:\s(?:to|for"
    r"|of)\s[^.\n:]{1,80}?)?[*_]{0,2}\s*(?:is|:|=|was|would be|must be|should be)"
    r"(?:\s(?:therefore|thus|clearly|probably|definitely|likely|indeed|option|choice|letter))*\s*:?"
    r"|\b(?:choose|choosing|pick|select|go(?:ing)? with|chose|picked)(?:\s(?:option|choice|letter))?"
    r"|\b(?:so|thus|therefore|hence),?(?:\s(?:it is|it['’]s|option|choice|letter|the))?"
    r"|\b(?:but|only)(?:\srather)?|\b(?:it|that)(?:['’]s|\sis|\smust be|\sshould be)(?:\s(?:option|choice))?)\s)?"
)
_MARKED = re.compile(_SAID.pattern.removesuffix("?") + _LETTER + rf"(?:{_END}|(?=\s[a-z]{{2,}}))")
_COLON = re.compile(rf"(?i:\b(?:answer|option|choice)\b[*_]{{0,2}}\s*:[*_]{{0,2}}){_LETTER}{_END}")
_IS_RIGHT = re.compile(
    rf"(?<![A-Za-z0-9'’]){_LETTER.removeprefix(_BARE)}[)\]*.]*\s(?:is|must be|was)\s(?:(?:therefore|thus|clearly"
    rf"|indeed)\s)?(?:the\s)?(?:(?:most|only)\s)?"
    r"(?:correct|right|true|best|answer|final answer)\b"
)
_LEADS = re.compile(
    rf"\A\W{{0,2000}}(?:(?i:option|choice|answer)[\s:]+)?{_LETTER.removeprefix(_BARE)}{_END}(?!\s+is\b|,?\s(?:and"
    rf"|or)\s)(?!,\s[A-J]\b)"
)
_ANY = re.compile(
    r"(?:\((?P<a>[A-J])\)|(?<![\w'’])(?P<b>[A-HJ])(?=[).:,;!?*\]\s]|\Z)(?!\s+[a-z])|\b(?i:option|choice)\s(?P<c>[A-J])\b)"
)
_LISTED = re.compile(r"^\W{0,4}[A-J][).:]", re.MULTILINE)
_BECAUSE = re.compile(  # a reason ends with its sentence, or where the conclusion comes
    r"(?:\A|(?<=[.!?]\s)|(?<=\n))(?:because|since)\b[^.,\n]*|\b(?:because|since)\b[^.\n]*?(?=,?\s(?:so|therefore|thus"
    r"|hence|the answer)\b|[.\n]|\Z)",
    re.IGNORECASE,
)

_ANSWERS = re.compile(
    r"\banswer\b[*_]{0,2}\s*(?:is|:|=|was|would be|must be|should be)[\s*_:`\"'(]*(?:(?:therefore|thus|clearly|simply"
    r"|probably|a|definitely)\s)?"
    r"[*_`\"'(]*(yes|no)\b|\\(?:boxed|fbox)\s*\{\s*(?:\\text\w*\s*\{)?\s*(yes|no)\b|<answer>\s*(yes|no)\b",
    re.IGNORECASE,
)
_STANDS = re.compile(
    r"\b(?<!to say )(?<!or )(yes|no|yeah|yep|yup|nope)\b(?=[\s\"'”*_`)\]}]{0,20}(?:[.,!?;:—–]|\n|\Z|-\s|\s(?:because|since)\b))"
    r"|(?:\A|(?<=[.!?]\s)|(?<=\n))[\s*_\"'`(]{0,20}"
    r"(yes|no)(?=\s(?:it|he|she|they|we|you|i|this|that)\b)",
    re.IGNORECASE,
)
_YES = re.compile(r"\b(yes)\b", re.IGNORECASE)
_BUT = re.compile(r"\b(?:it|that)(?:['’]s|\sis)\s(yes|no)\b", re.IGNORECASE)


def letter(text: str) -> str:
    """The class of a letter as written."""
    found = re.findall(r"[A-Ja-j]", text)
    return found[-1].upper() if found else text


def word(text: str) -> str:
    """`yes` or `no`."""
    return "yes" if text.casefold().startswith("y") else "no"


def letters(text: str) -> Iterator[AnswerSpan]:
    """The letters of the strongest kind that there is: boxed, said to be the answer, at the beginning, anywhere."""
    bare = _BECAUSE.sub(lambda match: " " * len(match[0]), text)
    said = sorted(
        {
            match.span("letter")
            for form in (_MARKED, _COLON, _IS_RIGHT)
            for match in form.finditer(bare)
            if _chosen(bare, match)
        },
        key=lambda span: span[1],
    )
    leads = [
        match.span("letter") for match in _LEADS.finditer(bare) if len(_LISTED.findall(bare)) < 2 and _capital(bare, match)
    ]
    somewhere = [match.span(match.lastgroup or 0) for match in _ANY.finditer(bare)]
    boxed = [match.span("letter") for match in _BOXED.finditer(text)]
    for found, sure in ((boxed, "high"), (said, "high"), (leads, "high"), (somewhere, "low")):
        if found:
            yield from (AnswerSpan(*span, sure) for span in found)
            return


def _chosen(text: str, match: re.Match[str]) -> bool:
    """Not the article of a sentence, nor a letter that is denied."""
    begins = text[match.start() : match.start("letter")]
    small = match["letter"].islower()
    article = match["letter"] in "aAI" and re.match(r"\s+[a-z]", text[match.end("letter") : match.end("letter") + 3])
    denied = re.match(
        r"\W*\s(?:is|are|was|can)?(?:n['’]t|not)?\s?(?:wrong|incorrect|false|not|too|out)\b", text[match.end("letter") :][:24]
    )
    weak = not re.search(r"(?i)answer|option|choice|letter|solution|choose|pick|select|go", begins)
    return (
        not (article and not re.match(r"\s+(?:because|since|as|and|with|is)\b", text[match.end("letter") :][:12]))
        and not denied
        and not (small and weak)
    )


def _capital(text: str, match: re.Match[str]) -> bool:
    """A small letter counts only where it is all there is."""
    alone = not re.search(r"\w", text[match.end("letter") :])
    return alone or (match["letter"].isupper() and match["letter"] != "I")


def yes_no(text: str) -> Iterator[AnswerSpan]:
    """Where yes or no is said to be the answer, else where it stands by itself; what is given as a reason doesn't count."""
    bare = _BECAUSE.sub(lambda match: " " * len(match[0]), text)
    for forms, sure in (((_ANSWERS,), "high"), ((_STANDS, _BUT), "medium"), ((_YES,), "low")):
        found = sorted(
            (
                next(match.span(i) for i in range(1, match.re.groups + 1) if match[i])
                for form in forms
                for match in form.finditer(bare)
            ),
            key=lambda span: span[1],
        )
        if found:
            yield from (AnswerSpan(*span, sure) for span in found)
            return
