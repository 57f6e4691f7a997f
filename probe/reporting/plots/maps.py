"""Heat maps and attention patterns as figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.reporting.plots import paper
from probe.reporting.plots.paper import Content
from probe.reporting.scales import ColourScale, distinct, index_in, ink_on, numbers, scale_of
from probe.reporting.views import Axis, Grid, Measure, Patterns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS = 150  # cells that each show their number, of a map without texts
LETTERS = 12  # of a cell's text
LABELLED = 0.125  # inches between labels
VECTORS = 20_000  # cells that are each drawn; of more, a picture
WEIGHT = Measure("weight", "attention weight")


def grid(panel: Grid, content: Content) -> Figure:
    """A heat map: its cells in the colours of the measure, their texts where they fit, labels on both axes."""
    frame, measure = content.frame, panel.measures[content.measure]
    rows, columns = distinct(frame[panel.rows.column]), distinct(frame[panel.columns.column])
    scale = scale_of(measure, frame[measure.column])
    at = (index_in(rows, frame[panel.rows.column]), index_in(columns, frame[panel.columns.column]))
    colour = np.zeros((len(rows), len(columns), 4), np.uint8)
    colour[at] = scale.colours(frame[measure.column].to_numpy())
    texts = _texts(panel, frame, measure, (len(rows), len(columns)), at)
    wide, high = _cell(len(rows), len(columns), texts)
    figure, axes = paper.sheet(wide * len(columns), high * len(rows))
    _draw_cells(axes, colour, upwards=panel.upwards)
    _label(axes, panel.columns, columns, wide, content, below=True)
    _label(axes, panel.rows, rows, high, content, below=False)
    for (i, j), text in texts.items():
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center_baseline", fontsize=paper.SMALL - 1, parse_math=False,
                  in_layout=False, family=paper.fonts(text, paper.MONO), color=ink_on(colour[i, j]))  # fmt: skip
    paper.add_scale(figure, scale, measure)
    paper.finish(figure, axes, panel, content)
    return figure


def patterns(panel: Patterns, content: Content) -> Figure:
    """What each query (a row) looks at, of one head. Keys that were not kept are blank."""
    frame = content.frame.sort_values("query", kind="stable")
    queries = frame["query"].to_numpy()
    size = int(queries.max()) + 1 if len(queries) else 1
    weights = np.full((len(queries), size), np.nan)
    for i, (keys, found) in enumerate(zip(frame["keys"], frame["weights"], strict=True)):
        if found is not None:
            weights[i, range(len(found)) if keys is None else np.asarray(keys, int)] = found
    most = float(np.nanmax(weights)) if np.isfinite(weights).any() else 1.0
    scale = ColourScale("sequential", 0.0, most)
    colour = scale.colours(weights)
    colour[np.isnan(weights)] = 0
    wide, high = _cell(len(queries), size, {})
    wide = high = min(wide, high)
    figure, axes = paper.sheet(wide * size, high * len(queries))
    _draw_cells(axes, colour, upwards=False)
    _label(axes, Axis("key", "key (looked at)", cursor="token"), list(range(size)), wide, content, below=True)
    _label(axes, Axis("query", "query (looks)", cursor="token"), queries.tolist(), high, content, below=False)
    paper.add_scale(figure, scale, WEIGHT)
    paper.finish(figure, axes, panel, content, more=_kept(frame))
    return figure


def _kept(frame: pd.DataFrame) -> str:
    """How much of the rows is shown, where it is not all."""
    if "kept_mass" not in frame or frame["keys"].isna().all():
        return ""
    kept = numbers(frame["kept_mass"])
    return f"Kept: {np.nanmean(kept):.0%} of a row's weight on average, {np.nanmin(kept):.0%} at least." if kept.size else ""


def _texts(
    panel: Grid, frame: pd.DataFrame, measure: Measure, shape: tuple[int, int], at: tuple[np.ndarray, np.ndarray]
) -> dict[tuple[int, int], str]:
    """What stands in which cells: the panel's text, or, of a small map, the number."""
    if panel.text is not None:
        found = [paper.shortened(one, LETTERS) if isinstance(one, str) else "" for one in frame[panel.text]]
        if shape[1] * _needed(found) > paper.WIDEST or shape[0] * LABELLED > paper.WIDEST:
            return {}
    elif shape[0] * shape[1] <= NUMBERS and measure.scaling != "classes":
        found = _figures(numbers(frame[measure.column]))
    else:
        return {}
    return {(int(i), int(j)): text for i, j, text in zip(*at, found, strict=True) if text}


def _figures(values: np.ndarray) -> list[str]:
    """Numbers with as many decimals as give the largest of them three figures; what rounds to 0 is 0."""
    there = np.abs(values[np.isfinite(values)])
    most = float(there.max()) if there.size else 0.0
    decimals = 0 if most == 0 else min(max(0, 2 - int(np.floor(np.log10(most)))), 6)
    whole = bool(np.all(there == np.round(there)))
    texts = ["" if np.isnan(one) else f"{one:.{0 if whole else decimals}f}" for one in values]
    return ["0" if text and not text.strip("-0.") else text for text in texts]


def _needed(texts: Sequence[str]) -> float:
    """Inches of a cell that holds these texts."""
    return (max(map(len, texts), default=0) + 1) * paper.EM * (paper.SMALL - 1)


def _cell(rows: int, columns: int, texts: dict[tuple[int, int], str]) -> tuple[float, float]:
    """Inches of a cell: wide enough for its text, and for its label while the picture is no wider than two pages."""
    wide = min(0.32, max(paper.WIDE / max(columns, 1), LABELLED))
    wide = max(wide, _needed(list(texts.values()))) if texts else wide
    wide = min(wide, paper.WIDEST / max(columns, 1)) if columns * wide > paper.WIDEST else wide
    high = 0.17 if columns * 0.17 > paper.WIDE or rows > 24 else min(0.24, wide)
    return wide, min(high, paper.WIDEST / max(rows, 1))


def _draw_cells(axes: Axes, colour: np.ndarray, *, upwards: bool) -> None:
    """uint8 (rows, columns, 4) as cells of width and height 1; small ones as shapes, which stay sharp in an SVG at any size."""
    rows, columns = colour.shape[:2]
    axes.set(xlim=(0, columns), ylim=(0, rows) if upwards else (rows, 0))
    if rows * columns <= VECTORS:
        axes.pcolormesh(np.arange(columns + 1), np.arange(rows + 1), colour / 255.0, antialiased=False, linewidth=0)
    else:
        axes.imshow(colour, extent=(0, columns, rows, 0), interpolation="nearest", aspect="auto", origin="upper")
        axes.set(xlim=(0, columns), ylim=(0, rows) if upwards else (rows, 0))


def _label(axes: Axes, axis: Axis, values: list[Any], cell: float, content: Content, *, below: bool) -> None:
    """Labels beside the cells: all of them, or as many as there is room for."""
    every = max(1, int(np.ceil(LABELLED / cell)))
    shown = range(0, len(values), every)
    labels = paper.labels_of(axis, [values[i] for i in shown], content.tokens, numbered=every > 1)
    flat = below and max((len(one) for one in labels), default=0) * paper.EM * paper.SMALL < cell * every - 0.03
    ticks, families = [i + 0.5 for i in shown], paper.fonts("".join(labels), paper.MONO)
    if below:
        axes.set_xticks(
            ticks, labels, fontsize=paper.SMALL - 0.5, family=families, parse_math=False, rotation=0 if flat else 90
        )
    else:
        axes.set_yticks(ticks, labels, fontsize=paper.SMALL - 0.5, family=families, parse_math=False)
    name = axes.set_xlabel if below else axes.set_ylabel
    name(paper.written(axis.title), fontsize=paper.SIZE, color=paper.INK, parse_math=False)
