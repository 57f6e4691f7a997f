"""A run that several processes write: what a worker does, who writes shard after shard, each in a folder of its own."""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from probe import durable, tables
from probe.addresses import is_url
from probe.errors import RunError
from probe.store import layout, manifest, parquet, reading, sorting
from probe.store.backends import Disk, Limits, Memory
from probe.store.beginning import same_run
from probe.store.journal import Journal
from probe.store.layout import STATE, partial
from probe.store.remote import RemoteFolder
from probe.store.uploading import fetched, send_shard
from probe.store.writer import Writer


def shard_writer(path: Path | str, command: str, arguments: Mapping[str, Any], resolved: Mapping[str, Any]) -> ShardWriter:
    """The writer of one who works at shards of the run `path`, which another process has begun and will finish.

    Raises `RunError` where that run cannot be seen from here, or was begun with something else: the files here are others.
    """
    remote = RemoteFolder(path, writes=True) if is_url(path) else None
    folder = fetched(remote) if remote else partial(Path(path))
    if not (folder / STATE).is_file():
        hint = "put --out on a file system that all machines share, or give a URL"
        raise RunError(f"a worker does not see the run '{folder}'", hint=hint)
    before = manifest.intact(folder / STATE, manifest.State)
    now = manifest.begun(command, arguments, resolved, run_id=before["run_id"], typed=before["typed"])
    same_run(before, now, path=path)
    return ShardWriter(folder, before, remote)


def shard_unit(size: int, number: int) -> str:
    """The unit that is in a run when all units of a shard are."""
    return layout.shard_unit(layout.shard_name(size, number))


class ShardWriter(Writer):
    """Writes the units of one shard after the other. To one who asks between two of them, every unit is done."""

    def __init__(self, folder: Path, state: Mapping[str, Any], remote: RemoteFolder | None = None) -> None:
        super().__init__(None, Memory(), state)
        self._run, self._remote = folder, remote
        records = manifest.read_records(folder)
        self._before = {unit for record in records for unit in record["units"]}
        self._parts = [part for record in records for part in record["parts"]]
        self._ranges = reading.PromptRanges(self._here)
        self._shard: tuple[int, int] | None = None

    def done(self, key: str) -> bool:
        """Whether the unit is another's, or was part of the run when this worker began."""
        return self._shard is None or key in self._before or key in self._done

    def read(self, table: str, *, prompt_id: int | None = None) -> pa.Table:
        """The rows of this shard so far, after those that the run had when this worker began."""
        where = None if prompt_id is None else pc.field("prompt_id") == prompt_id
        earlier = (part for part in self._parts if part["table"] == table)
        before = [
            pq.read_table(path, filters=where, page_checksum_verification=True)
            for path in self._ranges.holding(earlier, prompt_id)
        ]
        own = super().read(table, prompt_id=prompt_id)
        return sorting.sort(parquet.together([*before, own]), tables.TABLES[table].keys) if before else own

    def _here(self, part: Mapping[str, Any]) -> Path:
        path = self._run / part["path"]
        if self._remote is not None and not path.exists():
            self._remote.get(part["path"], path, part)
        return path

    def begin(self, size: int, number: int) -> None:
        """From now on the units are those of this shard, of so many that are counted together."""
        folder = self._run / layout.SHARDS / f"{layout.shard_name(size, number)}-{secrets.token_hex(4)}"
        with durable.stated(folder):
            folder.mkdir()  # not its parents: where they are gone, so is the run
            self._backend = Disk(Journal.start(folder, self._state), Limits(seconds=math.inf))
        self._shard, self._done, self.warnings = (size, number), set(), []

    def end(self) -> None:
        """The shard is whole: from now on it can become part of the run. If another worker was first, this one's is dropped."""
        assert self._shard is not None and isinstance(self._backend, Disk), "a shard was begun"
        folder, whole = self._backend.folder, self._run / layout.SHARDS / layout.shard_name(*self._shard)
        with self.unit(shard_unit(*self._shard)):
            pass
        self._backend.flush()
        if self._remote is not None:
            send_shard(self._remote, folder)
            self._forget()
            return
        with durable.stated(folder):
            try:
                folder.rename(whole)
                durable.sync(whole.parent)
            except OSError:
                if not whole.is_dir():
                    raise
                shutil.rmtree(folder, ignore_errors=True)
        self._forget()

    def abandon(self) -> None:
        """Drop what there is of the shard."""
        if self._shard is not None and isinstance(self._backend, Disk):
            with suppress(OSError):
                self._backend.abandon()
            shutil.rmtree(self._backend.folder, ignore_errors=True)
            self._forget()

    def _forget(self) -> None:
        extra = self._backend.extra
        self._shard, self._done, self._backend = None, set(), Memory(extra)
