"""What does not fit into a device's memory: known by its error, tried again by halves. Knows no model and no table."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

from probe.errors import BadModel, OutOfMemory

Item = TypeVar("Item")
Result = TypeVar("Result")

HALVED = "a batch did not fit into memory and was halved; what it gives is the same, to rounding"
# what a CPU's allocators say (torch 2.7 to 2.13): there an exhausted memory is a RuntimeError like any other
_SAID = ("can't allocate memory", "not enough memory")


@contextmanager
def fitting(what: str, *, hint: str) -> Iterator[None]:
    """Raises `OutOfMemory` ("… does not fit into memory") where no memory is left, once all that the block held is free;
    `BadModel` where processes share the model, of which one can't do without what it was about."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        if distributed.is_available() and distributed.is_initialized():
            # the processes that share the model would go through other batches than this one, and wait for it
            raise BadModel(f"{what} does not fit into the memory of one of several processes", hint=hint) from error
    else:
        return
    # not in the `except`: while the error is handled, its traceback holds every tensor of the block
    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()
    raise OutOfMemory(f"{what} does not fit into memory", hint=hint)


def halving(
    items: list[Item], run: Callable[[list[Item]], Result], *, what: str, hint: str
) -> Iterator[tuple[list[Item], Result]]:
    """`run` of all items, or of halves of them, in their order, where memory does not suffice for all at once; each with the
    items that it is of. Raises `OutOfMemory` for an item that does not fit alone, which is called `what`."""
    waiting = [items]
    while waiting:
        some = waiting.pop()
        try:
            with fitting(what, hint=hint):
                found = run(some)
        except OutOfMemory:
            if len(some) == 1:
                raise
            warnings.warn(HALVED, stacklevel=2)
            first, second = halves(some)
            waiting += [second, first]
            continue
        yield some, found


def halves(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """The first half of several items, and the rest."""
    middle = (len(items) + 1) // 2
    return items[:middle], items[middle:]


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(said in str(error) for said in _SAID)
