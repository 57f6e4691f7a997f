"""A run while it is being written: units of work that become durable as wholes, and its end. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from probe import durable, tables
from probe.errors import ProbeError, RunError
from probe.store import columns, finishing, joining, layout
from probe.store.backends import Change, Disk, Memory
from probe.store.run import MemoryReader, Run, open_run
from probe.store.uploading import Upload


class Writer:
    """Rows go in by units; `finish` makes the run. Leaving the `with` without it leaves a resumable partial run."""

    def __init__(
        self,
        path: Path | None,
        backend: Disk | Memory,
        state: Mapping[str, Any],
        *,
        lock: layout.Lock | None = None,
        whole: Run | None = None,
        upload: Upload | None = None,
    ) -> None:
        self.path = path
        self._upload = upload
        self.run_id: str = state["run_id"]
        self.whole = whole  # set when there is nothing left to do
        self.warnings: list[str] = list(backend.journal.warnings) if isinstance(backend, Disk) else []
        self._backend, self._state, self._lock = backend, dict(state), lock
        self._done = backend.journal.units if isinstance(backend, Disk) else set()
        self._unit: str | None = None
        self._finished: Run | None = whole

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def address(self) -> Path | str | None:
        """Where the run goes: a URL, or its folder; None if it stays in memory."""
        return self._upload.url if self._upload else self.path

    @property
    def units_done(self) -> int:
        return len(self._done)

    def done(self, key: str) -> bool:
        """Whether this unit's rows are part of the run already."""
        return self.whole is not None or key in self._done

    @contextmanager
    def unit(self, key: str, *, again: bool = False) -> Iterator[None]:
        """One unit of work: its rows become part of the run together, or (on any exception) not at all. `again`: it may be
        done already, and is gone through for what else it finds; its rows are in the run and are not written twice."""
        assert self._unit is None and (again or self._finished is None), "units are not nested, and end with the run"
        known = self.done(key)
        assert again or not known, f"unit {key!r} is already done"
        self._backend.begin()
        self._unit = key
        try:
            yield
        except BaseException:
            self._backend.rollback()
            raise
        finally:
            self._unit = None
        if known:
            self._backend.rollback()
            return
        self._done.add(key)
        self._backend.commit(key)

    def extend(self, table: str, extra: Mapping[str, pa.DataType]) -> None:
        """Give a small table of this run columns beside its declared ones; before its first row, and at each resume again.

        RunError where the run was begun with others.
        """
        before = self.whole.extra(table) if self.whole else self._backend.extra.get(table, {})
        if list(before.items()) == list(extra.items()):
            return
        if self.whole or before or self._backend.has_rows(table):
            what = f"the columns {', '.join(before) or 'of no file'} in '{table}', not {', '.join(extra) or 'those of no file'}"
            raise RunError(f"'{self.path}' was made with {what}", hint="give the same arguments, or choose another --out")
        words = {name: tables.type_in_words(kind) for name, kind in extra.items()}
        self._state["columns"] = {**self._state.get("columns", {}), table: words}
        self._backend.extra[table] = dict(extra)
        if isinstance(self._backend, Disk):
            with durable.stated(self._backend.folder):
                self._backend.journal.extend(self._state["columns"])

    def write(self, table: str, values: Mapping[str, Any] | pa.Table, *, store: str = "exact") -> None:
        """Append rows to a table, inside a unit. `store="bf16"` rounds float32 to bfloat16 (see `columns.build`).

        A call with many rows of a large table becomes a row group, so write what is read together: one site of one
        layer, positions ascending.
        """
        assert self._unit is not None, "rows are written inside a unit"
        n = max((len(v) for v in _lengthy(values)), default=1)
        keep = self._backend.keeps(table, n)
        extra = self._backend.extra.get(table)
        rows = columns.build(table, values, run_id=self.run_id, store=store, copy=keep, extra=extra)
        self._backend.append(table, rows, store=store)

    def warn(self, text: str) -> None:
        """Say something in the manifest, once."""
        if text not in self.warnings:
            self.warnings.append(text)
            if isinstance(self._backend, Disk):
                self._backend.warnings.append(text)

    def amend(self, table: str, change: Change) -> None:
        """From now on the rows of a small table are read, and at the end written, as `change` makes them of any some of them:
        it keeps their order, their keys and their columns. A resumed run has to be told again."""
        assert not tables.TABLES[table].large, f"'{table}' is written as it comes"
        self._backend.changes[table] = change

    def read(self, table: str, *, prompt_id: int | None = None) -> pa.Table:
        """The rows of a small table so far (of one prompt), by key, those of earlier sessions included: for the summary."""
        if self.whole is None:
            return self._backend.read(table, prompt_id)
        if table not in self.whole.tables:
            return tables.schema(table).empty_table()
        return self.whole.table_arrow(table) if prompt_id is None else self.whole.scan(table, prompt_id=prompt_id)

    def batches(self, table: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """What `read` reads, in pieces of which one at a time is held, in any order; these columns of it."""
        if self.whole is None:
            return self._backend.batches(table, columns)
        found = self.whole.batches(table) if table in self.whole.tables else iter(())
        return (piece.select(list(columns)) for piece in found)

    def share(self) -> Path | None:
        """The folder of this run, of which workers may write shards from now on (`sharing.shard_writer`); None in memory."""
        if not isinstance(self._backend, Disk):
            return None
        self.flush()  # what workers may ask for
        self._workers.prepare()
        return self._backend.folder

    @cached_property
    def _workers(self) -> joining.LocalShards | joining.RemoteShards:
        """What workers have written."""
        assert isinstance(self._backend, Disk), "workers write to the folder of a run"
        folder = self._backend.folder
        return joining.RemoteShards(self._upload, folder) if self._upload else joining.LocalShards(folder)

    @property
    def shards(self) -> list[str]:
        """The names of the shards that workers have finished and that are not part of the run yet."""
        return self._workers.names() if isinstance(self._backend, Disk) else []

    def join(self, name: str) -> bool:
        """Make a finished shard part of the run; False where it was not whole, or part of the run already, and is gone."""
        assert self._unit is None and isinstance(self._backend, Disk), "shards are joined between units, on a disk"
        if self.done(layout.shard_unit(name)):  # a second worker finished it too
            self._workers.drop(name)
            return False
        if not joining.join(self._backend, self._workers, name):
            return False
        record = self._backend.journal.records[-1]
        self._done.update(record["units"])
        self.warnings = list(dict.fromkeys([*self.warnings, *record["warnings"]]))
        return True

    def flush(self) -> None:
        """Put the finished units on the disk now."""
        if isinstance(self._backend, Disk):
            self._backend.flush()

    def finish(
        self,
        *,
        summary: Mapping[str, Any],
        model: Mapping[str, Any] | None = None,
        anatomy: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Run:
        """Write the manifest and give the folder its name. `more` (seed, parent, …) goes into the manifest as it is."""
        if self._finished is not None:
            return self._finished
        assert self._unit is None, "finish comes after the units"
        about = {"model": model, "anatomy": anatomy, "summary": summary, **more, "warnings": self.warnings}
        if isinstance(self._backend, Disk):
            assert self.path is not None
            with durable.stated(self.path), durable.uninterrupted():
                finishing.finish(self.path, self._backend, self._state, about)
            if self._upload is not None:
                self._upload.finish()
            self._finished = open_run(self._upload.url if self._upload else self.path)
            self.close()
        else:
            found = {name: self._backend.read(name) for name in self._backend.rows if not tables.TABLES[name].passing}
            self._finished = Run(MemoryReader(found), finishing.in_memory(self._state, about, found))
        return self._finished

    def close(self) -> None:
        """Let go of the folder. What is finished stays for --resume; a run in which nothing was is removed."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if self._finished is None and isinstance(self._backend, Disk):
            with suppress(ProbeError, OSError):
                self._backend.flush()
            with suppress(OSError):
                self._backend.abandon()
                if not self._backend.journal.records and not layout.shards(self._backend.folder):
                    finishing.discard(self._backend.folder)
                    if self._upload is not None:
                        self._upload.discard()
        lock.release()
        if self._upload is not None:
            self._upload.close()
        if self._finished is not None and self.path is not None:
            (self.path / layout.LOCK).unlink(missing_ok=True)


def _lengthy(values: Mapping[str, Any] | pa.Table) -> list[Any]:
    if isinstance(values, pa.Table):
        return [values]
    return [v for v in values.values() if hasattr(v, "__len__") and not isinstance(v, (str, bytes))]
