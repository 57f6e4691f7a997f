"""What the clusters of heads' keys agree with, layer by head, and the clusters themselves."""

from __future__ import annotations

from collections.abc import Iterator

from probe.reporting.panels.attention import HEADS, LAYERS
from probe.reporting.panels.context import Context
from probe.reporting.views import Grid, Listing, Measure, Panel, ShownColumn

MEASURES = (
    Measure("excess", "normalised mutual information above its floor", scaling="diverging", band=("low", "high")),
    Measure("nmi", "normalised mutual information", low=0.0), Measure("floor", "with shuffled labels", low=0.0),
    Measure("p", "share of shuffles as high", low=0.0, high=1.0),
    Measure("resid_excess", "excess of the residual stream's clusters", scaling="diverging"),
)  # fmt: skip
# labels and what is held fixed: the rival of each
SHOWN = {("tag", "type"): "parts of speech", ("position", "text"): "position"}
FIXED = {"type": "each token keeps its tag wherever it stands", "text": "positions change places within a text"}


def panels(context: Context) -> Iterator[Panel]:
    """A grid for tags and one for positions, in each space, and the clusters of the chosen head."""
    if not context.has("head_key_agreement"):
        return
    whole = context.whole("head_key_agreement")
    for space in ("before", "after"):
        for (labels, shuffled), title in SHOWN.items():
            where = {"space": space, "labels": labels, "shuffled": shuffled}
            frame = whole[(whole[list(where)] == list(where.values())).all(axis=1)].reset_index(drop=True)
            if len(frame):
                yield Grid(
                    f"head-keys-{space}-{labels}", f"Keys {space} rotation and {title}", "head_key_agreement", frame,
                    where=where, rows=LAYERS, columns=HEADS, upwards=True,
                    measures=tuple(one for one in MEASURES if frame[one.column].notna().any()),
                    note=f"The floor is of shuffled labels: {FIXED[shuffled]}. Heads that share keys are shown as the first.",
                )  # fmt: skip
    yield Listing(
        "head-key-clusters", "Clusters of a head's keys", "head_key_clusters", context.whole("head_key_clusters"),
        follows={"layer": "layer", "head": "head"},
        columns=(
            ShownColumn("space", "rotation"), ShownColumn("layer", "layer", cursor="layer"),
            ShownColumn("head", "head", cursor="head"), ShownColumn("cluster", "cluster"), ShownColumn("size", "keys"),
            ShownColumn("tokens", "most frequent tokens"), ShownColumn("tags", "tags"),
            ShownColumn("tag_shares", "their shares", digits=2), ShownColumn("pos_first", "first position"),
            ShownColumn("pos_median", "median"), ShownColumn("pos_last", "last"),
        ),
    )  # fmt: skip
