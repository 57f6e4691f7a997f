"""The one way in which files are written: absent or whole, never half. Knows nothing of runs, models or tables."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import xxhash

from probe.errors import StorageFull

TEMPORARY = ".tmp"  # a name that ends so holds nothing; `*.parquet` does not match it
_SMALL = 1 << 16  # bytes; less than this waits for more
_AHEAD = 8 << 20  # bytes the disk is given to write while we go on: at the end it would have all of them to wait for
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Written(NamedTuple):
    """What a file holds, known while it was written: nothing is read back.

    XXH3 finds what a disk, a copy or a kill did to a file, at fifteen times the speed of sha256, which would take longer
    than the writing. It doesn't tell who did it: one who alters a file can alter its hash beside it, whichever that is.
    """

    bytes: int
    xxh3_128: str  # as `xxh128sum FILE` prints it


class HashedFile(io.RawIOBase):
    """A write-only file that hashes what goes through it, and ignores writes once it was abandoned."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._file = open(path, "wb", buffering=0, opener=open_own)  # noqa: SIM115 - closed by `seal`
        self._hash = xxhash.xxh3_128()
        self._waiting = bytearray()
        self._size = self._written = self._given = 0
        self._abandoned = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        """Write all of `data`, small pieces together; raises the OSError of a full disk rather than a short count."""
        view = memoryview(data).cast("B")
        if self._abandoned:  # Parquet writers write a footer when they are dropped
            return len(view)
        self._size += len(view)
        if len(view) < _SMALL:
            self._waiting += view
        if len(self._waiting) >= _SMALL or len(view) >= _SMALL:
            self._flush()
        if len(view) >= _SMALL:
            self._out(view)
        return len(view)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, bytearray()
        self._out(memoryview(waiting))

    def _out(self, view: memoryview) -> None:
        self._hash.update(view)
        done = 0
        while done < len(view):
            done += os.write(self._file.fileno(), view[done:])
        self._written += done
        if self._written - self._given >= _AHEAD and hasattr(os, "posix_fadvise"):
            begun = max(0, self._given - 4 * _AHEAD)  # what was given before is on the disk by now, and is let go of
            os.posix_fadvise(self._file.fileno(), begun, self._written - begun, os.POSIX_FADV_DONTNEED)
            self._given = self._written

    def seal(self) -> Written:
        """Put it on the disk and close it. The name is still the temporary one."""
        self._flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return Written(self._size, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close and remove the file."""
        self._abandoned = True
        self._file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def __del__(self) -> None:
        if self._file is not None and not self._file.closed:
            self._file.close()


def open_own(path: str, flags: int) -> int:
    """Opens a file that lies at this name itself: no link to elsewhere, and no pipe, which would be waited for."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def temporary(path: Path) -> Path:
    """The name under which `path` is written."""
    return path.with_name(path.name + TEMPORARY)


def settle(path: Path) -> None:
    """Give a sealed file its own name. Its folder still has to be synced (`sync`)."""
    temporary(path).replace(path)


def sync(path: Path) -> None:
    """Put what a file holds, or the names in a folder, on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # no such call there
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, *, shared: bool = False) -> Written:
    """Write a whole file, durably: after a crash at any moment it has its old content or the new.

    shared: other processes may write the file at the same moment; it then holds what one of them wrote. Raises
    `StorageFull` where the disk is full, fails, or lets nobody write there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}") if shared else temporary(path)
    with stated(path):
        file = HashedFile(part)
        try:
            file.write(data)
            written = file.seal()
            part.replace(path)
        except BaseException:
            file.abandon()
            raise
        sync(path.parent)
    return written


def write_json(path: Path, value: Any, *, shared: bool = False) -> Written:
    """`write_bytes` of `jsonable(value)`. A half of a surrogate pair, which UTF-8 does not have, is written as its escape."""
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_bytes(path, re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text).encode(), shared=shared)


def jsonable(value: Any) -> Any:
    """The same as plain JSON: NumPy as numbers and lists, paths as text.

    NaN and the infinities, which JSON does not have, are null: in a manifest, in what --json prints, in exports to jsonl
    and in the lists of a csv. Parquet keeps them.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(jsonable(item) for item in value)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


@contextmanager
def stated(path: Path) -> Iterator[None]:
    """Turn what a disk can do to us while writing `path` into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            hint = "free some space and run it again; of a run what is finished is kept, and --resume goes on with it"
            raise StorageFull(f"the disk is full: could not write '{path}'", hint=hint) from error
        if error.errno == errno.EIO:
            hint = "when the disk works again, run it again; --resume goes on with a run"
            raise StorageFull(f"the disk failed while writing '{path}'", hint=hint) from error
        if error.errno is None:
            raise
        raise StorageFull(f"cannot write '{path}': {error.strerror}", hint="choose another --out") from error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C wait until the file in hand is consistent. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, or not Python's
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(*waiting[0])
