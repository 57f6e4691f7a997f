"""What the one who hands out shards asks of those who work at them, and the pool of one worker in this process."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from probe.sharding.jobs import Job, ShardResult
from probe.sharding.working import Worker


class Heard(NamedTuple):
    """What a worker answered; None: it is dead. why: how that is known."""

    worker: int
    answer: ShardResult | None
    why: str = ""


class Pool(Protocol):
    """Workers of one job, wherever they are."""

    room: int  # workers that there is room for, where nobody says how many

    def start(self, worker: int) -> None:
        """Start a worker of this number; it answers when it has the model."""

    def send(self, worker: int, shard: int) -> None:
        """Have a worker do a shard; it answers when that is done."""

    def wait(self, seconds: float) -> list[Heard]:
        """What was answered since; at least one thing, or nothing in so many seconds."""

    def stop(self, worker: int) -> None:
        """End a worker, whatever it is doing."""

    def close(self) -> None:
        """End all workers. When it returns, none of them writes any more."""


class InProcess:
    """Workers in this process, of which each works when it is waited for: for tests, and to see what goes wrong."""

    room = 1

    def __init__(self, job: Job) -> None:
        self.job = job
        self.workers: dict[int, Worker] = {}
        self.asked: deque[tuple[int, int | None]] = deque()

    def start(self, worker: int) -> None:
        self.workers[worker] = Worker(self.job)
        self.asked.append((worker, None))

    def send(self, worker: int, shard: int) -> None:
        self.asked.append((worker, shard))

    def wait(self, seconds: float) -> list[Heard]:
        if not self.asked:
            return []
        worker, shard = self.asked.popleft()
        return [Heard(worker, self.work(worker, shard))]

    def work(self, worker: int, shard: int | None) -> ShardResult:
        """Have one worker do what it was asked for."""
        one = self.workers[worker]
        return one.begin() if shard is None else one.work(shard)

    def stop(self, worker: int) -> None:
        self.workers.pop(worker).stop()
        self.asked = deque(one for one in self.asked if one[0] != worker)

    def close(self) -> None:
        for worker in list(self.workers):
            self.stop(worker)
