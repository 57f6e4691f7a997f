"""Bars with intervals, and curves with bands, as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probe.reporting.plots import paper
from probe.reporting.plots.paper import Content
from probe.reporting.scales import distinct, named, numbers
from probe.reporting.views import Bars, Lines, Measure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 1.15  # inches of a row of bars
MARKED = 40  # points of a curve that each have a mark


def bars(panel: Bars, content: Content) -> Figure:
    """Estimates as bars with their intervals, one row of axes a value of the facet."""
    frame, measure = content.frame, panel.measure
    facets = distinct(frame[panel.facet]) if panel.facet else [None]
    series = distinct(frame[panel.series]) if panel.series else [None]
    values = distinct(frame[panel.axis.column])
    labels = paper.labels_of(panel.axis, values, content.tokens, numbered=False)
    width = min(paper.WIDEST, max(2.5, min(paper.WIDE, 0.35 * len(values) * max(1, len(series) / 2))))
    if panel.span and len(values) > 1:
        width = paper.WIDE
    height = ROW if len(facets) > 1 else 2.0
    figure, first = paper.sheet(width, height)
    all_axes = [first]
    for k in range(1, len(facets)):
        all_axes.append(figure.add_axes((0, -k * (height + 0.3) / height, 1, 1)))
    for axes, facet in zip(all_axes, facets, strict=True):
        mine = frame if facet is None else frame[frame[panel.facet] == facet]
        for k, one in enumerate(series):
            part = mine if one is None else mine[mine[panel.series] == one]
            _draw_bars(axes, panel, part, values, (k, len(series)))
        _frame(axes, measure, "" if facet is None else str(facet))
        _label_bars(axes, panel, mine, values, labels, width, last=axes is all_axes[-1])
    if panel.series:
        paper.add_classes(figure, [str(one) for one in series], panel.series)
    paper.finish(figure, all_axes[-1], panel, content, top=first)
    return figure


def _draw_bars(axes: Axes, panel: Bars, part: pd.DataFrame, values: list[Any], group: tuple[int, int]) -> None:
    k, n = group
    heights = numbers(part[panel.measure.column])
    if panel.span:
        start, end = (numbers(part[name]) for name in panel.span)
        wide = (end - start) / n
        left = start + k * wide
    else:
        place = {value: i for i, value in enumerate(values)}
        wide = np.full(len(part), 0.8 / n)
        left = np.array([place[one] for one in part[panel.axis.column].tolist()], float) - 0.4 + k * wide
    axes.bar(left, np.nan_to_num(heights), wide, align="edge", linewidth=0.4, edgecolor="white", **paper.class_fill(k))
    if panel.floor:
        floor = numbers(part[panel.floor])
        axes.hlines(floor, left, left + wide, colors=paper.INK, linestyles="dashed", linewidth=0.8)
    if panel.measure.band:
        low, high = (numbers(part[name]) for name in panel.measure.band)
        there = np.isfinite(low) & np.isfinite(high)
        axes.vlines((left + wide / 2)[there], low[there], high[there], color=paper.INK, linewidth=0.9)


def _frame(axes: Axes, measure: Measure, facet: str) -> None:
    """The vertical axis with its title, 0 as a line."""
    axes.axhline(0, color=paper.FAINT, linewidth=0.6)
    axes.set_ylabel(paper.written(named(measure)), fontsize=paper.SMALL, color=paper.INK, parse_math=False)
    if measure.scaling == "log":
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(0, 1.3 * axes.dataLim.y1)
    if measure.low is not None or measure.high is not None:
        axes.set_ylim(measure.low, measure.high)
    paper.thin(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if facet:
        axes.set_title(paper.written(facet), fontsize=paper.SMALL, loc="left", pad=3, color=paper.INK, parse_math=False)


def _label_bars(
    axes: Axes, panel: Bars, part: pd.DataFrame, values: list[Any], labels: list[str], width: float, *, last: bool
) -> None:
    if panel.span:
        firsts = panel.frame.groupby(panel.axis.column, sort=True, observed=True)[list(panel.span)].first()
        middles = firsts.mean(axis=1)
        found = dict(zip(values, labels, strict=True))
        every = max(1, int(np.ceil(len(middles) * 0.2 / width)))
        ticks, shown = middles.iloc[::every].tolist(), [found[value] for value in middles.index[::every]]
        edges = paper.positions_of(panel.frame, panel.span)  # the same in each row, as the tokens are
        if edges:
            axes.set_xlim(*edges)
    else:
        ticks, shown = list(range(len(values))), labels
        axes.set_xlim(-0.6, len(values) - 0.4)
    room = width / max(len(ticks), 1)
    letters = max((len(one) for one in shown), default=0)
    flat = letters * paper.SMALL * 0.6 / 72 < room
    axes.set_xticks(ticks, shown, fontsize=paper.SMALL, parse_math=False, family=paper.fonts("".join(shown), paper.SANS),
                    rotation=0 if flat else 40, ha="center" if flat else "right", rotation_mode="anchor")  # fmt: skip
    if last:
        axes.set_xlabel(paper.written(panel.axis.title), fontsize=paper.SIZE, color=paper.INK, parse_math=False)
    else:
        axes.tick_params(labelbottom=False)


def lines(panel: Lines, content: Content) -> Figure:
    """Curves with their bands; one a value of the series, else one a measure."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = paper.sheet(4.6, 2.8)
    frame = content.frame
    if panel.series:
        measure = panel.measures[content.measure]
        names = distinct(frame[panel.series])
        curves = [(str(name), measure, frame[frame[panel.series] == name]) for name in names]
        paper.add_classes(figure, [str(name) for name in names], panel.series)
    else:
        measure = panel.measures[0]
        curves = [(one.title, one, frame) for one in panel.measures]
        if len(curves) > 1:
            paper.add_classes(figure, [named(one) for one in panel.measures], "")
    for k, (_, one, part) in enumerate(curves):
        part = part.sort_values(panel.axis.column, kind="stable")
        x, y = numbers(part[panel.axis.column]), numbers(part[one.column])
        dashes = "-" if k < 8 else "--" if k < 16 else ":"
        axes.plot(
            x, y, dashes, color=paper.class_colour(k), linewidth=1.2, marker="o" if len(x) <= MARKED else "", markersize=2.5
        )
        if one.band:
            low, high = (numbers(part[name]) for name in one.band)
            axes.fill_between(x, low, high, color=paper.class_colour(k), alpha=0.2, linewidth=0)
    _frame(axes, measure, "")
    if not panel.series and len(curves) > 1:
        axes.set_ylabel(measure.unit, fontsize=paper.SMALL, color=paper.INK, parse_math=False)
    axes.set_xlabel(paper.written(panel.axis.title), fontsize=paper.SIZE, color=paper.INK, parse_math=False)
    there = numbers(frame[panel.axis.column])
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=bool(np.all(there[np.isfinite(there)] % 1 == 0))))
    paper.finish(figure, axes, panel, content)
    return figure
