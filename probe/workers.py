"""Pieces of work on all cores, each piece on one of them. Knows nothing of what is done.

A chain of operations on a block that fits the cache of one core is better left to that core than with every operation
shared by all: what one wrote, another may have to fetch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # pieces a thread that are begun before the first of them was used


def each(work: Callable[[Item], object], items: Iterable[Item], device: torch.device) -> None:
    """`work` on every item, without gradients, in any order. See `in_order`."""
    in_order(work, items, lambda _: None, device)


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], use: Callable[[Result], object], device: torch.device
) -> None:
    """`use(work(item))` for every item in its turn: work in as many threads as torch has, without gradients, use in this one.

    On a GPU, or with one item, here and now. After an error, or Ctrl-C, no further item is begun.
    """

    def quiet(item: Item) -> Result:
        with torch.no_grad():
            return work(item)

    threads, left = torch.get_num_threads() if device.type == "cpu" else 1, iter(items)
    first = list(islice(left, 2))
    if threads < 2 or len(first) < 2:
        for item in chain(first, left):
            use(quiet(item))
        return
    pool, begun = ThreadPoolExecutor(threads, "probe", _alone), deque[Future[Result]]()
    try:
        for item in chain(first, left):
            begun.append(pool.submit(quiet, item))
            while begun and (begun[0].done() or len(begun) == AHEAD * threads):
                use(begun.popleft().result())
        while begun:
            use(begun.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # `_alone` set it for threads to come as well


def _alone() -> None:
    """Operations of torch in this thread have one thread, its own."""
    torch.get_num_threads()  # a thread that was never asked would take the number of the others at its first operation
    torch.set_num_threads(1)
