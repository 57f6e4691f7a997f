"""`probe trace`: options in, one library verb, the coloured text out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import Trace

from .command import Begun, with_options
from .groups import Loading, ModelSettings, Planning, PromptSource, Showing


@with_options
def command(
    begun: Begun[Trace], source: PromptSource, settings: ModelSettings, loading: Loading, planning: Planning, showing: Showing
) -> None:
    """Record what the model does with a prompt: log-probs, entropies, attention, activations."""
    prompts = source.prompts(begun.said, transcripts=True)
    request = settings.begin(begun, prompts=prompts)  # checked before a model is loaded
    from probe.tracing import plan_trace, run_trace

    from .answered import end_with_unscored
    from .terminal import end_with_failed, show_plan, show_run, show_warnings
    from .traced import show_trace

    with showing.progress() as report:
        lm = loading.load(report)
        request = replace(settings.settle(request, begun, lm), out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_trace(lm, request), as_json=showing.as_json)
            return
        run = run_trace(lm, request)
    show_run(run, "trace", showing, show_trace)
    show_warnings(run)
    end_with_failed(run, "prompts could not be run")
    end_with_unscored(run)
