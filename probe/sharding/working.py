"""What a worker does: it runs the verb of its job, which comes by the shards that it is asked for. Knows no other process."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from probe import store as stores
from probe.requests import Request
from probe.sharding.jobs import Job, ShardResult, failure, model_of

T = TypeVar("T")
_WALK: ContextVar[Walk | None] = ContextVar("walk", default=None)


class _Over(BaseException):
    """Ends a verb that has come by all shards that are asked for; no error, and nothing catches it on the way."""


def at_work() -> Walk | None:
    """The walk that a verb which begins now belongs to; None where no worker runs it."""
    return _WALK.get()


class Worker:
    """Has the model, and works at any shards of its job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._walk: Walk | None = None
        self._lm: Any = None

    def begin(self) -> ShardResult:
        """Load the model. `failed` where that cannot be."""
        os.environ.update({name: str(self._job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
        try:
            if Path(self._job.folder).is_dir():
                os.chdir(self._job.folder)
            self._lm = model_of(self._job)
        except Exception as error:
            return failure(-1, error)
        return ShardResult(-1)

    def work(self, shard: int) -> ShardResult:
        """Do one shard. Those that come one after the other need one walk; another walk begins where one lies behind."""
        if self._walk is None or not self._walk.reaches(shard):
            self.stop()
            self._walk = Walk(self._lm, self._job)
        return self._walk.do(shard)

    def stop(self) -> None:
        """Let go of the walk."""
        if self._walk is not None:
            self._walk.stop()
            self._walk = None


class Walk:
    """One run of the verb, in a thread of its own: it waits at each shard that it was asked for, passes by the others, and
    ends before the verb sums anything up."""

    def __init__(self, lm: Any, job: Job) -> None:
        self._lm, self._job = lm, job
        self._asked: queue.Queue[int | None] = queue.Queue()
        self._answers: queue.Queue[ShardResult] = queue.Queue()
        self._at = 0  # shards before it are behind
        self._wanted = -1
        self._writer: stores.ShardWriter | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def found(self) -> Any:
        """What the process that makes the run found before it began."""
        return self._job.found

    def reaches(self, shard: int) -> bool:
        """Whether the walk is still before a shard."""
        return self._thread.is_alive() and shard >= self._at

    def do(self, shard: int) -> ShardResult:
        """Go on to a shard, and do it."""
        self._asked.put(shard)
        return self._answers.get()

    def stop(self) -> None:
        """End the walk."""
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        _WALK.set(self)
        try:
            self._next()
            request = self._job.request
            function = request.function()
            if len(signature(function).parameters) == 1:  # the model is one of the request's fields
                function(request.on(self._lm))
            else:
                function(self._lm, request)
            raise AssertionError(f"{request.command} does not share its work")
        except _Over:
            pass
        except BaseException as error:
            if self._writer is not None:
                self._writer.abandon()
            self._at = 1 << 62  # nothing is before a walk that fell
            self._answers.put(failure(self._wanted, error))

    def _next(self) -> None:
        wanted = self._asked.get()
        if wanted is None:
            raise _Over
        self._wanted = wanted

    def writer(self, request: Request, resolved: Mapping[str, Any]) -> stores.ShardWriter:
        """Where the verb writes."""
        self._writer = stores.shard_writer(self._job.run, request.command, request.arguments(), resolved)
        return self._writer

    def share(self, items: Iterable[T], together: int, size: Callable[[T], int]) -> Iterator[T]:
        """Of the items those of the shards that are asked for, each of so many together; each shard is written apart."""
        assert self._writer is not None, "a verb shares what it writes"
        number, of = 0, iter(items)
        while some := list(islice(of, together)):
            if number == self._wanted:
                self._writer.begin(together, number)
                yield from some
                self._writer.end()
                self._at = number + 1
                self._answers.put(ShardResult(number, sum(map(size, some))))
                self._next()
                if self._wanted <= number:
                    raise _Over
            number += 1
        self._at = 1 << 62
        self._answers.put(ShardResult(self._wanted, only=number))
        raise _Over
