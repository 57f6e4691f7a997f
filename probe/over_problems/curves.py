"""Curves over the reasoning: what comes out once so much of it is kept, and the area over them.

Source: Lanham et al. 2023 (2307.13702).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from probe import stats
from probe.over_problems.facts import Draws, Place
from probe.over_problems.means import Rows, of_own_answer

GRID = np.arange(11) / 10
FORMULAS = {
    "steps": "1 - mean of v over the boundaries of a problem",
    "tokens": "1 - sum(v w) / sum(w), w the tokens of the step that a boundary follows, or that was edited",
}
"""Of the area over a curve v of one problem, by what its boundaries weigh; the mean over problems is then reported. Where steps
weigh the same this is the paper's too: it averages over lengths by how common they are."""


class Curve(NamedTuple):
    """Points of each problem: prompt_id, `steps` and `tokens` (shares of the reasoning that were kept), weight, value."""

    name: str
    what: str
    points: pd.DataFrame


def importance_curves(
    early_answers: pd.DataFrame | None, facts: pd.DataFrame, draws: Mapping[Place, Draws], own_answers: Mapping[int, str]
) -> Iterator[Curve]:
    """What a model says when asked after each step, and what rollouts from there come to."""
    boundaries = _boundaries(facts)
    if early_answers is not None and not early_answers.empty:
        joined = early_answers.merge(boundaries, on=["prompt_id", "boundary"], how="inner", validate="1:1")
        for column, what in (("match", "the answer asked for is the counted one"), ("chance", "its probability")):
            values = joined[column].astype(float)
            if values.notna().any():
                name = "early-answer" if column == "match" else "early-answer chance"
                yield _curve(name, f"early answering: {what}", joined.assign(value=values))
    yield from _of_draws(boundaries, draws, own_answers)


def effect_curves(
    effects: pd.DataFrame, facts: pd.DataFrame, draws: Mapping[Place, Draws], own_answers: Mapping[int, str]
) -> Iterator[Curve]:
    """What comes out when a step is edited after so many steps: the share of the original's own answer, and accuracy.

    With another prompt before the steps (`prompt-b`) that is the share of the answer that they led to under their own.
    """
    steps = facts.assign(steps=facts["kept"], tokens=facts["position"], weight=facts["length"])
    joined = of_own_answer(effects, own_answers).merge(steps, on=["prompt_id", "step"], how="inner", validate="m:1")
    words = {"share": "the original's own answer", "accuracy": "the right answer"}
    for metric, what in words.items():
        for edit, own in joined[joined["metric"] == metric].groupby("edit", sort=True, observed=True):
            name = str(edit) if metric == "share" else f"{edit} {metric}"
            yield _curve(name, f"{edit}: share of {what} in the edited arm", own.assign(value=own["edited"]))
    yield from _of_draws(_boundaries(facts), draws, own_answers)


def curve_rows(curves: list[Curve], *, seed: int) -> Rows:
    """Rows of the table `curves`: each problem's curve at the shares of GRID, on straight lines between its own points."""
    rows = []
    for curve in curves:
        for along in FORMULAS:
            lines = [
                np.interp(GRID, own[along], own["value"], left=np.nan, right=np.nan)
                for _, own in curve.points.sort_values(along, kind="stable").groupby("prompt_id", sort=True)
            ]
            for share, values in zip(GRID, np.array(lines).T, strict=True):
                found = stats.cluster_mean(values, np.arange(len(values)), seed=seed)
                rows.append({
                    "curve": curve.name, "along": along, "share": float(share), "estimate": found.estimate,
                    "ci_low": found.low, "ci_high": found.high, "problems": found.clusters, "interval": found.method or None,
                })  # fmt: skip
    return rows


def areas(curves: list[Curve], *, seed: int) -> list[dict[str, Any]]:
    """The area over each curve, mean over problems with interval, in both weightings of FORMULAS."""
    found = []
    for curve in curves:
        for along, formula in FORMULAS.items():
            each = [
                1 - float(np.average(own["value"], weights=own["weight"] if along == "tokens" else None))
                for _, own in curve.points.groupby("prompt_id", sort=True)
                if along == "steps" or own["weight"].sum()
            ]
            area = stats.cluster_mean(np.array(each), np.arange(len(each)), seed=seed)
            found.append({
                "curve": curve.name, "what": curve.what, "along": along, "area_over_curve": area.estimate, "ci_low": area.low,
                "ci_high": area.high, "problems": area.clusters, "boundaries": len(curve.points),
                "interval": area.method or None, "formula": formula,
            })  # fmt: skip
    return found


def _boundaries(facts: pd.DataFrame) -> pd.DataFrame:
    """A row a boundary: prompt_id, boundary (steps kept), pos, shares `steps` and `tokens` kept, weight."""
    by = facts.groupby("prompt_id", sort=False)
    first = facts[by.cumcount() == 0]
    total = by["length"].transform("sum")
    zero = pd.DataFrame({
        "prompt_id": first["prompt_id"], "boundary": 0, "pos": first["begins"], "steps": 0.0, "tokens": 0.0, "weight": 0,
    })  # fmt: skip
    after = pd.DataFrame({
        "prompt_id": facts["prompt_id"], "boundary": by.cumcount() + 1, "pos": facts["ends"],
        "steps": (by.cumcount() + 1) / by["step"].transform("size"), "tokens": facts["position"] + facts["length"] / total,
        "weight": facts["length"],
    })  # fmt: skip
    return pd.concat([zero, after], ignore_index=True).sort_values(["prompt_id", "boundary"], kind="stable")


def _of_draws(boundaries: pd.DataFrame, draws: Mapping[Place, Draws], own_answers: Mapping[int, str]) -> Iterator[Curve]:
    """The share of the original's own answer among what was drawn, without any edit, after so much of it."""
    places = zip(boundaries["prompt_id"], boundaries["pos"], strict=True)
    values = [
        float((draws[place].outcomes == own_answers.get(place[0])).mean()) if place in draws else np.nan for place in places
    ]
    found = boundaries.assign(value=values)
    found = found[found["value"].notna()]
    several = found.groupby("prompt_id")["value"].transform("size") > 1
    if several.any():
        yield _curve("rollouts", "rollouts: share of the original's own answer", found[several])


def _curve(name: str, what: str, rows: pd.DataFrame) -> Curve:
    own = rows[rows["value"].notna()].drop_duplicates(["prompt_id", "steps"])
    return Curve(name, what, own[["prompt_id", "steps", "tokens", "weight", "value"]].astype({"value": float}))
