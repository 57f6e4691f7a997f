"""Runs a function on many names in processes of their own, so that a crash or a hang costs one name; knows no models."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from typing import Any, NamedTuple


class Died(NamedTuple):
    """How the process ended that was at a name, instead of its result."""

    how: str


def each(function: Callable[[str], Any], names: Sequence[str], *, jobs: int, timeout: float) -> Iterator[tuple[str, Any]]:
    """(name, function(name) or `Died`), as they come; `timeout` in seconds for one name."""
    here, workers = threading.local(), []

    def run(name: str) -> Any:
        if not hasattr(here, "worker"):
            here.worker = _Worker(function)
            workers.append(here.worker)
        return here.worker.call(name, timeout)

    try:
        with ThreadPoolExecutor(jobs) as pool:
            submitted = {pool.submit(run, name): name for name in names}
            for done in as_completed(submitted):
                yield submitted[done], done.result()
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that answers names one by one; a new one takes the place of one that died."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        self._function = function
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(self._function, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # imports are not on the clock

    def call(self, name: str, timeout: float) -> Any:
        self._pipe.send(name)
        try:
            if self._pipe.poll(timeout):
                return self._pipe.recv()
            how = f"it took more than {timeout:.0f} s"
        except (EOFError, ConnectionError):
            self._process.join(5)
            how = f"its process ended with code {self._process.exitcode}"
        self.stop()
        self._start()
        return Died(how)

    def stop(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _answer(function: Callable[[str], Any], pipe: Connection) -> None:
    """The worker's loop: says that it is there, and ends when the other side hangs up."""
    pipe.send("ready")
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        pipe.send(function(name))
