"""Positions of a cell as absolute numbers, known or still to come, and where a tensor of positions hits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probe.errors import BadEdit, OutOfRange
from probe.sites import Positions, Range
from probe.sites.positions import parse_range


class Text(NamedTuple):
    """What positions refer to: n tokens, n_prompt of them the prompt's; it may grow to `longest`.

    `last` and negative numbers count from the end of the n tokens. `steps` are token spans, `tokens` token texts."""

    n: int
    n_prompt: int
    longest: int
    steps: Sequence[tuple[int, int]] = ()
    tokens: Sequence[str] = ()


class Spots(NamedTuple):
    """Absolute positions: those listed (ascending) and, unless None, every one from `onward` on."""

    listed: tuple[int, ...] = ()
    onward: int | None = None

    def order(self, positions: Tensor) -> Tensor:
        """The number of each position (…) among the spots, -1 where it is none of them."""
        found = torch.full_like(positions, -1)
        if self.listed:
            known = torch.tensor(self.listed, device=positions.device)
            near = torch.searchsorted(known, positions.contiguous()).clamp(max=len(known) - 1)
            found = torch.where(known[near] == positions, near, found)
        if self.onward is not None:
            found = torch.where(positions >= self.onward, positions - self.onward + len(self.listed), found)
        return found

    def known(self, n: int) -> int:
        """How many lie before position n."""
        return sum(p < n for p in self.listed) + (0 if self.onward is None else max(0, n - self.onward))

    @property
    def first(self) -> int:
        return self.listed[0] if self.listed else self.onward or 0

    @property
    def last(self) -> float:
        return float("inf") if self.onward is not None else self.listed[-1]


EVERY = Spots((), 0)


def spots_of(positions: Positions, text: Text | None, *, what: str) -> Spots:
    """The absolute positions that are meant; `what` names their owner in errors.

    Raises `BadEdit` where that depends on a text and none is given, `OutOfRange` for what lies outside of it, `BadPlace`
    for a token's text that is not there exactly once.
    """
    listed: set[int] = set()
    onward: int | None = None
    for part in positions.parts:
        begin = _begin(part, text)
        if begin is not None:
            onward = begin if onward is None else min(onward, begin)
            continue
        fixed = _fixed(part)
        if text is not None:
            n = text.longest if fixed is not None else text.n
            one = Positions((part,))
            listed.update(one.indices(n, text.n_prompt, steps=text.steps, tokens=text.tokens))
        elif fixed is not None:
            listed.update(fixed)
        else:
            raise BadEdit(f"where is '{part}' of {what}, without a text?", hint="give ids, or count from the start")
    return Spots(tuple(sorted(p for p in listed if onward is None or p < onward)), onward)


def _begin(part: str, text: Text | None) -> int | None:
    """Where an open part begins, if it is one: `all`, `completion`, `20..`."""
    if part == "all":
        return 0
    if part == "completion":
        if text is None:
            return None
        if text.longest == text.n_prompt:
            raise OutOfRange("there is no completion", hint="generate some tokens, or name positions of the prompt")
        return text.n_prompt
    numbers = _numbers(part)
    if numbers is None or numbers.high is not None or (numbers.low or 0) < 0:
        return None
    if text is not None:
        Range(numbers.low, numbers.low).of(text.longest, "position")
    return numbers.low or 0


def _fixed(part: str) -> range | None:
    """The positions of a part that no text is needed for: `7`, `3..9`."""
    numbers = _numbers(part)
    if numbers is None or numbers.high is None or numbers.high < 0 or (numbers.low or 0) < 0:
        return None
    return range(numbers.low or 0, numbers.high + 1)


def _numbers(part: str) -> Range | None:
    is_number = part.lstrip("-")[:1].isdigit() or part.startswith("..")
    return parse_range(part) if is_number else None
