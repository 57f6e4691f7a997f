"""Two tokenizations of one text: the characters between boundaries that both have. Knows spans and log-probs, no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Span = tuple[int, int]


class Tokens(NamedTuple):
    """One model's tokens of a text: character spans that tile it, log-probs (NaN where nothing predicted a token)."""

    spans: Sequence[Span]
    logprobs: Sequence[float]
    whole: Callable[[int], bool]  # whether no character is torn at the end of token i


def segment_columns(text: str, a: Tokens, b: Tokens) -> dict[str, Any]:
    """Columns of `segments`: from each boundary that both tokenizations have to the next, log-probs summed on both sides.

    What comes before the first boundary after an unscored token is left out. No rows if they share no boundary.
    """
    ends_a, ends_b = _boundaries(text, a), _boundaries(text, b)
    start = max(_scored_from(a), _scored_from(b))
    shared = sorted(end for end in ends_a.keys() & ends_b.keys() if end >= start and end <= len(text))
    if start == 0:
        shared = [0, *shared]
        ends_a[0], ends_b[0] = _last_unscored(a), _last_unscored(b)
    rows = []
    for i, (low, high) in enumerate(pairwise(dict.fromkeys(shared))):
        row: dict[str, Any] = {"segment": i, "text_start": low, "text_end": high, "text": text[low:high]}
        for name, one, ends in (("a", a, ends_a), ("b", b, ends_b)):
            first, last = ends[low] + 1, ends[high] + 1
            row[f"tokens_{name}"] = last - first
            row[f"logprob_{name}"] = float(np.sum(np.asarray(one.logprobs[first:last], np.float64)))
        rows.append({**row, "difference": row["logprob_b"] - row["logprob_a"]})
    names = (
        "segment",
        "text_start",
        "text_end",
        "text",
        "tokens_a",
        "tokens_b",
        "logprob_a",
        "logprob_b",
        "difference",
    )
    return {name: [row[name] for row in rows] for name in names}


def ascii_end(text: str, spans: Sequence[Span]) -> Callable[[int], bool]:
    """A test of ends where the ids cannot be decoded again: a character of one byte is never torn."""
    return lambda i: spans[i][1] > 0 and text[spans[i][1] - 1].isascii()


def _boundaries(text: str, one: Tokens) -> dict[int, int]:
    """Character at which a token ends -> the last token that ends there, where no character is torn."""
    ends = {end: i for i, (_, end) in enumerate(one.spans)}
    return {end: i for end, i in ends.items() if i == len(one.spans) - 1 or (end <= len(text) and one.whole(i))}


def _last_unscored(one: Tokens) -> int:
    return max((i for i, logprob in enumerate(one.logprobs) if np.isnan(logprob)), default=-1)


def _scored_from(one: Tokens) -> int:
    """The character from which on every token has a log-prob."""
    last = _last_unscored(one)
    return one.spans[last][1] if last >= 0 else 0
