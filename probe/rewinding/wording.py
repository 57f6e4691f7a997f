"""Texts that edits put in: as ids that read so after a prefix; a number changed, a claim negated, filler. Draws nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING

from probe.errors import BadOption
from probe.language_model.following import WINDOW, ids_after

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

FILLER = " ..."
NUMERAL = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
# (pattern, its negation); the first that occurs in the step, at its earliest place, is applied
_NEGATIONS = (
    (r"\b(is|are|was|were|can|could|will|would|should|must|has|have|had|do|does|did) not\b", r"\1"),
    (r"\bcannot\b", "can"),
    (r"\b(is|are|was|were|ca|could|wo|would|should|has|have|had|do|does|did)n't\b", r"\1"),
    (r"\btrue\b", "false"), (r"\bfalse\b", "true"), (r"\byes\b", "no"), (r"\bYes\b", "No"), (r"\bNo,", "Yes,"),
    (r"\bincreas(e|es|ed|ing)\b", r"decreas\1"), (r"\bdecreas(e|es|ed|ing)\b", r"increas\1"),
    (r"\bmore\b", "fewer"), (r"\bfewer\b", "more"), (r"\bless\b", "more"),
    (r"\bgreater\b", "smaller"), (r"\bsmaller\b", "greater"), (r"\bcorrect\b", "incorrect"), (r"\bincorrect\b", "correct"),
    (r"\bbuys\b", "sells"), (r"\badd(s?)\b", r"subtract\1"), (r"\bsubtract(s?)\b", r"add\1"),
    (r"(?<=\d )\+(?= \d)", "-"), (r"(?<=\d )-(?= \d)", "+"), (r" > ", " < "), (r" < ", " > "),
    (r"\b(is|are|was|were|can|could|will|would|should|must)\b", r"\1 not"),
    (r"\bhas\b", "does not have"), (r"\bhave\b", "do not have"),
)  # fmt: skip


def respelled(lm: LanguageModel, prefix: Sequence[int], old: Sequence[int], text: str) -> list[int]:
    """Ids that read as `text` after the prefix, with the tokens of `old` kept wherever the two texts agree at either end.

    A model rarely cuts its own text as its tokenizer would: spelling a whole step anew would change more than was asked.
    """
    pieces = lm.pieces([*prefix[-WINDOW:], *old])
    begin, offsets = pieces.offsets[len(prefix[-WINDOW:])][0], pieces.offsets[len(prefix[-WINDOW:]) :]
    was = pieces.text[begin:]
    same = next((i for i, (a, b) in enumerate(zip(was, text, strict=False)) if a != b), min(len(was), len(text)))
    head = sum(1 for _, end in offsets if end - begin <= same)
    rest = min(len(was), len(text)) - (offsets[head - 1][1] - begin if head else 0)
    alike = next((i for i in range(rest) if was[-1 - i] != text[-1 - i]), rest)
    tail = sum(1 for start, _ in offsets[head:] if start - begin >= len(was) - alike)
    kept, after = list(old[:head]), list(old[len(old) - tail :])
    low = offsets[head - 1][1] - begin if head else 0
    high = len(text) - (pieces.offsets[-1][1] - offsets[len(old) - tail][0] if tail else 0)
    middle = ids_after(lm, [*prefix, *kept], text[low:high]) if high > low else []
    ids = [*kept, *middle, *after]
    reads = lm.pieces([*prefix[-WINDOW:], *ids]).text[begin:]
    return ids if reads == text else ids_after(lm, prefix, text)


def fitted(text: str, old: str) -> str:
    """A user's step with the white space around it that the replaced one had, where the user gave none."""
    lead, trail = re.match(r"\s*", old), re.search(r"\s*\Z", old)
    assert lead is not None and trail is not None
    if not text.strip():
        return text
    return (text if text[0].isspace() else lead[0] + text) + ("" if text[-1].isspace() else trail[0])


def change_number(
    lm: LanguageModel, prefix: Sequence[int], ids: Sequence[int], old: str, *, context: str, seed: int
) -> list[int]:
    """The step's last numeral changed to one of as many digits that the context doesn't hold, its token count kept if possible.

    Raises `BadOption` if the step has no numeral.
    """
    numerals = list(NUMERAL.finditer(old))
    if not numerals:
        raise BadOption("the step holds no number to change", hint="choose another step, or --replace TEXT")
    last = numerals[-1]
    taken = {m[0] for m in NUMERAL.finditer(context + old)}
    best: list[int] = []
    for other in _numerals(last[0], Random(seed)):
        if other in taken:
            continue
        changed = respelled(lm, prefix, ids, old[: last.start()] + other + old[last.end() :])
        if len(changed) == len(ids):
            return changed
        best = best or changed
    if not best:
        raise BadOption(f"every number like {last[0]} is in the text already", hint="give one with --replace TEXT")
    return best


def _numerals(like: str, random: Random) -> Iterator[str]:
    """Other numerals of the same form, at most 64, in random order; the first digit is never 0 where `like` had none."""
    digits = [i for i, c in enumerate(like) if c.isdigit()]
    seen = {like}
    for _ in range(512):
        drawn = list(like)
        for i in digits:
            leads = i == 0 and len(digits) > 1 and like[0] != "0"
            drawn[i] = random.choice("123456789" if leads else "0123456789")
        other = "".join(drawn)
        if other not in seen:
            seen.add(other)
            yield other
        if len(seen) > 64:
            return


def negate(text: str) -> str:
    """The step with its claim turned round, by a table of rules. Raises `BadOption` if none applies."""
    for pattern, other in _NEGATIONS:
        changed, n = re.subn(pattern, other, text, count=1)
        if n:
            return changed
    raise BadOption("no rule negates this step", hint="say what it should be with --replace TEXT")


def filler(lm: LanguageModel, prefix: Sequence[int], n_tokens: int) -> list[int]:
    """` ...` again and again, as many tokens as the step had, so that positions stay (Lanham et al. 2023, 2307.13702)."""
    ids = ids_after(lm, prefix, FILLER)
    return (ids * n_tokens)[:n_tokens]


def numbers_in(text: str) -> tuple[str, ...]:
    """The numerals of a text, sorted: two steps with other numbers differ, however alike their words (METHODS M2)."""
    return tuple(sorted(m[0].replace(",", "") for m in NUMERAL.finditer(text)))
