"""One sweep over the boundaries between steps: each is drawn from once, and serves the step before and the step after.

`resampling` (METHODS M1) compares what comes out with the step kept and with it drawn anew. `counterfactual` (M2) keeps of
the second only the draws whose own step says something else. Knows outcomes, draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from probe import stats
from probe.influence.rows import Row
from probe.rewinding.effects import labels
from probe.rewinding.rollouts import Arm
from probe.rewinding.trajectory import Trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

LEAST = 10  # draws that must say something else: with fewer nothing is concluded


def boundary(i: int) -> str:
    """Name of the arm that continues after i steps."""
    return f"boundary-{i}"


def arms(lm: LanguageModel, original: Trajectory) -> list[Arm]:
    """n + 1 arms for n steps; the last has all of them, without the end token: nothing is continued after the end."""
    steps, ids = original.steps, original.ids
    end = len(ids) - (ids[-1] in lm.eos_ids)
    edges = [steps[0].start, *(min(step.end, end) for step in steps)]
    return [Arm(boundary(i), i, ids[:edge], edge, original.n_prompt, of=len(edges)) for i, edge in enumerate(edges)]


def resampling(branches: pa.Table, n_steps: int, reference: str, *, n: int, seed: int) -> list[Row]:
    """Three rows a step: what keeping it, instead of drawing it anew, does to the outcome.

    `resampling`: the paired difference in P(reference). `resampling_tv`, `resampling_kl`: total variation, and KL with ½
    added to each count, of all outcomes; their `control` is the mean where nothing differs, their p a paired permutation's.
    """
    found = [labels(branches, boundary(i), n) for i in range(n_steps + 1)]
    codes = {c: k for k, c in enumerate(sorted({c for arm in found for c in arm}))}
    rows = []
    for i in range(n_steps):
        without, kept = found[i], found[i + 1]
        a, b = (np.asarray([c == reference for c in arm]) for arm in (without, kept))
        interval = stats.paired_difference(a, b)
        rows.append(Row(
            "resampling", i, interval.estimate, "P(answer) with the step - without", interval.low, interval.high,
            stats.mcnemar_exact(*stats.cells(a, b)[1:3]), n=n,
        ))  # fmt: skip
        x, y = (np.asarray([codes[c] for c in arm]) for arm in (without, kept))
        counts = [np.bincount(v, minlength=len(codes)) for v in (x, y)]
        for name, unit, statistic in (
            ("tv", "total variation", stats.tv),
            ("kl", "nats, KL Jeffreys", stats.kl_jeffreys),
        ):
            rows.append(Row(
                f"resampling_{name}", i, float(statistic(*counts)), unit, n=n,
                p_value=stats.permutation_test(x, y, statistic, paired=True, seed=seed),
                control=stats.null_floor(x, y, statistic, paired=True, seed=seed).mean,
            ))  # fmt: skip
    return rows


def counterfactual(
    branches: pa.Table, n_steps: int, reference: str, different: Sequence[np.ndarray], *, n: int
) -> list[Row]:
    """A row a step: P(reference) with the step kept - P(reference) where another step was drawn in its place.

    different[i] (n,): whether draw s from before step i says something else than step i. `control` is the same against the
    draws that say the same: content matters only if the estimate exceeds it. Fewer than LEAST such draws: no estimate.
    """
    rows = []
    for i in range(n_steps):
        without, kept = (np.asarray(labels(branches, boundary(k), n)) == reference for k in (i, i + 1))
        other, same = without[different[i]], without[~different[i]]
        row = Row("counterfactual", i, None, "P(answer) with the step - with another", n=len(other))
        if len(other) >= LEAST:
            interval = stats.newcombe(int(other.sum()), len(other), int(kept.sum()), n)
            row.estimate, row.ci_low, row.ci_high = interval
            row.p_value = _fisher(int(other.sum()), len(other), int(kept.sum()), n)
        if len(same) >= LEAST:
            row.control = float(kept.mean() - same.mean())
        rows.append(row)
    return rows


def _fisher(k1: int, n1: int, k2: int, n2: int) -> float:
    """Two-sided p of two independent proportions being one (Fisher's exact test)."""
    from math import comb

    total, whole = k1 + k2, comb(n1 + n2, k1 + k2)
    each = [comb(n1, k) * comb(n2, total - k) for k in range(max(0, total - n2), min(n1, total) + 1)]
    own = comb(n1, k1) * comb(n2, total - k1)
    return min(1.0, sum(p for p in each if p <= own) / whole)
