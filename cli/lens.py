"""`probe lens`: options in, one library verb, the grid of guesses out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import Lens

from .command import Begun, with_options
from .groups import Planning, Showing, SourceLoading


@with_options
def command(begun: Begun[Lens], loading: SourceLoading, planning: Planning, showing: Showing) -> None:
    """What would each layer answer? Its stream through the model's own final norm and head, layer by position."""
    request = begun.build(other_model=loading.model is not None)
    from probe.lensing import plan_lens, run_lens

    from .guesses import show_lens
    from .terminal import end_with_verdicts, show_plan, show_run, show_warnings

    with showing.progress() as report:
        lm = loading.load_for(request.source, report)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_lens(lm, request), as_json=showing.as_json)
            return
        run = run_lens(lm, request)
    show_warnings(run)
    show_run(run, "lens", showing, show_lens)
    end_with_verdicts(run)
