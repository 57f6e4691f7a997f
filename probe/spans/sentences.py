"""Sentences of running text: what the splitter `sentencex` finds, corrected for mathematics, lists and glued words.

The splitter is shown a text of the same length in which formulas, code and addresses are words, so that places stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from probe.spans import words
from probe.spans.protecting import Zones

_STOP = re.compile(r"(?P<mark>(?:\. ){2,}\.|[.?!…]+)(?P<close>[\"'”’»)\]*_]*(?:\[\d+\])*)(?=\s|\Z)")
_GLUED = re.compile(r"(?<=\w)[.?!](?=[A-Z][a-z])|[。！？।؟۔](?=[\w$])")
_TOKEN = re.compile(r"[^\s(\[{\"'“‘«,;/=–—-]+\Z")
_BEFORE = re.compile(r"([^\W\d_]+|=)\W*\Z")
_MARKER = re.compile(r"[\s>#*_(]*(?:\d{1,3}|[^\W\d_]|[ivxIVX]{1,5})[.)][*_”]*\Z")
_LABEL = re.compile(rf"[\s>#*_(]*(?:{words.LABEL})[.)][*_”]*\Z", re.IGNORECASE)
_REPLY = re.compile(rf"\s*(?:{words.REPLY})[.!]*\s*\Z", re.IGNORECASE)
_LISTED = re.compile(r"\b[A-Z],? (?:and|or|to|through|from|with) [A-Z]\Z|\b[A-Z], [A-Z]\Z")
_FACTORIAL = re.compile(r"(?:\d|\)|(?<![^\W\d_])[A-Za-z])\Z")
_OPERATORS = tuple("=+-*/^<>≤≥·×,;:)|%")
_OPEN_ENDED = re.compile(r"[,+*/=<>·×-] ?\Z")
_ASIDE = re.compile(r"\(([^()]*[.?!][\"”'’]?)\)")
_UNSPACED = re.compile(r"[。！？।۔؟]+[」』”’）]*")
_LONG = 1000  # characters: the splitter takes quadratic time where no white space is
_PAIRS = {"」": "「", "』": "『", "”": "“", "’": "‘", "）": "（"}
_PARTICLES = "とっがはをにのもでへやか、，,。．；"  # what goes on after a quotation, in Japanese above all


def language_of(text: str) -> str:
    """The splitter's code for the language, as far as it matters to it: by letters, else by the commonest words."""
    sample = text[:4000]
    letters = sum(map(str.isalpha, sample))
    for code, own in words.LETTERS.items():
        if 3 * len(own.findall(sample)) > letters:
            return code
    found = re.findall(r"[^\W\d_]+", sample.lower())
    hits = {code: sum(word in common for word in found) for code, common in words.LATIN.items()}
    best = max(hits, key=lambda code: hits[code])
    return best if hits[best] > 1 and hits[best] > hits["en"] else "en"


def masked(text: str, protected: Zones) -> str:
    """The text as the splitter sees it, as long as it is: protected stretches are words, which end as the formula does.

    Apostrophes and inches are no quotation marks, a whole sentence in brackets has none, and closing emphasis is one.
    """
    parts, at = [], 0
    for zone in protected.found:
        inner = text[zone.start : zone.end].rstrip("$)]`\\ \n") if zone.kind in ("formula", "display", "code") else ""
        last = inner[-1:] if inner[-1:] in tuple(".?!") else "x"
        parts += [text[at : zone.start], "x" * (zone.end - zone.start - 1), last]
        at = zone.end
    shown = "".join([*parts, text[at:]])
    shown = _ASIDE.sub(_aside, shown)
    shown = re.sub(r"(?<=\w)['’](?=\w)|(?<=\w)'", "x", shown)
    shown = re.sub(r"(?<=[.?!…])[*_]{1,3}(?=\s|\Z)", lambda m: "”" * len(m[0]), shown)
    return _inches(shown)


def _aside(match: re.Match[str]) -> str:
    """A sentence in brackets, if it begins where one may."""
    at = match.start()
    while at and match.string[at - 1] in " \t":
        at -= 1
    return f" {match[1]}”" if at == 0 or match.string[at - 1] in ".?!:\n" else match[0]


def _inches(text: str) -> str:
    """A double quote after a digit, where none is open on the line, is no quotation mark."""
    is_open = False

    def one(match: re.Match[str]) -> str:
        nonlocal is_open
        inch = match[0] == '"' and not is_open and text[match.start() - 1 : match.start()].isdigit()
        is_open = match[0] == '"' and not inch and not is_open
        return "x" if inch else " " if match[0] == "\n" else match[0]

    return re.sub(r"[\"\n]", one, text)


def sentences(raw: str, shown: str, language: str) -> list[int]:
    """Where sentences end in a stretch of text, and `shown`, what `masked` made of it; white space is not counted."""
    import sentencex  # `probe --help` and most commands need no splitter

    theirs = set()
    for low, high in _pieces(shown):
        for one in sentencex.get_sentence_boundaries(language, shown[low:high]):
            end = low + one["end_index"]
            while end and shown[end - 1].isspace():
                end -= 1
            theirs.add(end)
    found = set()
    for match in _STOP.finditer(shown):
        inside = theirs.intersection(range(match.start() + 1, match.end() + 1))
        theirs -= inside
        own = _ends(raw, shown, match)
        if own or (own is None and inside):
            found.add(match.end())
    glued = {match.end() for match in _GLUED.finditer(shown)}
    found |= {end for end in theirs | glued if end < len(shown) and _ends_bare(shown, end, end in theirs)}
    return list(_without_markers(shown, sorted(found)))


def _pieces(shown: str) -> Iterator[tuple[int, int]]:
    """Stretches that can be cut by themselves: they end after a full stop that needs no white space."""
    low = 0
    while low < len(shown):
        stop = _UNSPACED.search(shown, low + _LONG)
        high = stop.end() if stop else len(shown)
        yield low, high
        low = high


def _without_markers(shown: str, ends: list[int]) -> Iterator[int]:
    """Without ends after a list's marker ('1.', 'Step 2.'), nor those between a question and a reply of one word."""
    length, last, waiting = len(shown.rstrip()), 0, -1
    for end in [*ends, length]:
        piece = shown[last:end]
        short = len(piece) < 48
        asked = waiting > 0 and shown[waiting - 1] == "?"
        if waiting > 0 and not (asked and short and _REPLY.match(piece)):
            yield waiting
        waiting = -1
        marker = short and (_MARKER.match(piece) or _LABEL.match(piece))
        if end < length and (asked or not marker):
            waiting = last = end


def _ends(raw: str, shown: str, match: re.Match[str]) -> bool | None:
    """Whether a sentence ends with these marks; None where the splitter knows best."""
    at, mark, close = match.start(), raw[match.start() : match.end("mark")], match["close"]
    rest = shown[match.end() : match.end() + 40].lstrip()
    follower, before = rest[:1], shown[max(0, at - 40) : at]
    formula = match["mark"][0] != mark[0]  # its own stop, which the sentence may go on after
    if (close and follower.islower()) or (formula and not follower.isupper()):
        return False
    if "?" in mark:
        return None
    if "!" in mark:
        goes_on = follower.islower() or follower.isdigit() or follower in _OPERATORS
        return False if mark == "!" and goes_on and _FACTORIAL.search(before) else None
    if mark[-1:] == "…" or len(mark) > 1:
        return _trails_off(before, rest, mark)
    return _full_stop(before, rest, close)


def _trails_off(before: str, rest: str, mark: str) -> bool | None:
    """After dots: a sentence ends if another begins, and not in '1, 2, ..., n'."""
    if _OPEN_ENDED.search(before) or rest[:1].islower():
        return False
    if rest[:1].isupper():
        return True if mark[-1] == "…" else None
    return None if rest[:1].isdigit() or not rest[:1].isascii() else False


def _full_stop(before: str, rest: str, close: str) -> bool | None:
    token = _TOKEN.search(before)
    if token is None:
        return None
    word, begins = token[0].strip("*_"), rest[:1].isupper()
    low, digit = word.lower(), bool(re.match(r"[(\[]?\d", rest))
    following = re.match(r"[^\W\d_]+(?:'s)?", rest)
    starter = following is not None and following[0] in words.STARTERS
    if low in words.NEVER_LAST:
        return False
    counted = bool(re.search(r"\d ?\Z", before[: token.start()]))
    if low in words.BEFORE_NUMBER and digit and not counted:
        return bool(word == "No" and re.search(r"\?[\"'”]*\s+\Z", before[: token.start()]))
    if rest[:1].islower():
        return False if low in words.BEFORE_SMALL else None
    if len(word) == 1 and word.isalpha():
        return None if re.match(r"[^\W\d_]\.", rest) else _letter(before, rest, word, starter)
    if low in words.UNITS and counted and begins:
        return True
    if low in words.ORDINARY and (begins or digit) and (word == low or low in ("may", "no", "ok", "okay")):
        return True
    if close and close[-1] in ")]" and begins and low.isalpha():
        return True
    return None


def _letter(before: str, rest: str, letter: str, starter: bool) -> bool | None:
    """After a single letter: the end if it names a thing ('the vertex P. Then'), not if it is an initial ('J. Smith')."""
    if not rest[:1].isupper():
        return None
    ahead = _BEFORE.search(before[:-1])
    dotted = re.search(r"(?<![^\W\d_])[^\W\d_]\.\s?\Z", before[:-1])
    if letter.islower():
        return None if dotted or letter in "vcp" else True
    if dotted:
        return None
    if ahead is not None and (starter or re.match(r"[A-Z]\s", rest)):
        return True
    known = ahead is not None and ahead[1].lower() in words.NAMES_A_THING
    return True if known or _LISTED.search(before) or (letter == "I" and ahead and ahead[1].islower()) else None


def _ends_bare(shown: str, end: int, theirs: bool) -> bool:
    """Whether a sentence ends where no white space follows: two glued ones, or a script that has none."""
    last, follower = shown[end - 1], shown[end]
    if follower.isspace():
        return theirs
    if last in _PAIRS:
        begin = shown.rfind(_PAIRS[last], max(0, end - 400), end - 1)
        embedded = begin > 0 and (shown[begin - 1].isalnum())
        return not embedded and follower not in _PARTICLES
    if last not in ".?!…" or not follower.isascii():
        return theirs or (last in "。！？।؟۔" and follower.isascii())
    following = re.match(r"[A-Za-z]+", shown[end : end + 20])
    if following is None or not following[0].istitle():
        return False
    if last != "." or following[0] in words.STARTERS:
        return True
    token = _TOKEN.search(shown[max(0, end - 40) : end - 1])
    return theirs and token is not None and token[0].isalpha() and token[0].islower()  # neither Node.Js nor a.b.Array
