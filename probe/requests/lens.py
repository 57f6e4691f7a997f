"""What is asked of `lens`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, ClassVar

from probe.errors import BadOption
from probe.requests.base import Request
from probe.requests.groups import Edits, Position, Seed, Source, SourceOptions
from probe.requests.options import Option


@dataclass(frozen=True)
class Lens(SourceOptions, Request):
    """Which text is read, where, and what is kept of each layer's guess."""

    command: ClassVar[str] = "lens"
    runner: ClassVar[str] = "probe.lensing:run_lens"

    source: Source
    _: KW_ONLY
    target: Annotated[
        str | None, Option("Follow this text's first token.", default="what follows; at the end, the final top")
    ] = None
    position: Position = "all"
    edit: Edits = ()
    top: Annotated[int, Option("Guesses kept a layer and position.", minimum=1)] = 5
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 1:
            raise BadOption(f"top is {self.top}", hint="it is at least 1")
