"""A fork of the server becomes the command of a client: its streams, directory, environment, limits and signals."""

from __future__ import annotations

import io
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from . import sockets

GONE = signal.SIGUSR2  # what the server tells a command whose client has died: nobody ignores it


def become(asked: dict[str, Any], files: list[int]) -> str | None:
    """Take over what a client's process has; or what of it this process can't have, in words, with nothing of it taken."""
    for name, limits in asked["limits"].items():
        if tuple(limits) != resource.getrlimit(number := getattr(resource, name)):
            try:
                resource.setrlimit(number, tuple(limits))
            except (ValueError, OSError):
                return f"its limits are others ({name})"
    with suppress(OSError):
        os.fchdir(files[3])  # a folder that was removed is one that this process can be in as well
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, asked["nice"])
    os.umask(asked["umask"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None  # what was read of the server's environment is read again
    time.tzset()
    for number in set(asked["ignored"]) - {GONE}:
        with suppress(OSError):
            signal.signal(number, signal.SIG_IGN)
    sys.argv = asked["words"]
    sys.modules["__main__"].__package__ = asked["package"]
    sys.stdin, sys.stdout, sys.stderr = (_stream(i, **how) for i, how in enumerate(asked["streams"]))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    return None


def _stream(number: int, *, encoding: str, errors: str, line_buffering: bool, write_through: bool) -> io.TextIOWrapper:
    """A standard stream, as the interpreter makes it."""
    raw: Any = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115
    stream = io.TextIOWrapper(
        raw, encoding, errors, "\n" if number else None, line_buffering=line_buffering, write_through=write_through
    )
    raw.raw.name = ("<stdin>", "<stdout>", "<stderr>")[number]
    vars(stream)["mode"] = "w" if number else "r"
    return stream


def finish(run: Callable[[], object], connection: socket.socket) -> None:
    """Run the command, tell the client how it ended, and leave its streams. What Python does at the end of a process, it does
    after that: taking torch down takes as long as a short command."""
    own = os.getpid()
    end = _end(run)
    if os.getpid() != own:  # a fork of the command's own, if that was a shell or a server: it has told how it ended
        return
    end = _flushed(end)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    signal.signal(GONE, signal.SIG_IGN)
    with suppress(OSError):
        sockets.send(connection, end)
    connection.close()


def _end(run: Callable[[], object]) -> dict[str, int]:
    """How the interpreter would end a process that runs this: with a code, or by a signal."""
    try:
        run()
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
            return {"code": 1}
        return {"code": (end.code or 0) & 0xFF}
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        return {"signal": int(signal.SIGINT)}
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return {"code": 1}
    return {"code": 0}


def _flushed(end: dict[str, int]) -> dict[str, int]:
    """An end with all written: as the interpreter has it, a code of its own if standard output takes no more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            print(f"Exception ignored in: {sys.stdout!r}\n{type(error).__name__}: {error}", file=sys.stderr)
        end = end if "signal" in end else {"code": 120}
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    return end
