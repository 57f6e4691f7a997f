"""Steps and their kinds, what each one's importance is by each method, how steps depend on one another, early answers."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probe.reporting.panels.context import Context, measured_columns, one_line, panel_name
from probe.reporting.views import Axis, Bars, Grid, Lines, Listing, Measure, Panel, ShownColumn
from probe.store.reading import filtered

LABEL = 32  # characters of a step that name it on an axis

STEPS = Axis("step", "step", "step")  # of bars that lie under their tokens: labels would only stand in each other's way
STEP = ShownColumn("step", "step", cursor="step")


def panels(context: Context) -> Iterator[Panel]:
    """What the tables of steps show: `steps`, `importance`, `dependence`, `early_answers`."""
    yield from _steps(context)
    yield from _importance(context)
    yield from _dependence(context)
    yield from _early_answers(context)


def sentence(text: str) -> str:
    """A text as a sentence: with a full stop, on one line."""
    line = one_line(text)
    return line if not line or line[-1] in ".!?:" else f"{line}."


def steps_of(context: Context, prompt_id: int | None = None) -> pd.DataFrame:
    """The steps of the sequence that is shown, or of another prompt's, in order; to be left as they are. Of no rows if there
    are none."""
    if "steps" not in context.run.tables:
        return pd.DataFrame(columns=["step", "start", "end", "kind", "text"])
    prompt = context.prompt_id if prompt_id is None else prompt_id
    return context.tables.once(("steps", prompt, context.branch), lambda: _read_steps(context, prompt))


def _read_steps(context: Context, prompt: int) -> pd.DataFrame:
    rows = filtered(context.tables.of_prompt("steps", prompt), {"branch": context.branch})
    return rows.sort_by("step").to_pandas()


def step_labels(steps: pd.DataFrame) -> dict[int, str]:
    """What a step is called on an axis: its number and how it begins."""
    return {int(step): f"{step}: {one_line(text, LABEL)}" for step, text in zip(steps["step"], steps["text"], strict=True)}


def step_axis(steps: pd.DataFrame, column: str = "step", title: str = "step") -> Axis:
    return Axis(column, title, "step", step_labels(steps) or None)


def with_spans(rows: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Rows of steps with the derived columns `start` and `end`, the positions that the step has in the text."""
    own = steps.drop_duplicates("step").set_index("step")
    return rows.assign(**{name: rows["step"].map(own[name]) for name in SPAN})


SPAN = ("start", "end")


def _steps(context: Context) -> Iterator[Panel]:
    steps = steps_of(context)
    if steps.empty:
        return
    columns = [STEP, ShownColumn("kind", "kind"), ShownColumn("start", "from token", cursor="token"), ShownColumn("end", "to")]
    measured = {"logprob": "log-prob (nats)", "mean_entropy": "mean entropy (nats)", "max_entropy": "greatest entropy (nats)"}
    columns += measured_columns(steps, measured, 3)
    note = "Kinds are heuristic labels. `to` is one past the last token."
    yield Listing(
        "steps", "Steps", "steps", steps, where=context.where(), columns=(*columns, ShownColumn("text", "text")), text="text",
        note=note,
    )  # fmt: skip
    if steps["mean_entropy"].notna().any():
        yield Bars(
            "step-entropy", "Mean entropy of each step, by kind", "steps", steps, where=context.where(), axis=STEPS,
            measure=Measure("mean_entropy", "mean entropy of its tokens", "nats", low=0.0), series="kind", span=SPAN,
            note="Kinds are heuristic labels.",
        )  # fmt: skip


def _importance(context: Context) -> Iterator[Panel]:
    found = context.rows("importance")
    if found.empty:
        return
    steps = steps_of(context)
    rows = with_spans(found, steps)
    where = {"prompt_id": context.prompt_id}
    missing = {str(m): int(own["estimate"].isna().sum()) for m, own in rows.groupby("method", sort=False, observed=True)}
    units = {str(row.method): str(row.unit) for row in rows.drop_duplicates("method").itertuples()}
    told = [f"{method}: {unit}" + (f" ({missing[method]} steps not measured)" if missing[method] else "")
            for method, unit in units.items()]  # fmt: skip
    how = "Intervals: 95 %; dashed: the mean estimate where nothing differs (by chance)."
    yield Bars(
        "importance", "Importance of each step, by method", "importance", rows, where=where, derived=SPAN,
        axis=STEPS,
        measure=Measure("estimate", "importance", scaling="diverging", band=("ci_low", "ci_high")),
        facet="method", span=SPAN if rows["start"].notna().all() else None, floor="floor",
        note=" ".join([*map(sentence, told), how]),
    )  # fmt: skip
    digits = {"estimate": "estimate", "ci_low": "95 % from", "ci_high": "to", "control": "control", "floor": "by chance",
              "p_value": "p", "q_value": "q"}  # fmt: skip
    words = {"n": "n", "stopped": "drawn until", "kind": "kind", "text": "text"}
    shown = measured_columns(rows, digits, 3) + measured_columns(rows, words)
    yield Listing(
        "importance-table", "Importance of each step, in numbers", "importance", rows, where=where, derived=SPAN,
        columns=(ShownColumn("method", "method"), STEP, *shown), text="text",
        note="q: Benjamini-Hochberg over all steps of the run. Empty: not measured.",
    )  # fmt: skip


def _dependence(context: Context) -> Iterator[Panel]:
    found = context.rows("dependence")
    if found.empty:
        return
    steps = steps_of(context)
    for method, own in found.groupby("method", sort=False, observed=True):
        yield Grid(
            f"dependence-{panel_name(str(method))}", f"How later steps depend on earlier ones: {method}", "dependence", own,
            where={"prompt_id": context.prompt_id, "method": str(method)},
            rows=step_axis(steps, "target", "later step, which is looked at"),
            columns=step_axis(steps, "source", "earlier step, which is changed"),
            measures=(Measure("value", "what the later step loses", "nats a token", scaling="diverging"),),
            note="Blank: not measured, or the later step is not later.",
        )  # fmt: skip


def _early_answers(context: Context) -> Iterator[Panel]:
    found = context.rows("early_answers")
    if found.empty:
        return
    where = {"prompt_id": context.prompt_id}
    found = found.sort_values("boundary", kind="stable")
    if found["chance"].notna().any():
        yield Lines(
            "early-answers", "The answer after so many steps", "early_answers", found, where=where,
            axis=Axis("boundary", "steps that the model had", "step"),
            measures=(Measure("chance", "probability of the counted answer among all candidates", low=0.0, high=1.0),),
        )  # fmt: skip
    columns = (
        ShownColumn("boundary", "steps it had", cursor="step"), ShownColumn("pos", "asked at token", cursor="token"),
        ShownColumn("answer", "answer"), ShownColumn("match", "is the counted one"), ShownColumn("chance", "probability", 3),
    )  # fmt: skip
    yield Listing(
        "early-answers-table", "Answers that were asked for early", "early_answers", found, where=where, columns=columns,
        note="Probability of the counted answer among all candidates; empty where there is no other candidate.",
    )  # fmt: skip
