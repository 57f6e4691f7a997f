"""Mixtures of experts: where the tokens of this text go, and how the experts are loaded over all texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd

from probe.reporting.panels.context import Context, noted
from probe.reporting.views import Axis, Bars, Grid, Listing, Measure, Panel, ShownColumn

LAYERS, EXPERTS = Axis("layer", "layer", "layer"), Axis("expert", "expert")
DERIVED = ("chosen", "weighed", "first", "first_weight")
POSITIONS = Axis("pos", "position", "token")
SHARE = Measure("share", "share of the tokens that are sent to it", low=0.0, band=("low", "high"))


def panels(context: Context) -> Iterator[Panel]:
    """Layer by token, then layer by expert, the experts of a layer with their intervals, and how even it is."""
    yield from _routes(context)
    yield from _loads(context)


def _routes(context: Context) -> Iterator[Panel]:
    if not len(frame := context.sequence_rows("routing")):
        return
    frame["chosen"] = [" ".join(map(str, experts)) for experts in frame["experts"]]
    frame["weighed"] = [_weighed(*row) for row in zip(frame["experts"], frame["weights"], strict=True)]
    frame["first"] = [str(experts[0]) for experts in frame["experts"]]
    frame["first_weight"] = [float(weights[0]) for weights in frame["weights"]]
    yield Grid(
        "routing", "Experts that each token is sent to", "routing", frame, where=context.where(),
        derived=DERIVED, rows=LAYERS, columns=POSITIONS, text="chosen", upwards=True,
        measures=(
            Measure("first", "expert with the largest weight", scaling="classes"),
            Measure("first_weight", "its weight", low=0.0),
            Measure("entropy", "entropy of the router", "nats", low=0.0),
        ),
        note="In a cell the experts of the token, the one with the largest weight first.",
    )  # fmt: skip
    yield Listing(
        "routing-of-token", "Experts of a token and their weights", "routing", frame, where=context.where(), derived=DERIVED,
        follows={"token": "pos"},
        columns=(
            ShownColumn("layer", "layer", cursor="layer"), ShownColumn("weighed", "expert:weight"),
            ShownColumn("entropy", "entropy of the router, nats", 3),
        ),
        note="Weights are what the model multiplies the experts' outputs by.",
    )  # fmt: skip


def _weighed(experts: Sequence[int], weights: Sequence[float]) -> str:
    """`5:.62 2:.38`."""
    return " ".join(f"{expert}:{f'{weight:.2f}'.removeprefix('0')}" for expert, weight in zip(experts, weights, strict=True))


def _loads(context: Context) -> Iterator[Panel]:
    if not context.has("expert_load", "expert_balance"):
        return
    whole, balance = context.whole("expert_load"), context.whole("expert_balance")
    frame = context.tables.once(("expert load", "relative"), partial(_relative, whole))
    texts = int(balance["texts"].max())
    yield Grid(
        "expert-loads", "Load of each expert", "expert_load", frame, derived=("relative",), rows=LAYERS, columns=EXPERTS,
        upwards=True,
        measures=(
            Measure("relative", "share of the tokens, over an even one", low=0.0), SHARE,
            Measure("mean_weight", "mean weight where it is chosen", low=0.0),
        ),
        note=f"Over all recorded tokens of {texts} text{'s' if texts > 1 else ''}. 1: its part if all were chosen alike.",
    )  # fmt: skip
    yield Bars(
        "expert-load", "Experts of a layer", "expert_load", whole, axis=EXPERTS, measure=SHARE, floor="uniform",
        follows={"layer": "layer"},
        note=noted("The dashed line is an even load.", "" if texts > 1 else "One text has no interval: it tells of no other."),
    )  # fmt: skip
    yield Listing(
        "expert-balance", "How even the loads are", "expert_balance", balance,
        columns=(
            ShownColumn("layer", "layer", cursor="layer"), ShownColumn("experts", "experts"),
            ShownColumn("chosen", "of them a token"), ShownColumn("never", "never chosen"), ShownColumn("most", "most loaded"),
            ShownColumn("max_over_mean", "its load / the mean", 2), ShownColumn("even_max_over_mean", "by chance", 2),
            ShownColumn("entropy", "entropy, nats", 3), ShownColumn("even_entropy", "by chance", 3),
            ShownColumn("uniform_entropy", "of equal loads", 3),
        ),
        note="By chance: as many independent tokens, whose experts are drawn evenly.",
    )  # fmt: skip


def _relative(loads: pd.DataFrame) -> pd.DataFrame:
    return loads.assign(relative=loads["share"] / loads["uniform"])
