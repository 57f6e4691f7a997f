"""What each layer would answer, and how large the streams and writes are there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from probe.reporting.panels.context import Context, noted, panel_name
from probe.reporting.views import Axis, Grid, Lines, Listing, Measure, Panel, ShownColumn

LAYERS, HEADS = Axis("layer", "layer", "layer"), Axis("head", "head", "head")
POSITIONS = Axis("pos", "position", "token")
MEASURES = (
    Measure("top_prob", "probability of the best token", low=0.0, high=1.0),
    Measure("prob_of_target", "probability of the target", low=0.0, high=1.0),
    Measure("rank_of_target", "rank of the target (0 is the best)", scaling="log", low=0.0),
    Measure("logprob_of_target", "log-probability of the target", "nats", high=0.0),
    Measure("answer_logprob", "log-probability of the answer that is asked for", "nats", high=0.0),
    Measure("against_logprob", "log-probability of what it is held against", "nats", high=0.0),
    Measure("entropy", "entropy of the layer's guess", "nats", low=0.0),
    Measure("kl_to_final", "KL(last layer || this layer)", "nats", low=0.0),
)


def guessed(context: Context) -> Iterator[Panel]:
    """Layer by position, and where each position settles."""
    if len(frame := context.sequence_rows("lens")):
        best = frame["top_ids"].map(lambda ids: ids[0] if len(ids) else None)
        frame["top"] = [None if pd.isna(one) else context.text_of(int(one)) for one in best]
        frame["top_prob"] = [np.exp(float(one[0])) if len(one) else np.nan for one in frame["top_logprobs"]]
        followed = frame["target_id"] >= 0  # at the end of a text no token follows: rank and log-prob mean nothing there
        frame["target"] = [
            context.text_of(one) if there else None for one, there in zip(frame["target_id"], followed, strict=True)
        ]
        frame["rank_of_target"] = frame["target_rank"].where(followed)
        frame["logprob_of_target"] = frame["target_logprob"].where(followed)
        frame["prob_of_target"] = np.exp(frame["logprob_of_target"].astype(float))
        yield Grid(
            "lens", "Lens: what each layer would answer", "lens", frame,
            where=context.where(),
            derived=("top", "top_prob", "target", "rank_of_target", "logprob_of_target", "prob_of_target"),
            rows=LAYERS, columns=POSITIONS, text="top", upwards=True,
            measures=tuple(one for one in MEASURES if frame[one.column].notna().any()),
            note=noted(f"Each layer's stream through the final norm and head. {_target(frame)}", context.text_of.note),
        )  # fmt: skip
    if len(frame := context.sequence_rows("lens_positions")):
        yield Listing(
            "lens-positions", "Where the lens settles", "lens_positions", frame, where=context.where(),
            columns=(
                ShownColumn("pos", "position", cursor="token"), ShownColumn("token", "token"),
                ShownColumn("final_token", "the model's answer"),
                ShownColumn("settled_layer", "settled from layer", cursor="layer"),
                ShownColumn("target_token", "target"),
            ),
            note="From this layer on the best token is the last layer's.",
        )  # fmt: skip


def _target(frame: pd.DataFrame) -> str:
    """Which token is followed."""
    if frame["target_id"].nunique() == 1 and frame["pos"].nunique() > 1:
        return f"The target is {frame['target'].iloc[0]!r} at each position."
    end = "at its end there is none" if frame["target"].isna().any() else "at its end the model's answer"
    return f"The target is the token that follows in the text; {end}."


def norms(context: Context) -> Iterator[Panel]:
    """Lengths of the activations that were captured; the vectors themselves are too large to be drawn."""
    if not context.has("activations"):
        return
    columns = [n for n in context.run.schema("activations").names if n != "vector"]
    frame = context.sequence_rows("activations", columns=columns)
    norm = Measure("norm", "Euclidean norm", scaling="log", low=0.0)
    note = "The scale is that of log(1 + norm). The vectors: run.activation(site, layer)."
    whole = frame[frame["head"] < 0]
    layered = whole[whole["layer"] >= 0].reset_index(drop=True)
    if layered.groupby("site", observed=True)["layer"].nunique().max() > 1 if len(layered) else False:
        sites = sorted(set(layered["site"]))
        yield Lines(
            "norms", "Norms by layer", "activations", layered, where=context.where(head=-1, site=sites),
            follows={"token": "pos"}, axis=LAYERS, measures=(norm,), series="site", note=note,
        )  # fmt: skip
    for site, rows in whole.groupby("site", sort=False, observed=True):
        yield Grid(
            panel_name("norms", str(site)), f"Norm of {site}", "activations", rows.reset_index(drop=True),
            where=context.where(site=site, head=-1), rows=LAYERS, columns=POSITIONS, measures=(norm,), upwards=True, note=note,
        )  # fmt: skip
    for site, rows in frame[frame["head"] >= 0].groupby("site", sort=False, observed=True):
        yield Grid(
            panel_name("norms", str(site), "heads"), f"Norm of {site}, by head", "activations", rows.reset_index(drop=True),
            where=context.where(site=site, head=sorted(set(rows["head"]))), follows={"token": "pos"},
            rows=LAYERS, columns=HEADS, measures=(norm,), upwards=True, note=note,
        )  # fmt: skip
