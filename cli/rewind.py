"""`probe rewind`: options in, one library verb, the effect out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from probe.requests import Rewind

from .command import Begun, with_options
from .groups import ModelSettings, Planning, RunLoading, Showing


@with_options
def command(
    begun: Begun[Rewind], settings: ModelSettings, loading: RunLoading, planning: Planning, showing: Showing,
    explain_answer: Annotated[bool, typer.Option("--explain-answer", help="Say how each answer was found.")] = False,
) -> None:  # fmt: skip
    """Go back to a reasoning step, put another in its place, and measure what changes."""
    request = settings.begin(begun, other_model=loading.model is not None)  # checked before a model is loaded
    from probe.rewinding import plan_rewind, run_rewind
    from probe.store import open_run

    from .effects import show_rewind
    from .terminal import end_with_failed, show_plan, show_run

    with showing.progress() as report:
        lm = loading.load_for(open_run(request.run), report)
        request = replace(settings.settle(request, begun, lm), lm=lm, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_rewind(request), as_json=showing.as_json)
            return
        run = run_rewind(request)
    show_run(run, "rewind", showing, partial(show_rewind, explain=explain_answer))
    end_with_failed(run, "problems could not be gone back into")
