"""What is asked of `lens`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.requests.answering import MEASURED, WholeAnswerOptions
from probe.requests.base import Request
from probe.requests.groups import Edits, Position, Seed, Source, SourceOptions
from probe.requests.options import Option
from probe.sites import parse_where


@dataclass(frozen=True)
class Lens(WholeAnswerOptions, SourceOptions, Request):
    """Which text is read, where, what is kept of each layer's guess, and which answer is followed through the layers."""

    command: ClassVar[str] = "lens"
    runner: ClassVar[str] = "probe.lensing:run_lens"

    source: Source
    _: KW_ONLY
    answer: Annotated[
        str | None,
        Option("Follow this text's first token.", ("--answer", "--target"), default="what follows; at the end, the final top"),
    ] = None  # fmt: skip
    against: Annotated[str | None, Option("Beside it, this text's first token.")] = None
    measure_at: Annotated[
        str | int | None, Option(MEASURED, ("--measure-at",), shell=str | None, default="the last of --position")
    ] = None
    position: Position = "all"
    edit: Edits = ()
    top: Annotated[int, Option("Guesses kept a layer and position.", minimum=1)] = 5
    seed: Seed = 0
    target: Annotated[str | None, Option("The same as `answer`.", hidden=True, stored=False)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 1:
            raise BadOption(f"top is {self.top}", hint="it is at least 1")
        if self.target is not None:
            if self.answer not in (None, self.target):
                raise BadOption(f"two answers are followed, {self.answer!r} and {self.target!r}", hint="give one")
            object.__setattr__(self, "answer", self.target)
        self.check_answer(self.answer, self.against)
        self.check_whole(self.answer, self.against)
        if self.measure_at is not None:
            parse_where(str(self.measure_at))

    @classmethod
    def upgraded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Of a run whose answer was its target."""
        return {"answer" if name == "target" else name: value for name, value in arguments.items()}
