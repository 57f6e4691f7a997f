"""Shards that workers have finished become part of the run: their files are moved, and one record names them.

At a URL nothing can be renamed: each attempt at a shard has a folder of its own there, which is whole when its journal record
is there, and of several any one counts. Its files are copied by the server to their places in the run; what this machine needs
of them, the small tables, it fetches: a large table never travels over the machine that joins.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from probe import durable, tables
from probe.store import layout, manifest, mirroring
from probe.store.backends import Disk
from probe.store.layout import SHARDS
from probe.store.remote import StoredFile
from probe.store.uploading import Upload


class LocalShards:
    """Where workers put their shards: in the folder of the run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """What a worker of an earlier time did not finish is removed."""
        place = self._folder / SHARDS
        with durable.stated(place):
            place.mkdir(exist_ok=True)
            whole = {place / name for name in self.names()}
            for one in place.iterdir():
                if one not in whole and layout.is_shard(one):
                    shutil.rmtree(one, ignore_errors=True)

    def names(self) -> list[str]:
        """The finished shards, in order."""
        return layout.shards(self._folder)

    def records(self, name: str) -> list[dict[str, Any]]:
        """The journal of a shard; nothing where it is not whole."""
        folder = self._folder / SHARDS / name
        found = manifest.read_records(folder)
        parts = [part for record in found for part in record["parts"]]
        return found if all(_there(folder / part["path"], part["bytes"]) for part in parts) else []

    def move(self, name: str, part: Mapping[str, Any], to: str) -> None:
        """A part of a shard to its place in the run."""
        (self._folder / SHARDS / name / part["path"]).rename(self._folder / to)

    def drop(self, name: str) -> None:
        """Remove a shard, or what is left of it."""
        shutil.rmtree(self._folder / SHARDS / name, ignore_errors=True)


class RemoteShards:
    """Where workers put their shards: at the URL of the run."""

    def __init__(self, upload: Upload, folder: Path) -> None:
        self._upload, self._folder = upload, folder
        self._found: dict[str, dict[str, StoredFile]] = {}  # when the server was last asked

    def prepare(self) -> None:
        """What a worker of an earlier time did not finish is removed."""
        self._ask()
        for attempt in self._found.keys() - set(self._finished()):
            self._clear(attempt)

    def _ask(self) -> None:
        """Which files there are of each attempt at a shard, by its folder under `SHARDS`."""
        self._found = {}
        for name, stored in self._upload.remote.files(SHARDS).items():
            if layout.writes(name):
                _, attempt, inside = name.split("/", 2)
                self._found.setdefault(attempt, {})[inside] = stored

    def _finished(self) -> list[str]:
        return sorted(one for one, files in self._found.items() if any(map(layout.is_record, files)))

    def names(self) -> list[str]:
        """The finished shards, in order, as the server has them now."""
        self._ask()
        found = {layout.shard_of(attempt) for attempt in self._finished()}
        return sorted(found, key=lambda name: [int(number) for number in name.split("-")])

    def _attempt(self, name: str) -> str:
        return next(one for one in self._finished() if layout.shard_of(one) == name)

    def records(self, name: str) -> list[dict[str, Any]]:
        """The journal of a shard; nothing where it is not whole."""
        attempt = self._attempt(name)
        with mirroring.begun(self._upload.remote.inside(f"{SHARDS}/{attempt}"), self._found[attempt]) as folder:
            found = manifest.read_records(folder)
        sizes = {file: stored.bytes for file, stored in self._found[attempt].items()}
        return found if all(sizes.get(part["path"]) == part["bytes"] for record in found for part in record["parts"]) else []

    def move(self, name: str, part: Mapping[str, Any], to: str) -> None:
        """A part of a shard to its place in the run."""
        remote, source = self._upload.remote, f"{SHARDS}/{self._attempt(name)}/{part['path']}"
        remote.copy(source, to)
        if not tables.TABLES[part["table"]].large:
            remote.get(source, self._folder / to, part)
        self._upload.hold({**part, "path": to})

    def drop(self, name: str) -> None:
        """Remove all attempts at a shard."""
        for attempt in [one for one in self._found if layout.shard_of(one) == name]:
            self._clear(attempt)
            del self._found[attempt]

    def _clear(self, attempt: str) -> None:
        """Remove an attempt and its own folders: others are written beside it."""
        self._upload.remote.inside(f"{SHARDS}/{attempt}").clear(self._found[attempt])


def join(backend: Disk, shards: LocalShards | RemoteShards, name: str) -> bool:
    """Make the rows of a finished shard part of the run, in one record.

    False where it was not whole (a process was killed while it did this), and is gone.
    """
    records = shards.records(name)
    if not records:
        shards.drop(name)
        return False
    backend.flush()
    units = [key for record in records for key in record["units"]]
    moved = []
    with durable.stated(backend.folder), durable.uninterrupted():
        for part, path in _numbered(backend, records):
            (backend.folder / part["table"]).mkdir(exist_ok=True)
            shards.move(name, part, path)
            moved.append({**part, "path": path})
        for table in {part["table"] for part in moved}:
            durable.sync(backend.folder / table)
        durable.sync(backend.folder)
        warnings = dict.fromkeys(text for record in records for text in record["warnings"])
        backend.journal.record(units, moved, list(warnings))
    shards.drop(name)
    return True


def _numbered(backend: Disk, records: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """The parts of a shard, each with the name that it gets in the run."""
    taken = Counter[str]()
    for part in (part for record in records for part in record["parts"]):
        table = part["table"]
        yield part, f"{table}/part-{backend.journal.next_part(table) + taken[table]:05d}.parquet"
        taken[table] += 1


def _there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
