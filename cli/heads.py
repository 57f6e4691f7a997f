"""`probe heads`: options in, one library verb, a grid and a list of heads out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import AttentionHeads

from .command import Begun, with_options
from .groups import Planning, Showing, SourceLoading, source_of


@with_options
def command(begun: Begun[AttentionHeads], loading: SourceLoading, planning: Planning, showing: Showing) -> None:
    """What does each attention head do? Kinds by stated thresholds, on a text and on repeated random tokens."""
    request = begun.build(other_model=loading.model is not None, **source_of(begun.said))  # checked before a model is loaded
    from probe.attention_heads import plan_heads, run_heads

    from .listed_heads import show_heads
    from .terminal import end_with_failed, show_plan, show_run, show_warnings

    with showing.progress() as report:
        lm = loading.load_for(request.source, report)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_heads(lm, request), as_json=showing.as_json)
            return
        run = run_heads(lm, request)
    show_warnings(run)
    show_run(run, "heads", showing, show_heads)
    end_with_failed(run, "prompts could not be read")
