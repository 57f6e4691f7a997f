"""What is asked of `speculate`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.requests.base import Request
from probe.requests.groups import ChatOptions, FileOptions, Prompts, Split
from probe.requests.options import Option
from probe.requests.sampling import SamplingOptions
from probe.spans import check_split


def _name(draft: Any) -> str:
    return str(getattr(draft, "name", draft))


@dataclass(frozen=True)
class Speculate(ChatOptions, FileOptions, SamplingOptions, Request):
    """Which prompts are continued, what drafts, and how many tokens at once."""

    command: ClassVar[str] = "speculate"
    runner: ClassVar[str] = "probe.speculating:run_speculate"

    prompts: Prompts
    _: KW_ONLY
    draft: Annotated[
        Any,
        Option("A model with the same tokenizer, layers:N (the target's own first N blocks) or ngram[:N].", shell=str,
               to_plain=_name),
    ]  # fmt: skip
    generate: Annotated[int, Option("Continue by at most N tokens.", ("--generate", "-n"), minimum=1)] = 64
    block: Annotated[
        str | int, Option("Tokens drafted at once: a number, or adaptive.", ("--block", "-b"), shell=str)
    ] = "4"  # fmt: skip
    plain: Annotated[bool, Option("Time plain decoding of the target too.", ("--plain/--no-plain",))] = True
    top: Annotated[int, Option("Alternatives a position.", minimum=0)] = 5
    split: Split = "sentence"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, least in (("generate", self.generate, 1), ("top", self.top, 0)):
            if value < least:
                raise BadOption(f"{name} is {value}", hint=f"it is at least {least}")
        block = str(self.block)
        if block != "adaptive" and (not block.isascii() or not block.isdigit() or int(block) < 1):
            raise BadOption(f"cannot read the block length '{block}'", hint="a number from 1 on, or adaptive")
        check_split(self.split)
        if self.split.startswith("spans:"):
            raise BadOption(
                "spans of a text that is not written yet", hint="generate first, then probe steps RUN --split spans:FILE"
            )
