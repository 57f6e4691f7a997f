"""A claim turned round by rules over English auxiliaries, contractions and opposites. Knows words, no model.

A negation is taken out; else a word is put in the place of its opposite; else the first finite verb is negated. Questions,
infinitives and formulas are left alone. What no rule turns round well is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from probe.errors import BadOption
from probe.spans import zones

_BE = "is|are|was|were|am"
_MODAL = "can|could|will|would|shall|should|must|may|might|ought|need|dare"
_DO = "do|does|did"
_HAVE = "has|have|had"
_BETWEEN = r"((?: (?:also|still|just|really|actually|certainly|clearly|definitely|probably|indeed|simply|therefore|even))?)"
_CONTRACTED = {"can't": "can", "won't": "will", "shan't": "shall"}
_PARTICIPLE = (
    r"(?:been|had|got|done|made|found|seen|shown|given|taken|proved|proven|known|become|gone|come|spent|paid|sold|bought|lost|won"
    r"|kept|said|told|used|led|met|left|written|chosen|begun|grown|fallen|cut|put|set|(?!need\b|seed\b|hundred)[a-z]{3,}ed)\b"
)
_SUBORDINATE = re.compile(
    r"\b(?:if|when|whenever|since|because|whether|which|who|whose|that|what|whatever|how|where|why|while|unless|until|although)\b",
    re.IGNORECASE,
)
_NOUN_BEFORE = re.compile(r"\b(?:a|an|the|his|her|my|your|their|our|its|one|each|per|every|free)\s+\Z", re.IGNORECASE)

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# what says no is taken out
_TAKEN_OUT: tuple[Rule, ...] = (
    (rf"\b({_BE}|{_MODAL}|{_DO}|{_HAVE}){_BETWEEN} not\b(?! (?:only|just|merely|yet)\b)", r"\1\2"),
    (r"\bcannot\b", "can"),
    (r"\b(can|won|shan)['’]t\b", lambda m: _CONTRACTED[m[1].lower() + "'t"]),
    (r"\bneedn['’]t\b", "must"), (r"\bnot (all|every\w*|each|many|both|always)\b", r"\1"),
    (r"\b(is|are|was|were|has|have|had|do|does|did)(?:n['’]t| not)( have)? any\b", r"\1\2 some"),
    (r"\b(is|are|was|were|could|would|should|must|might|ought|has|have|had|do|does|did)n['’]t\b", r"\1"),
    (r"\b([Ll]et['’]s|[Ll]et us|(?:it|that|he|she|there|here)['’]s|(?:we|you|they)['’]re|I['’]m) not\b", r"\1"),
    (r"\bnever\b", "always"), (r"\bno longer\b", "still"), (r"\bno more\b", "more"),
    (rf"\b({_BE}|{_HAVE}) no (?!one\b)(?=[a-z])", r"\1 some "),
    (r"\bwithout\b", "with"), (r"\bimpossible\b", "possible"), (r"\bincorrect\b", "correct"), (r"\bfalse\b", "true"),
)  # fmt: skip
# what says yes has an opposite
_OPPOSITE: tuple[Rule, ...] = ((r"\btrue\b", "false"), (r"\bcorrect\b", "incorrect"))
# the first finite verb
_FINITE: tuple[Rule, ...] = (
    (rf"\b({_BE}|could|will|would|shall|should|must|may|might)\b(?! (?:of|not)\b)", r"\1 not"),
    (r"\bcan\b(?! not\b)", "cannot"),
    (r"\b((?:it|that|he|she|there|here)['’]s|(?:we|you|they)['’]re|I['’]m|[Ll]et['’]s|[Ll]et us)\b", r"\1 not"),
    (r"\b(we|you|they|I)['’]ve\b", r"\1 have not"), (r"\b(we|you|they|I|it|that|he|she)['’]ll\b", r"\1 will not"),
    (rf"\b({_HAVE})(?= (?:already |now |just )?{_PARTICIPLE})", r"\1 not"),
    (r"\bhas\b", "does not have"), (r"\bhad\b", "did not have"), (r"(?<!['’]d )\bhave\b", "do not have"),
    (rf"\b({_DO})(?= (?:have|not|hold|work|need|follow|equal|give|get|know)\b)", r"\1 not"),
    (r"\b(equal|give|mean|make|need|cost|follow|work|hold|show|contain|require|want|know|get|leave|see|say|buy|add|sell|eat|take)s\b",
     r"does not \1"),
    (r"\b(we|you|they|I) (get|need|know|see|find|think|want|add|take|use|obtain|multiply|divide|subtract|conclude|say)\b",
     r"\1 do not \2"),
)  # fmt: skip
_LATER: tuple[Rule, ...] = (
    (r"\bincreas(e|es|ed|ing)\b", r"decreas\1"), (r"\bdecreas(e|es|ed|ing)\b", r"increas\1"),
    (r"\bmore\b", "fewer"), (r"\bfewer\b", "more"), (r"\bless\b", "more"),
    (r"\bgreater\b", "smaller"), (r"\bsmaller\b", "greater"),
    (r"\badd(s?)\b", r"subtract\1"), (r"\bsubtract(s?)\b", r"add\1"), (r"\bmultiply\b", "divide"), (r"\bdivide\b", "multiply"),
    (r"\bplus\b", "minus"), (r"\bminus\b", "plus"),
)  # fmt: skip
_SIGNS: tuple[Rule, ...] = (
    (r"(?<=\d )\+(?= \d)", "-"), (r"(?<=\d )-(?= \d)", "+"), (r" > ", " < "), (r" < ", " > "), 
    (r" ≠ ", " = "), (r" != ", " = "),
)  # fmt: skip


def negate(text: str) -> str:
    """The step with its claim turned round, by rules. Raises `BadOption` if none does it well."""
    reply = re.match(r"\s*(Yes|No)\b(?=\s*[,.!]|\s*\Z)", text)
    rest = text[reply.end() :] if reply else text
    changed = _turned(rest)
    if reply is not None:
        lead = text[: reply.start(1)] + {"Yes": "No", "No": "Yes"}[reply[1]]
        if changed is not None or not re.search(r"\w", rest):
            return lead + (rest if changed is None else changed)
    if changed is None or reply is not None:
        raise BadOption("no rule negates this step well", hint="say what it should be with --replace TEXT")
    return changed


def _turned(text: str) -> str | None:
    for rules, main in (
        (_TAKEN_OUT, False),
        (_OPPOSITE, False),
        (_FINITE, True),
        (_FINITE, False),
        (_LATER, False),
        (_SIGNS, False),
    ):
        found = min(_places(text, rules, main=main), default=None, key=lambda place: (place[0], -place[1]))
        if found:
            low, high, new = found
            return text[:low] + new + text[high:]
    return None


def _places(text: str, rules: tuple[Rule, ...], *, main: bool) -> Iterator[tuple[int, int, str]]:
    """Where each rule applies first, and what it writes. main: not in a subordinate clause."""
    kept = zones(text)
    for pattern, other in rules:
        for match in re.finditer(pattern, text, re.IGNORECASE):
            inside = main and _SUBORDINATE.search(re.split(r"[,;:\n]|[.?!](?=\s)", text[: match.start()])[-1])
            formula = rules is not _SIGNS and kept.at(match.start()) is not None
            if inside or formula or _asked(text, match.end()) or (rules is _FINITE and _no_verb(text, match)):
                continue
            if rules is _TAKEN_OUT and re.match(r"[^,.;\n]* but\b", text[match.end() :]):
                continue  # 'not 5 but 7'
            new = match.expand(other) if isinstance(other, str) else other(match)
            yield match.start(), match.end(), _cased(match[0], new)
            break


def _asked(text: str, at: int) -> bool:
    """Whether the sentence around the place is a question."""
    end = re.search(r"[.?!](?=\s|\Z|[\"”])|\n", text[at:])
    return end is not None and end[0] == "?"


def _no_verb(text: str, match: re.Match[str]) -> bool:
    """An infinitive, a noun ('a can') or a name ('Will has')."""
    before = text[max(0, match.start() - 24) : match.start()]
    named = match[0] in ("May", "Will", "Can", "Must", "Might")
    return named or bool(re.search(r"\bto\s+\Z", before, re.IGNORECASE) or _NOUN_BEFORE.search(before))


def _cased(old: str, new: str) -> str:
    return new[0].upper() + new[1:] if old[0].isupper() and new[0].islower() else new
