"""From the outcomes of many answers to each problem to what is said of it, and of all. ArmSamples nothing, writes nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from probe import stats
from probe.answers import NONE, TRUNCATED
from probe.outcomes import SILENT

ARM = "sample"
COLUMNS = ("prompt_id", "arm", "sample", "outcome", "n_tokens")  # of `branches`, which are needed
MEASURES = ("accuracy", "majority_correct", "entropy", "truncated", "none", "tokens")


class Attempts(NamedTuple):
    """What was drawn of one problem, by sample: classes, and tokens of each."""

    outcomes: tuple[str, ...]
    tokens: tuple[int, ...]


def drawn(branches: Iterable[pa.Table]) -> dict[int, Attempts]:
    """What was drawn of each problem, from rows of `branches` (with COLUMNS) in any order."""
    found: dict[int, list[tuple[int, str, int]]] = {}
    words: dict[str, str] = {}  # each class once
    for piece in branches:
        columns = [piece[name].cast(pa.string()) if name in ("arm", "outcome") else piece[name] for name in COLUMNS]
        for prompt, arm, sample, outcome, n in zip(*(column.to_pylist() for column in columns), strict=True):
            if arm == ARM:
                found.setdefault(prompt, []).append((sample, words.setdefault(outcome, outcome), n))
    ordered = {prompt: sorted(rows) for prompt, rows in sorted(found.items())}
    return {prompt: Attempts(tuple(r[1] for r in rows), tuple(r[2] for r in rows)) for prompt, rows in ordered.items()}


def sampled_row(prompt_id: int, own: Attempts, expected: str | None, ks: Sequence[int]) -> dict[str, Any]:
    """The row of the table `sampled` of one problem. ks: attempts that pass@k is of; those that are too many are left out."""
    n, counts = len(own.outcomes), Counter(own.outcomes)
    vote = stats.majority(own.outcomes, without=SILENT)
    row: dict[str, Any] = {
        "prompt_id": prompt_id, "n": n, "expected": expected, "correct": None, "accuracy": None, "ci_low": None,
        "ci_high": None, "k": [k for k in ks if k <= n], "pass_at_k": None,
        "majority": vote.winners[0] if vote.winners else None, "votes": vote.votes, "tied": len(vote.winners),
        "majority_correct": None, "entropy": float(stats.entropy(np.asarray(list(counts.values())))), "classes": len(counts),
        "truncated": counts[TRUNCATED] / n, "none": counts[NONE] / n, "tokens": float(np.mean(own.tokens)),
    }  # fmt: skip
    if expected is not None:
        correct = counts[expected]
        interval = stats.wilson(correct, n)
        row |= {
            "correct": correct, "accuracy": interval.estimate, "ci_low": interval.low, "ci_high": interval.high,
            "pass_at_k": [stats.pass_at_k(n, correct, k) for k in row["k"]], "majority_correct": vote.right(expected),
        }  # fmt: skip
    return row


def mean_rows(rows: Sequence[Mapping[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Rows of the table `sampled_means`: each measure's mean over problems, with an interval that draws problems anew."""
    ks = sorted({k for row in rows for k in row["k"]})
    values = {(measure, 0): [row[measure] for row in rows] for measure in MEASURES}
    values |= {("pass_at_k", k): [_pass(row, k) for row in rows] for k in ks}
    found = []
    for (metric, k), own in values.items():
        known = [(i, float(value)) for i, value in enumerate(own) if value is not None]
        if not known:
            continue
        mean = stats.cluster_mean(np.asarray([v for _, v in known]), np.asarray([i for i, _ in known]), seed=seed)
        most = math.inf if metric in ("entropy", "tokens") else 1.0  # no mean of shares is larger
        low, high = (None if math.isnan(bound) else min(most, max(0.0, bound)) for bound in (mean.low, mean.high))
        found.append({
            "metric": metric, "k": k, "estimate": mean.estimate, "ci_low": low, "ci_high": high, "problems": len(known),
            "rollouts": sum(rows[i]["n"] for i, _ in known), "method": mean.method or None,
        })  # fmt: skip
    return found


def _pass(row: Mapping[str, Any], k: int) -> float | None:
    return row["pass_at_k"][row["k"].index(k)] if row["pass_at_k"] is not None and k in row["k"] else None


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as the columns of their table."""
    return {name: [row[name] for row in rows] for name in rows[0]}
