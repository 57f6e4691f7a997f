"""What weights are: heads that copy, layer by head, and the spectra of matrices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from probe.reporting.panels.context import Context
from probe.reporting.views import Axis, Grid, Lines, Measure, Panel

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
    if context.has("matrices"):
        frame = _layered(context.whole("matrices"))
        if len(frame):
            yield Lines(
                "matrices", "Matrices by layer", "matrices", frame, where={"expert": -1, "layer": sorted(set(frame["layer"]))},
                axis=LAYERS, measures=SIZES, series="role", note="One line a role; experts are in the table.",
            )  # fmt: skip


def _layered(frame: pd.DataFrame) -> pd.DataFrame:
    """Matrices of layers that are the only ones of their role there."""
    own = frame[(frame["layer"] >= 0) & (frame["expert"] < 0)]
    alone = own.groupby(["role", "layer"], observed=True)["name"].transform("count") == 1
    return own[np.asarray(alone)].reset_index(drop=True)
