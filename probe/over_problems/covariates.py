"""What a step's importance goes along with: entropy of the outcome before it, where it stands, its length, what was cut off.

Those explain most of what is published about kinds of steps, so that they come first (METHODS M1b).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd

from probe import stats
from probe.over_problems.facts import KEYS, Draws, Place, rollouts_around
from probe.over_problems.means import Rows, by_method, is_drawn
from probe.stats.distributions import counted

SWAPS = 256
FROM_DRAWS = ("entropy", "truncated", "budget")
UNITS = {
    "intercept": "", "entropy": "nat", "position": "whole reasoning", "length": "token", "truncated": "all draws",
    "budget": "token",
}  # fmt: skip
Around = Callable[[Draws, Draws, str], float]


def covariate_rows(
    importance: pd.DataFrame, facts: pd.DataFrame, draws: Mapping[Place, Draws], references: Mapping[int, str], *, seed: int
) -> Rows:
    """Rows of the table `covariates`: importance (less its floor, where a method has one) regressed on what is known of steps.

    The noise of what was drawn before a step is in its importance and in the entropy before it: regressed on each other, they
    hang together where no step matters. So both are read anew from halves of the samples, importance from the one and entropy
    and truncation from the other, and the other way round (`halves`: crossed). Where importance can't be read from halves,
    as that of `counterfactual`, `halves` says so: shared.
    """
    halves = pd.concat([_half(facts, draws, odd) for odd in (False, True)]).reset_index(drop=True)
    whole = _half(facts, draws, None)
    rows: Rows = []
    for method, own in by_method(importance, facts):
        around = _read_from_draws(seed).get(method)
        measured = own[own["estimate"].notna()]
        if around is not None and not halves.empty:
            kind = "crossed"
            design = halves.merge(measured[KEYS], on=KEYS, how="inner")
            y = np.array(list(_crossed(design, draws, references, around)))
        else:
            kind = "shared" if is_drawn(method) else "none"
            design = measured.merge(whole[[*KEYS, *FROM_DRAWS]], on=KEYS, how="left", validate="1:1")
            y = (design["estimate"] - design["floor"].where(design["floor"].notna(), 0.0)).to_numpy(np.float64)
        behind = {"method": method, "halves": kind, "rollouts": rollouts_around(measured, draws)}
        rows += [{**behind, **row} for row in _designs(y, design, seed)]
    return rows


def _half(facts: pd.DataFrame, draws: Mapping[Place, Draws], odd: bool | None) -> pd.DataFrame:
    """The facts with the entropy of the outcomes drawn before each step, the share of those around it that were cut off, and
    the tokens that a draw from before it could have: of even or odd samples, whose steps without any are left out, or of all,
    with NaN where there are none."""
    rows = []
    for prompt, begins, ends in facts[["prompt_id", "begins", "ends"]].itertuples(index=False):
        found = [draws[place] for place in ((prompt, begins), (prompt, ends)) if place in draws]
        found = found if odd is None else [one.half(odd) for one in found]
        there = (prompt, begins) in draws and all(len(one.samples) for one in found)
        cut = float(np.mean([one.truncated for one in found])) if there else np.nan
        rows.append((_entropy(found[0].outcomes), cut, found[0].budget) if there else (np.nan,) * 3)
    table = facts.assign(**dict(zip(FROM_DRAWS, np.array(rows).reshape(-1, 3).T, strict=True)), odd=odd)
    return table if odd is None else table[table["entropy"].notna()]


def _entropy(outcomes: np.ndarray) -> float:
    return float(stats.entropy(np.unique(outcomes, return_counts=True)[1]))


def _crossed(
    design: pd.DataFrame, draws: Mapping[Place, Draws], references: Mapping[int, str], around: Around
) -> Iterator[float]:
    """For each step and half, importance from the samples of the other half that were drawn on both sides of it."""
    for prompt, begins, ends, odd in design[["prompt_id", "begins", "ends", "odd"]].itertuples(index=False):
        if (prompt, ends) not in draws:
            yield np.nan
            continue
        without, kept = (draws[prompt, place].half(not odd) for place in (begins, ends))
        both = np.intersect1d(without.samples, kept.samples)
        pair = Draws(both, without.of(both)), Draws(both, kept.of(both))
        yield around(*pair, references.get(prompt, "")) if len(both) else np.nan


def _read_from_draws(seed: int) -> dict[str, Around]:
    """How methods are read from two sets of draws: without the step, with it, and the class that is counted."""
    return {
        "resampling": _raised, "resampling_tv": partial(_excess, stats.tv, seed),
        "resampling_kl": partial(_excess, stats.kl_jeffreys, seed),
    }  # fmt: skip


def _raised(without: Draws, kept: Draws, reference: str) -> float:
    return float((kept.outcomes == reference).mean() - (without.outcomes == reference).mean())


def _excess(statistic: Callable[..., np.ndarray], seed: int, without: Draws, kept: Draws, reference: str) -> float:
    """A distance less its mean over swaps within pairs: of mean 0 where the step does nothing, whatever the outcomes are."""
    _, codes = np.unique([*without.outcomes, *kept.outcomes], return_inverse=True)
    classes, n = int(codes.max()) + 1, len(without.samples)
    a, b = codes[None, :n], codes[None, n:]
    swap = _swaps(n, seed)
    null = statistic(counted(np.where(swap, b, a), classes), counted(np.where(swap, a, b), classes))
    return float(statistic(counted(a, classes), counted(b, classes))[0] - null.mean())


@lru_cache(maxsize=32)
def _swaps(n: int, seed: int) -> np.ndarray:
    """Which of n pairs are turned round (swap, n): every way, or SWAPS at random where there are more."""
    if 2**n <= SWAPS:
        return (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1
    return np.random.default_rng((seed, n)).random((SWAPS, n)) < 0.5


def _designs(y: np.ndarray, design: pd.DataFrame, seed: int) -> Rows:
    """Two regressions: on the covariates, and on them and the kind of step, whose coefficients are then a kind's importance
    where all covariates have their mean."""
    problems = design["prompt_id"].to_numpy()
    names = [name for name in UNITS if name in design and design[name].notna().any()]
    x = design[names].to_numpy(np.float64)
    known = ~(np.isnan(y) | np.isnan(x).any(axis=1))
    y, x, problems, kinds = y[known], x[known], problems[known], design["kind"].to_numpy()[known]
    steps = len(design[known].drop_duplicates(KEYS))
    if not len(y):
        return []
    _, code, count = np.unique(problems, return_inverse=True, return_counts=True)
    centred = x - np.average(x, axis=0, weights=1 / count[code])
    labels = sorted(set(kinds))
    parts = {
        "covariates": (["intercept", *names], np.column_stack([np.ones(len(y)), x])),
        "kinds": ([*(f"kind: {label}" for label in labels), *names],
                  np.column_stack([*(kinds == label for label in labels), centred])),
    }  # fmt: skip
    fits = {name: stats.cluster_regression(y, columns, problems, seed=seed) for name, (_, columns) in parts.items()}
    rows = [row for name, fit in fits.items() for row in _rows(name, parts[name][0], fit, steps)]
    rows += [
        _row("covariates", name, None, np.nan, fits["covariates"], steps) for name in UNITS if name not in (*names, "intercept")
    ]
    more = _explained(fits["covariates"].r2, fits["kinds"].r2, steps, len(names) + 1, len(names) + len(labels))
    return [*rows, _row("kinds", "all kinds", None, more, fits["kinds"], steps)]


def _explained(plain: float, full: float, n: int, fewer: int, more: int) -> float:
    """The share of what `fewer` columns leave that `more` explain, adjusted for how many they are: about 0 by chance alone."""
    if more <= fewer or n <= more or not plain < 1:
        return np.nan
    return 1 - (1 - full) / (1 - plain) * (n - fewer) / (n - more)


def _rows(design: str, terms: list[str], fit: stats.ClusterRegression, steps: int) -> Iterator[dict[str, Any]]:
    for term, found, partial_r2 in zip(terms, fit.coefficients, fit.partial_r2, strict=True):
        own = term in UNITS and term != "intercept"
        yield _row(design, term, found, partial_r2 if own else np.nan, fit, steps)


def _row(
    design: str, term: str, found: stats.ClusterEstimate | None, partial_r2: float, fit: stats.ClusterRegression, steps: int
) -> dict[str, Any]:
    some = fit.coefficients[0]
    return {
        "design": design, "term": term, "unit": UNITS.get(term, ""), "coefficient": found.estimate if found else np.nan,
        "ci_low": found.low if found else np.nan, "ci_high": found.high if found else np.nan, "partial_r2": partial_r2,
        "r2": fit.r2, "problems": some.clusters, "steps": steps, "interval": (found.method or None) if found else None,
    }  # fmt: skip
