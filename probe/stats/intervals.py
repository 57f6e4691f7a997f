"""Intervals and tests for proportions: one, two, and two whose samples are paired. NumPy only; knows no model."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054
DRAWS = 10_000


class Interval(NamedTuple):
    """An estimate and its 95 % interval, in the estimate's own unit."""

    estimate: float
    low: float
    high: float


def wilson(k: float, n: int, *, z: float = Z95) -> Interval:
    """A proportion k / n with Wilson's score interval (Wilson 1927): never of zero width, 0/20 -> [0, 0.161].

    k may be a sum of n numbers between 0 and 1: none of the same mean vary more than a proportion does.
    """
    if n < 1:
        return Interval(math.nan, 0.0, 1.0)
    p, shrink = k / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(p, 0.0 if k == 0 else low, 1.0 if k == n else high)


def newcombe(k1: int, n1: int, k2: int, n2: int) -> Interval:
    """p2 - p1 of independent arms (Newcombe 1998, method 10 of "Interval estimation for the difference …": hybrid score)."""
    a, b = wilson(k1, n1), wilson(k2, n2)
    difference = b.estimate - a.estimate
    low = difference - math.hypot(b.estimate - b.low, a.high - a.estimate)
    high = difference + math.hypot(b.high - b.estimate, a.estimate - a.low)
    return Interval(difference, max(-1.0, low), min(1.0, high))


def paired_difference(control: np.ndarray, edited: np.ndarray) -> Interval:
    """P(edited) - P(control) of samples that share their noise (Newcombe 1998, "Improved confidence intervals … paired
    data", method 10): Wilson intervals of both, joined with the correlation of the pairs. Bool arrays (n,).

    Closed form, honest where a bootstrap is not: with no discordant pair the interval still has the width that n allows.
    """
    n = len(control)
    both, only_control, only_edited, neither = cells(control, edited)
    a, b = wilson(both + only_control, n), wilson(both + only_edited, n)
    difference = b.estimate - a.estimate
    phi = _phi(both, only_control, only_edited, neither)
    da, db = (a.estimate - a.low, a.high - a.estimate), (b.estimate - b.low, b.high - b.estimate)
    low = difference - math.sqrt(max(0.0, db[0] ** 2 - 2 * phi * db[0] * da[1] + da[1] ** 2))
    high = difference + math.sqrt(max(0.0, db[1] ** 2 - 2 * phi * db[1] * da[0] + da[0] ** 2))
    return Interval(difference, max(-1.0, low), min(1.0, high))


def cells(control: np.ndarray, edited: np.ndarray) -> tuple[int, int, int, int]:
    """How many pairs have it in both, in control only, in edited only, in neither."""
    a, b = np.asarray(control, bool), np.asarray(edited, bool)
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())


def _phi(both: int, only_control: int, only_edited: int, neither: int) -> float:
    """Correlation of the pairs, with Newcombe's continuity correction where it is positive."""
    product = (both + only_control) * (only_edited + neither) * (both + only_edited) * (only_control + neither)
    if product == 0:
        return 0.0
    cross, n = both * neither - only_control * only_edited, both + only_control + only_edited + neither
    if cross > 0:
        cross = max(cross - n // 2, 0)
    return cross / math.sqrt(product)


def mcnemar_exact(only_control: int, only_edited: int) -> float:
    """Two-sided p of the discordant pairs being even (exact binomial at ½); 1 where there are none."""
    n, k = only_control + only_edited, min(only_control, only_edited)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


def bootstrap_mean(values: np.ndarray, *, seed: int, draws: int = DRAWS) -> Interval:
    """The mean of values (n,) with a percentile bootstrap interval."""
    values = np.asarray(values, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def independent_needed(half_width: float, *, p: float = 0.5) -> int:
    """Samples of each arm for a difference known to +- half_width: 2 p (1 - p) (z / half_width)^2."""
    return math.ceil(2 * p * (1 - p) * (Z95 / half_width) ** 2)


def pairs_needed(half_width: float, *, p: float = 0.5, rho: float = 0.5) -> int:
    """Pairs for the same, where samples of the arms correlate by rho: (1 - rho) times as many."""
    return math.ceil(2 * p * (1 - p) * (1 - rho) * (Z95 / half_width) ** 2)


def resolution(control: np.ndarray, edited: np.ndarray) -> str:
    """Whether a paired difference is told from zero; if not, how many such pairs would tell one of this size, or of 0.1."""
    n, found = len(control), paired_difference(control, edited)
    if found.low > 0 or found.high < 0:
        return f"resolved at n = {n}"
    _, only_control, only_edited, _ = cells(control, edited)
    spread = (only_control + only_edited) / n or 0.5  # variance of one pair's difference where the mean is 0
    size = max(abs(found.estimate), 0.1)
    needed = max(n + 1, math.ceil(spread * (Z95 / size) ** 2))
    return f"not resolved at n = {n}; about {needed} pairs needed to tell {size:.2f} from 0"
