"""`probe rewind`: options in, one library verb, the effect out."""

from __future__ import annotations

from typing import Annotated

import typer

from probe.requests import Rewind

from .command import Begun, with_options
from .groups import DrawingOn, Planning, RunLoading, Showing


@with_options
def command(
    begun: Begun[Rewind], drawing: DrawingOn, loading: RunLoading, planning: Planning, showing: Showing,
    explain_answer: Annotated[bool, typer.Option("--explain-answer", help="Say how each answer was found.")] = False,
) -> None:  # fmt: skip
    """Go back to a reasoning step, put another in its place, and measure what changes."""
    import probe
    from probe.rewinding import plan_rewind, run_rewind

    from .effects import show_rewind
    from .terminal import show_json, show_plan

    source = probe.open_run(begun.said["run"])
    with showing.progress() as report:
        lm = loading.load_for(source, report)
        request = begun.build(
            run=source, lm=lm, other_model=loading.model is not None, sampling=drawing.sampling_or_none(lm),
            seed=drawing.seed, out=begun.said["out"] or "auto", progress=report,
        )  # fmt: skip
        if planning.dry_run:
            show_plan(plan_rewind(request), as_json=showing.as_json)
            return
        run = run_rewind(request)
    if showing.as_json:
        show_json(run, "rewind")
    else:
        show_rewind(run, quiet=showing.quiet, explain=explain_answer)
