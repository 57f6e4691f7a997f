"""Which texts of a file move a place, with the token marked, and how its values are spread; means over a file of texts."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probe.reporting.panels.context import Context, one_line, panel_name
from probe.reporting.views import Axis, Bars, Listing, Measure, Panel, ShownColumn

KINDS = {"top": "largest", "bottom": "smallest", "random": "random"}
WIDE = 60  # characters on a side of the token
PLACES = 24  # of which the spread is drawn


def panels(context: Context) -> Iterator[Panel]:
    """The same panels, of the same frames, beside every text."""
    yield from _texts(context)
    yield from _values(context)
    yield from _means(context)


def _texts(context: Context) -> Iterator[Panel]:
    if not context.has("top"):
        return
    rows = context.tables.once(("top", "marked"), lambda: _marked(context.whole("top")))
    yield Listing(
        "top", "Texts in which a place is largest and smallest", "top", rows,
        derived=("list", "text"),
        columns=(
            ShownColumn("place", "place"), ShownColumn("list", "texts"), ShownColumn("rank", "rank"),
            ShownColumn("value", "value", 4), ShownColumn("text", "text"), ShownColumn("prompt_id", "text's number"),
            ShownColumn("pos", "position", cursor="token"),
        ),
        note="The token at which the value is the text's largest (of smallest ones: its smallest) stands between ⟦ ⟧. Random: "
             "texts that were drawn blindly, shown in the same way: a largest text says something where it stands out.",
    )  # fmt: skip


def _marked(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows by place, largest first, with the text around the token in one line."""
    rows = rows.assign(list=rows["kind"].map(KINDS).astype(str))
    parts = rows[["before", "token", "after"]].itertuples(index=False)
    rows["text"] = [one_line(f"{before[-WIDE:]}⟦{token}⟧{after[:WIDE]}") for before, token, after in parts]
    order = rows["kind"].map({kind: number for number, kind in enumerate(KINDS)}).astype(int)
    return rows.assign(order=order).sort_values(["place", "order", "rank"], kind="stable").drop(columns="order")


def _values(context: Context) -> Iterator[Panel]:
    if not context.has("top_values", "top_histogram"):
        return
    about, counts = context.whole("top_values"), context.whole("top_histogram")
    for row in about.head(PLACES).itertuples():
        own = counts[counts["place"] == row.place]
        begins = {int(one.bin): f"{one.low:.3g}" for one in own.itertuples()}
        yield Bars(
            panel_name("values", str(row.place)), f"All values of {row.place}", "top_histogram", own,
            where={"place": row.place},
            axis=Axis("bin", f"{row.measure} from", None, begins),
            measure=Measure("count", "tokens", scaling="log", low=0.0),
            note=f"{row.n:,} tokens: mean {row.mean:.4g}, sd {row.sd:.4g}, {row.above_zero:.2%} above 0, 99.9 % below "
                 f"{row.q999:.4g}.",
        )  # fmt: skip
    yield Listing(
        "top-values", "All values in numbers", "top_values", about,
        columns=(
            ShownColumn("place", "place", cursor=None), ShownColumn("measure", "its number"), ShownColumn("n", "tokens"),
            *(ShownColumn(name, title, 4) for name, title in (
                ("mean", "mean"), ("sd", "sd"), ("above_zero", "above 0"), ("minimum", "least"), ("q1", "1 % below"),
                ("q25", "25 %"), ("q50", "50 %"), ("q75", "75 %"), ("q99", "99 %"), ("q999", "99.9 %"), ("maximum", "greatest"),
            )),
        ),
    )  # fmt: skip


def _means(context: Context) -> Iterator[Panel]:
    if not context.has("means"):
        return
    vectors = ("mean", "variance", "minimum", "maximum", "units")
    rows = context.tables.once(("means", "norms"), lambda: context.whole("means").drop(columns=list(vectors)))
    yield Listing(
        "means", "Means over a file of texts", "means", rows,
        columns=(
            ShownColumn("site", "site"), ShownColumn("layer", "layer", cursor="layer"),
            ShownColumn("head", "head", cursor="head"), ShownColumn("n", "tokens"),
            ShownColumn("mean_norm", "mean norm", 4), ShownColumn("norm_of_mean", "norm of the mean", 4),
        ),
        note="The vectors are in the table. A norm of the mean near the mean norm: the place holds about the same everywhere.",
    )  # fmt: skip
