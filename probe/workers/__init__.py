"""Pieces of work on all cores, each piece on one of them. Knows nothing of what is done.

A chain of operations on a block that fits the cache of one core is better left to that core than with every operation
shared by all: what one wrote, another may have to fetch. Measured for the heads of 2,048 tokens, two cores: 1.3 s in every
process, against 1.2 s in half of them and 3.2 s in the other half.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import chain, islice
from typing import Generic, TypeVar

import torch

from probe.workers.team import together

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 16  # results a thread that may wait for their turn


def each(work: Callable[[Item], object], items: Iterable[Item], device: torch.device) -> None:
    """`work` on every item, without gradients, in any order: each of torch's threads takes the next when it is ready.

    On a GPU here and now. After an error no further item is begun.
    """
    left = deque(items)

    def take() -> None:
        while True:
            try:
                item = left.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException:
                left.clear()
                raise

    if _shared(device) and len(left) > 1:
        together(take)
    else:
        take()


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], use: Callable[[Result], object], device: torch.device
) -> None:
    """`use(work(item))` for every item in its turn: work in all of torch's threads, without gradients, use in this one.

    This one works too while nothing is ready for it. On a GPU, or with one item, here and now.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    left = chain(first, rest)
    if not _shared(device) or len(first) < 2:
        for item in left:
            use(work(item))
        return
    line, caller = _Line(work, left), threading.get_ident()
    together(lambda: line.serve(use) if threading.get_ident() == caller else line.help())


def _shared(device: torch.device) -> bool:
    return device.type == "cpu" and torch.get_num_threads() > 1


class _Line(Generic[Item, Result]):
    """Items that were begun, in their order, until their results are used."""

    def __init__(self, work: Callable[[Item], Result], items: Iterator[Item]) -> None:
        self._work, self._left = work, items
        self._most, self._ended = AHEAD * torch.get_num_threads(), False
        self._begun: deque[Future[Result]] = deque()
        self._changed = threading.Condition()

    def help(self) -> None:
        """Work until no item is left; wait while too many results do."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or len(self._begun) < self._most)
                begun = self._begin()
            if begun is None:
                return
            self._do(*begun)

    def serve(self, use: Callable[[Result], object]) -> None:
        """Use what is ready, work where nothing is. After an error, or Ctrl-C, nothing is begun any more."""
        try:
            while True:
                ready = bool(self._begun) and self._begun[0].done()
                with self._changed:
                    begun = None if ready or len(self._begun) >= self._most else self._begin()
                if begun is not None:
                    self._do(*begun)
                elif self._begun:
                    result = self._begun[0].result()
                    with self._changed:
                        self._begun.popleft()
                        self._changed.notify_all()
                    use(result)
                else:
                    return
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _begin(self) -> tuple[Future[Result], Item] | None:
        """The next item, if there is one."""
        for item in () if self._ended else self._left:
            future: Future[Result] = Future()
            self._begun.append(future)
            return future, item
        return None

    def _do(self, future: Future[Result], item: Item) -> None:
        try:
            future.set_result(self._work(item))
        except Exception as error:
            future.set_exception(error)
