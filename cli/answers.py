"""`probe answers`: options in, one library verb, what the continuations of a run come to now out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from probe.requests import Relabel

from .command import Begun, with_options
from .groups import Showing

if TYPE_CHECKING:
    from probe.store import Run


@with_options
def command(begun: Begun[Relabel], showing: Showing) -> None:
    """Read the continuations of a run by another rule, a file of labels or a judge, and make its statistics anew."""
    request = begun.build()
    from probe.relabelling import run_relabel

    from .terminal import end_with_verdicts, show_run

    with showing.progress() as report:
        run = run_relabel(replace(request, out=request.out or "auto", progress=report))
    if not showing.as_json and not showing.quiet:
        _show_changed(run.summary["changed"])
    show_run(run, "answers", showing, _SHOWS[run.summary["of"]])
    end_with_verdicts(run)


def _show_changed(changed: dict[str, Any]) -> None:
    """How many come to something else, and to what."""
    typer.echo(f"{changed['changed']:,} of {changed['continuations']:,} continuations come to another outcome")
    for one in changed["moved"][:8]:
        typer.echo(f"  {one['n']:>6,}  {one['from']} -> {one['to']}")


def _sampled(run: Run, *, quiet: bool) -> None:
    from .sampled import show_sampled

    show_sampled(run, quiet=quiet)


def _rewound(run: Run, *, quiet: bool) -> None:
    from .effects import show_rewind

    show_rewind(run, quiet=quiet, explain=False)


def _weighed(run: Run, *, quiet: bool) -> None:
    from .measured_steps import show_importance

    show_importance(run, quiet=quiet)


_SHOWS = {"sample": _sampled, "rewind": _rewound, "importance": _weighed}
