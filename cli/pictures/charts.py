"""Bars with intervals, and curves in Braille's dots, in a terminal; their numbers in a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.text import Text

from probe.reporting.colours import CLASSES
from probe.reporting.scales import distinct, named, numbers, rgb
from probe.reporting.views import Bars, Coordinate, Lines, Measure

from ..printing import in_a_line
from ..terminal import interval, number, show_table
from .grids import chosen, show_title
from .screen import Screen, figure, fitted, labels_of, paint, wide

MOST = 60  # bars of a group
LABEL = 40  # cells of what a bar is of
TRACK = 40  # cells of a bar, at most
HIGH = 12  # lines of a chart
NAMED = 8  # curves that are named: as many as have a colour of their own
EIGHTHS = " ▏▎▍▌▋▊▉█"
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Braille's dots: four rows of two


def show_bars(
    out: Screen, panel: Bars, tokens: Mapping[int, str], measure: int = 0, at: Mapping[Coordinate, int] | None = None
) -> None:
    """Print a bar a row with its interval, the groups of a facet one after another, each on a scale of its own."""
    frame, where = chosen(panel, tokens, panel.measure, at or {})
    show_title(out, panel, where)
    frame = frame[frame[panel.measure.column].notna()]
    facets = distinct(frame[panel.facet]) if panel.facet else [None]
    series = distinct(frame[panel.series]) if panel.series else []
    if frame.empty:
        out.line("nothing is measured here")
    for facet in facets:
        own = frame if facet is None else frame[frame[panel.facet] == facet]
        if own.empty:
            continue
        out.line(named(panel.measure) if facet is None else f"{in_a_line(str(facet))}: {named(panel.measure)}")
        _show_group(out, panel, own.iloc[:MOST], tokens, series)
        if len(own) > MOST:
            out.line(f"… and {len(own) - MOST} more")


def _show_group(out: Screen, panel: Bars, own: pd.DataFrame, tokens: Mapping[int, str], series: list[Any]) -> None:
    labels = labels_of(panel.axis, own[panel.axis.column].tolist(), tokens)
    kinds = [str(one) for one in own[panel.series]] if panel.series else [""] * len(own)
    values = numbers(own[panel.measure.column])
    low, high = (numbers(own[name]) for name in panel.measure.band) if panel.measure.band else (values * np.nan,) * 2
    form = "+.3f" if np.nanmax(np.abs(values)) >= 0.05 else "+.2e"
    figures = [number(value, form) for value in values]
    between = [interval(*ends, form) for ends in zip(low, high, strict=True)]
    if out.width is None:
        rows = list(zip(labels, kinds, figures, between, strict=True))
        header = (panel.axis.title, panel.series or "", panel.measure.title, "95 %")
        shown = [i for i in range(4) if any(row[i] for row in rows)]
        show_table([header[i] for i in shown], [[row[i] for i in shown] for row in rows])
        return
    columns = [column for column in (figures, between, [in_a_line(kind) for kind in kinds]) if any(column)]
    beside = [" ".join(fitted(column[i], max(map(wide, column)), right=column is figures) for column in columns)
              for i in range(len(values))]  # fmt: skip
    label = min(max(map(wide, labels)), LABEL, max(8, out.width - wide(beside[0]) - 24))
    track = max(10, min(TRACK, out.width - label - wide(beside[0]) - 3))
    floor = numbers(own[panel.floor]) if panel.floor else values * np.nan
    edges = _edges(panel.measure, np.concatenate([values, low, high, floor]))
    for i, name in enumerate(labels):
        colour = rgb(CLASSES)[series.index(own[panel.series].iloc[i]) % len(CLASSES) if panel.series else 0]
        line = Text(fitted(name, label) + " " + beside[i] + " ")
        line.append_text(_bar(values[i], (low[i], high[i]), floor[i], edges, track, tuple(map(int, colour)), out.coloured))
        out.line(line)


def _edges(measure: Measure, values: np.ndarray) -> tuple[float, float]:
    """Both ends of the track; 0 is on it."""
    found = [*values[np.isfinite(values)], *(end for end in (measure.low, measure.high) if end is not None), 0.0]
    return (min(found), max(found)) if max(found) > min(found) else (0.0, 1.0)


def _bar(
    value: float, ends: tuple[float, float], floor: float, edges: tuple[float, float], track: int, colour: tuple[int, ...],
    coloured: bool,
) -> Text:  # fmt: skip
    """A bar from 0 to its value in eighths of a cell, its interval as ├─┤ over it, its floor as ┊."""

    def place(x: float) -> float:
        return (x - edges[0]) / (edges[1] - edges[0]) * track

    left, right = sorted((place(0.0), place(float(np.clip(value, *edges)))))
    cells = []
    for j in range(track):
        share = min(right, j + 1) - max(left, j)
        if share <= 0:
            cells.append(" ")
        elif left > j and right >= j + 1:  # begins inside of the cell: eighths fill from the left
            cells.append("█" if share >= 0.5 else " ")
        else:
            cells.append(EIGHTHS[max(1, round(8 * share))])
    style = paint(colour) if coloured else ""
    line = Text("".join(cells), style)
    marks: dict[int, str] = {}
    if np.isfinite(ends).all():
        first, last = (min(track - 1, max(0, int(place(end)))) for end in ends)
        marks = dict.fromkeys(range(first, last + 1), "─") | {first: "├", last: "┤"} if last > first else {first: "│"}
    if np.isfinite(floor):
        marks[min(track - 1, max(0, int(place(floor))))] = "┊"
    zero = min(track - 1, int(place(0.0)))
    if edges[0] < 0 and cells[zero] == " " and zero not in marks:
        marks[zero] = "│"
    for j, mark in marks.items():
        filled = coloured and cells[j] != " "
        piece = Text(mark, paint((0, 0, 0) if sum(colour) > 380 else (255, 255, 255), colour) if filled else "")
        line = Text.assemble(line[:j], piece, line[j + 1 :])
    return line


def show_lines(
    out: Screen, panel: Lines, tokens: Mapping[int, str], measure: int = 0, at: Mapping[Coordinate, int] | None = None
) -> None:
    """Print curves; one a value of the series, else one a measure."""
    one = panel.measures[measure]
    frame, where = chosen(panel, tokens, one, at or {})
    show_title(out, panel, where)
    if panel.series:
        curves = [(str(name), one, frame[frame[panel.series] == name]) for name in distinct(frame[panel.series])]
    else:
        curves = [(named(measured), measured, frame) for measured in panel.measures]
    curves = [(name, m, part[part[m.column].notna()].sort_values(panel.axis.column, kind="stable")) for name, m, part in curves]
    curves = [curve for curve in curves if len(curve[2])]
    if not curves:
        out.line("nothing is measured here")
    elif out.width is None:
        _show_points(panel, curves)
    else:
        _show_chart(out, panel, one, curves)


def _show_points(panel: Lines, curves: list[tuple[str, Measure, pd.DataFrame]]) -> None:
    """The points of all curves, a row a place of the axis."""
    columns = {}
    for name, measure, part in curves:
        points = part.drop_duplicates(panel.axis.column, keep="last").set_index(panel.axis.column)
        columns[name] = points[measure.column].map(figure)
        if measure.band:
            columns[f"{name}: 95 %"] = points[list(measure.band)].apply(
                lambda ends: interval(ends.iloc[0], ends.iloc[1], ".3g"), axis=1
            )
    table = pd.DataFrame(columns).sort_index().fillna("")
    show_table(
        [panel.axis.title, *table.columns],
        [[figure(float(x)), *row] for x, row in zip(table.index, table.to_numpy(), strict=True)],
    )


def _show_chart(out: Screen, panel: Lines, first: Measure, curves: list[tuple[str, Measure, pd.DataFrame]]) -> None:
    """Dots on a field of two times four in a cell, numbers at both ends of both axes, a line a curve that says its colour."""
    xs = np.concatenate([numbers(part[panel.axis.column]) for _, _, part in curves])
    ys = [numbers(part[name]) for _, m, part in curves for name in (m.column, *(m.band or ()))]
    bent = np.log1p if first.scaling == "log" else np.asarray
    low, high = _ends(bent(np.concatenate(ys)))
    left, right = _ends(xs)
    names = [figure(float(np.expm1(end) if first.scaling == "log" else end)) for end in (high, low)]
    label = max(map(wide, names))
    across = max(10, min(100, (out.width or 80) - label - 2))
    dots, inks = np.zeros((HIGH, across), int), np.full((HIGH, across), -1)
    for k, (_, m, part) in enumerate(curves):
        x = (numbers(part[panel.axis.column]) - left) / (right - left) * (2 * across - 1)
        for name in (*(m.band or ()), m.column):
            y = (high - bent(numbers(part[name]))) / (high - low) * (4 * HIGH - 1)
            _draw(dots, inks, x, y, k, sparse=name != m.column)
    for i in range(HIGH):
        line = Text(fitted(names[0] if i == 0 else names[1] if i == HIGH - 1 else "", label, right=True) + " ")
        for bits, k in zip(dots[i], inks[i], strict=True):
            line.append(chr(0x2800 + int(bits)) if bits else " ", _ink(int(k)) if bits and out.coloured else "")
        out.line(line)
    ends = [figure(left), figure(right)]
    out.line(" " * (label + 1) + ends[0] + ends[1].rjust(across - len(ends[0])))
    out.line(f"{panel.axis.title}  (dots: 95 %)" if any(m.band for _, m, _ in curves) else panel.axis.title)
    for k, (name, _, part) in enumerate(curves[:NAMED]):
        legend = Text("⣿⣿ ", _ink(k) if out.coloured else "")
        last = numbers(part[curves[k][1].column])
        out.line(legend.append(f"{in_a_line(name)}: {figure(last[0])} … {figure(last[-1])}"))
    if len(curves) > NAMED:
        out.line(f"… and {len(curves) - NAMED} more curves")


def _ends(values: np.ndarray) -> tuple[float, float]:
    there = values[np.isfinite(values)]
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ink(k: int) -> Any:
    return paint(tuple(map(int, rgb(CLASSES)[k % len(CLASSES)])))


def _draw(dots: np.ndarray, inks: np.ndarray, x: np.ndarray, y: np.ndarray, k: int, *, sparse: bool) -> None:
    """Straight lines between points, in place; sparse: every third dot. A point beside a missing one stands alone."""
    for i in range(len(x)):
        joined = i + 1 < len(x) and np.isfinite([y[i], y[i + 1]]).all()
        if not np.isfinite(y[i]):
            continue
        steps = int(max(abs(x[i + 1] - x[i]), abs(y[i + 1] - y[i]))) + 1 if joined else 1
        for s in range(0, steps, 3 if sparse else 1):
            share = s / steps if joined else 0.0
            at = [v[i] + share * (v[i + 1] - v[i]) if joined else v[i] for v in (x, y)]
            column, row = (round(float(v)) for v in at)
            dots[row // 4, column // 2] |= DOTS[row % 4][column % 2]
            inks[row // 4, column // 2] = k
