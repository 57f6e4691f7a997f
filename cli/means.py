"""`probe means`: options in, one library verb, the means of places out."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import CorpusMeans

from .command import Begun, with_options
from .groups import Loading, Planning, Showing, texts_of


@with_options
def command(begun: Begun[CorpusMeans], loading: Loading, planning: Planning, showing: Showing) -> None:
    """Mean and variance of sites over a file of texts: what a mean ablation puts in (PLACE=mean:RUN)."""
    request = begun.build(texts=texts_of(begun.said))
    from probe.corpora import plan_means, run_means

    from .corpora import show_means
    from .terminal import end_with_failed, show_plan, show_run, show_warnings

    with showing.progress() as report:
        lm = loading.load(report)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_means(lm, request), as_json=showing.as_json)
            return
        run = run_means(lm, request)
    show_run(run, "means", showing, show_means)
    show_warnings(run)
    end_with_failed(run, "texts could not be read")
