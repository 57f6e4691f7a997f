"""How a run looks on a terminal: coloured text, tables, JSON. Plain, unwrapped and colourless in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from . import printing

if TYPE_CHECKING:
    from probe.store import Run

    from .groups import Showing

SHOWN_PROMPTS = 5
SOME_FAILED = 3
VERDICT_CODES = {"failed": 4, "not resolved": 5}


def show_json(run: Run, command: str) -> None:
    """Print the run's one JSON document."""
    expected = {"expectations": found} if (found := run.manifest.get("expectations")) else {}
    show_document({"run": run_path(run), "command": command, "summary": run.summary, **expected})


def show_run(run: Run, command: str, showing: Showing, show: Callable[..., None]) -> None:
    """Print a run: as its one JSON document, or by the function that knows how such a run looks."""
    if showing.as_json:
        show_json(run, command)
    else:
        show(run, quiet=showing.quiet)
        if not showing.quiet:
            show_expectations(run.manifest)


def show_expectations(manifest: Mapping[str, Any]) -> None:
    """Print what was expected of a run and what became of it, a line each."""
    for one in manifest.get("expectations", ()):
        typer.echo(f"expected {expected_in_words(one)}")


def expected_in_words(verdict: Mapping[str, Any]) -> str:
    """What was expected, the verdict, and the value that decided, with its interval and its row."""
    value, low, high = (verdict[name] for name in ("found", "low", "high"))
    said = f"{verdict['that']}: {verdict['verdict']}"
    if value is not None:
        said += f", found {visible(value) if isinstance(value, str) else format(value, '.6g')}"
        said += "" if low is None else f" {interval(low, high, '.6g')}"
    if verdict["rows"] not in (None, 1):
        said += f" at {', '.join(f'{key} {value}' for key, value in verdict['at'].items())}, of {verdict['rows']:,} rows"
    return said + (f" ({verdict['why']})" if verdict["why"] else "")


def show_warnings(run: Run) -> None:
    """Print what a user must know of a run, beside its output."""
    for text in run.manifest["warnings"]:
        typer.echo(f"warning: {text}", err=True)


def show_document(document: Any) -> None:
    """Print one JSON document."""
    typer.echo(printing.as_json(document))


def end_with_failed(run: Run, words: str, *, of: str = "prompts") -> None:
    """Say how many rows failed, if any did, and why the first, and end: 1 if none of them could be done; else as
    `end_with_verdicts` ends, or with 3 where that would be a success. A run about one problem, which is an error itself, has no
    count of errors. of: what in the summary says how many there are."""
    failed = run.summary.get("errors", 0)
    if failed:
        rows = run.summary[of]
        why = f"the column 'error' of the table 'prompts' says why{'' if failed == rows else '; the others are in the run'}"
        printing.complain(f"{failed:,} of {rows:,} {words}{_first_error(run)}", why)
        if failed == rows:
            raise typer.Exit(1)
    end_with_verdicts(run)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _first_error(run: Run) -> str:
    """The first row that failed, and its reason."""
    rows = run.scan("prompts", columns=["prompt_id", "error"]).to_pydict()
    found = next(((i, why) for i, why in zip(rows["prompt_id"], rows["error"], strict=True) if why), None)
    return "" if found is None else f"; prompt {found[0]}: {found[1]}"


def end_with_verdicts(run: Run) -> None:
    """End with 4 if something that was expected of a run is not so, with 5 if something could not be resolved."""
    found = {one["verdict"] for one in run.manifest.get("expectations", ())}
    for verdict, code in VERDICT_CODES.items():
        if verdict in found:
            raise typer.Exit(code)


def show_plan(plan: dict[str, Any], *, as_json: bool) -> None:
    """Print what a command would compute."""
    if as_json:
        show_document({"dry_run": True, **plan})
        return
    tables = [(name, f"{found['rows']:,}", size(found["bytes"])) for name, found in plan["tables"].items()]
    for key, value in plan.items():
        if key != "tables":
            shown = size(value) if key.endswith("_bytes") else f"{value:,}" if isinstance(value, int) else value
            shown = "–" if value is None else shown
            typer.echo(f"{key.removesuffix('_bytes').replace('_', ' ')}: {shown}")
    show_table(("table", "rows", "on disk"), tables)


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A rich table on a terminal; aligned plain columns in a pipe, however long."""
    rows = [[printing.in_a_line(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.table import Table
        from rich.text import Text

        table = Table(*header)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        printing.console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def number(value: float | None, form: str) -> str:
    """A figure in a format; empty where there is none."""
    return "" if value is None or value != value else format(value, form)


def interval(low: float | None, high: float | None, form: str) -> str:
    """An interval; empty where there is none."""
    return "" if low is None or low != low else f"[{low:{form}}, {high:{form}}]"


def visible(text: str) -> str:
    """A token as a reader can see it: spaces kept between quotes, control characters escaped."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else json.dumps(text)


def run_path(run: Run) -> str | None:
    """Where a run is; None if only in memory."""
    return run.address


def size(n: float) -> str:
    """Bytes in the unit that reads best."""
    value, unit = float(n), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def show_drawing(drawing: dict[str, Any] | None) -> None:
    """What was drawn in rounds, why it stopped, and what as many continuations everywhere would have taken."""
    if drawing is None:
        return
    spent = f", {drawing['seconds']:g} s" if "seconds" in drawing else ""
    said = f"{drawing['continuations']:,} continuations in {drawing['rounds']} rounds, {drawing['tokens']:,} tokens{spent}"
    if drawing["saved"] >= 0.005:
        said += f"; as many everywhere would have been {drawing['uniform_tokens']:,}: {drawing['saved']:.0%} saved"
    typer.echo(said)
    typer.echo(f"stopped: {', '.join(f'{why} {n}' for why, n in drawing['stopped'].items())}")
