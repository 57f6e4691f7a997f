"""`probe attribute`: options in, one library verb, the strongest parts and their sum out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import Attribute

from .command import Begun, with_options
from .groups import Planning, Showing, SourceLoading


@with_options
def command(begun: Begun[Attribute], loading: SourceLoading, planning: Planning, showing: Showing) -> None:
    """What did each head, MLP and embedding write towards an answer? Parts that sum to its logit."""
    request = begun.build(other_model=loading.model is not None)
    from probe.attributing import plan_attribute, run_attribute

    from .contributions import show_attribute
    from .terminal import end_with_verdicts, show_plan, show_run, show_warnings

    with showing.progress() as report:
        lm = loading.load_for(request.source, report)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_attribute(lm, request), as_json=showing.as_json)
            return
        run = run_attribute(lm, request)
    show_warnings(run)
    show_run(run, "attribute", showing, show_attribute)
    end_with_verdicts(run)
