"""The one who hands out shards and makes what comes of them one run. Computes nothing; does not know what a worker is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from probe import store as stores
from probe.errors import BadOption, EngineError, ProbeError, RunError
from probe.language_model import LanguageModel
from probe.requests import Request
from probe.sharding.jobs import Job, ShardResult, job_of
from probe.sharding.pools import Heard, Pool
from probe.sharding.shards import TRIES, Shards
from probe.store.layout import shard_name

T = TypeVar("T")
WAIT = 1.0  # seconds, after which it is looked whether a worker takes too long
AGAIN = "its rows of errors say what to run again, with another --out"
MANY = 3  # workers that die before they have the model, shards that fail before one is whole: it is not the shards


def open_pool(job: Job) -> Pool:
    """The workers of a job."""
    from probe.sharding.ray_pool import RayPool

    return RayPool(job)


class Workers:
    """Those who share the work of one request, as the process sees it that the run belongs to."""

    def __init__(self, request: Request, lm: LanguageModel, writer: stores.Writer, found: Any = None) -> None:
        """found: see `Job`. Raises `BadOption` for a run in memory."""
        self._request, self._lm, self._writer, self._found = request, lm, writer, found
        # why, of shards that were given up; None: nothing is done yet
        self._given_up: dict[int, str] | None = None if writer.whole is None else {}
        if writer.path is None:
            raise BadOption("a run in memory has no folder that workers could write to", hint="give it an --out")

    def share(
        self, items: Iterable[T], together: int, lost: Callable[[T, ProbeError], None], report: Callable[[int], None]
    ) -> Iterator[T]:
        """All items, when workers have done them; for those of a shard that was given up, `lost` in their place. report: called
        with how much is done. Raises `EngineError`, and what a worker met that this process would have met."""
        if self._given_up is None:
            self._given_up = self._dispatch(together, report)
        of, number = iter(items), 0
        while some := list(islice(of, together)):
            if number in self._given_up:
                error = EngineError(f"a worker failed {TRIES} times here: {self._given_up[number]}")
                for item in some:
                    lost(item, error)
            else:
                yield from some
            number += 1

    def _dispatch(self, together: int, report: Callable[[int], None]) -> dict[int, str]:
        """Have all shards done; why some of them were given up."""
        writer = self._writer
        assert writer.address is not None, "the run has a folder"
        job = job_of(self._request, self._lm, writer.address, self._found)
        writer.share()
        _join_all(writer)
        shards = Shards(lambda number: writer.done(stores.shard_unit(together, number)))
        pool = open_pool(job)
        dispatch = Dispatch(pool, shards, report, partial(_join_in_turn, writer, together, shards))
        try:
            dispatch.run(getattr(self._request, "workers", None) or pool.room)
        finally:
            pool.close()
            _join_all(writer)  # also of a run that is interrupted
        if dispatch.retired:
            writer.warn(f"{len(dispatch.retired)} of the workers could not write where they were: {dispatch.retired[0]}")
        for number, why in sorted(shards.lost.items()):
            writer.warn(f"shard {number} was given up after {TRIES} tries: {why}; a finished run is not gone on with: {AGAIN}")
        return dict(shards.lost)


def _join_all(writer: stores.Writer) -> None:
    for name in writer.shards:
        writer.join(name)


def _join_in_turn(writer: stores.Writer, together: int, shards: Shards) -> None:
    """Join finished shards, each when those before it are joined or lost: a run whose rows come in order needs no sorting."""
    waiting = set(writer.shards)
    while waiting:
        while shards.known(shards.joined) or shards.joined in shards.lost:
            shards.joined += 1
        name = shard_name(together, shards.joined)
        if name not in waiting:
            return
        waiting.remove(name)
        writer.join(name)


class Dispatch:
    """Hands out shards to workers until all are done, and starts a worker for each that dies."""

    def __init__(self, pool: Pool, shards: Shards, report: Callable[[int], None], join: Callable[[], None]) -> None:
        """report: called with how much is done; join: when a shard was finished. `retired`: why workers were asked no more."""
        self._pool, self._shards, self._report, self._join = pool, shards, report, join
        self._doing: dict[int, int | None] = {}  # worker -> shard
        self._idle: list[int] = []
        self._started = self._size = self._stillborn = 0
        self.retired: list[str] = []

    def run(self, workers: int) -> None:
        """Raises `EngineError` where workers cannot be had, or fail whatever they do, and any other `ProbeError` of a worker:
        what this process would have met."""
        for _ in range(workers):
            self._start()
        while not self._shards.done:
            self._give()
            for heard in self._pool.wait(WAIT):
                self._hear(heard)
            for worker, shard in self._shards.hung(time.monotonic()):
                self._shards.free(shard, worker)
                del self._doing[worker]
                self._replace(worker)
        if self._shards.lost and not self._shards.whole:
            raise self._systematic()

    def _start(self) -> None:
        self._pool.start(self._started)
        self._doing[self._started] = None
        self._started += 1

    def _give(self) -> None:
        left = []
        for worker in self._idle:
            shard = self._shards.give(worker, time.monotonic())
            if shard is None:
                left.append(worker)
                continue
            self._doing[worker] = shard
            self._pool.send(worker, shard)
        self._idle = left

    def _hear(self, heard: Heard) -> None:
        worker, answer = heard.worker, heard.answer
        shard = self._doing.pop(worker)
        if answer is None:
            self._bury(worker, shard, heard.why)
            return
        self._idle.append(worker)
        if shard is None:
            self._stillborn = 0
            if answer.failed:
                raise answer.error() if answer.kind else EngineError(f"a worker does not start: {answer.message}")
        elif answer.failed:
            self._fail(worker, shard, answer)
        elif answer.only is not None:
            self._shards.end(answer.only, worker, shard)
        elif self._shards.finish(shard, worker, time.monotonic()):
            self._join()
            self._size += answer.size
            self._report(self._size)

    def _bury(self, worker: int, shard: int | None, why: str) -> None:
        """A worker is dead: another takes its place, and what it was doing is done again. Where they die before they have the
        model, those that have it go on without more of them."""
        if shard is not None:
            self._replace(worker)
            self._give_up(shard, worker, f"the worker died ({why})")
            return
        self._stillborn += 1
        if self._stillborn < MANY:
            self._replace(worker)
            return
        self._pool.stop(worker)
        if not self._idle and all(one is None for one in self._doing.values()):
            hint = "a machine needs memory for the model once for each of its workers: --workers"
            raise EngineError(f"workers die before they have the model: {why}", hint=hint)

    def _replace(self, worker: int) -> None:
        self._pool.stop(worker)
        self._start()

    def _fail(self, worker: int, shard: int, answer: ShardResult) -> None:
        error = answer.error()
        if not answer.kind:
            self._give_up(shard, worker, answer.message)
        elif isinstance(error, RunError):
            self._retire(worker, shard, error)
        else:
            raise error

    def _retire(self, worker: int, shard: int, error: ProbeError) -> None:
        """Where a worker is, the run cannot be written: it is asked no more, and the others do what it was doing."""
        self.retired.append(error.message)
        self._shards.free(shard, worker)
        self._idle.remove(worker)
        self._pool.stop(worker)
        if not self._idle and not self._doing:
            raise error

    def _give_up(self, shard: int, worker: int, why: str) -> None:
        self._shards.fail(shard, worker, why)
        if len(self._shards.lost) == MANY and not self._shards.whole:
            raise self._systematic()

    def _systematic(self) -> EngineError:
        why = next(iter(self._shards.lost.values()))
        return EngineError(f"every shard fails; the first: {why}", hint="--engine local shows where")
