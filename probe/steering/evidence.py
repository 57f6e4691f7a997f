"""How well a difference of means tells two sets apart on texts it was not made of, and what shuffled labels give."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SHUFFLES = 500


class Evidence(NamedTuple):
    """`correct` (n,): whether each text lies on its side of the direction that the others make. `accuracy` is its mean,
    `shuffled` and `shuffled_high` mean and 95 % quantile of it for shuffled labels, `p_value` add-one."""

    correct: np.ndarray
    accuracy: float
    shuffled: float
    shuffled_high: float
    p_value: float


def leave_one_out(x: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """x (n, d), positive (n,) bool -> (n,) bool: is each text on its own side of the plane half-way between the means of the
    others, across their difference? Each set needs two."""
    means = []
    for own in (positive, ~positive):
        total, count = x[own].sum(0), own.sum()
        means.append(np.where(own[:, None], (total - x) / (count - 1), total / count))
    plus, minus = means
    side = ((x - (plus + minus) / 2) * (plus - minus)).sum(-1)
    return np.where(positive, side > 0, side < 0)


def separation(x: np.ndarray, positive: np.ndarray, *, seed: int, shuffles: int = SHUFFLES) -> Evidence | None:
    """x (n, d) float64, positive (n,) bool. None where a set has one text: then nothing can be left out."""
    if min(positive.sum(), (~positive).sum()) < 2:
        return None
    correct, random = leave_one_out(x, positive), np.random.default_rng(seed)
    null = np.asarray([leave_one_out(x, random.permutation(positive)).mean() for _ in range(shuffles)])
    accuracy = float(correct.mean())
    p = float((1 + (null >= accuracy).sum()) / (shuffles + 1))
    return Evidence(correct, accuracy, float(null.mean()), float(np.quantile(null, 0.95)), p)
