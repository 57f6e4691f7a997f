"""A text with its tokens coloured, rows as a table, and a tree of branches, as figures."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe.reporting.plots import paper
from probe.reporting.plots.paper import Content
from probe.reporting.scales import distinct, ink_on, scale_of
from probe.reporting.views import Listing, OutcomeTree, ShownColumn, TokenStrip

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 96  # letters of a line of a text
LINE = 0.185  # inches
LINES = 1000  # of a text; of leaves of a tree
ROWS = 60  # of a table
CELL = 48  # letters of a cell of a table


class PlacedToken(NamedTuple):
    """A token on the sheet: its line, its first column, how many it takes, and what is written."""

    row: int  # of the frame
    line: int
    column: int
    letters: int
    text: str


def tokens(panel: TokenStrip, content: Content) -> Figure:
    """The text in lines, each token on the colour of the measure; steps and segments begin a line and are named beside it."""
    frame, measure = content.frame.sort_values("pos", kind="stable"), panel.measures[content.measure]
    scale = scale_of(measure, frame[measure.column])
    colour = scale.colours(frame[measure.column].to_numpy())
    placed, marks = _flow(panel, frame)
    kept = [one for one in placed if one.line < LINES]
    n = max((one.line for one in kept), default=0) + 1
    wide = max([one.column + one.letters for one in kept], default=1)
    figure, axes = paper.sheet(wide * paper.EM * paper.SIZE, n * LINE)
    axes.set(xlim=(0, wide), ylim=(n, 0))
    axes.axis("off")
    _draw_tokens(axes, kept, colour)
    for line, mark in marks:
        if line < n:
            axes.text(
                -1, line + 0.5, mark, ha="right", va="center", fontsize=paper.SMALL - 1, color=paper.FAINT, parse_math=False
            )
    paper.add_scale(figure, scale, measure)
    more = "" if len(kept) == len(placed) else f"The first {len(kept):,} of {len(placed):,} tokens."
    paper.finish(figure, axes, panel, content, more=more)
    return figure


def _draw_tokens(axes: Axes, placed: list[PlacedToken], colour: np.ndarray) -> None:
    from matplotlib.collections import PolyCollection

    corners = [[(p.column, p.line + 0.06), (p.column + p.letters, p.line + 0.06),
                (p.column + p.letters, p.line + 0.94), (p.column, p.line + 0.94)] for p in placed]  # fmt: skip
    faces = paper.hexes(colour[[p.row for p in placed]])
    axes.add_collection(PolyCollection(corners, facecolors=faces, edgecolors="white", linewidths=0.5))
    for p in placed:
        axes.text(p.column, p.line + 0.52, p.text, va="center_baseline", fontsize=paper.SIZE, parse_math=False, in_layout=False,
                  family=paper.fonts(p.text, paper.MONO), color=ink_on(colour[p.row]))  # fmt: skip


def _flow(panel: TokenStrip, frame: pd.DataFrame) -> tuple[list[PlacedToken], list[tuple[int, str]]]:
    """Where each token stands, and what is written beside which line."""
    placed: list[PlacedToken] = []
    marks: list[tuple[int, str]] = []
    line, column, before = 0, 0, None
    for row, (token, mark) in enumerate(zip(_pieces(frame, panel.shown), _marks(frame), strict=True)):
        if mark != before:
            line, column = (line + 1, 0) if column else (line, 0)
            marks += [(line, mark)] if mark else []
            before = mark
        text = _spaced(token)
        letters = _width(text)
        if column and column + letters > COLUMNS:
            line, column = line + 1, 0
        text = paper.shortened(text, COLUMNS) if letters > COLUMNS else text
        letters = min(letters, COLUMNS)
        placed.append(PlacedToken(row, line, column, max(letters, 1), text))
        column += max(letters, 1)
        if token.endswith("\n"):
            line, column = line + 1, 0
    return placed, marks


def _pieces(frame: pd.DataFrame, shown: str | None) -> Iterator[str]:
    """The text of each token, or what stands in its place."""
    for i, token in enumerate(frame["token"]):
        instead = None if shown is None else frame[shown].iloc[i]
        yield instead if isinstance(instead, str) else token


def _marks(frame: pd.DataFrame) -> Iterator[str]:
    """What a token's line belongs to: its step, else its segment."""
    nothing = [None] * len(frame)
    steps = frame["step"].tolist() if "step" in frame else nothing
    segments = frame["segment"].tolist() if "segment" in frame else nothing
    for step, segment in zip(steps, segments, strict=True):
        there = step is not None and step == step
        yield f"step {int(step)}" if there else segment if isinstance(segment, str) else ""


def _spaced(token: str) -> str:
    """A token as it stands in a line: one space before it is blank, all else that is not seen is a sign."""
    if token.startswith(" ") and token.strip(" "):
        return " " + paper.written(token[1:])
    return paper.written(token)


def _width(text: str) -> int:
    """Columns that a text takes: letters of Chinese, Japanese, Korean take two, marks on letters none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def listing(panel: Listing, content: Content) -> Figure:
    """Rows as a table, one under another; where values of `beside` stand beside one another on the page, a table each."""
    frame = content.frame
    columns = list(panel.columns)
    if panel.text and panel.text not in [one.name for one in columns]:
        columns.append(ShownColumn(panel.text, panel.text))
    names, digits = [one.name for one in columns], [one.digits for one in columns]
    groups = distinct(frame[panel.beside]) if panel.beside else [None]
    lines: list[tuple[str, list[str]]] = []
    shown = 0
    for group in groups:
        mine = frame if group is None else frame[frame[panel.beside] == group]
        lines += [("group", [str(group)])] if group is not None else []
        lines.append(("head", [paper.shortened(column.title, CELL) for column in columns]))
        part = mine.head(max(1, ROWS // len(groups)))
        shown += len(part)
        lines += [
            ("row", [_cell(value, n) for value, n in zip(row, digits, strict=True)])
            for row in part[names].itertuples(index=False)
        ]
    widths = [max([_width(cells[i]) for kind, cells in lines if kind != "group"], default=1) + 2 for i in range(len(names))]
    letter = paper.EM * paper.SMALL
    figure, axes = paper.sheet(max(sum(widths) * letter, 1.0), len(lines) * LINE)
    axes.set(xlim=(0, max(sum(widths), 1)), ylim=(len(lines), 0))
    axes.axis("off")
    starts = np.cumsum([0, *widths[:-1]])
    for y, (kind, cells) in enumerate(lines):
        for x, text in zip(starts, cells, strict=False):
            families = paper.fonts(text, paper.MONO)
            heavy = kind != "row" and families == paper.MONO  # other fonts may have no bold letters
            axes.text(
                x, y + 0.5, text, va="center_baseline", fontsize=paper.SMALL, parse_math=False, family=families,
                color=paper.INK, weight="bold" if heavy else "normal", in_layout=False,
            )  # fmt: skip
        if kind == "head":
            axes.axhline(y + 0.97, color=paper.FAINT, linewidth=0.6)
    more = "" if shown == len(frame) else f"{shown:,} of {len(frame):,} rows."
    paper.finish(figure, axes, panel, content, more=more)
    return figure


def _cell(value: Any, digits: int | None) -> str:
    if value is None or value is np.nan or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, (float, np.floating)):
        return f"{value:,.{digits}f}" if digits is not None else f"{value:.6g}"
    return paper.shortened(", ".join(map(str, value)) if isinstance(value, (list, tuple, np.ndarray)) else str(value), CELL)


def tree(panel: OutcomeTree, content: Content) -> Figure:
    """Nodes from left to right, each with its label and a bar of the outcomes of the continuations through it."""
    nodes = _laid(panel.root)
    classes = list(dict.fromkeys(name for node in nodes for name in (node["outcomes"] or {})))
    leaves = max(1.0, max(node["y"] for node in nodes) + 1)
    depth = max(node["x"] for node in nodes)
    figure, axes = paper.sheet(2.4 * (depth + 1), leaves * 0.34)
    axes.set(xlim=(0, depth + 1), ylim=(leaves, 0))
    axes.axis("off")
    for node in nodes:
        _draw_node(axes, node, classes, most=nodes[0]["n"])
    paper.add_classes(figure, classes, "outcome")
    paper.finish(figure, axes, panel, content)
    return figure


def _laid(root: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every node with its depth `x`, its line `y` and its parent's place; leaves take a line each."""
    nodes: list[dict[str, Any]] = []
    free = 0

    def place(node: Mapping[str, Any], x: int) -> dict[str, Any]:
        nonlocal free
        own: dict[str, Any] = {
            "label": str(node["label"]),
            "n": node.get("n") or 0,
            "outcomes": node.get("outcomes"),
            "x": x,
            "from": None,
        }
        nodes.append(own)
        below = [place(child, x + 1) for child in node.get("children") or ()]
        if below:
            own["y"] = (below[0]["y"] + below[-1]["y"]) / 2
        else:
            own["y"] = free
            free += 1
        for child in below:
            child["from"] = (x, own["y"])
        return own

    place(root, 0)
    return nodes


def _draw_node(axes: Axes, node: dict[str, Any], classes: list[str], *, most: int) -> None:
    x, y = node["x"], node["y"] + 0.5
    if node["from"] is not None:
        px, py = node["from"][0] + 0.9, node["from"][1] + 0.5
        axes.plot([px, px + 0.05, px + 0.05, x], [py + 0.22, py + 0.22, y + 0.22, y + 0.22], color=paper.FAINT, linewidth=0.7)
    label = paper.shortened(node["label"], 34)
    text = f"{label} ({node['n']:,})" if node["n"] else label
    axes.text(
        x,
        y - 0.08,
        text,
        va="center",
        fontsize=paper.SMALL,
        parse_math=False,
        family=paper.fonts(text, paper.SANS),
        color=paper.INK,
    )
    outcomes = node["outcomes"] or {}
    total = sum(outcomes.values())
    left = x + 0.0
    for name, count in outcomes.items():
        wide = 0.9 * count / total if total else 0
        axes.barh(y + 0.22, wide, 0.22, left, linewidth=0, edgecolor="white", **paper.class_fill(classes.index(name)))
        left += wide
