"""Classes of answers whose formulas `sympy` simplifies to one, merged. A class's form hangs on its key alone, so that what is
merged are classes again; `math-verify`'s `verify` compares two keys, is not symmetric, and is not asked."""

from __future__ import annotations

import time
from collections.abc import Sequence

from probe.answers.algebra import simplest


def merge(keys: Sequence[str], *, timeout: float = 60.0) -> dict[str, str]:
    """Each key -> the key of its merged class: the first of them. What isn't simplified within `timeout` s stays itself."""
    until = time.monotonic() + timeout
    first: dict[str, str] = {}
    merged: dict[str, str] = {}
    for key in dict.fromkeys(keys):
        left = until - time.monotonic()
        form = simplest(key, seconds=left) if left > 0.05 else None
        merged[key] = first.setdefault(form or key, key)
    return merged
