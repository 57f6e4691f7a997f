"""The pictures of a run in a terminal, from the same panels as the page's; plain text in a pipe. Knows no command."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from rich.text import Text

from probe.errors import BadOption
from probe.reporting.scales import scale_of
from probe.reporting.views import Coordinate, Listing, Panel, SequenceView, TokenStrip

from ..printing import in_a_line, printable
from ..terminal import number, show_table
from .charts import show_bars, show_lines
from .grids import show_grid, show_patterns, show_title
from .screen import Screen, behind, fitted, pieces, screen, show_scale, tokens_of, wide

if TYPE_CHECKING:
    from probe.reporting.panels import Head, Subject
    from probe.store import Run

__all__ = ["Screen", "screen", "show_panel", "show_pictures", "show_strip", "show_texts"]

ROWS = 20  # of a table
LONG, ENTRY = 60, 16  # cells of a text, of another entry
ROWS_ALONE = "table-"  # how panels are called that are nothing but a table
SHOWN = {"\n": "⏎", "\r": "␍", "\t": "⇥"}


def show_pictures(
    run: Run, *, prompt: int | None = None, heads: Sequence[Head] | None = None, kinds: Collection[str] | None = None,
    tables: Collection[str] | None = None, subjects: Sequence[Subject] | None = None, measure: str | None = None,
    notes: bool = True,
) -> None:  # fmt: skip
    """Print what there is to see of one prompt of a run; without a number of its first one that could be run.

    kinds, tables: only the panels of these kinds, and of these tables. subjects: only what these of `PANELS` make. heads:
    their attention patterns; one if None. measure: the column that is shown wherever a panel has it; the first of each if
    None. Raises `BadOption` for a prompt and for a measure that the run does not have.
    """
    from probe.reporting.panels import sequence_views

    out = screen()
    (view,) = sequence_views(run, prompts=[_first(run) if prompt is None else prompt], heads=heads, subjects=subjects)
    if measure is not None:
        _check(view, measure)
    tokens = tokens_of(view)
    for panel in view.panels:
        asked = panel.kind in (kinds or _DRAWN) and (tables is None or panel.table in tables)
        if not asked or panel.frame.empty or panel.name.startswith(ROWS_ALONE):
            continue
        for at in _heads_of(panel, heads):
            show_panel(out, panel, tokens, measure=measure, at=at)
            if notes and panel.note:
                out.words(in_a_line(panel.note))


def show_texts(run: Run, prompts: Sequence[int]) -> None:
    """Print the texts of prompts, on a terminal coloured by what is measured of their tokens."""
    from probe.reporting.panels import sequence_views, strip

    out = screen()
    if out.width is None:
        for prompt in prompts:
            typer.echo(printable("".join(run.scan("tokens", columns=["token"], prompt_id=prompt)["token"].to_pylist())))
        return
    for view in sequence_views(run, prompts=prompts, subjects=(strip,)) if prompts else ():
        panel = view.panels[0]
        assert isinstance(panel, TokenStrip)
        show_strip(out, panel, {})


def _first(run: Run) -> int:
    for rows in run.batches("prompts"):
        for row in rows.select(["prompt_id", "error"]).to_pylist():
            if not row["error"]:
                return int(row["prompt_id"])
    return int(next(run.batches("prompts"))["prompt_id"][0].as_py())


def _check(view: SequenceView, measure: str) -> None:
    there = {one.column for panel in view.panels for one in getattr(panel, "measures", ())}
    if measure not in there:
        hint = f"there are: {', '.join(sorted(there)) or 'none'}"
        raise BadOption(f"no picture of this run has a measure '{measure}'", hint=hint)


def _heads_of(panel: Panel, heads: Sequence[Head] | None) -> list[dict[Coordinate, int]]:
    """The places of the cursor at which a panel is printed: of attention patterns each head that is asked for."""
    if panel.kind != "patterns" or heads is None:
        return [{}]
    there = sorted({(int(layer), int(head)) for layer, head in zip(panel.frame["layer"], panel.frame["head"], strict=True)})
    wanted = [(layer, head) for layer, head in there if (layer, head) in heads or (layer, None) in heads]
    return [{"layer": layer, "head": head} for layer, head in wanted]


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


def _show_titled(
    out: Screen, panel: TokenStrip, tokens: Mapping[int, str], measure: int = 0, at: Mapping[Coordinate, int] | None = None
) -> None:
    show_title(out, panel)
    show_strip(out, panel, tokens, measure)


def _show_listing(
    out: Screen, panel: Listing, tokens: Mapping[int, str], measure: int = 0, at: Mapping[Coordinate, int] | None = None
) -> None:
    """Print the first rows, on a terminal a line each: what is too long is cut, and columns that don't fit are left out."""
    show_title(out, panel)
    header = [column.title for column in panel.columns]
    rows = [[_entry(row[c.name], c.digits) for c in panel.columns] for _, row in panel.frame.iloc[:ROWS].iterrows()]
    if out.width is None:
        show_table(header, rows)
    else:
        long = next((i for i, column in enumerate(panel.columns) if column.name == panel.text), -1)
        widths = [
            min(max(map(wide, column)), LONG if i == long else ENTRY)
            for i, column in enumerate(zip(header, *rows, strict=True))
        ]
        kept = list(range(len(header)))
        if long >= 0:
            widths[long] = max(min(widths[long], out.width - sum(widths) + widths[long] - 2 * (len(kept) - 1)), ENTRY)
        while sum(widths[i] for i in kept) + 2 * (len(kept) - 1) > out.width and len(kept) > 1:
            kept.remove(next(i for i in reversed(kept) if i != long))
        for row in (header, *rows):
            out.line("  ".join(fitted(row[i], widths[i]) for i in kept).rstrip())
        if len(kept) < len(header):
            out.line(f"and: {', '.join(header[i] for i in range(len(header)) if i not in kept)}")
    if len(panel.frame) > ROWS:
        out.line(f"… and {len(panel.frame) - ROWS:,} more in the table '{panel.table}'")


def _entry(value: Any, digits: int | None) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if digits is not None and isinstance(value, (int, float, np.number)):
        return number(float(value), f".{digits}f")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = in_a_line(str(value)[: LONG + 1])
    return text if text == text.strip() else f'"{text}"'


# kind of panel -> what prints it; a tree is drawn by `probe runs tree`
_DRAWN: dict[str, Callable[..., None]] = {
    "bars": show_bars,
    "grid": show_grid,
    "lines": show_lines,
    "listing": _show_listing,
    "patterns": show_patterns,
    "tokens": _show_titled,
}
