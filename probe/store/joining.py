"""Shards that workers have finished become part of the run: their files are moved, and one record names them."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from probe import durable
from probe.store import layout
from probe.store.backends import Disk
from probe.store.journal import read_records


def prepare(folder: Path) -> None:
    """The place where workers write; what one of an earlier time did not finish is removed."""
    place = folder / layout.SHARDS
    with durable.stated(place):
        place.mkdir(exist_ok=True)
        whole = {place / name for name in layout.shards(folder)}
        for one in place.iterdir():
            if one not in whole and layout.is_shard(one):
                shutil.rmtree(one, ignore_errors=True)


def join(backend: Disk, name: str) -> bool:
    """Make the rows of a finished shard part of the run, in one record.

    False where it was not whole (a process was killed while it did this), and is gone.
    """
    folder = backend.folder / layout.SHARDS / name
    records = read_records(folder)
    parts = [part for record in records for part in record["parts"]]
    if any(not _there(folder / part["path"], part["bytes"]) for part in parts):
        shutil.rmtree(folder, ignore_errors=True)
        return False
    backend.flush()
    units = [key for record in records for key in record["units"]]
    taken, moved = Counter[str](), []
    with durable.stated(backend.folder), durable.uninterrupted():
        for part in parts:
            table = part["table"]
            path = backend.folder / table / f"part-{backend.journal.next_part(table) + taken[table]:05d}.parquet"
            taken[table] += 1
            path.parent.mkdir(exist_ok=True)
            (folder / part["path"]).rename(path)
            moved.append({**part, "path": path.relative_to(backend.folder).as_posix()})
        for table in taken:
            durable.sync(backend.folder / table)
        durable.sync(backend.folder)
        warnings = dict.fromkeys(text for record in records for text in record["warnings"])
        backend.journal.record(units, moved, list(warnings))
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
