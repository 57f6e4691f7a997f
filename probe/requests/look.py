"""What is asked of `look`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, ClassVar

from probe.errors import BadOption
from probe.requests.base import Request
from probe.requests.groups import Seed, Source, SourceOptions
from probe.requests.options import Option


@dataclass(frozen=True)
class Look(SourceOptions, Request):
    """Which text is looked at, and after which of its tokens."""

    command: ClassVar[str] = "look"
    runner: ClassVar[str] = "probe.looking:run_look"

    source: Source
    _: KW_ONLY
    position: Annotated[str, Option("After which token: last, 7, -1, tok=Paris.", ("--position", "-p"))] = "last"
    answer: Annotated[str | None, Option("What is said there: this text's first token.", default="the top token")] = None
    against: Annotated[str | None, Option("Compared with this text's first token.", default="the runner-up")] = None
    controls: Annotated[int, Option("Random tokens and parts that each finding is held against.", minimum=8)] = 24
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.controls < 8:
            raise BadOption(f"controls is {self.controls}", hint="it is at least 8: fewer say nothing of chance")
        if self.answer is None and self.against is not None:
            raise BadOption("against which answer?", hint="give --answer too")
