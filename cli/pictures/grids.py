"""Heat maps in a terminal: two rows a line in half blocks, or texts on colours; their numbers where there are no colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.text import Text

from probe.reporting.scales import ColourScale, distinct, index_in, named, numbers, scale_of
from probe.reporting.views import Axis, Coordinate, Grid, Measure, Panel, Patterns

from ..printing import in_a_line
from ..terminal import visible
from .screen import LABEL, LOWER, UPPER, Screen, behind, figure, fitted, labels_of, paint, show_scale, wide

MOST = 60  # rows that are shown
FAINT = 0.005  # of the largest: rounds to nothing beside it
CELL = 4  # cells that a value without a text is wide at most
TEXT = 12  # cells of a text
READABLE = 8  # cells of a text at least
BLOCKS = 3  # times that a map is longer than a line at most
NAME = 8  # cells of the rows' name, which stands above their labels
SMALL = (0.1, 2.0)  # the largest of numbers that are shown 100 times as large, as shares are
SHORT = 5  # cells of a label that is no wider than a number


class Heat(NamedTuple):
    """Values as they are shown: rows downwards, columns to the right.

    values: float64 (rows, columns), NaN where there is none; of classes and beside texts `shown` has what stands there.
    """

    title: str  # of the rows
    down: list[str]
    across: list[str]
    values: np.ndarray
    colours: np.ndarray  # uint8 (rows, columns, 4)
    shown: np.ndarray  # text (rows, columns)
    measure: Measure
    scale: ColourScale
    about: list[str]  # what is not shown of it
    ticked: bool  # labels of columns are numbers: some of them tell the others


def show_grid(
    out: Screen, panel: Grid, tokens: Mapping[int, str], measure: int = 0, at: Mapping[Coordinate, int] | None = None
) -> None:
    """Print a grid; of one that follows the cursor the rows at a place: the one that is asked for, or a telling one."""
    one = panel.measures[measure]
    frame, where = chosen(panel, tokens, one, at or {})
    show_title(out, panel, where)
    frame = frame[frame[one.column].notna()]
    if frame.empty:
        out.line("nothing is measured here")
        return
    places = distinct(frame[panel.columns.column])
    fits = len(places) if panel.text is None or out.width is None else max(1, (out.width - 7) // (READABLE + 1))
    texts = panel.text is not None and len(places) <= fits
    show_heat(out, _heat(panel, frame, tokens, one, texts=texts), texts=texts)
    if panel.text is not None and not texts:
        out.line("")
        out.line(f"the last {fits} of {len(places):,}")
        near = frame[frame[panel.columns.column].isin(places[-fits:])]
        show_heat(out, _heat(panel, near, tokens, one, texts=True), texts=True)


def show_patterns(
    out: Screen, panel: Patterns, tokens: Mapping[int, str], measure: int = 0, at: Mapping[Coordinate, int] | None = None
) -> None:
    """Print one head's attention: queries downwards, keys to the right."""
    weight = Measure("weight", "attention weight", low=0.0)
    frame, where = chosen(panel, tokens, weight, at or {})
    show_title(out, panel, where)
    rows = [
        (int(query), int(key), float(w))
        for query, keys, found in zip(frame["query"], frame["keys"], frame["weights"], strict=True)
        if found is not None
        for key, w in zip(range(len(found)) if keys is None else keys, found, strict=True)
    ]
    if not rows:
        out.line("no weights are kept here")
        return
    cells = pd.DataFrame(rows, columns=["query", "key", "weight"])
    grid = Grid(
        panel.name, panel.title, panel.table, cells, measures=(weight,),
        rows=Axis("query", "query (looks)", "token"), columns=Axis("key", "key (looked at)", "token"),
    )  # fmt: skip
    show_heat(out, _heat(grid, cells, tokens, weight, texts=False), texts=False)


def show_title(out: Screen, panel: Panel, where: str = "") -> None:
    out.line("")
    out.line(panel.title + (f", at {where}" if where else ""))


def chosen(panel: Panel, tokens: Mapping[int, str], measure: Measure, at: Mapping[Coordinate, int]) -> tuple[pd.DataFrame, str]:
    """The rows of a panel at one place of the cursor, and that place in words.

    What `at` does not say is where the largest value is if the scale has its 0 in the middle; else the last token, the first
    layer, head, step and branch.
    """
    frame, words = panel.frame, []
    for coordinate, column in panel.follows.items():
        if frame.empty:
            break
        value = at.get(coordinate)
        if value is None:
            value = _telling(frame, column, coordinate, measure)
        frame = frame[frame[column] == value]
        words.append(f"{coordinate} {labels_of(Axis(column, column, coordinate), [value], tokens)[0]}")
    return frame, ", ".join(words)


def _telling(frame: pd.DataFrame, column: str, coordinate: Coordinate, measure: Measure) -> Any:
    if measure.scaling == "diverging":
        size = np.abs(numbers(frame[measure.column]))
        if np.isfinite(size).any():
            return frame[column].iloc[int(np.nanargmax(size))]
    return frame[column].max() if coordinate == "token" else frame[column].min()


def _heat(panel: Grid, frame: pd.DataFrame, tokens: Mapping[int, str], measure: Measure, *, texts: bool) -> Heat:
    """A grid as it stands on a screen: of two axes the one with long labels goes down, texts stay as the grid has them."""
    turned = not texts and _worded(panel.columns, frame) > _worded(panel.rows, frame)
    down, across = (panel.columns, panel.rows) if turned else (panel.rows, panel.columns)
    rows, columns = distinct(frame[down.column]), distinct(frame[across.column])
    at = (index_in(rows, frame[down.column]), index_in(columns, frame[across.column]))
    values = np.full((len(rows), len(columns)), np.nan)
    scale = scale_of(measure, panel.frame[measure.column])
    colours = np.zeros((*values.shape, 4), np.uint8)
    shown = np.full(values.shape, "", object)
    values[at] = scale.places(frame[measure.column]) if scale.classes else numbers(frame[measure.column])
    colours[at] = scale.colours(frame[measure.column].to_numpy())
    column = panel.text if texts else measure.column if scale.classes else None
    if column is not None:
        words = [str(one) if pd.notna(one) else "" for one in frame[column]]
        shown[at] = [in_a_line(visible(one)) if texts else in_a_line(one) for one in words]
    same = down.cursor is not None and down.cursor == across.cursor
    ticked = same or not _worded(across, frame)
    beside = [str(value) for value in columns] if same else labels_of(across, columns, tokens)
    title = down.title if wide(down.title) <= NAME else ""
    heat = Heat(title, labels_of(down, rows, tokens), beside, values, colours, shown, measure, scale, [], ticked)
    heat = _fewer(heat)
    if panel.upwards and not turned:
        heat = _taken(heat, list(range(len(heat.down)))[::-1])
    return heat


def _worded(axis: Axis, frame: pd.DataFrame) -> int:
    """How much an axis has to say: tokens most, then words, then plain numbers."""
    if axis.cursor == "token":
        return 2
    if axis.labels is not None:
        return int(any(wide(str(axis.labels.get(value, ""))) > SHORT for value in frame[axis.column].unique()))
    return int(not pd.api.types.is_numeric_dtype(frame[axis.column]))


def _fewer(heat: Heat) -> Heat:
    """No more than `MOST` rows: of effects those that have one, the strongest if these are many; else the last."""
    rows = list(range(len(heat.down)))
    if heat.scale.scaling == "diverging":
        most = np.nanmax(np.abs(heat.values), axis=1)
        rows = [i for i in rows if most[i] > FAINT * heat.scale.high]
        strongest = set(sorted(rows, key=lambda i: -most[i])[:MOST])
        rows = [i for i in rows if i in strongest]
        hidden = len(heat.down) - len(rows)
        said = f"… and {hidden} more rows with less" if len(rows) == MOST else f"… and {hidden} rows of 0"
    else:
        rows = rows[-MOST:]
        hidden = len(heat.down) - len(rows)
        said = f"… and {hidden} rows before these"
    return _taken(heat, rows)._replace(about=[said] if hidden else [])


def _taken(heat: Heat, rows: Sequence[int]) -> Heat:
    return heat._replace(
        down=[heat.down[i] for i in rows], values=heat.values[rows], colours=heat.colours[rows], shown=heat.shown[rows]
    )  # fmt: skip


def show_heat(out: Screen, heat: Heat, *, texts: bool) -> None:
    """Print values, what their colours mean and what is left out."""
    if not heat.down:
        out.line("nothing differs from 0")
    elif texts:
        _show_cells(out, heat, heat.shown)
    elif out.coloured:
        _show_blocks(out, heat)
    else:
        shown, what = _figures(heat)
        out.line(what)
        _show_cells(out, heat, shown)
    if out.coloured and heat.down:
        show_scale(out, heat.measure, heat.scale)
    for said in heat.about:
        out.line(said)


def _figures(heat: Heat) -> tuple[np.ndarray, str]:
    """Each value as text, and what they are: of shares and other small numbers 100 times them; of classes their names."""
    if heat.scale.classes:
        return heat.shown, named(heat.measure)
    finite = heat.values[np.isfinite(heat.values)]
    whole = bool((finite == np.round(finite)).all())
    small = not whole and SMALL[0] <= np.abs(finite).max(initial=0.0) <= SMALL[1]

    def text(value: float) -> str:
        if np.isnan(value):
            return ""
        return f"{round(100 * value)}" if small and np.isfinite(value) else figure(value)

    return np.array([[text(value) for value in row] for row in heat.values], object).reshape(
        heat.values.shape
    ), f"{'100 x ' if small else ''}{named(heat.measure)}"


def _show_cells(out: Screen, heat: Heat, shown: np.ndarray) -> None:
    """A line a row, a text a column, on its colour where there are colours; of columns as many side by side as fit."""
    right = shown is not heat.shown  # numbers
    label = min(max(map(wide, [heat.title, *heat.down])), LABEL)
    names = heat.across
    cells = max([3, *(min(wide(one), TEXT) for one in (*names, *shown.ravel()))]) + 1
    if out.width is not None:
        if not right:
            cells = max(READABLE + 1, min(cells, (out.width - label) // max(len(names), 1)))
        fits = max(1, (out.width - label - 1) // cells)
    else:
        fits = max(1, len(names))
    for first in range(0, len(names), fits):
        part = range(first, min(first + fits, len(names)))
        out.line(fitted(heat.title, label) + "".join(_cell(names[j], cells, right) for j in part))
        for i, name in enumerate(heat.down):
            line = Text(fitted(name, label))
            for j in part:
                line.append(*_inked(_cell(shown[i, j], cells, right), heat.colours[i, j], out.coloured))
            out.line(line if out.coloured else line.plain)


def _cell(text: str, cells: int, right: bool) -> str:
    """Numbers end where others end, texts begin where others begin; a space stands between two."""
    return " " + fitted(text, cells - 1, right=right)


def _inked(text: str, colour: np.ndarray, coloured: bool) -> tuple[str, Any]:
    return text, behind(colour) if coloured else ""


def _show_blocks(out: Screen, heat: Heat) -> None:
    """Two rows a line: the upper one's label is on the left, the lower one's on the right."""
    assert out.width is not None, "half blocks are for a terminal"
    n = len(heat.across)
    longest = max(map(wide, [heat.title, *heat.down]))
    names = 1 if heat.ticked else max(min(max(map(wide, heat.across)), TEXT) + 1, 2)
    label = min(longest, LABEL, max(6, (out.width - 2 - n * names) // 2))
    room = out.width - 2 * label - 2
    cell = min(max(names, min(CELL, room // max(n, 1))), room)
    fits = max(1, room // max(cell, 1))
    skipped = n - fits if heat.ticked and n > BLOCKS * fits else 0
    if skipped:
        heat.about.append(f"… and {skipped:,} columns to the left of these")
    for first in range(skipped, n, fits):
        part = range(first, min(first + fits, n))
        out.line(fitted(heat.title, label) + " " + _ticks([heat.across[j] for j in part], cell, every=not heat.ticked))
        for i in range(0, len(heat.down), 2):
            under = i + 1 if i + 1 < len(heat.down) else None
            line = Text(fitted(heat.down[i], label) + " ")
            for j in part:
                _append_block(line, heat.colours[i, j], None if under is None else heat.colours[under, j], cell)
            line.append(" " + ("" if under is None else fitted(heat.down[under], label).rstrip()))
            out.line(line)


def _append_block(line: Text, upper: np.ndarray, lower: np.ndarray | None, cell: int) -> None:
    """Half blocks of both colours; what has no value is as the terminal is."""
    above = tuple(map(int, upper)) if upper[3] == 255 else None
    below = tuple(map(int, lower)) if lower is not None and lower[3] == 255 else None
    if above is not None:
        line.append(UPPER * cell, paint(above, below))
    elif below is not None:
        line.append(LOWER * cell, paint(below))
    else:
        line.append(" " * cell)


def _ticks(labels: Sequence[str], cell: int, *, every: bool) -> str:
    """Labels above the columns, each from where its column begins; of numbers as many as can be told apart."""
    if every:
        return "".join(fitted(label, cell - 1) + " " for label in labels).rstrip()
    line = ""
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100) if s * cell > max(map(wide, labels))), 200)
    for j, label in enumerate(labels):
        if j % step == 0 and wide(line) <= j * cell:
            line = fitted(line, j * cell) + label
    return line
