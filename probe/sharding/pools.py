"""What the one who hands out shards asks of those who work at them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from probe.sharding.jobs import ShardResult


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
