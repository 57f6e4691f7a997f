"""Texts that edits put in: as ids that read so after a prefix; a number changed, filler. Draws nothing but numerals."""

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
    """The step's last numeral changed to another of as many digits, at best of as many tokens and not in the context.

    The token count goes first: positions stay. Raises `BadOption` if the step has no numeral.
    """
    numerals = list(NUMERAL.finditer(old))
    if not numerals:
        raise BadOption("the step holds no number to change", hint="choose another step, or --replace TEXT")
    last = numerals[-1]
    taken = {m[0] for m in NUMERAL.finditer(context + old)}
    best: tuple[int, list[int]] | None = None
    for other in _numerals(last[0], Random(seed)):
        changed = respelled(lm, prefix, ids, old[: last.start()] + other + old[last.end() :])
        worse = 2 * (len(changed) != len(ids)) + (other in taken)
        if best is None or worse < best[0]:
            best = worse, changed
        if not worse:
            break
    assert best is not None, "a digit can be another one"
    return best[1]


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


def filler(lm: LanguageModel, prefix: Sequence[int], n_tokens: int) -> list[int]:
    """` ...` again and again, as many tokens as the step had, so that positions stay (Lanham et al. 2023, 2307.13702)."""
    ids = ids_after(lm, prefix, FILLER)
    return (ids * n_tokens)[:n_tokens]


def numbers_in(text: str) -> tuple[str, ...]:
    """The numerals of a text, sorted: two steps with other numbers differ, however alike their words (METHODS M2)."""
    return tuple(sorted(m[0].replace(",", "") for m in NUMERAL.finditer(text)))
