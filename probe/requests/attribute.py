"""What is asked of `attribute`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, ClassVar

from probe.errors import BadOption
from probe.requests.answering import WholeAnswerOptions
from probe.requests.base import Request
from probe.requests.groups import Position, Source, SourceOptions
from probe.requests.options import Option

NEURON = "neuron"
TOP = 10  # neurons of a layer


@dataclass(frozen=True)
class Attribute(WholeAnswerOptions, SourceOptions, Request):
    """Which text is read, whose logit is taken apart, and where."""

    command: ClassVar[str] = "attribute"
    runner: ClassVar[str] = "probe.attributing:run_attribute"

    source: Source
    _: KW_ONLY
    answer: Annotated[str | None, Option("Whose logit: this text's first token.", default="the top token")] = None
    against: Annotated[str | None, Option("Less the logit of this text's first token.")] = None
    position: Position = "last"
    by_source: Annotated[bool, Option("Also from which positions each head's write came.", ("--sources",))] = False
    by: Annotated[
        str | None, Option("neuron: of what an MLP wrote, also the part of single neurons.", default="head; MLPs whole")
    ] = None
    top: Annotated[
        int | None,
        Option("Of --by neuron: so many of each layer, those that wrote most; the others together.", minimum=1,
               default=str(TOP)),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_answer(self.answer, self.against)
        self.check_whole(self.answer, self.against)
        if self.by not in (None, NEURON):
            raise BadOption(f"unknown part '{self.by}'", hint="--by takes neuron; heads are apart in any case")
        if self.top is not None and self.by is None:
            raise BadOption("--top is of neurons", hint="add --by neuron")
        if self.neurons < 1 and self.by is not None:
            raise BadOption(f"--top {self.top} leaves no neuron", hint="--top counts from 1")

    @property
    def neurons(self) -> int:
        """How many neurons of each layer are told; 0 where MLPs are whole."""
        return 0 if self.by is None else TOP if self.top is None else self.top
