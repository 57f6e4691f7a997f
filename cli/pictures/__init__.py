"""The pictures of a run in a terminal, from the same panels as the page's; plain text in a pipe. Knows no command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from rich.text import Text

from probe.reporting.scales import scale_of
from probe.reporting.views import Coordinate, Listing, Panel, SequenceView, TokenStrip

from ..printing import in_a_line, printable
from ..terminal import number, show_table
from .charts import show_bars, show_lines
from .grids import show_grid, show_patterns, show_title
from .screen import Screen, behind, pieces, screen, show_scale, tokens_of, wide

__all__ = ["Screen", "screen", "show_panel", "show_panels", "show_strip"]

ROWS = 20  # of a table
SHOWN = {"\n": "⏎", "\r": "␍", "\t": "⇥"}


def show_panels(
    out: Screen,
    view: SequenceView,
    *,
    kinds: Iterable[str],
    measure: str | None = None,
    at: Mapping[Coordinate, int] | None = None,
) -> None:
    """Print the panels of these kinds, by the measure that is asked for where a panel has it."""
    tokens = tokens_of(view)
    for panel in view.panels:
        if panel.kind in kinds and len(panel.frame):
            show_panel(out, panel, tokens, measure=measure, at=at)


def show_panel(
    out: Screen,
    panel: Panel,
    tokens: Mapping[int, str],
    *,
    measure: str | None = None,
    at: Mapping[Coordinate, int] | None = None,
) -> None:
    """Print one panel. measure: the column that is coloured or drawn; without it, or where there is none, the first."""
    columns = [one.column for one in getattr(panel, "measures", ())]
    _DRAWN[panel.kind](out, panel, tokens, columns.index(measure) if measure in columns else 0, at)
    if panel.note:
        out.line(in_a_line(panel.note))


def show_strip(
    out: Screen, panel: TokenStrip, tokens: Mapping[int, str], measure: int = 0, at: Mapping[Coordinate, int] | None = None
) -> None:
    """Print a text, each token on the colour of the measure, what was generated in bold; in a pipe the text."""
    texts = pieces(panel)
    if not out.coloured or not panel.measures:
        out.line("".join(texts))
        return
    one = panel.measures[measure]
    scale = scale_of(one, panel.frame[one.column])
    colours = scale.colours(panel.frame[one.column].to_numpy())
    segments = panel.frame["segment"].tolist() if "segment" in panel.frame else [""] * len(texts)
    assert out.width is not None, "colours are for a terminal"
    line, used = Text(), 0
    for text, colour, segment in zip(texts, colours, segments, strict=True):
        for part in _lines(text):
            shown = printable("".join(SHOWN.get(c, c) for c in part))
            if used and used + wide(shown) > out.width:
                out.line(line)
                line, used = Text(), 0
            line.append(shown, behind(colour, bold=segment == "completion"))
            used += wide(shown)
            if part.endswith("\n"):
                out.line(line)
                line, used = Text(), 0
    if used:
        out.line(line)
    show_scale(out, one, scale)


def _lines(text: str) -> list[str]:
    """A text cut behind its newlines, and at no other sign that turns a line."""
    return [part for part in text.replace("\n", "\n\0").split("\0") if part]


def _show_listing(
    out: Screen, panel: Listing, tokens: Mapping[int, str], measure: int = 0, at: Mapping[Coordinate, int] | None = None
) -> None:
    show_title(out, panel)
    rows = []
    for _, row in panel.frame.iloc[:ROWS].iterrows():
        rows.append([_entry(row[column.name], column.digits) for column in panel.columns])
    show_table([column.title for column in panel.columns], rows)
    if len(panel.frame) > ROWS:
        out.line(f"… and {len(panel.frame) - ROWS:,} more in the table '{panel.table}'")


def _entry(value: Any, digits: int | None) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if digits is not None and isinstance(value, (int, float, np.number)):
        return number(float(value), f".{digits}f")
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


# kind of panel -> what prints it; a tree is drawn by `probe runs tree`
_DRAWN: dict[str, Callable[..., None]] = {
    "bars": show_bars,
    "grid": show_grid,
    "lines": show_lines,
    "listing": _show_listing,
    "patterns": show_patterns,
    "tokens": show_strip,
}
