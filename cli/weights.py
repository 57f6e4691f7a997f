"""`probe weights`: options in, one library verb, what stands out among the weights out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import WeightSurvey

from .command import Begun, with_options
from .groups import MatrixLoading, Planning, Showing


@with_options
def command(begun: Begun[WeightSurvey], loading: MatrixLoading, planning: Planning, showing: Showing) -> None:
    """Look at a model's weights, without a text: matrices, norms, heads' circuits, and how heads compose."""
    request = begun.build()
    from probe.matrices import plan_weights, run_weights

    from .surveyed import show_weights
    from .terminal import show_plan, show_run, show_warnings

    with showing.progress() as report:
        lm = loading.load(report)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_weights(lm, request), as_json=showing.as_json)
            return
        run = run_weights(lm, request)
    show_warnings(run)
    show_run(run, "weights", showing, show_weights)
