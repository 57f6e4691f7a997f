"""How a sweep looks on a terminal: tokens that differ, a heat map for each site, the strongest places."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from .terminal import interval, printable, run_path, show_table, show_warnings, visible

if TYPE_CHECKING:
    import pandas as pd

    from probe.store import Run

# background colours of the terminal's 256 for effects from -1 to 1
COOL, WARM = (195, 153, 111, 69, 27), (230, 223, 216, 209, 196)
MOST = 60  # rows of a heat map in full; of longer ones those with an effect
WIDE = 40  # characters of a step
FAINT = 0.005  # rounds to nothing
MAPS = 3  # receivers of paths that each get a heat map


def show_patch(run: Run, *, quiet: bool) -> None:
    """Print what was asked, a heat map for each site, the strongest places, and where the run is."""
    show_warnings(run)
    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    _show_question(summary)
    cells = run.patches if summary["pairs"] == 1 else run.patch_means
    sent = cells["receiver"].nunique() <= MAPS
    kinds = ["site", cells.apply(_kind, axis=1), "receiver"]
    for (site, kind, receiver), members in cells.groupby(kinds, sort=False, observed=True):
        if sent:
            _show_map(run, summary, f"{site} -> {receiver}" if receiver else str(site), str(kind), members)
    _show_strongest(summary)
    typer.echo(f"\nrun: {run_path(run)}")


def _measure(summary: dict[str, Any]) -> str:
    """The column that is shown: shares, but where most pairs' clean and corrupt hardly differ their differences."""
    return "change" if 2 * len(summary.get("small", ())) > summary["pairs"] else "effect"


def _show_question(summary: dict[str, Any]) -> None:
    against = "" if summary["against"] is None else f" against {visible(summary['against'])}"
    mean = f", mean of {summary['pairs']} pairs" if summary["pairs"] > 1 else ""
    typer.echo(f"{summary['metric']} of {visible(summary['answer'])}{against} ({summary['unit']}){mean}")
    floor = summary.get("floor")
    typer.echo(
        f"clean {summary['clean']:+.3f}, corrupt {summary['corrupt']:+.3f}"
        + ("" if floor is None else f"; 95 % of random patches of the same norm move it by less than {floor:.3f}")
    )
    if summary.get("measured"):
        _show_measured(summary["measured"])
    into = (
        "the corrupt run: 0 is corrupt, 1 is clean"
        if summary["direction"] == "denoise"
        else "the clean run: 0 is clean, 1 is corrupt"
    )
    what = {"clean": "clean" if summary["direction"] == "denoise" else "corrupt"}.get(summary["from"], summary["from"])
    typer.echo(f"{what} put into {into}")
    tokens = ", ".join(f"{d['pos']} {visible(d['clean'])} / {visible(d['corrupt'])}" for d in summary["differing"])
    typer.echo(f"tokens that differ: {tokens or 'none that are aligned'}")
    idle = "" if summary["passed"] == summary["cells"] else f", {summary['passed']:,} of them run: the others change nothing"
    if summary["agreement"] is not None or summary["method"] != "exact":
        _show_agreement(summary)
        return
    typer.echo(f"{summary['cells']:,} {'paths of ' + summary['path'] if summary['path'] else 'cells'}{idle}")


def _show_measured(measured: dict[str, Any]) -> None:
    """Where the arms of a rewind are compared, and what the step does to the outcome in the end."""
    where = {"parting": "the first place after the step where the arms part", "answer": "the answer"}
    typer.echo(
        f"measured at {measured['pos']}, {where.get(measured['measure_at'], 'as asked')}: total variation of the next token "
        f"{measured['total_variation']:.3f}"
    )
    total = measured["outcome"]
    if total:
        typer.echo(
            f"total effect of the step: P({visible(total['outcome'])}) changes by {total['difference']:+.3f} "
            f"[{total['ci_low']:+.3f}, {total['ci_high']:+.3f}]"
        )


def _show_agreement(summary: dict[str, Any]) -> None:
    """How good the guess is."""
    points = f", averaged over {summary['ig']} points between the texts" if summary["ig"] else ""
    typer.echo(f"{summary['cells']:,} cells, estimated from the gradient{points}")
    found = summary["agreement"]
    if found is None:
        return
    numbers = ", ".join(
        f"{name} {'undefined' if found[key] is None else format(found[key], '.3f')}"
        for name, key in (("Spearman", "spearman"), ("Pearson", "pearson"), ("largest error of an effect", "largest_error"))
    )
    typer.echo(f"against exact patches of {found['n']} random cells that can matter: {numbers}")


def _kind(row: pd.Series) -> str:
    """What tells the cells of one site and layer apart."""
    return "head" if row["head"] >= 0 else "step" if row["pos"] == -1 and row["step"] >= 0 else "pos"


def _show_map(run: Run, summary: dict[str, Any], site: str, kind: str, cells: pd.DataFrame) -> None:
    """Rows are tokens, steps or heads; columns are layers; a number is 100 x the effect, or the change."""
    measure = _measure(summary)
    rows = cells.assign(row=_labels(run, summary, kind, cells))
    order = list(dict.fromkeys(rows.sort_values(["pos", "step", "head"], kind="stable")["row"]))
    table = rows.pivot_table(index="row", columns="layer", values=measure, observed=True, sort=True).reindex(order)
    table = table.dropna(how="all")
    faint = (table.abs() < FAINT).all(axis=1)
    hidden = int(faint.sum())
    table = table[~faint]
    if len(table) > MOST:
        hidden += len(table) - MOST
        strongest = table.abs().max(axis=1).nlargest(MOST).index
        table = table.loc[[row for row in table.index if row in set(strongest)]]
    named = "100 x effect" if measure == "effect" else f"change of {summary['metric']}, x 100"
    typer.echo(f"\n{site}: {named}, by {kind} and layer")
    _draw(table)
    if hidden:
        typer.echo(f"… and {hidden} more rows with less" if len(table) == MOST else f"… and {hidden} rows of 0")


def _labels(run: Run, summary: dict[str, Any], kind: str, cells: pd.DataFrame) -> list[str]:
    if kind == "step":
        texts = dict(zip(run.steps["step"], run.steps["text"], strict=True))
        return [f"step{step} {visible(texts[step][:WIDE])}" for step in cells["step"]]
    tokens = dict(zip(cells["pos"], cells["token"], strict=True)) if "token" in cells else {}
    single = kind == "pos" or bool((cells["pos"] != -1).any())
    names = []
    for row in cells.itertuples():
        place = f"{row.pos} {visible(str(tokens[row.pos]))}" if tokens.get(row.pos) is not None else f"{row.pos}"
        if kind == "head":
            names.append(f"head {row.head}" + (f" at {place}" if single else ""))
        else:
            names.append(place if row.pos != -1 or summary["pairs"] > 1 else "all")
    return names


def _draw(table: pd.DataFrame) -> None:
    width = max([len(printable(str(name))) for name in table.index] or [0])
    shown = [["" if value != value else f"{round(100 * value)}" for value in row] for row in table.to_numpy()]
    cell = max([3, *(len(text) for row in shown for text in row), *(len(str(layer)) for layer in table.columns)]) + 1
    typer.echo(" " * width + "".join(f"{'' if layer < 0 else layer:>{cell}}" for layer in table.columns))
    if not sys.stdout.isatty():
        for name, row in zip(table.index, shown, strict=True):
            typer.echo(printable(str(name)).ljust(width) + "".join(text.rjust(cell) for text in row))
        return
    from rich.text import Text

    from .printing import console

    on_terminal = console()
    for name, row, values in zip(table.index, shown, table.to_numpy(), strict=True):
        line = Text(printable(str(name)).ljust(width))
        for text, value in zip(row, values, strict=True):
            line.append(text.rjust(cell), style=_shade(value))
        on_terminal.print(line, soft_wrap=True)


def _shade(value: float) -> str:
    if value != value or abs(value) < 0.05:
        return ""
    colours = WARM if value > 0 else COOL
    return f"color(16) on color({colours[min(4, int(abs(value) * 5))]})"


def _show_strongest(summary: dict[str, Any]) -> None:
    rows, measure = [], _measure(summary)
    for cell in summary["strongest"]:
        place = f"{cell['site']}@{cell['layer']}" if cell["layer"] >= 0 else cell["site"]
        place += f".{cell['head']}" if cell["head"] >= 0 else ""
        where = (
            f"{cell['pos']}"
            if cell["pos"] != -1 or summary["pairs"] > 1
            else f"step{cell['step']}"
            if cell["step"] >= 0
            else "all"
        )
        place += f" -> {cell['receiver']}" if cell["receiver"] else ""
        token = visible(cell["token"]) if cell.get("token") is not None else ""
        between = "" if measure == "change" else interval(cell.get("ci_low"), cell.get("ci_high"), "+.3f")
        rows.append((place, where, token, f"{cell[measure]:+.3f}", between, f"{cell['patched']:+.3f}"))
    if not rows:
        typer.echo("\nno effect is defined: clean and corrupt do not differ in this metric")
        return
    header = ("place", "at", "token", measure, "95 %", summary["metric"])
    shown = [i for i in range(len(header)) if any(row[i] for row in rows)]
    typer.echo("\nstrongest places")
    show_table([header[i] for i in shown], [[row[i] for i in shown] for row in rows])
