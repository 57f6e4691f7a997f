"""How far two distributions of outcomes lie apart, and how far they would by chance. Counts in, nats or shares out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Null(NamedTuple):
    """What a statistic is where nothing differs: its mean and its 95 % quantile."""

    mean: float
    high: float


def _shares(counts: np.ndarray, add: float = 0.0) -> np.ndarray:
    counts = np.asarray(counts, np.float64) + add
    return counts / counts.sum(axis=-1, keepdims=True)


def _xlogy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x ln y, 0 where x is 0."""
    return np.where(x > 0, x * np.log(np.where(x > 0, y, 1.0)), 0.0)


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy in nats of counts (…, class): the plug-in estimate, too low by about (classes - 1) / 2n."""
    p = _shares(counts)
    return np.maximum(-_xlogy(p, p).sum(axis=-1), 0.0)


def tv(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Total variation ½ Σ |p - q| of counts (…, class), between 0 and 1."""
    return np.abs(_shares(a) - _shares(b)).sum(axis=-1) / 2


def jensen_shannon(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of counts (…, class) in nats, at most ln 2 (Lin 1991)."""
    p, q = _shares(a), _shares(b)
    m = (p + q) / 2
    return np.maximum((_xlogy(p, p) - _xlogy(p, m) + _xlogy(q, q) - _xlogy(q, m)).sum(axis=-1) / 2, 0.0)


def kl_jeffreys(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KL(p || q) of counts (…, class) in nats, ½ added to each (Jeffreys): to compare with papers; it grows with n."""
    p, q = _shares(a, 0.5), _shares(b, 0.5)
    return (p * np.log(p / q)).sum(axis=-1)


def counted(labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts (draw, class) of labels (draw, n)."""
    draws = np.arange(len(labels))[:, None] * classes
    return np.bincount((labels + draws).ravel(), minlength=len(labels) * classes).reshape(len(labels), classes)


def permutation_test(
    a: np.ndarray, b: np.ndarray, statistic: Statistic, *, paired: bool, seed: int, draws: int = DRAWS
) -> float:
    """P that the statistic of codes a (n,), b (m,) is as large by chance: labels swapped within pairs, or shuffled.

    One is added to both counts, so it is never 0 (Phipson & Smyth 2010).
    """
    classes, random = _classes(a, b), np.random.default_rng(seed)
    observed = statistic(counted(a[None], classes), counted(b[None], classes))[0]
    if paired:
        swap = random.random((draws, len(a))) < 0.5
        left, right = np.where(swap, b, a), np.where(swap, a, b)
    else:
        mixed = random.permuted(np.tile(np.concatenate([a, b]), (draws, 1)), axis=1)
        left, right = mixed[:, : len(a)], mixed[:, len(a) :]
    drawn = statistic(counted(left, classes), counted(right, classes))
    return float((1 + (drawn >= observed - 1e-12).sum()) / (draws + 1))


def null_floor(
    a: np.ndarray, b: np.ndarray, statistic: Statistic, *, paired: bool, seed: int, draws: int = 2000
) -> Null:
    """The statistic of arms that differ by nothing: both drawn anew from the pooled outcomes; pairs from the pairs,
    each turned round at random, so that their correlation stays."""
    classes, random = _classes(a, b), np.random.default_rng(seed)
    if paired:
        picks = random.integers(0, len(a), size=(draws, len(a)))
        swap = random.random((draws, len(a))) < 0.5
        left, right = np.where(swap, b[picks], a[picks]), np.where(swap, a[picks], b[picks])
    else:
        pool = np.concatenate([a, b])
        left, right = (random.choice(pool, size=(draws, len(x))) for x in (a, b))
    drawn = statistic(counted(left, classes), counted(right, classes))
    return Null(float(drawn.mean()), float(np.quantile(drawn, 0.95)))


def _classes(a: np.ndarray, b: np.ndarray) -> int:
    return int(max(a.max(initial=0), b.max(initial=0))) + 1
