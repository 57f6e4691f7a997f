"""How heads look: layer by head, how many are of each kind, and those that stand out. Knows no commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from probe.store import Run

STATISTICS = ("induction", "duplicate", "prev", "sink", "entropy", "perplexity", "ess", "distance")
KERNEL = {
    "similarity": "similar", "popularity": "popular", "covariance": "covary", "bandwidth_ratio": "bandwidth", 
    "gaussian_r2": "R2", "output_error": "error without",
}  # fmt: skip
INPUTS = {"repeated": "random tokens, twice over", "text": "the text"}


def show_heads(run: Run, *, quiet: bool) -> None:
    """Print a grid of the statistic that was asked for, the heads that have most of it, and where the run is."""
    from .pictures import show_pictures
    from .terminal import number, run_path, show_table

    if quiet:
        typer.echo(run_path(run))
        return
    found, sort = run.summary, run.summary["sort"]
    measure = sort if sort in STATISTICS else "kind"
    show_pictures(run, tables=("head_kinds",), kinds=("grid",), measure=measure, notes=False)
    for which, kinds in found["kinds"].items():
        listed = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda one: -one[1]))
        typer.echo(f"\n{INPUTS[which]}: {listed or 'too short to tell kinds'}")
    typer.echo(f"\nby {sort}, on {INPUTS[found['sorted_on']]}")
    kernel = any("kernel" in row for row in found["listed"])
    header = ("head", "kind", *STATISTICS, *(KERNEL.values() if kernel else ()))
    show_table(header, [_line(row, number, kernel) for row in found["listed"]])
    if kernel:
        typer.echo("similar to error without: as a kernel, on the text")
    typer.echo(f"\nrun: {run_path(run)}")


def _line(row: dict[str, Any], number: Any, kernel: bool) -> tuple[str, ...]:
    shown = [number(row[name], ".2f") for name in STATISTICS]
    more = [number(row["kernel"][name], ".2f") for name in KERNEL] if kernel else []
    return (f"{row['layer']}.{row['head']}", row["kind"] or "", *shown, *more)
