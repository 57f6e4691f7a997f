"""Workers in the process of a test, in the place of those that Ray starts."""

from __future__ import annotations

from collections import deque

from probe.sharding.jobs import Job, ShardResult
from probe.sharding.pools import Heard
from probe.sharding.working import Worker


class InProcess:
    """Workers of which each works when it is waited for."""

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
