"""All values of some places, counted in fine intervals: quantiles and histograms without the values. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STEPS = 6  # bits: an octave has 2^6 intervals, and the middle of one is within 1 % of all in it
LOW, HIGH = -24, 40  # octaves: what is smaller than 2^LOW counts as 0, what is larger than 2^HIGH as that
HALF = (HIGH - LOW) << STEPS
BINS = 2 * HALF + 1
_SHIFT, _BASE = 23 - STEPS, (LOW + 127) << STEPS  # of a float32's bits


def _middles() -> np.ndarray:
    """(BINS,) the value in the middle of each interval."""
    bits = (np.arange(HALF + 1, dtype=np.int64) + _BASE) << _SHIFT
    edges = bits.astype(np.int32).view(np.float32).astype(np.float64)
    positive = (edges[:-1] + edges[1:]) / 2
    return np.concatenate([-positive[::-1], [0.0], positive])


MIDDLES = _middles()


def bins_of(values: np.ndarray) -> np.ndarray:
    """The interval of each value (…), any finite numbers: 0 is the most negative, HALF is about 0."""
    single = np.ascontiguousarray(values, np.float32)
    size = (single.view(np.int32) & 0x7FFFFFFF) >> _SHIFT
    step = np.clip(size - _BASE + 1, 0, HALF)
    return HALF + np.where(single < 0, -step, step)


class ValueCounts:
    """counts (k, BINS) of k places."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts

    @classmethod
    def nothing(cls, k: int) -> ValueCounts:
        return cls(np.zeros((k, BINS), np.int64))

    def add(self, place: int, values: np.ndarray) -> None:
        """Count the values (n,) of one place."""
        self.counts[place] += np.bincount(bins_of(values), minlength=BINS)

    def merge(self, other: ValueCounts) -> None:
        self.counts += other.counts

    def arrays(self) -> dict[str, np.ndarray]:
        """The intervals in which something is."""
        place, number = np.nonzero(self.counts)
        return {"place": place, "bin": number, "count": self.counts[place, number]}

    @classmethod
    def restored(cls, k: int, place: np.ndarray, number: np.ndarray, count: np.ndarray) -> ValueCounts:
        found = cls.nothing(k)
        found.counts[place, number] = count
        return found

    def quantiles(self, place: int, shares: Sequence[float], low: float, high: float) -> list[float]:
        """Below which so large a share of the values lies, to about 1 % of each; low, high: the least and the greatest."""
        upto = np.cumsum(self.counts[place])
        at = np.searchsorted(upto, np.ceil(np.asarray(shares) * upto[-1]).clip(1))
        return [float(x) for x in np.clip(MIDDLES[at], low, high)]

    def histogram(self, place: int, n: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        """Edges (n + 1,) of intervals of one width from the least to the greatest value, and the counts there (n,)."""
        edges = np.linspace(low, high, n + 1) if high > low else np.asarray([low, high])
        there = np.flatnonzero(self.counts[place])
        found, _ = np.histogram(np.clip(MIDDLES[there], low, high), bins=edges, weights=self.counts[place][there])
        return edges, found.astype(np.int64)
