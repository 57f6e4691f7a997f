"""Means over problems of importance and of effects: over all steps, by kind of step, by where in the reasoning it stands.

A mean over steps within each problem, then over problems, each of which counts the same (METHODS M1b).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from probe import stats
from probe.over_problems.facts import KEYS, Draws, Place, grouped, rollouts_around
from probe.registries.importance_methods import METHODS
from probe.registries.step_edits import STEP_EDITS

SURE = 0.05
Rows = list[dict[str, Any]]


def importance_means(importance: pd.DataFrame, facts: pd.DataFrame, draws: Mapping[Place, Draws], *, seed: int) -> Rows:
    """Rows of the table `importance_means`; importance and facts have a row a step, joined on problem and step."""
    rows = []
    for method, own in by_method(importance, facts):
        own = own.assign(q=stats.q_values(own["p_value"].to_numpy(np.float64)), above=own["estimate"] - own["floor"])
        drawn = is_drawn(method)
        for by, value, some in grouped(own):
            measured = some[some["estimate"].notna()]
            mean, above = _mean(some, "estimate", seed), _mean(some, "above", seed)
            rows.append({
                "method": method, "grouped_by": by, "value": value, "unit": str(own["unit"].iloc[0]),
                "estimate": mean.estimate, "ci_low": mean.low, "ci_high": mean.high,
                "floor": average(measured, "floor"), "above": above.estimate, "above_low": above.low,
                "above_high": above.high, "control": average(measured, "control"), "discovered": int((some["q"] <= SURE).sum()),
                "problems": mean.clusters, "steps": mean.n, "rollouts": rollouts_around(measured, draws) if drawn else 0,
                "interval": mean.method or None,
            })  # fmt: skip
    return rows


def effect_means(
    effects: pd.DataFrame, branches: pd.DataFrame, facts: pd.DataFrame, own_answers: Mapping[int, str], *, seed: int
) -> Rows:
    """Rows of the table `effect_means`. Of the shares of classes only that of the original's own answer has a meaning over
    problems: answers differ between them."""
    effects = _with_facts(of_own_answer(effects, own_answers), facts)
    drawn = branches[branches["step"].notna()].groupby(KEYS).size().to_dict()
    rows = []
    for (edit, metric), own in effects.groupby(["edit", "metric"], sort=False, observed=True):
        own = own.assign(q=stats.q_values(own["p_value"].to_numpy(np.float64)))
        for by, value, some in grouped(own):
            mean = _mean(some, "difference", seed)
            places = set(zip(some["prompt_id"], some["step"], strict=True))
            rows.append({
                "edit": edit, "metric": metric, "grouped_by": by, "value": value, "control": average(some, "control"),
                "edited": average(some, "edited"), "difference": mean.estimate, "ci_low": mean.low, "ci_high": mean.high,
                "null_high": average(some, "null_high"), "discovered": int((some["q"] <= SURE).sum()),
                "problems": mean.clusters, "steps": mean.n, "rollouts": int(sum(drawn.get(place, 0) for place in places)),
                "interval": mean.method or None,
            })  # fmt: skip
    return rows


def of_own_answer(effects: pd.DataFrame, own_answers: Mapping[int, str]) -> pd.DataFrame:
    """The rows of `effects` that problems have in common, with the edit's operation in place of its text.

    An answer that came in no arm has no row in `effects`: its share is 0 in both, and nothing differs.
    """
    effects = effects.assign(metric=effects["metric"].astype(str), outcome=effects["outcome"].astype(str))
    shares = effects[effects["metric"] == "share"]
    own = shares[shares["outcome"] == shares["prompt_id"].map(own_answers)]
    places = [*KEYS, "edit"]
    never = shares.drop_duplicates(places).merge(own[places], on=places, how="left", indicator=True)
    never = (
        never[never["_merge"] == "left_only"]
        .drop(columns="_merge")
        .assign(control=0.0, edited=0.0, difference=0.0, p_value=1.0)
    )
    kept = pd.concat([effects[effects["metric"] != "share"], own, never], ignore_index=True)
    edits = {edit: operation(edit) for edit in kept["edit"].astype(str).unique()}
    return kept.assign(edit=kept["edit"].astype(str).map(edits))


def operation(edit: str) -> str:
    """What an edit does, without the text that follows its name: `prompt-b: …` is another for every problem."""
    for known in STEP_EDITS.values():
        if known.metavar and edit.startswith(f"{known.label}: "):
            return known.label
    return edit


def by_method(importance: pd.DataFrame, facts: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each method with its steps and what is known of them, in the order of the registry."""
    joined, order = _with_facts(importance, facts), list(METHODS)
    names = joined["method"].astype(str)
    for name in sorted(names.unique(), key=lambda name: (order.index(base(name)) if base(name) in order else len(order), name)):
        yield name, joined[names == name]


def base(method: str) -> str:
    """The method that a row's method is a reading of: of `resampling_tv`, `resampling`."""
    return method.split("_")[0]


def is_drawn(method: str) -> bool:
    """Whether a method, or one that is named after it, is of continuations."""
    found = METHODS.get(base(method))
    return found is not None and found.sampled


def average(rows: pd.DataFrame, column: str) -> float:
    """Over problems of the mean over their rows; NaN where nothing is."""
    means, _ = stats.cluster_means(rows[column].to_numpy(np.float64), rows["prompt_id"].to_numpy())
    return float(means.mean()) if len(means) else float("nan")


def _mean(rows: pd.DataFrame, column: str, seed: int) -> stats.ClusterEstimate:
    return stats.cluster_mean(rows[column].to_numpy(np.float64), rows["prompt_id"].to_numpy(), seed=seed)


def _with_facts(rows: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Rows of measured steps with what is known of each; their own `kind` is that of the facts."""
    joined = rows.drop(columns=["kind", "text"], errors="ignore").merge(facts, on=KEYS, how="inner", validate="m:1")
    return joined.sort_values(KEYS, kind="stable")
