"""Many tests at once, and whether two methods order the steps alike. NumPy only."""

from __future__ import annotations

import numpy as np


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q-values (n,): the false discovery rate at which each test is just a discovery (Benjamini & Hochberg 1995)."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean."""
    _, where, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((2 * last - counts + 1) / 2)[where]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho with ties; NaN where one of them is constant or shorter than 2."""
    return pearson(ranks(a), ranks(b))


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r; NaN where one of them is constant or shorter than 2."""
    if len(a) < 2:
        return float("nan")
    x, y = a - a.mean(), b - b.mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b; NaN where one of them is constant."""
    x, y = (np.sign(np.subtract.outer(v, v))[np.triu_indices(len(v), 1)] for v in (np.asarray(a), np.asarray(b)))
    scale = np.sqrt((x != 0).sum() * (y != 0).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")
