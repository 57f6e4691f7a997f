"""Where probe keeps what it made itself: `$PROBE_HOME`, locks, crash-safe directories. Knows paths, not models."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe import durable
from probe.addresses import home
from probe.errors import ProbeError, StorageFull

Progress = Callable[[str, int, int], None]
# last into a directory that probe makes: its presence, with every size in it right, means that the directory is whole
RECORD = "probe.json"
_SPACE = {errno.ENOSPC, errno.EDQUOT}


def models_dir() -> Path:
    """Where converted models are."""
    return home() / "models"


def record_of(directory: Path) -> dict[str, Any] | None:
    """The record of a directory that probe made; None if it is not there, not probe's, or not whole."""
    try:
        record = json.loads((directory / RECORD).read_text())
        sizes = {name: (directory / name).stat().st_size for name in record["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if sizes == record["files"] else None


def made_here() -> dict[str, dict[str, Any]]:
    """Name -> record of every whole model under `models_dir`."""
    folders = sorted(models_dir().glob("[!.]*")) if models_dir().is_dir() else []
    return {folder.name: record for folder in folders if (record := record_of(folder)) is not None}


@contextmanager
def claimed(target: Path, progress: Progress | None) -> Iterator[None]:
    """Only one process at a time makes `target`; another waits here. Leftovers of a killed one are removed."""
    import filelock

    with storing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.parent / f".{target.name}.lock")
        try:
            lock.acquire(timeout=0.2)
        except filelock.Timeout:
            if progress:
                progress(f"waiting for another process that prepares {target.name}", 0, 1)
            lock.acquire()
    try:
        for leftover in target.parent.glob(f".{target.name}.part-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def building(target: Path, record: dict[str, Any], *, needs: int, describe: Callable[[Path], dict[str, Any]]) -> Iterator[Path]:
    """A fresh folder beside `target` that takes its place, whole, when the block ends well; else nothing is left.

    Call it inside `claimed`. `needs` is about how many bytes will be written: too little room is said before. What
    `describe` finds in the finished folder goes into its record.
    """
    part = target.parent / f".{target.name}.part-{os.getpid()}"
    with storing(target.parent):
        free = shutil.disk_usage(target.parent).free
        if free < needs:
            raise OSError(errno.ENOSPC, f"{needs / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")
        part.mkdir()
        try:
            yield part
            files = {str(p.relative_to(part)): p.stat().st_size for p in sorted(part.rglob("*")) if p.is_file()}
            for name in files:
                durable.sync(part / name)
            full = {**record, **describe(part), "files": files}
            durable.write_json(part / RECORD, full)
            if target.exists():  # not whole, or damaged, or `claimed`'s caller would not be here
                shutil.rmtree(target)
            part.rename(target)
            durable.sync(target.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def remove(name: str) -> int:
    """Remove the model `name` that probe made; how many bytes that freed. Raises `KeyError` if probe made none such."""
    folder = models_dir() / name
    if Path(name).name != name or not (folder / RECORD).is_file():
        raise KeyError(name)
    with claimed(folder, None):
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        (folder / RECORD).unlink()  # first, so that a kill in between leaves nothing that looks whole
        shutil.rmtree(folder)
    return size


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """A full or unwritable disk, as a stated error."""
    try:
        yield
    except ProbeError:
        raise
    except OSError as error:
        if error.errno in _SPACE:
            raise StorageFull(
                f"no room for a model in '{folder}': {error.strerror}", hint="set PROBE_HOME to a folder with more room"
            ) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or error.errno == errno.EROFS:
            raise StorageFull(
                f"cannot write to '{folder}': {error.strerror}", hint="set PROBE_HOME to a folder that can be written"
            ) from error
        raise
