"""How long something is drawn for: until it is known, or until so many tokens or minutes are spent. Draws nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from probe.errors import BadOption
from probe.requests.options import Option

TOKENS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
SECONDS = {"s": 1, "min": 60, "h": 3600}
HINT = "write tokens, as 200000, 200k or 2M, or time, as 90s, 10min or 2h"
SMALLER = 0.1  # the difference that steps are told to be smaller than where a budget is given and no other is named


class Budget(NamedTuple):
    """Tokens to be drawn, or seconds to draw in; one of them is None."""

    tokens: int | None = None
    seconds: float | None = None


def parse_budget(text: int | str) -> Budget:
    """`200k` or `10min` -> a budget. Raises `BadOption`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*?)( ?tokens)?", str(text).strip())
    unit = match[2] if match else None
    if unit == "m":
        raise BadOption(f"'{text}' may be minutes or millions", hint="write 10min or 10M")
    if match is None or not (unit in TOKENS or (unit in SECONDS and not match[3])):
        raise BadOption(f"cannot read the budget '{text}'", hint=HINT)
    number = float(match[1])
    found = Budget(tokens=int(number * TOKENS[unit])) if unit in TOKENS else Budget(seconds=number * SECONDS[str(unit)])
    if not (found.tokens or found.seconds):
        raise BadOption("a budget of nothing buys nothing", hint=HINT)
    return found


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """When enough is drawn: the samples asked for, or rounds on from there."""

    until: Annotated[
        float | None,
        Option("Draw on until each difference is known to ± this; with --budget, until it is inside ± this or differs from 0."),
    ] = None  # fmt: skip
    budget: Annotated[
        int | str | None,
        Option(
            "Draw in rounds, where the intervals narrow most, until it is spent: tokens (200k) or time (10min).",
            shell=str | None, metavar="TOKENS|TIME",
        ),
    ] = None  # fmt: skip

    def check_budget(self) -> None:
        """Raises `BadOption` for what cannot be reached or read."""
        if self.until is not None and not 0 < self.until < 1:
            raise BadOption(f"until is {self.until}", hint="the half-width of an interval of a proportion: between 0 and 1")
        if self.budget is not None:
            parse_budget(self.budget)

    @property
    def in_rounds(self) -> bool:
        """Whether how much is drawn depends on what came out."""
        return self.until is not None or self.budget is not None

    @property
    def spending(self) -> Budget:
        """What may be spent: nothing limits it where no budget is given."""
        return Budget() if self.budget is None else parse_budget(self.budget)
