"""What is asked of `attribute`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, ClassVar

from probe.requests.answering import AnswerOptions
from probe.requests.base import Request
from probe.requests.groups import Position, Source, SourceOptions
from probe.requests.options import Option


@dataclass(frozen=True)
class Attribute(AnswerOptions, SourceOptions, Request):
    """Which text is read, whose logit is taken apart, and where."""

    command: ClassVar[str] = "attribute"
    runner: ClassVar[str] = "probe.attributing:run_attribute"

    source: Source
    _: KW_ONLY
    answer: Annotated[str | None, Option("Whose logit: this text's first token.", default="the top token")] = None
    against: Annotated[str | None, Option("Less the logit of this text's first token.")] = None
    position: Position = "last"
    by_source: Annotated[bool, Option("Also from which positions each head's write came.", ("--sources",))] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_answer(self.answer, self.against)
