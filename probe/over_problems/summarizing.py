"""From the rows of several problems to the tables over them and what a run's summary says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from probe.durable import jsonable
from probe.over_problems.covariates import covariate_rows
from probe.over_problems.curves import areas, curve_rows, effect_curves, importance_curves
from probe.over_problems.facts import draws_of, listed, originals, rollouts_around, steps_facts
from probe.over_problems.means import Rows, effect_means, importance_means
from probe.stats.clusters import FEW


class OverProblems(NamedTuple):
    """Columns of tables by name, to be written as they are, and the part of a run's summary that tells of them."""

    tables: dict[str, dict[str, list[Any]]]
    summary: dict[str, Any]


def importance_tables(
    importance: pd.DataFrame, branches: pd.DataFrame | None, steps: pd.DataFrame, prompts: pd.DataFrame, *,
    early_answers: pd.DataFrame | None = None, references: Mapping[int, str] | None = None, seed: int,
) -> OverProblems:  # fmt: skip
    """Tables `importance_means`, `covariates` and `curves` of the rows of those tables for all problems of a run.

    branches: what was drawn; None where nothing was. references: the class of answers that is counted, by prompt; where it is
    not given, that of the problem's own answer. Intervals are over problems: `stats.cluster_mean`. The order of rows and the
    numbers of problems change nothing.
    """
    importance = _plain(importance)
    draws, own_answers = draws_of(branches), originals(branches)
    facts = steps_facts(steps, draws)
    counted = {**own_answers, **(references or {})}
    means = importance_means(importance, facts, draws, seed=seed)
    covariates = covariate_rows(importance, facts, draws, counted, seed=seed)
    curves = list(importance_curves(early_answers, facts, draws, own_answers))
    tables = {"importance_means": means, "covariates": covariates, "curves": curve_rows(curves, seed=seed)}
    about = _about(facts, prompts, importance["prompt_id"], rollouts_around(facts, draws))
    return _result(tables, {**about, "means": _headlines(means), "covariates": _designs(covariates),
                            "areas": areas(curves, seed=seed)})  # fmt: skip


def effect_tables(
    effects: pd.DataFrame, branches: pd.DataFrame, steps: pd.DataFrame, prompts: pd.DataFrame, *, seed: int
) -> OverProblems:
    """Tables `effect_means` and `curves` of a rewind of several problems, at one step of each or at several.

    effects is empty where nothing was edited. See `importance_tables`.
    """
    draws, own_answers = draws_of(branches), originals(branches)
    facts = steps_facts(steps, draws)
    effects = _plain(effects[effects["step"].notna()]) if len(effects) else effects
    means: Rows = []
    if len(effects):
        means = effect_means(effects, branches, facts, own_answers, seed=seed)
        curves = list(effect_curves(effects, facts, draws, own_answers))
    else:
        curves = list(importance_curves(None, facts, draws, own_answers))
    curves = [curve for curve in curves if curve.points.groupby("prompt_id").size().max() > 1]
    drawn = int((branches["arm"].astype(str) != "original").sum())
    about = _about(facts, prompts, branches["prompt_id"], drawn)
    tables = {"effect_means": means, "curves": curve_rows(curves, seed=seed)}
    return _result(tables, {**about, "means": _headlines(means), "areas": areas(curves, seed=seed)})


def _plain(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with integer keys, and numbers that are floats, NaN where nothing was measured."""
    numbers = [
        name for name in ("estimate", "floor", "control", "p_value", "edited", "difference", "null_high") if name in rows
    ]
    return rows.astype({"prompt_id": int, "step": int, **dict.fromkeys(numbers, float)})


def _about(facts: pd.DataFrame, prompts: pd.DataFrame, measured: Iterable[int], rollouts: int) -> dict[str, Any]:
    problems = {int(prompt) for prompt in measured}
    return {
        "problems": len(problems), "left_out": len(set(prompts["prompt_id"]) - problems),
        "steps": int(facts["prompt_id"].isin(problems).sum()), "rollouts": rollouts,
        "fewest_problems": FEW, "intervals_hold": len(problems) >= FEW,
    }  # fmt: skip


def _headlines(means: Rows) -> Rows:
    """All but the tenths, which the table has."""
    return [row for row in means if row["grouped_by"] != "tenth"]


def _designs(rows: Rows) -> Rows:
    return [row for row in rows if row["term"] != "intercept"]


def _result(tables: Mapping[str, Rows], summary: dict[str, Any]) -> OverProblems:
    return OverProblems({name: listed(rows) for name, rows in tables.items() if rows}, jsonable(summary))
