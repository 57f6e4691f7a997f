"""What a rewind's edit changes: differences with intervals and what chance makes, and the tokens that followed, re-scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from probe.reporting.panels.context import Context, measured_columns
from probe.reporting.panels.steps import SPAN, step_axis, step_labels, steps_of, with_spans
from probe.reporting.views import Axis, Bars, Coordinate, Grid, Listing, Measure, Panel, ShownColumn, TokenStrip

NAMES = {
    "total_variation": "total variation", "jensen_shannon": "Jensen-Shannon (nats)", "kl_jeffreys": "KL, Jeffreys ½ (nats)",
    "flip_rate": "flip rate", "accuracy": "accuracy", "tokens": "tokens drawn",
}  # fmt: skip
BAND = ("ci_low", "ci_high")
DERIVED = (*SPAN, "place")
DIFFERENCE = Measure("difference", "edited - control", scaling="diverging", band=BAND)


def panels(context: Context) -> Iterator[Panel]:
    """What the tables `effects` and `rescored` show."""
    yield from _effects(context)
    yield from _rescored(context)


def references(context: Context) -> dict[int | None, tuple[str, str]]:
    """The class of answers that is followed, and whether it is the expected or the original's own, by the step that was gone
    back to; None: at every step."""
    about = context.summary
    places = [
        one for name in ("places", "problems") for one in _listed(about.get(name)) if one["prompt_id"] == context.prompt_id
    ]
    found = {one.get("step"): _reference(one) for one in places if "reference" in one}
    return found or ({None: _reference(about)} if "reference" in about else {})


def _reference(one: dict[str, Any]) -> tuple[str, str]:
    return str(one["reference"]), "expected" if one.get("expected") else "original"


def _listed(found: Any) -> list[dict[str, Any]]:
    return found if isinstance(found, list) else []


def several_steps(rows: pd.DataFrame) -> dict[Coordinate, str]:
    """Rows of more than one step are chosen by the step at the cursor."""
    return {"step": "step"} if "step" in rows and rows["step"].nunique() > 1 else {}


def _effects(context: Context) -> Iterator[Panel]:
    found = context.rows("effects")
    if found.empty:
        return
    steps, where = steps_of(context), {"prompt_id": context.prompt_id}
    found = with_spans(found, steps).assign(place=_places(found, steps))
    metric = found["metric"].astype(str)
    shares, others = found[metric == "share"], found[metric != "share"]
    if len(shares):
        yield from _shares(context, shares, steps)
    if len(others):
        others = others.assign(measure=[NAMES.get(str(name), str(name)) for name in others["metric"]])
        yield Bars(
            "effects", "How far both arms are apart", "effects", others,
            where={**where, "metric": sorted(set(map(str, others["metric"])))}, derived=(*DERIVED, "measure"),
            axis=_axis(others, steps),
            measure=Measure("difference", "difference", scaling="diverging", band=BAND),
            series=_edits(others), facet="measure", span=_span(others), floor="null_high",
            note="edited - control, or the value itself. Intervals: 95 %; dashed: 95 % quantile if nothing differs.",
        )  # fmt: skip
    digits = {"control": "control", "edited": "edited", "difference": "difference", "ci_low": "95 % from", "ci_high": "to",
              "p_value": "p", "null_high": "null 95 %"}  # fmt: skip
    words = {"n": "pairs", "method": "how", "stopped": "drawn until"}
    columns = [ShownColumn("step", "step", cursor="step"), *(ShownColumn(n, n) for n in ("edit", "metric", "outcome"))]
    columns += measured_columns(found, digits, 3) + measured_columns(found, words)
    yield Listing(
        "effects-table", "Effects in numbers", "effects", found, where=where, derived=DERIVED, columns=tuple(columns),
        note="difference: edited - control, or the value itself. Empty: there is none, or it could not be measured.",
    )  # fmt: skip


def _shares(context: Context, shares: pd.DataFrame, steps: pd.DataFrame) -> Iterator[Panel]:
    """The share of each class of answers: of the one that is followed by step, of all by class."""
    where = {"prompt_id": context.prompt_id, "metric": "share"}
    known = references(context)
    followed = [known.get(None if step != step else int(step), known.get(None, ("", "")))[0] for step in shares["step"]]
    own = shares[shares["outcome"].astype(str) == pd.Series(followed, shares.index)]
    if len(own):
        names = list(dict.fromkeys(map(str, own["outcome"])))
        told = f"P({names[0]})" if len(names) == 1 else "the share of the answer that is followed"
        yield Bars(
            "effect-on-answer", f"What the edit does to {told}", "effects", own,
            where={**where, "outcome": names}, derived=DERIVED,
            axis=_axis(own, steps), measure=DIFFERENCE, series=_edits(own),
            span=_span(own),
            note=" ".join(["Intervals: 95 %.", *_resolutions(context)]),
        )  # fmt: skip
    weight = (
        shares[["control", "edited"]].sum(axis=1).mask(shares.index.isin(own.index), 3.0)
    )  # followed first, then the commonest
    shares = shares.assign(weight=weight).sort_values(["step", "weight"], ascending=[True, False], kind="stable")
    shares = shares.drop(columns="weight")
    yield Bars(
        "effect-by-outcome", "What the edit does to the share of each answer", "effects", shares, where=where, derived=DERIVED,
        follows=several_steps(shares), axis=Axis("outcome", "answer", None, outcome_labels(context)), measure=DIFFERENCE,
        facet=_edits(shares), note="Intervals: 95 %.",
    )  # fmt: skip


def _resolutions(context: Context) -> list[str]:
    """Whether the difference is told from zero, where one place was measured."""
    about = context.summary
    told = about.get("resolution")
    headline = about.get("difference")
    return [] if not told or not headline else [f"p = {headline['p_value']:.3g} ({headline['method']}): {told}."]


def outcome_labels(context: Context) -> dict[str, str] | None:
    """The class that is followed says so, where it is the same at every step."""
    known = set(references(context).values())
    if len(known) != 1:
        return None
    ((reference, which),) = known
    return {reference: f"{reference} ({which})"}


def _axis(rows: pd.DataFrame, steps: pd.DataFrame) -> Axis:
    """Steps that were gone back to; places in words where one of them lies in no step."""
    if rows["step"].notna().all():
        return Axis("step", "step that was gone back to", "step", None if _span(rows) else step_labels(steps))
    return Axis("place", "where was gone back to")


def _places(rows: pd.DataFrame, steps: pd.DataFrame) -> list[str]:
    labels = step_labels(steps)
    return ["in no step" if step != step else labels.get(int(step), f"step {int(step)}") for step in rows["step"]]


def _edits(rows: pd.DataFrame) -> str | None:
    return "edit" if rows["edit"].nunique() > 1 else None


def _span(rows: pd.DataFrame) -> tuple[str, str] | None:
    return SPAN if rows["start"].notna().all() else None


def _rescored(context: Context) -> Iterator[Panel]:
    found = context.rows("rescored")
    if found.empty:
        return
    where = {"prompt_id": context.prompt_id}
    difference = Measure("difference", "log-prob with the edit - as it was", "nats", "diverging")
    others = (
        Measure("logprob", "log-prob as it was", "nats", high=0.0),
        Measure("logprob_edited", "log-prob with the edit", "nats", high=0.0),
    )
    note = "The original's own tokens behind the edited step, scored again with the edit in its place."
    if found["edited_step"].nunique() > 1:
        steps = steps_of(context)
        yield Grid(
            "rescored", "What the edit does to the tokens that followed", "rescored", found, where=where,
            rows=step_axis(steps, "edited_step", "step that was edited"), columns=Axis("pos", "token", "token"),
            measures=(difference, *others), note=note,
        )  # fmt: skip
        return
    yield TokenStrip(
        "rescored", "What the edit does to the tokens that followed", "rescored", found, where=where,
        measures=(difference, *others), note=note,
    )  # fmt: skip
