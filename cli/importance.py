"""`probe importance`: options in, one library verb, a table and bars out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import Importance

from .command import Begun, with_options
from .groups import ModelSettings, Planning, RunLoading, Showing


@with_options
def command(
    begun: Begun[Importance], settings: ModelSettings, loading: RunLoading, planning: Planning, showing: Showing
) -> None:
    """How much does each step of a run's generation matter?"""
    request = settings.begin(begun, other_model=loading.model is not None)  # checked before a model is loaded
    from probe.step_importance import plan_importance, run_importance
    from probe.store import open_run

    from .measured_steps import show_importance
    from .terminal import end_with_failed, show_plan, show_run

    with showing.progress() as report:
        lm = loading.load_for(open_run(request.run), report)
        request = replace(settings.settle(request, begun, lm), lm=lm, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_importance(request), as_json=showing.as_json)
            return
        run = run_importance(request)
    show_run(run, "importance", showing, show_importance)
    end_with_failed(run, "problems could not be measured")
