"""What wrote towards an answer's logit: heads, MLPs and the embedding, and from which positions the heads read it."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probe.reporting.panels.context import Context, noted
from probe.reporting.views import Axis, Bars, Coordinate, Grid, Listing, Measure, Panel, ShownColumn

LAYERS, HEADS = Axis("layer", "layer", "layer"), Axis("head", "head", "head")


def _contribution(context: Context) -> Measure:
    of = context.summary.get("of", "logit")
    return Measure("contribution", f"contribution to the {of}", _unit(context), scaling="diverging")


def _unit(context: Context) -> str:
    return "nats" if context.summary.get("of") == "log-prob" else "logits"


def sources(context: Context) -> tuple[pd.DataFrame, tuple[Measure, ...]]:
    """By position: what all heads together read there and wrote towards the answer; of none where that is not known."""
    frame = context.rows("attribution_sources", columns=["pos", "source", "contribution"])
    if not len(frame):
        return pd.DataFrame(), ()
    last = int(frame["pos"].max())
    found = frame[frame["pos"] == last].groupby("source")["contribution"].sum().rename("read_here").to_frame()
    title = f"what heads at {last} read here"
    return found, (Measure("read_here", title, _unit(context), scaling="diverging"),)


def attributed(context: Context) -> Iterator[Panel]:
    """Heads, layers, the strongest parts, and positions that heads read from."""
    frame = context.rows("attribution")
    if not len(frame):
        return
    by = _positions(frame)
    where = {"prompt_id": context.prompt_id}
    heads = frame[frame["head"] >= 0].reset_index(drop=True)
    single = bool((frame["neuron"] >= 0).any())
    others = frame[(frame["head"] < 0) & ~(frame["neuron"] >= 0)].reset_index(drop=True)
    note, contribution = _note(context), _contribution(context)
    if len(heads):
        yield Grid(
            "attribution-heads", "Contribution of each head", "attribution", heads,
            where={**where, "head": _distinct(heads["head"])}, follows=by, rows=LAYERS, columns=HEADS,
            measures=(contribution,), upwards=True, note=note,
        )  # fmt: skip
    if len(others):
        yield Bars(
            "attribution-layers", "Contribution of the other parts, by layer", "attribution", others,
            where={**where, "head": -1, **({"neuron": -1} if single else {})}, follows=by,
            axis=Axis("layer", "layer", "layer", labels={-1: "no layer"}),
            measure=contribution, series="component", note=note,
        )  # fmt: skip
    order = frame["contribution"].abs().sort_values(ascending=False, kind="stable").index
    yield Listing(
        "attribution-strongest", "Parts, the strongest first", "attribution", frame.loc[order].reset_index(drop=True),
        where=where, follows=by, note=note,
        columns=(
            ShownColumn("component", "part"), ShownColumn("layer", "layer", cursor="layer"),
            ShownColumn("head", "head", cursor="head"), *([ShownColumn("neuron", "neuron")] if single else []),
            ShownColumn("contribution", f"contribution, {_unit(context)}", 4),
            ShownColumn("share", "share of the sum", 4),
        ),
    )  # fmt: skip
    if len(read := context.rows("attribution_sources")):
        yield Grid(
            "attribution-sources", "Where the heads of a layer read what they wrote", "attribution_sources", read,
            where=where, follows={"layer": "layer", **_positions(read)},
            rows=HEADS, columns=Axis("source", "position read", "token"), measures=(contribution,), upwards=True,
            note=noted("Of one layer.", note),
        )  # fmt: skip


def _positions(frame: pd.DataFrame) -> dict[Coordinate, str]:
    """Where the logits of several positions were taken apart, the cursor says which."""
    return {"token": "pos"} if frame["pos"].nunique() > 1 else {}


def _distinct(values: pd.Series) -> list[int]:
    return sorted({int(value) for value in values})


def _note(context: Context) -> str:
    """What was taken apart, and which way is up."""
    about = context.summary
    against = "" if about.get("against") is None else f" less that of {about['against']!r}"
    at = about.get("positions") or []
    total = ""
    if len(at) == 1:
        total = f"At {at[0]['pos']} the parts sum to {at[0]['sum']:.3f}; the model's is {at[0]['before_cap']:.3f}."
    of = "log-prob of the whole" if about.get("of") == "log-prob" else "logit of"
    logit = f"The {of} {about.get('answer')!r}{against}, before any cap."
    return noted(logit, "Above 0: towards the answer; below: away from it.", total)
