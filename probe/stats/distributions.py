"""How far two distributions of outcomes lie apart, and how far they would by chance. Counts in, nats or shares out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


HELD = 1 << 20  # numbers that are drawn at once


def pieces(draws: int, n: int) -> Iterator[int]:
    """How many draws of n numbers are held at once, until all are done: memory that does not grow with n."""
    each = max(1, HELD // max(1, n))
    for start in range(0, draws, each):
        yield min(each, draws - start)


class Shift(NamedTuple):
    """A statistic of two arms, the p of one as large by chance, and what it is where nothing differs: mean, 95 % quantile."""

    value: float
    p_value: float
    null_mean: float
    null_high: float


def _shares(counts: np.ndarray, add: float = 0.0) -> np.ndarray:
    counts = np.asarray(counts, np.float64) + add
    return counts / counts.sum(axis=-1, keepdims=True)


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy in nats of counts (…, class): the plug-in estimate, too low by about (classes - 1) / 2n."""
    from scipy.stats import entropy as plug_in

    return np.asarray(plug_in(counts, axis=-1))


def tv(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Total variation ½ Σ |p - q| of counts (…, class), between 0 and 1."""
    return np.abs(_shares(a) - _shares(b)).sum(axis=-1) / 2


def jensen_shannon(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of counts (…, class) in nats, at most ln 2 (Lin 1991)."""
    from scipy.special import rel_entr

    p, q = _shares(a), _shares(b)
    m = (p + q) / 2
    return np.maximum((rel_entr(p, m) + rel_entr(q, m)).sum(axis=-1) / 2, 0.0)


def kl_jeffreys(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KL(p || q) of counts (…, class) in nats, ½ added to each (Jeffreys): to compare with papers; it grows with n."""
    from scipy.stats import entropy as divergence

    return np.asarray(divergence(_shares(a, 0.5), _shares(b, 0.5), axis=-1))


def counted(labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts (draw, class) of labels (draw, n)."""
    draws = np.arange(len(labels))[:, None] * classes
    return np.bincount((labels + draws).ravel(), minlength=len(labels) * classes).reshape(len(labels), classes)


def shift(a: Sequence[str], b: Sequence[str], statistic: Statistic, *, paired: bool, seed: int, draws: int = DRAWS) -> Shift:
    """How far outcomes a (n,) and b (m,) lie apart by a statistic of their counts; paired: n = m, and they share noise.

    The classes are those that either of them has, for the value, its p and its null alike.
    """
    _, codes = np.unique([*a, *b], return_inverse=True)
    x, y, classes = codes[: len(a)], codes[len(a) :], int(codes.max(initial=0)) + 1
    value = float(statistic(counted(x[None], classes), counted(y[None], classes))[0])
    p_value, null_mean = _permutation(x, y, classes, value, statistic, paired, np.random.default_rng(seed), draws)
    null = _null(x, y, classes, statistic, paired, np.random.default_rng(seed), min(draws, 2000))
    return Shift(value, p_value, null_mean, float(np.quantile(null, 0.95)))


def _permutation(
    a: np.ndarray, b: np.ndarray, classes: int, observed: float, statistic: Statistic, paired: bool,
    random: np.random.Generator, draws: int,
) -> tuple[float, float]:  # fmt: skip
    """P that the statistic of codes a (n,), b (m,) is as large by chance, and its mean: labels swapped in pairs, or shuffled.

    One is added to both counts, so that P is never 0 (Phipson & Smyth 2010). The mean is that of arms that differ by nothing,
    given all outcomes: drawn anew from the pool, few samples of many classes would lie too near each other.
    """
    larger, total = 0, 0.0
    for some in pieces(draws, len(a) + len(b)):
        if paired:
            swap = random.random((some, len(a))) < 0.5
            left, right = np.where(swap, b, a), np.where(swap, a, b)
        else:
            mixed = random.permuted(np.tile(np.concatenate([a, b]), (some, 1)), axis=1)
            left, right = mixed[:, : len(a)], mixed[:, len(a) :]
        found = statistic(counted(left, classes), counted(right, classes))
        larger += int((found >= observed - 1e-12).sum())
        total += float(found.sum())
    return float((1 + larger) / (draws + 1)), total / draws


def _null(
    a: np.ndarray, b: np.ndarray, classes: int, statistic: Statistic, paired: bool, random: np.random.Generator,
    draws: int,
) -> np.ndarray:  # fmt: skip
    """The statistic (draws,) of arms that differ by nothing: both drawn anew from the pooled outcomes; pairs from the
    pairs, each turned round at random, so that their correlation stays."""
    found = []
    for some in pieces(draws, len(a) + len(b)):
        if paired:
            picks = random.integers(0, len(a), size=(some, len(a)))
            swap = random.random((some, len(a))) < 0.5
            left, right = np.where(swap, b[picks], a[picks]), np.where(swap, a[picks], b[picks])
        else:
            pool = np.concatenate([a, b])
            left, right = (random.choice(pool, size=(some, len(x))) for x in (a, b))
        found.append(statistic(counted(left, classes), counted(right, classes)))
    return np.concatenate(found)


def homogeneous(table: np.ndarray) -> float:
    """p of k independent arms having one proportion: the chi-square test of a bool table (sample, arm)."""
    from scipy.stats import chi2_contingency

    hits = table.sum(axis=0)
    if hits.sum() in (0, table.size):
        return 1.0
    return float(chi2_contingency(np.stack([hits, len(table) - hits]), correction=False).pvalue)


def cochran(table: np.ndarray, *, seed: int, draws: int = 2000) -> float:
    """p of k arms whose samples share noise having one proportion: Cochran's Q of a bool table (sample, arm), by shuffling
    every sample's arms. Add-one, as in `shift`; 1 where all samples are alike in all arms."""
    mixed = table[table.any(axis=1) & ~table.all(axis=1)]
    if not len(mixed):
        return 1.0
    random, sums = np.random.default_rng(seed), np.empty(draws)
    for i in range(draws):
        sums[i] = (random.permuted(mixed, axis=1).sum(axis=0) ** 2).sum()
    return float((1 + (sums >= (mixed.sum(axis=0) ** 2).sum()).sum()) / (draws + 1))
