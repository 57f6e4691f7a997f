"""`probe steer`: options in, one library verb, the direction and what speaks for it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from probe.requests import MakeDirection, Option, Request, Steer

from .command import Begun, with_options
from .groups import Loading, PromptSource, Showing


@dataclass(frozen=True)
class Making:
    """Whether a direction is made or measured, and its file."""

    make: Annotated[
        tuple[Path, Path] | None, Option("Make a direction of two files of texts.", ("--make",), metavar="POS NEG")
    ] = None
    scan: Annotated[Path | None, Option("A direction's file: its effect against its strength.", ("--scan",))] = None
    to: Annotated[Path | None, Option("The file of the direction that is made, .safetensors.", ("--out", "-o"))] = None

    def request(self, begun: Begun[Steer], source: PromptSource) -> Request:
        """What is asked for, checked before a model is loaded."""
        if (self.make is None) == (self.scan is None):
            raise typer.BadParameter("give --make POS NEG, or --scan FILE")
        if self.scan is not None:
            if self.to is not None:
                raise typer.BadParameter("--scan makes no direction: say where the run goes with --run")
            prompts = source.prompts(begun.said)
            return begun.build(direction=self.scan, prompts=prompts)
        said = begun.said
        assert self.make is not None, "one of both is given"
        if said["at"] is None or self.to is None or (source.prompt, source.file) != (None, None):
            raise typer.BadParameter("--make takes --at PLACE and -o FILE, and no prompt")
        more = {name: said[name] for name in ("at", "seed", "out", "resume", "expect_that") if name in said}
        return MakeDirection(*self.make, to=self.to, **more)


@with_options
def command(begun: Begun[Steer], source: PromptSource, making: Making, loading: Loading, showing: Showing) -> None:
    """Make a direction from two sets of texts (--make), or measure what one does at many strengths (--scan)."""
    request = making.request(begun, source)
    from .steered import show_direction, show_scan
    from .terminal import end_with_verdicts, show_run

    with showing.progress() as report:
        request = replace(request, out=request.out or "auto", progress=report)
        run = request.function()(loading.load(report), request)
    show_run(run, "steer", showing, show_scan if making.make is None else show_direction)
    end_with_verdicts(run)
