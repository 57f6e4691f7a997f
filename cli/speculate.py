"""`probe speculate`: options in, one library verb, the marked text out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import Speculate

from .command import Begun, with_options
from .groups import Loading, ModelSettings, Planning, PromptSource, Showing


@with_options
def command(
    begun: Begun[Speculate], source: PromptSource, settings: ModelSettings, loading: Loading, planning: Planning,
    showing: Showing,
) -> None:  # fmt: skip
    """Speculative decoding, looked into: what a draft proposed, what the target kept, and why."""
    prompts = source.prompts(begun.said)
    request = settings.begin(begun, prompts=prompts)  # checked before a model is loaded
    from probe.speculating import is_model, plan_speculate, run_speculate

    from .proposals import show_speculation
    from .terminal import end_with_failed, show_plan, show_run

    with showing.progress() as report:
        lm = loading.load(report)
        draft = request.draft
        if draft == lm.name and loading.adapter is None and not loading.weights_patch:
            draft = lm
        elif is_model(draft):
            draft = replace(
                loading, model=draft, revision=None, adapter=None, weights_patch=(), context_length=None, quantize=None
            ).load(report)
        request = settings.settle(request, begun, lm)
        request = replace(request, draft=draft, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_speculate(lm, request), as_json=showing.as_json)
            return
        run = run_speculate(lm, request)
    show_run(run, "speculate", showing, show_speculation)
    end_with_failed(run, "prompts could not be run")
