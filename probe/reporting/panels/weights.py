"""What weights are: heads that copy, which head reads which, spectra of matrices, neurons along tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from probe.reporting.panels.context import Context
from probe.reporting.views import Axis, Grid, Lines, Listing, Measure, Panel, ShownColumn

MOST = 200  # rows of a list
LAYERS, HEADS = Axis("layer", "layer", "layer"), Axis("head", "head", "head")
SIGNS = (
    Measure("copying", "copying score of OV", scaling="diverging"),
    Measure("copying_z", "the same in sd of random rotations", scaling="diverging"),
    Measure("matching", "matching score of QK", scaling="diverging"),
    Measure("matching_z", "the same in sd of random rotations", scaling="diverging"),
)
SIZES = (
    Measure("spectral", "largest singular value", low=0.0), Measure("frobenius", "Frobenius norm", low=0.0),
    Measure("stable_rank", "stable rank", low=0.0), Measure("effective_rank", "effective rank", low=0.0),
)  # fmt: skip


def surveyed(context: Context) -> Iterator[Panel]:
    """Heads' circuits, and how norms and ranks of matrices go over the layers."""
    if context.has("head_circuits"):
        frame = context.whole("head_circuits")
        shown = tuple(one for one in SIGNS if frame[one.column].notna().any())
        if shown:
            yield Grid(
                "head-circuits", "Sign of each head's circuits", "head_circuits", frame, where={},
                rows=LAYERS, columns=HEADS, measures=shown, upwards=True, note=context.summary.get("ignored", ""),
            )  # fmt: skip
    if context.has("compositions"):
        yield from _composed(context)
    if context.has("neuron_weights"):
        yield from _neurons(context)
    if context.has("matrices"):
        frame = _layered(context.whole("matrices"))
        if len(frame):
            yield Lines(
                "matrices", "Matrices by layer", "matrices", frame, where={"expert": -1, "layer": sorted(set(frame["layer"]))},
                axis=LAYERS, measures=SIZES, series="role", note="One line a role; experts are in the table.",
            )  # fmt: skip
            yield Lines(
                "spectra", "Largest singular values of a layer's matrices", "matrices", _spectra(frame),
                where={"expert": -1, "layer": sorted(set(frame["layer"]))}, derived=("number", "singular_value", "share"),
                follows={"layer": "layer"}, axis=Axis("number", "singular value"), series="role",
                measures=(
                    Measure("singular_value", "singular value", low=0.0), Measure("share", "of the largest", low=0.0, high=1.0),
                ),
                note="As many as --top; norms and ranks are of all of them.",
            )  # fmt: skip


def _composed(context: Context) -> Iterator[Panel]:
    """Pairs of layers by their strongest pair of heads; pairs of heads of the layer at the cursor; the strongest of all."""
    whole = context.whole("compositions")
    heads = context.tables.once(("compositions", "heads"), lambda: _by_kind(whole, ["layer", "head", "writer_layer", "writer"]))
    kinds = tuple(Measure(kind, f"{kind}-composition, z", scaling="diverging") for kind in "QKV" if kind in heads)
    shown = tuple(one.column for one in kinds)
    yield Grid(
        "composition-layers", "Heads that read earlier heads, by layer", "compositions",
        _by_kind(whole, ["layer", "writer_layer"]), derived=shown, counted=("layer", "writer_layer"),
        rows=Axis("writer_layer", "layer that writes"), columns=LAYERS, measures=kinds,
        note="The strongest pair of heads of two layers: squared score in sd of random rotations. Most pairs of trained heads "
             "are beyond them: compare pairs.",
    )  # fmt: skip
    names = heads.drop_duplicates(["writer_layer", "writer"])
    labels = {int(one.pair): f"{one.writer_layer}.{one.writer}" for one in names.itertuples()}
    yield Grid(
        "composition-heads", "Heads that a layer's heads read", "compositions", heads, derived=(*shown, "pair"),
        counted=("layer", "head", "writer_layer", "writer"), follows={"layer": "layer"},
        rows=Axis("pair", "head that writes", labels=labels), columns=HEADS, measures=kinds,
        note="Squared score in sd of random rotations, of the heads of the layer that is chosen.",
    )  # fmt: skip
    yield Listing(
        "compositions", "Strongest compositions", "compositions", whole.nlargest(MOST, "z").reset_index(drop=True),
        columns=(
            ShownColumn("kind", "through"), ShownColumn("writer_layer", "writer's layer"), ShownColumn("writer", "head"),
            ShownColumn("layer", "reader's layer", cursor="layer"), ShownColumn("head", "head", cursor="head"),
            ShownColumn("score", "score", 3), ShownColumn("baseline", "by chance", 3), ShownColumn("z", "z", 2),
            ShownColumn("q_value", "q", 4),
        ),
        note=f"The {min(MOST, len(whole))} largest by z of {len(whole):,}.",
    )  # fmt: skip


def _by_kind(whole: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The largest z of each, one column a kind; `pair` numbers the head that writes."""
    best = whole.groupby([*by, "kind"], observed=True)["z"].max().unstack("kind").reset_index()
    best.columns = [str(name) for name in best.columns]
    if "writer" in best:
        best["pair"] = best.groupby(["writer_layer", "writer"], sort=True).ngroup()
    return best


def _neurons(context: Context) -> Iterator[Panel]:
    """Directions near tokens, the nearest first; by layer how neurons' directions lie to each other."""
    whole = context.whole("neuron_weights")
    yield Listing(
        "neurons", "Neurons nearest to tokens", "neuron_weights",
        whole.sort_values("p_value", kind="stable").head(MOST).reset_index(drop=True),
        columns=(
            ShownColumn("layer", "layer", cursor="layer"), ShownColumn("neuron", "neuron"),
            ShownColumn("direction", "direction"),
            ShownColumn("cosine", "cosine", 3), ShownColumn("p_value", "p", 4), ShownColumn("with_out", "cosine with out", 3),
            ShownColumn("up_token", "most along it"), ShownColumn("down_token", "most against it"),
        ),
        note="in and gate: against embeddings; out: against unembeddings. p: at most how probable for a random direction and "
             f"any token. The {min(MOST, len(whole))} of {len(whole):,} with the smallest p.",
    )  # fmt: skip
    groups = whole.groupby(["layer", "direction"], observed=True)
    frame = groups.agg(nearest=("cosine", _size), between=("with_out", "median"), mean_norm=("norm", "mean")).reset_index()
    yield Lines(
        "neurons-by-layer", "Neurons by layer", "neuron_weights", frame, derived=("nearest", "between", "mean_norm"),
        counted=("layer", "direction"), axis=LAYERS, series="direction",
        measures=(
            Measure("nearest", "mean size of the cosine with the nearest token", low=0.0),
            Measure("between", "median cosine with what the neuron writes", scaling="diverging"),
            Measure("mean_norm", "mean norm", low=0.0),
        ),
    )  # fmt: skip


def _size(values: pd.Series) -> float:
    return float(values.abs().mean())


def _spectra(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a singular value that was kept."""
    rows = frame.loc[:, ["name", "role", "layer", "expert", "spectral", "singular_values"]].explode("singular_values")
    rows["number"] = rows.groupby("name").cumcount() + 1
    rows["singular_value"] = rows["singular_values"].astype(float)
    rows["share"] = rows["singular_value"] / rows["spectral"]
    return rows.drop(columns="singular_values").reset_index(drop=True)


def _layered(frame: pd.DataFrame) -> pd.DataFrame:
    """Matrices of layers that are the only ones of their role there."""
    own = frame[(frame["layer"] >= 0) & (frame["expert"] < 0)]
    alone = own.groupby(["role", "layer"], observed=True)["name"].transform("count") == 1
    return own[np.asarray(alone)].reset_index(drop=True)
