"""Which shard is worked at by whom, which are whole, which failed and how often. Starts no process, reads no clock."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

TRIES = 3  # of a shard, before it is given up
SLOW = 2.0  # times the usual, after which a shard is given to a second worker
LEAST = 5.0  # seconds, before which no shard is slow
HUNG, LONG = 10.0, 60.0  # the same, for a worker that nothing is heard of any more; twice that for the next at its shard


@dataclass
class Shards:
    """The shards 0, 1, … of a run, of which nobody knows the number before a worker has come to the last.

    known: whether a shard is finished from before. whole: those that are finished since. lost: why a shard was given up. Times
    are seconds of one clock.
    """

    known: Callable[[int], bool] = lambda number: False
    whole: set[int] = field(default_factory=set)
    count: int | None = None
    lost: dict[int, str] = field(default_factory=dict)
    joined: int = 0  # shards before it need nothing more
    _next: int = 0
    _again: set[int] = field(default_factory=set)
    _failed: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    _held: dict[int, dict[int, float]] = field(default_factory=dict)  # shard -> worker -> since when
    _took: list[float] = field(default_factory=list)
    _freed: Counter[int] = field(default_factory=Counter)  # how often a worker hung at a shard

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do or to wait for."""
        return self.count is not None and all(self._settled(number) for number in range(self.count))

    def _settled(self, number: int) -> bool:
        over = self.count is not None and number >= self.count
        return over or number in self.whole or number in self.lost or self.known(number)

    def give(self, worker: int, now: float) -> int | None:
        """The shard that a worker is to do: one that failed elsewhere, the next, or one that takes too long elsewhere."""
        number = self._waiting()
        if number is None:
            number = self._slow(worker, now)
        if number is not None:
            self._held.setdefault(number, {})[worker] = now
        return number

    def _waiting(self) -> int | None:
        while self._again:
            number = min(self._again)
            self._again.remove(number)
            if not self._settled(number):
                return number
        while self._settled(self._next) and (self.count is None or self._next < self.count):
            self._next += 1
        if self.count is not None and self._next >= self.count:
            return None
        self._next += 1
        return self._next - 1

    def _slow(self, worker: int, now: float) -> int | None:
        if not self._took:
            return None
        limit = self._limit(SLOW, LEAST)
        alone = [(min(held.values()), number) for number, held in self._held.items() if len(held) == 1 and worker not in held]
        found = [number for since, number in sorted(alone) if now - since > limit and not self._settled(number)]
        return found[0] if found else None

    def _limit(self, times: float, least: float) -> float:
        """Seconds: so many times what a shard usually takes."""
        return max(least, times * median(self._took))

    def hung(self, now: float) -> list[tuple[int, int]]:
        """The workers, with their shards, of which too long nothing was heard: they may be stopped, or wait for a dead disk."""
        if not self._took:
            return []
        limit = self._limit(HUNG, LONG)
        return [
            (worker, number)
            for number, held in self._held.items()
            for worker, since in held.items()
            if now - since > limit * 2 ** self._freed[number]
        ]

    def free(self, number: int, worker: int) -> None:
        """A worker is waited for no longer. Its shard did not fail: it may only be long, and the next worker has more time."""
        held = self._held[number]
        del held[worker]
        self._freed[number] += 1
        if not held and not self._settled(number):
            self._again.add(number)

    def finish(self, number: int, worker: int, now: float) -> bool:
        """A worker has finished a shard; whether it is the first who has."""
        held = self._held.get(number, {})
        since = held.pop(worker, None)
        first = number not in self.whole
        if first and since is not None:
            self._took.append(now - since)
        self.whole.add(number)
        self.lost.pop(number, None)
        return first

    def fail(self, number: int, worker: int, why: str) -> None:
        """A shard came to nothing with a worker. It is tried again, but for the last time, or where another is still at it."""
        held = self._held.get(number, {})
        held.pop(worker, None)
        self._failed[number] += 1
        if self._settled(number) or held:
            return
        if self._failed[number] >= TRIES:
            self.lost[number] = why
        else:
            self._again.add(number)

    def end(self, count: int, worker: int, number: int) -> None:
        """A worker looked for a shard behind the last: there are only so many."""
        self._held.get(number, {}).pop(worker, None)
        self.count = count
        self._again = {one for one in self._again if one < count}
