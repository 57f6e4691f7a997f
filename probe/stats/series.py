"""Means of values that stand in a row and hang together, as tokens do: intervals from blocks or whole texts. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from probe.stats.intervals import Interval

DRAWS = 4000
TEXTS = 20  # from so many on, whole texts are drawn


class Means(NamedTuple):
    """How an interval over tokens was drawn, in words, and a function's worth of facts: texts or a block's length."""

    method: str
    block: int
    by_text: bool


def how(lengths: Sequence[int]) -> Means:
    """Whole texts where there are enough of them, else blocks of n^(1/3) neighbours (the order of Hall et al. 1995)."""
    counted, n = [length for length in lengths if length], sum(lengths)
    if len(counted) >= TEXTS:
        return Means(f"95 %, bootstrap of {len(counted)} whole texts", 0, True)
    block = max(1, math.ceil(n ** (1 / 3)))
    return Means(f"95 %, bootstrap of blocks of {block} neighbours, which takes those further apart as independent",
                 block, False)  # fmt: skip


def mean_of(parts: Sequence[np.ndarray], *, seed: int, draws: int = DRAWS) -> Interval:
    """The mean of all values of several texts, each (n,), with the interval that `how` says.

    Blocks are circular (Politis & Romano 1992), so that each value is as likely; a resampled mean of texts is the sum over
    them by their number of values. No values, or one that is not finite: NaN.
    """
    values = np.concatenate([np.asarray(part, np.float64) for part in parts]) if len(parts) else np.empty(0)
    if not len(values) or not np.isfinite(values).all():
        return Interval(math.nan, math.nan, math.nan)
    random, means = np.random.default_rng(seed), how([len(part) for part in parts])
    if means.by_text:
        sums = np.array([np.sum(part, dtype=np.float64) for part in parts if len(part)])
        counts = np.array([len(part) for part in parts if len(part)])
        picks = random.integers(0, len(sums), size=(draws, len(sums)))
        drawn = sums[picks].sum(1) / counts[picks].sum(1)
    else:
        block, n = min(means.block, len(values)), len(values)
        total = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[: block - 1]]))])
        blocks = (total[block:] - total[:-block]) / block
        picks = random.integers(0, n, size=(draws, math.ceil(n / block)))
        drawn = blocks[picks].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
