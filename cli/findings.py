"""How a first look looks: a numbered fact, its control, the next command. Knows no commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from probe.store import Run


def show_look(run: Run, *, quiet: bool) -> None:
    """Print the findings in their order, and where the run is."""
    from .terminal import number, run_path, visible

    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    typer.echo(f"after {visible(summary['token'])} at {summary['pos']}: {visible(summary['answer'])}\n")
    for row in summary["findings"]:
        typer.echo(f"{row['rank'] + 1:>2}. {row['finding']}")
        typer.echo(f"    control: {number(row['control'], '.3g')} {row['unit']}, {row['control_of']}")
        typer.echo(f"    $ {row['command']}")
    if not summary["findings"]:
        typer.echo("nothing stands out")
    typer.echo(f"\nrun: {run_path(run)}")
