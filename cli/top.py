"""`probe top`: options in, one library verb, the texts that move a place out, with the token marked."""

from __future__ import annotations

from dataclasses import replace

from probe.requests import Top

from .command import Begun, with_options
from .groups import Loading, Planning, Showing, texts_of


@with_options
def command(begun: Begun[Top], loading: Loading, planning: Planning, showing: Showing) -> None:
    """Which texts of a file move a neuron, a head, a stream or a direction most? The texts, with the token marked."""
    request = begun.build(texts=texts_of(begun.said))
    from probe.corpora import plan_top, run_top

    from .corpora import show_top
    from .terminal import end_with_failed, show_plan, show_run, show_warnings

    with showing.progress() as report:
        lm = loading.load(report)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_top(lm, request), as_json=showing.as_json)
            return
        run = run_top(lm, request)
    show_run(run, "top", showing, show_top)
    show_warnings(run)
    end_with_failed(run, "texts could not be read")
