"""From the outcomes of two arms to differences with intervals (METHODS M21): in pairs where the arms share their noise, else
as independent samples; where it depended on them how many there are, with confidence sequences (`stats.sequential`). Draws
nothing, writes nothing.

How many of each arm were cut off too, and whether arms differ in that by more than chance: a difference in what came out
may then be one in how much room there was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe import stats
from probe.answers import TRUNCATED, merge

SCORES = {True: "McNemar exact and its inversion", False: "score test and its inversion"}
LABELS = {True: "paired permutation, parametric null", False: "permutation, parametric null"}
LENGTHS = {True: "paired bootstrap", False: "bootstrap of both arms"}
ANYTIME = "confidence sequence by betting"
SURE = 0.05  # p from which a difference in what was cut off is told
CUT_OFF_HINT = "what differs between them may be that: raise --max-new"


def labels(branches: pa.Table, arm: str, n: int | None = None) -> list[str]:
    """Outcomes of an arm by sample, the first `n` of them."""
    own = branches.filter(pc.equal(branches["arm"].cast(pa.string()), arm)).sort_by("sample")
    return [str(x) for x in own["outcome"].cast(pa.string()).to_pylist()[:n]]


def merged_outcomes(branches: pa.Table, reference: str, expected: str | None) -> tuple[pa.Table, str, str | None]:
    """Branches, and the classes that are counted, with the classes made one that a computer algebra system finds equal."""
    found = branches["outcome"].cast(pa.string()).to_pylist()
    first = merge([reference, *([] if expected is None else [expected]), *found])
    at = branches.schema.get_field_index("outcome")
    merged = branches.set_column(at, "outcome", pa.array([first[key] for key in found], pa.string()))
    return merged, first[reference], None if expected is None else first[expected]


def effect_rows(
    branches: pa.Table, edit: str, reference: str, expected: str | None, *, n: int, seed: int, paired: bool = True,
    stopped: str | None = None, longest: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the table `effects` from the first `n` samples of both arms, which share their noise if they are paired.

    For each class of answers the share in both arms and their difference; total variation, Jensen-Shannon and KL
    (with ½ added to each count, Jeffreys) of the two distributions with a null floor and p; the flip rate of pairs; accuracy
    where `expected` is known; length in tokens. `reference` is the class that the flip rate and the headline are about.

    stopped: why no more was drawn, where that depended on what was: intervals and p then hold at whatever n it stopped, and
    there is no p of the distances, for which nothing of the kind is known. longest: tokens that a continuation can have.
    """
    control, edited = labels(branches, "control", n), labels(branches, "edited", n)
    classes = sorted(set(control) | set(edited) | {reference}, key=lambda c: (-control.count(c), -edited.count(c), c))
    rows = [_share(control, edited, c, paired=paired, looks=stopped is not None) for c in classes]
    rows += _distances(control, edited, seed=seed, paired=paired)
    if paired:
        rows.append(_flips(control, edited, looks=stopped is not None))
    if expected is not None:
        of = _share(control, edited, expected, paired=paired, looks=stopped is not None)
        rows.append({**of, "metric": "accuracy", "outcome": expected})
    rows.append(_lengths(branches, n, seed=seed, paired=paired, longest=longest if stopped is not None else None))
    unsure = {"p_value": None} if stopped is not None else {}
    return [{"edit": edit, "stopped": stopped, **row, **(unsure if row["method"] in LABELS.values() else {})} for row in rows]


def _is(found: Sequence[str], outcome: str) -> np.ndarray:
    return np.asarray([x == outcome for x in found], dtype=bool)


def _share(control: Sequence[str], edited: Sequence[str], outcome: str, *, paired: bool, looks: bool) -> dict[str, Any]:
    a, b = _is(control, outcome), _is(edited, outcome)
    found = stats.anytime(a, b) if looks else stats.compare(a, b, paired=paired)
    return {
        "metric": "share", "outcome": outcome, "control": float(a.mean()), "edited": float(b.mean()),
        "difference": found.estimate, "ci_low": found.low, "ci_high": found.high, "p_value": found.p_value,
        "null_high": None,
        "n": len(a), "method": ANYTIME if looks else SCORES[paired],
    }  # fmt: skip


def _distances(control: Sequence[str], edited: Sequence[str], *, seed: int, paired: bool) -> list[dict[str, Any]]:
    """How far the two distributions of outcomes lie apart, and how far they would if the edit did nothing."""
    rows = []
    for metric, statistic in (
        ("total_variation", stats.tv),
        ("jensen_shannon", stats.jensen_shannon),
        ("kl_jeffreys", stats.kl_jeffreys),
    ):
        found = stats.shift(control, edited, statistic, seed=seed, paired=paired)
        rows.append({
            "metric": metric, "outcome": "", "control": None, "edited": None, "difference": found.value,
            "ci_low": None, "ci_high": None, "p_value": found.p_value, "null_high": found.null_high,
            "n": len(control), "method": LABELS[paired],
        })  # fmt: skip
    return rows


def _flips(control: Sequence[str], edited: Sequence[str], *, looks: bool) -> dict[str, Any]:
    """Share of samples whose outcome the edit changed, noise being the same."""
    changed = sum(a != b for a, b in zip(control, edited, strict=True))
    interval = (stats.anytime_share if looks else stats.wilson)(changed, len(control))
    return {
        "metric": "flip_rate", "outcome": "", "control": None, "edited": None, "difference": interval.estimate,
        "ci_low": interval.low, "ci_high": interval.high, "p_value": None, "null_high": None,
        "n": len(control), "method": ANYTIME if looks else "Wilson",
    }  # fmt: skip


def _lengths(branches: pa.Table, n: int, *, seed: int, paired: bool, longest: int | None) -> dict[str, Any]:
    """Tokens drawn, edited - control: pair by pair, or of means; or of at most `longest`, at whatever n it stopped."""
    arms = []
    for arm in ("control", "edited"):
        own = branches.filter(pc.equal(branches["arm"].cast(pa.string()), arm)).sort_by("sample")
        arms.append(own["n_tokens"].to_numpy()[:n].astype(np.float64))
    control, edited = arms
    if longest is not None:
        interval = stats.anytime_mean(edited - control, bound=max(1, longest))
    elif paired:
        interval = stats.bootstrap_mean(edited - control, seed=seed)
    else:
        interval = stats.bootstrap_means(control, edited, seed=seed)
    return {
        "metric": "tokens", "outcome": "", "control": float(control.mean()), "edited": float(edited.mean()),
        "difference": interval.estimate, "ci_low": interval.low, "ci_high": interval.high, "p_value": None,
        "null_high": None, "n": n, "method": LENGTHS[paired] if longest is None else ANYTIME,
    }  # fmt: skip


def cut_off(branches: pa.Table, arm: str, n: int | None = None) -> np.ndarray:
    """Whether each sample (n,) of an arm ran out of tokens."""
    return np.asarray([outcome == TRUNCATED for outcome in labels(branches, arm, n)], dtype=bool)


def cut_off_between(branches: pa.Table, n: int, *, paired: bool = True) -> list[str]:
    """A warning where control and edited differ by McNemar's exact test, or without pairs by the score test."""
    control, edited = (cut_off(branches, arm, n) for arm in ("control", "edited"))
    p = stats.compare(control, edited, paired=paired).p_value
    if p > SURE:
        return []
    shares = f"{control.mean():.2f} of control and {edited.mean():.2f} of edited were cut off"
    return [f"{shares} ({'McNemar' if paired else 'score test'} p = {p:.3g}); {CUT_OFF_HINT}"]


def cut_off_across(branches: pa.Table, arms: Sequence[str], n: int, *, paired: bool) -> tuple[list[float], list[str]]:
    """The share that was cut off in each arm, and a warning where they differ: by Cochran's Q, or without pairs chi-square."""
    table = np.stack([cut_off(branches, arm, n) for arm in arms], axis=1)
    shares, p = table.mean(axis=0), stats.cochran(table, seed=0) if paired else stats.homogeneous(table)
    if p > SURE:
        return shares.tolist(), []
    text = f"from {shares.min():.2f} to {shares.max():.2f} of the draws of a boundary were cut off"
    test = "Cochran's Q" if paired else "chi-square"
    return shares.tolist(), [f"{text} ({test}, p = {p:.3g}); {CUT_OFF_HINT}"]
