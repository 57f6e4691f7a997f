"""Intervals of one proportion and of a mean; of two proportions: `arms`. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from probe.stats.distributions import HELD

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


def student_mean(values: Iterable[float]) -> Interval:
    """The mean of values (n,) with the interval of Student's t; of fewer than two values its ends are NaN."""
    from scipy.special import stdtrit

    values = np.asarray(list(values), np.float64)
    mean, n = float(values.mean()), len(values)
    half = float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Interval(mean, mean - half, mean + half)


def bootstrap_mean(values: np.ndarray, *, seed: int, draws: int = DRAWS) -> Interval:
    """The mean of values (n,) with a percentile bootstrap interval; of one value that value."""
    from scipy.stats import bootstrap

    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, mean, mean)
    held = max(1, HELD // len(values))
    found = bootstrap((values,), np.mean, n_resamples=draws, batch=held, method="percentile", rng=seed)
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high))


def bootstrap_means(a: np.ndarray, b: np.ndarray, *, seed: int, draws: int = DRAWS) -> Interval:
    """mean(b) - mean(a) of independent values a (n,) and b (m,) with a percentile bootstrap interval; of one value each the
    difference."""
    from scipy.stats import bootstrap

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    estimate = float(b.mean() - a.mean())
    if len(a) < 2 or len(b) < 2:
        return Interval(estimate, estimate, estimate)

    def difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(y.mean(axis=axis) - x.mean(axis=axis))

    held = max(1, HELD // (len(a) + len(b)))
    found = bootstrap((a, b), difference, n_resamples=draws, batch=held, method="percentile", rng=seed).confidence_interval
    return Interval(estimate, float(found.low), float(found.high))
