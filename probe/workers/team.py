"""The threads torch computes with, given work of our own. Knows nothing of what is done.

OpenMP's threads spin for milliseconds after each of torch's operations, on the cores that threads of ours would need:
1.7 ms until both cores were ours, at each layer of a model. So the work goes to those that spin.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

_Member = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()  # in a fork of it OpenMP would wait for threads that aren't there


def together(work: Callable[[], object]) -> None:
    """`work()` in this thread and in the others of torch at the same time, without gradients; returns when all are over.

    There may be fewer threads than torch has. Operations of torch in them have one thread each. Raises what the first of
    them raised.
    """
    ended: dict[int, BaseException | None] = {}

    def member(_: object = None) -> None:
        try:
            with torch.no_grad():
                work()
            ended[threading.get_ident()] = None
        except BaseException as error:  # nothing can be raised through OpenMP
            ended[threading.get_ident()] = error

    threads, openmp = torch.get_num_threads(), _openmp() if os.getpid() == _PROCESS else None
    if openmp is None:
        _ours(member, threads)
    else:
        openmp(_Member(member), None, threads, 0)
    for error in ended.values():
        if error is not None:
            raise error
    if threading.get_ident() not in ended:  # Ctrl-C came where no `except` was
        raise KeyboardInterrupt


@lru_cache(maxsize=1)
def _openmp() -> Any:
    """GOMP_parallel(function, argument, threads, flags) of the OpenMP that torch has, if it has one that says how.

    Source: GCC's libgomp, which LLVM's and Intel's take after.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not (sys.platform == "linux" and torch.backends.openmp.is_available() and library.exists()):
        return None
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel  # its own or that of what it is linked to
    except (OSError, AttributeError):
        return None
    parallel.argtypes, parallel.restype = [_Member, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel


def _ours(member: Callable[[], None], threads: int) -> None:
    """The same with threads of our own."""
    others = [_pool(threads).submit(member) for _ in range(threads - 1)]
    torch.set_num_threads(1)
    try:
        member()
    finally:
        torch.set_num_threads(threads)  # also that of threads to come
        wait(others)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads beside this one in which an operation of torch has one thread, its own; all have begun."""
    all_there = threading.Barrier(threads - 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread that was never asked would take the number of the others at its first operation
        torch.set_num_threads(1)  # its own, but also that of threads to come until another is set
        all_there.wait()

    pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="probe")
    for future in [pool.submit(begin) for _ in range(threads - 1)]:
        future.result()
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads don't survive it
