"""What attention heads are: kinds and statistics over all texts, and each head as a kernel smoother."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from probe.reporting.panels.attention import HEADS, LAYERS, STATISTICS
from probe.reporting.panels.context import Context, noted
from probe.reporting.views import Axis, Grid, Lines, Listing, Measure, Panel, ShownColumn

TITLES = {"repeated": "Heads on random tokens, twice over", "text": "Heads on all texts"}
KERNEL = (
    Measure("popularity", "share of the log-weights' variance that popularity has", low=0.0),
    Measure("similarity", "share of it that similarity has", low=0.0),
    Measure("covariance", "share of it that both have together", scaling="diverging"),
    Measure("gaussian_r2", "how well the nearest Gaussian fits", low=0.0, high=1.0),
    Measure("bandwidth_ratio", "its bandwidth, in units of the head's own", scaling="log", low=0.0),
    Measure("bandwidth", "its bandwidth", low=0.0),
    Measure("flat", "share of rows that no Gaussian fits", low=0.0, high=1.0),
    Measure("effective_keys", "effective number of keys", "keys", low=1.0),
    Measure("output_error", "relative error of the output without popularity", low=0.0),
)
SHOWN = ("induction", "duplicate", "prev", "sink", "entropy", "perplexity", "distance")


def panels(context: Context) -> Iterator[Panel]:
    """Kinds on each kind of text, a list, and the kernels of this text."""
    yield from _kinds(context)
    yield from _kernels(context)
    yield from _memories(context)


def _kinds(context: Context) -> Iterator[Panel]:
    if not context.has("head_kinds"):
        return
    whole = context.whole("head_kinds")
    measures = (*(STATISTICS[name] for name in SHOWN), STATISTICS["ess"])
    for which, title in TITLES.items():
        frame = context.tables.once(("heads on", which), partial(_of_input, whole, which))
        if not len(frame):
            continue
        told = frame["kind"].notna().any()
        kind = (Measure("kind", "kind", scaling="classes"),) if told else ()
        there = tuple(one for one in measures if frame[one.column].notna().any())
        yield Grid(
            f"head-kinds-{which}", title, "head_kinds", frame, where={"input": which},
            rows=LAYERS, columns=HEADS, measures=(*kind, *there), upwards=True,
            note=noted(f"Means over {int(frame['texts'].max())} texts.", "" if told else "They are too short to tell kinds."),
        )  # fmt: skip
    yield Listing(
        "head-kinds", "Kinds of heads", "head_kinds", whole,
        columns=(
            ShownColumn("input", "text"), ShownColumn("layer", "layer", cursor="layer"),
            ShownColumn("head", "head", cursor="head"), ShownColumn("kind", "kind"),
            *(ShownColumn(name, name, digits=2) for name in SHOWN),
        ),
        note="By thresholds that the manual page of probe heads states.",
    )  # fmt: skip


def _of_input(whole: pd.DataFrame, which: str) -> pd.DataFrame:
    return whole[whole["input"] == which].reset_index(drop=True)


def _kernels(context: Context) -> Iterator[Panel]:
    if len(frame := context.sequence_rows("head_kernels")):
        yield Grid(
            "head-kernels", "Heads as kernel smoothers", "head_kernels", frame, where=context.where(),
            rows=LAYERS, columns=HEADS, upwards=True,
            measures=tuple(one for one in KERNEL if frame[one.column].notna().any()),
            note="Log-weights split exactly into -s|q-k|^2/2 (similarity) and s|k|^2/2 (popularity), after rotation.",
        )  # fmt: skip


def _memories(context: Context) -> Iterator[Panel]:
    """The chosen head's output beside its memory, by stored pairs; what comes back of all pairs, a row a head and rule."""
    if len(frame := context.sequence_rows("head_memory")):
        yield Lines(
            "head-memory", "A head beside its linearised memory", "head_memory", frame, where=context.where(),
            follows={"layer": "layer", "head": "head"}, axis=Axis("pairs", "stored pairs"), series="rule",
            measures=(
                Measure("error", "relative error of the output", low=0.0), Measure("cosine", "cosine with it", high=1.0),
            ),
            note="sum adds each pair; delta corrects what is read before it writes. Queries and keys are those after rotation.",
        )  # fmt: skip
    if len(frame := context.sequence_rows("head_retrieval")):
        most = int(frame["pairs"].max())
        yield Listing(
            "head-retrieval", "What comes back when stored keys are read", "head_retrieval",
            frame[frame["pairs"] == most].sort_values(["error", "layer", "head"]).reset_index(drop=True),
            where=context.where(pairs=most),
            columns=(
                ShownColumn("layer", "layer", cursor="layer"), ShownColumn("head", "first head", cursor="head"),
                ShownColumn("rule", "rule"), ShownColumn("error", "relative error", digits=3),
                ShownColumn("right", "nearest value is its own", digits=3),
                ShownColumn("interference", "weight on other pairs", digits=3),
                ShownColumn("effective_rank", "effective rank of the keys", digits=1), ShownColumn("d_head", "of at most"),
            ),
            note=f"All {most} pairs of the text are stored, then each key is read; softmax is the head's own kernel.",
        )  # fmt: skip
