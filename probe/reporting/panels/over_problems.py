"""What holds over the problems of a run: means of groups of steps, what goes along with them, curves, what was sampled."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probe.reporting.panels.context import Context
from probe.reporting.panels.steps import sentence
from probe.reporting.views import Axis, Bars, Lines, Listing, Measure, Panel, ShownColumn

GROUPS = {"all": "all steps", "kind": "steps by kind", "quarter": "steps by quarter of the reasoning",
          "tenth": "steps by tenth of the reasoning"}  # fmt: skip
SHARES = ("accuracy", "majority_correct", "truncated", "none")
BAND = ("ci_low", "ci_high")
OVER = "Means over problems of the mean over their steps; 95 % over problems"


def panels(context: Context) -> Iterator[Panel]:
    """The same panels, of the same frames, beside every problem."""
    yield from _importance(context)
    yield from _effects(context)
    yield from _covariates(context)
    yield from _curves(context)
    yield from _sampled(context)


def _importance(context: Context) -> Iterator[Panel]:
    if not context.has("importance_means"):
        return
    whole = context.whole("importance_means")
    units = {str(row.method): str(row.unit) for row in whole.drop_duplicates("method").itertuples()}
    told = " ".join(sentence(f"{method}: {unit}") for method, unit in units.items())
    for group, rows in _groups(context, "importance_means"):
        measure = Measure("estimate", "mean importance", scaling="diverging", band=BAND)
        yield Bars(
            f"importance-means-{group}", f"Importance over problems, {GROUPS.get(group, group)}", "importance_means", rows,
            where={"grouped_by": group}, axis=Axis("value", "steps", None, {"": "all steps"}), measure=measure, facet="method",
            floor="floor", note=f"{OVER}; dashed: the mean where nothing differs. {told}",
        )  # fmt: skip
    yield _table(
        "importance-means-table", "Importance over problems, in numbers", "importance_means", whole,
        ("method", "grouped_by", "value", "estimate", *BAND, "floor", "above", "above_low", "above_high", "control",
         "discovered", "problems", "steps", "rollouts", "interval"),
        "above: of what the estimate is more than the floor. discovered: steps with q at most 0.05.",
    )  # fmt: skip


def _effects(context: Context) -> Iterator[Panel]:
    if not context.has("effect_means"):
        return
    whole = context.whole("effect_means")
    for group, rows in _groups(context, "effect_means"):
        several = rows["edit"].nunique() > 1
        yield Bars(
            f"effect-means-{group}", f"Effects over problems, {GROUPS.get(group, group)}", "effect_means", rows,
            where={"grouped_by": group}, axis=Axis("value", "steps", None, {"": "all steps"}),
            measure=Measure("difference", "mean difference", scaling="diverging", band=BAND),
            series="edit" if several else None, facet="metric", floor="null_high",
            note=f"Of edited - control, or of the value itself. {OVER}; dashed: 95 % quantile of single values if nothing "
                 "differs. share: of the original's own answer.",
        )  # fmt: skip
    yield _table(
        "effect-means-table", "Effects over problems, in numbers", "effect_means", whole,
        ("edit", "metric", "grouped_by", "value", "control", "edited", "difference", *BAND, "null_high", "discovered",
         "problems", "steps", "rollouts", "interval"),
        "discovered: steps with q at most 0.05, Benjamini-Hochberg over all steps of all problems.",
    )  # fmt: skip


def _groups(context: Context, table: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each way to group steps."""
    whole = context.whole(table)
    for group in dict.fromkeys(whole["grouped_by"].astype(str)):
        yield group, _part(context, table, "grouped_by", group)


def _part(context: Context, table: str, column: str, *values: str) -> pd.DataFrame:
    """The rows of a table where a column has one of some values; made once for all problems."""
    whole = context.whole(table)
    return context.tables.once((table, column, values), lambda: whole[whole[column].astype(str).isin(values)])


def _table(name: str, title: str, table: str, rows: pd.DataFrame, columns: tuple[str, ...], note: str) -> Listing:
    """Those columns in which something stands."""
    shown = tuple(
        ShownColumn(column, column.replace("_", " "), 3 if pd.api.types.is_float_dtype(rows[column]) else None)
        for column in columns
        if rows[column].notna().any()
    )
    return Listing(name, title, table, rows, columns=shown, note=note)


def _covariates(context: Context) -> Iterator[Panel]:
    if not context.has("covariates"):
        return
    yield _table(
        "covariates", "What importance goes along with", "covariates", context.whole("covariates"),
        ("method", "design", "term", "coefficient", *BAND, "partial_r2", "r2", "halves", "problems", "steps",
         "rollouts", "interval"),
        "Least squares, problems weighing the same; 95 % over problems. Empty: the term does not vary by itself.",
    )  # fmt: skip


def _curves(context: Context) -> Iterator[Panel]:
    if not context.has("curves"):
        return
    whole = context.whole("curves")
    areas = (context.summary.get("over_problems") or {}).get("areas") or []
    for along in dict.fromkeys(whole["along"].astype(str)):
        rows = _part(context, "curves", "along", along)
        own = [area for area in areas if area["along"] == along]
        told = " ".join(sentence(what) for what in dict.fromkeys(area["what"] for area in own))
        over = " ".join(sentence(_area(area)) for area in own)
        yield Lines(
            f"curves-{along}", f"Curves over the reasoning, by {along}", "curves", rows, where={"along": along},
            axis=Axis("share", f"share of the {along} that was kept"),
            measures=(Measure("estimate", "mean over problems", low=0.0, high=1.0, band=BAND),), series="curve",
            note=f"95 % over problems. {told} {over}".strip(),
        )  # fmt: skip


def _area(area: dict[str, float]) -> str:
    interval = "" if area["ci_low"] is None else f" [{area['ci_low']:.3f}, {area['ci_high']:.3f}]"
    return f"Area over {area['curve']}: {area['area_over_curve']:.3f}{interval}"


def _sampled(context: Context) -> Iterator[Panel]:
    if context.has("sampled"):
        yield from _problems(context)
    if not context.has("sampled_means"):
        return
    means = context.whole("sampled_means")
    shares = _part(context, "sampled_means", "metric", *SHARES)
    if len(shares):
        yield Bars(
            "sampled-means", "Sampled answers, over all problems", "sampled_means", shares, where={"metric": list(SHARES)},
            axis=Axis("metric", "measure", None, {name: name.replace("_", " ") for name in SHARES}),
            measure=Measure("estimate", "mean over problems", low=0.0, high=1.0, band=BAND), note="95 % over problems.",
        )  # fmt: skip
    passed = _part(context, "sampled_means", "metric", "pass_at_k")
    if len(passed):
        yield Lines(
            "pass-at-k", "One of k attempts is right", "sampled_means", passed, where={"metric": "pass_at_k"},
            axis=Axis("k", "attempts (k)"),
            measures=(Measure("estimate", "pass@k, mean over problems", low=0.0, high=1.0, band=BAND),),
            note="95 % over problems.",
        )  # fmt: skip
    columns = ("metric", "k", "estimate", *BAND, "problems", "rollouts", "method")
    yield _table("sampled-means-table", "Sampled answers over all problems, in numbers", "sampled_means", means, columns, "")


def _problems(context: Context) -> Iterator[Panel]:
    rows = context.whole("sampled")
    if rows["accuracy"].notna().any() and len(rows) > 1:
        yield Bars(
            "sampled-accuracy", "How often the answer is right, by problem", "sampled", rows, axis=Axis("prompt_id", "problem"),
            measure=Measure("accuracy", "share of answers that are right", low=0.0, high=1.0, band=BAND),
            note="95 %, Wilson. Without a bar: no right answer is known.",
        )  # fmt: skip
    columns = ("prompt_id", "n", "expected", "correct", "accuracy", *BAND, "majority", "votes", "tied", "majority_correct",
               "entropy", "classes", "truncated", "none", "tokens")  # fmt: skip
    yield _table(
        "sampled", "Problems of which many answers were drawn", "sampled", rows, columns, "Entropy in nats; 95 %, Wilson."
    )
