"""Numbers of layers, heads and positions as they are written: `5`, `-1`, `0..4`, `20..`, `all`. Ends are inclusive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from probe.errors import BadPlace, OutOfRange

NUMBERS = r"(?:all|-?[0-9]+\.\.(?:-?[0-9]+)?|\.\.-?[0-9]+|-?[0-9]+)"


class Range(NamedTuple):
    """Inclusive; negative numbers count from the end, None is open: `Range()` is all."""

    low: int | None = None
    high: int | None = None

    def __str__(self) -> str:
        if self == (None, None):
            return "all"
        if self.one:
            return str(self.low)
        return f"{'' if self.low is None else self.low}..{'' if self.high is None else self.high}"

    @property
    def one(self) -> bool:
        """Whether it names a single number."""
        return self.low is not None and self.low == self.high

    def of(self, n: int, what: str) -> range:
        """The numbers it means among 0..n-1. Raises `OutOfRange` with the legal range."""
        low = 0 if self.low is None else self.low + n if self.low < 0 else self.low
        high = n - 1 if self.high is None else self.high + n if self.high < 0 else self.high
        if not 0 <= low <= high < n:
            legal = f"{what}s are 0..{n - 1}, or -{n}..-1 from the end" if n else f"there is no {what} at all"
            raise OutOfRange(f"no {what} {self}", hint=legal)
        return range(low, high + 1)


def parse_range(text: str) -> Range:
    """The range that a text of the form `NUMBERS` means, each in one way: `..4` is `0..4`, `0..` is `all`.

    Raises `BadPlace` where it runs backwards.
    """
    if text == "all":
        return Range()
    first, dots, last = text.partition("..")
    low = int(first) if first else 0
    high = low if not dots else int(last) if last else -1
    if high < low and (low < 0) == (high < 0):
        raise BadPlace(f"'{text}' runs backwards", hint=f"write {high}..{low}")
    if low == high:
        return Range(low, high)
    return Range(None if (low, high) == (0, -1) else low, None if high == -1 else high)


def listed(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> '0..2,5'."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ",".join(str(a) if a == b else f"{a}..{b}" for a, b in parts)
