"""Scans of a direction's strength beside random directions of the same norm, and texts along a direction."""

from __future__ import annotations

from collections.abc import Iterator

from probe.reporting.panels.context import Context, measured_columns, one_line
from probe.reporting.views import Axis, Bars, Grid, Lines, Listing, Measure, Panel, ShownColumn

TEXT = 48  # characters of a text that name it
THE_DIRECTION = "the direction"
RANDOM = ("random_low", "random_high")  # derived: the least and the greatest of the random directions


def panels(context: Context) -> Iterator[Panel]:
    """What the tables `steering_means`, `steering` and `projections` show."""
    yield from _scan(context)
    yield from _of_prompt(context)
    yield from _projections(context)


def _scan(context: Context) -> Iterator[Panel]:
    if not context.has("steering_means"):
        return
    about, rows = context.summary, context.whole("steering_means")
    strength = Axis("strength", f"strength (times the direction, norm {about['norm']:.3g})")
    over = "One text: no interval over texts." if about["prompts"] == 1 else (
        f"Mean of {about['prompts']} texts; band of the direction: 95 %, bootstrap over texts."
    )  # fmt: skip
    unit = "nats" if str(about["metric"]).endswith(", nats") else ""
    yield Lines(
        "steering", "What a direction does, by strength", "steering_means", rows, axis=strength,
        measures=(
            Measure("effect", THE_DIRECTION, unit, "diverging", band=("ci_low", "ci_high")),
            Measure("control_mean", "random directions", unit, "diverging", band=("control_low", "control_high")),
        ),
        note=f"Effect on {about['metric']}: less its value at strength 0. {over} Band of {about['controls']} random directions "
             "of the same norm: from the least to the greatest.",
    )  # fmt: skip
    costs = [name for name in ("kl", "lost") if rows[name].notna().any()]
    if costs:
        words = {"kl": "KL(plain || steered) after the text", "lost": "what a token of the text loses"}
        if about.get("written"):
            words = {"kl": "KL(plain || steered), mean over what is written",
                     "lost": "what a written token costs the plain model, more than one of its own"}  # fmt: skip
        yield Lines(
            "steering-cost", "What a direction costs, by strength", "steering_means", rows, axis=strength,
            measures=tuple(Measure(name, words[name], "nats") for name in costs),
        )  # fmt: skip
    shown = {"value": "value", "effect": "effect", "ci_low": "95 % from", "ci_high": "to", "control_mean": "random, mean",
             "control_low": "least", "control_high": "greatest", "p_value": "p", "kl": "KL", "lost": "lost"}  # fmt: skip
    yield Listing(
        "steering-table", "Strengths in numbers", "steering_means", rows,
        columns=(ShownColumn("strength", "strength"),
                 *measured_columns(rows, shown, 3), ShownColumn("n", "texts")),
        note="p: the share of directions, this one among them, whose effect is at least as large.",
    )  # fmt: skip


def _of_prompt(context: Context) -> Iterator[Panel]:
    rows = context.rows("steering")
    if rows.empty:
        return
    where = {"prompt_id": context.prompt_id}
    own, random = rows[rows["control"] == 0], rows[rows["control"] != 0].groupby("strength")["value"]
    band = RANDOM if len(random) else None
    if band:
        own = own.assign(random_low=own["strength"].map(random.min()), random_high=own["strength"].map(random.max()))
    yield Lines(
        "steering-text", "This text, by strength", "steering", own.sort_values("strength", kind="stable"),
        where={**where, "control": 0}, derived=band or (), axis=Axis("strength", "strength"),
        measures=(Measure("value", context.summary["metric"], band=band),),
        note="Band: the same text under random directions, from the least to the greatest." if band else "",
    )  # fmt: skip
    if (rows["text"].fillna("") != "").any():
        names = [THE_DIRECTION if number == 0 else f"random {number}" for number in rows["control"]]
        rows = rows.assign(direction=names).sort_values(["control", "strength"], kind="stable")
        yield Listing(
            "steering-texts", "Continuations under the direction", "steering", rows, where=where, derived=("direction",),
            columns=(ShownColumn("strength", "strength"), ShownColumn("direction", "direction"),
                     ShownColumn("value", "value"), ShownColumn("text", "continuation")),
            text="text",
        )  # fmt: skip
    tokens = context.rows("steering_tokens")
    if len(tokens := tokens[tokens["control"] == 0] if len(tokens) else tokens):
        measures = (
            Measure("plain_logprob", "log-probability by the plain model", "nats", high=0.0),
            Measure("kl", "KL(plain || steered)", "nats", low=0.0),
            Measure("answer_logprob", "log-probability of the answer in its place", "nats", high=0.0),
            Measure("against_logprob", "log-probability of what it is held against", "nats", high=0.0),
        )
        yield Grid(
            "steering-tokens", "What is written under the direction", "steering_tokens", tokens.reset_index(drop=True),
            where={**where, "control": 0}, rows=Axis("strength", "strength"), columns=Axis("pos", "position"), text="token",
            measures=tuple(one for one in measures if tokens[one.column].notna().any()),
        )  # fmt: skip


def _projections(context: Context) -> Iterator[Panel]:
    if not context.has("projections"):
        return
    rows, prompts = context.whole("projections"), context.whole("prompts")
    labels = {int(i): one_line(text)[:TEXT] for i, text in zip(prompts["prompt_id"], prompts["text"], strict=True)}
    about = context.summary
    left = "Nothing could be left out." if about.get("accuracy") is None else (
        f"Left-out texts on their side: {about['accuracy']:.3f}; with shuffled labels 95 % below {about['shuffled_high']:.3f}, "
        f"p = {about['p_value']:.3g}."
    )  # fmt: skip
    yield Bars(
        "projections", "Texts along the direction", "projections", rows, axis=Axis("prompt_id", "text", None, labels),
        measure=Measure("projection", "projection on the unit direction", scaling="diverging"), series="label",
        note=f"These texts made the direction. {left}",
    )  # fmt: skip
    if rows["correct"].notna().any():
        columns = (ShownColumn("prompt_id", "text"), ShownColumn("label", "label"), ShownColumn("projection", "projection", 3),
                   ShownColumn("correct", "on its side of the direction of the others"))  # fmt: skip
        yield Listing("projections-table", "Texts along the direction, in numbers", "projections", rows, columns=columns)
