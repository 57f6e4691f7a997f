"""`probe patch`: options in, one library verb, a heat map out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import PatchSweep

from .command import Begun, with_options
from .groups import Planning, Showing, TextLoading


@with_options
def command(begun: Begun[PatchSweep], loading: TextLoading, planning: Planning, showing: Showing) -> None:
    """Put one run's activations into another's, place by place: what carries the answer, and along which path?"""
    request = begun.build()  # checked before a model is loaded
    from probe.patching import plan_patch, run_patch

    from .heatmap import show_patch
    from .terminal import end_with_failed, show_plan, show_run

    with showing.progress() as report:
        lm = loading.load_for(request.rewind or request.clean, report)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_patch(lm, request), as_json=showing.as_json)
            return
        run = run_patch(lm, request)
    show_run(run, "patch", showing, show_patch)
    end_with_failed(run, "pairs could not be patched", of="pairs")
