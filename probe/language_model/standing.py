"""Where given texts stand in another one, white space aside. Knows characters only."""

from __future__ import annotations

import json
from collections.abc import Sequence

Span = tuple[int, int]


def find(texts: Sequence[str], inside: str, *, taken: Sequence[Span] = ()) -> list[Span | None]:
    """The characters of `inside` that each text stands on, none on another's or on `taken`; None where it does not stand.

    Longer texts choose first. A text may stand as JSON writes it. An empty text stands nowhere.
    """
    where = [i for i, character in enumerate(inside) if not character.isspace()]
    bare = "".join(inside[i] for i in where)
    held = [any(low <= i < high for low, high in taken) for i in where]
    found: list[Span | None] = [None] * len(texts)
    for n in sorted(range(len(texts)), key=lambda n: (-len(texts[n]), n)):
        for form in _forms(texts[n]):
            words = "".join(form.split())
            at = _free(words, bare, held)
            if at is not None:
                held[at : at + len(words)] = [True] * len(words)
                found[n] = (where[at], where[at + len(words) - 1] + 1)
                break
    return found


def _forms(text: str) -> dict[str, None]:
    """A text as it is, as JSON writes it, and as JSON writes that."""
    once = [json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
    return dict.fromkeys((text, *once, *(json.dumps(form, ensure_ascii=False)[1:-1] for form in once)))


def _free(words: str, bare: str, held: list[bool]) -> int | None:
    """The first place of words in the bare text that nobody holds."""
    at = bare.find(words) if words else -1
    while at >= 0:
        if not any(held[at : at + len(words)]):
            return at
        at = bare.find(words, at + 1)
    return None
