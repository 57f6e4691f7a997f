"""`probe import`: options in, one library verb, each layer's difference out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from probe.requests import ImportStates

from .command import Begun, with_options
from .groups import Loading, Planning, Showing
from .terminal import run_path, show_table

if TYPE_CHECKING:
    from probe.store import Run


@with_options
def command(begun: Begun[ImportStates], loading: Loading, planning: Planning, showing: Showing) -> None:
    """Read the hidden states that a vLLM server wrote into a run, checked against the model's own."""
    request = begun.build()
    from probe.importing import plan_import_states, run_import_states

    from .terminal import end_with_failed, show_plan, show_run, show_warnings

    with showing.progress() as report:
        lm = loading.load(report)
        if planning.dry_run:
            show_plan(plan_import_states(lm, request), as_json=showing.as_json)
            return
        run = run_import_states(lm, replace(request, out=request.out or "auto", progress=report))
    show_run(run, "import", showing, show_imported)
    show_warnings(run)
    end_with_failed(run, "files could not be imported")


def show_imported(run: Run, *, quiet: bool) -> None:
    """Print a layer a line: how far it is from the model's own read, at worst where, and how far the nearest other layer is."""
    summary, found = run.summary, run.summary["imported"]
    if quiet or not found["layers"]:
        typer.echo(run_path(run))
        return
    n = summary["prompts"] - summary["errors"]
    typer.echo(
        f"{n:,} text{'s' if n != 1 else ''}, {summary['tokens']:,} tokens; the server's {' and '.join(found['dtypes'])} "
        f"beside this model's {found['own_dtype']}\n|server - own| / |own| of each layer, tolerated {found['tolerance']:g}\n"
    )
    rows = [
        (
            str(one["id"]), one["place"], f"{one['difference']:.2g}", f"{one['largest']:.2g}",
            f"prompt {one['prompt_id']}, token {one['pos']}", f"{one['other']}: {one['other_difference']:.2g}",
        )
        for one in found["layers"]
    ]  # fmt: skip
    show_table(("id", "place", "mean", "largest", "at", "nearest other"), rows)
    typer.echo(f"\nrun: {run_path(run)}")
