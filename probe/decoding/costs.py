"""What drawing would take: continuations, tokens drawn and read, seconds by a few timed tokens, bytes on disk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from probe.decoding.prefixes import TokenIds
from probe.decoding.rollouts import PLACES, Engine, Rollout
from probe.requests import Sampling

TIMED = 4  # tokens of each continuation that are drawn to time the rest
PREFIXES = 4  # that are read for it


class DrawingSource(NamedTuple):
    """What is drawn from: a prefix, how far, and the seed of its problem's noise."""

    prefix: TokenIds
    max_new: int
    seed: int = 0


class DrawingPace(NamedTuple):
    """Seconds that an engine takes for a token that it reads, and for one that it draws beside others."""

    reading: float
    drawing: float


class DrawingCost(NamedTuple):
    """Of so many samples from each source. tokens: at most; tokens_read: of prefixes, what they have in common once."""

    continuations: int
    tokens: int
    tokens_read: int
    seconds: float

    def plan(self) -> dict[str, Any]:
        """As a dry run says it, with the tables that keep it."""
        branches = {"rows": self.continuations, "bytes": self.continuations * 100 + 4 * self.tokens}
        tables = {"branches": branches, "tokens": {"rows": self.tokens, "bytes": 14 * self.tokens}}
        return {**self._asdict(), "seconds": round(self.seconds, 1), "tables": tables}


def distinct_tokens(prefixes: Iterable[TokenIds]) -> int:
    """Tokens of all prefixes, those at the same place behind the same tokens counted once."""
    total = 0
    before: TokenIds = ()
    for prefix in sorted({tuple(one) for one in prefixes}):
        shared = next((i for i, (a, b) in enumerate(zip(prefix, before, strict=False)) if a != b), None)
        total += len(prefix) - (min(len(prefix), len(before)) if shared is None else shared)
        before = prefix
    return total


def pace_of(engine: Engine, sources: Sequence[DrawingSource], sampling: Sampling) -> DrawingPace:
    """Draw a few tokens side by side from a few of the sources, and time them. A server's includes the way there."""
    some = list(sources[:: -(-len(sources) // PREFIXES)])

    def timed(places: int, most: int) -> tuple[float, int]:
        drawn: list[int] = []
        rollouts = [Rollout(one.prefix, i, most, one.seed) for i, one in enumerate((some * places)[:places])]
        began = time.perf_counter()
        engine.draw(rollouts, sampling, done=lambda _, found: drawn.append(len(found.ids)))
        return time.perf_counter() - began, sum(drawn)

    timed(1, 1)  # what is set up at the first use is no part of it
    first, one_each = timed(PLACES, 1)
    longer, several_each = timed(PLACES, 1 + TIMED)
    more = max(1, several_each - one_each)
    return DrawingPace(first / max(1, distinct_tokens(one.prefix for one in some)), max(0.0, longer - first) / more)


def cost_of(sources: Sequence[DrawingSource], samples: int, pace: DrawingPace) -> DrawingCost:
    """Of so many samples of each source, all of full length."""
    tokens, read = samples * sum(one.max_new for one in sources), distinct_tokens(one.prefix for one in sources)
    return DrawingCost(samples * len(sources), tokens, read, pace.reading * read + pace.drawing * tokens)
