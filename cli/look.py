"""`probe look`: options in, one library verb, ranked findings out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import Look

from .command import Begun, with_options
from .groups import Planning, Showing, SourceLoading


@with_options
def command(begun: Begun[Look], loading: SourceLoading, planning: Planning, showing: Showing) -> None:
    """What stands out in a text? Facts about what the model says next, each with its control and the next command."""
    request = begun.build(other_model=loading.model is not None)
    from probe.looking import plan_look, run_look

    from .findings import show_look
    from .terminal import end_with_verdicts, show_plan, show_run, show_warnings

    with showing.progress() as report:
        lm = loading.load_for(request.source, report)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_look(lm, request), as_json=showing.as_json)
            return
        run = run_look(lm, request)
    show_warnings(run)
    show_run(run, "look", showing, show_look)
    end_with_verdicts(run)
