"""`probe sample`: options in, one library verb, how often each problem is answered rightly out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from probe.errors import BadPrompt
from probe.requests import Option, Sample

from .command import Begun, with_options
from .groups import ModelSettings, Planning, PromptSource, Showing, TextLoading

FILES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class ProblemPlace(PromptSource):
    """Where the problems are: a run, a file, or one text."""

    prompt: Annotated[
        str | None,
        Option(
            "A run, of which the prompts are taken, a file of problems, or one problem; - reads many from standard input.",
            argument=True, metavar="RUN|FILE|PROMPT", complete="runs",
        ),
    ] = None  # fmt: skip

    def problems(self, said: Mapping[str, Any]) -> Any:
        """The run, the path of the file, or the prompts. Raises `BadPrompt` for a file that there is not."""
        from probe.store import run_of

        if self.prompt in (None, "-") or self.file is not None:
            return self.prompts(said)
        text = str(self.prompt)
        if (run := run_of(text)) is not None:
            return run
        if "\n" not in text and len(text) < 1000 and Path(text).suffix.lower() in FILES:
            if not Path(text).is_file():
                raise BadPrompt(f"there is no file '{text}'", hint="a text that ends so can stand in a file of its own")
            return replace(self, prompt=None, file=Path(text)).prompts(said)
        return self.prompts(said)


@with_options
def command(
    begun: Begun[Sample], place: ProblemPlace, settings: ModelSettings, loading: TextLoading, planning: Planning,
    showing: Showing,
) -> None:  # fmt: skip
    """Draw many answers to each problem: how often are they right, what do most of them say, which problems tell something?"""
    source = place.problems(begun.said)
    request = settings.begin(begun, source=source)  # checked before a model is loaded
    from probe.sampling import plan_sample, run_sample
    from probe.store import Run

    from .sampled import show_sampled
    from .terminal import end_with_failed, show_plan, show_run

    with showing.progress() as report:
        lm = loading.load_for(source if isinstance(source, Run) else "", report)
        request = replace(settings.settle(request, begun, lm), out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_sample(lm, request), as_json=showing.as_json)
            return
        run = run_sample(lm, request)
    show_run(run, "sample", showing, partial(show_sampled, request=request))
    end_with_failed(run, "problems could not be run")
