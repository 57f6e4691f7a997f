"""What can be asked of attention, as words and as a value; computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from probe.errors import BadOption

Mode = Literal["none", "heads", "summary", "topk", "full"]


@dataclass(frozen=True)
class AttentionSpec:
    """How much of each pattern is kept: nothing, a card a head, a line a row too, the `k` largest weights too, or all."""

    mode: Mode = "heads"
    k: int = 0

    @classmethod
    def parse(cls, text: str) -> AttentionSpec:
        """`none`, `heads`, `summary`, `topk:K` or `full`; raises `BadOption`."""
        mode, colon, number = text.partition(":")
        if mode == "topk" and number.isdecimal() and int(number) > 0:
            return cls("topk", int(number))
        if mode == "topk" or colon or mode not in get_args(Mode):
            raise BadOption(f"unknown attention '{text}'", hint="none, heads, summary, topk:K (as in topk:8) or full")
        return cls(mode)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"topk:{self.k}" if self.mode == "topk" else self.mode
