"""Where a writer puts its rows: a partial folder on the disk, or memory. Knows parts and units, no manifest."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from probe import durable, tables
from probe.errors import StorageFull
from probe.store import layout, parquet, reading, sorting
from probe.store.journal import Journal

JOINED = 64  # tables of units that become one
BATCH = 8_192  # rows of a piece of a table


Change = Callable[[pa.Table], pa.Table]
"""Makes other rows of any some rows of a table, of which it keeps the order, the keys and the columns."""


class Limits(NamedTuple):
    """When finished units are put on the disk, and when a part file is full."""

    seconds: float = 60.0
    bytes: int = 128 << 20
    part_bytes: int = 512 << 20
    part_groups: int = 1500  # a row group costs about 500 bytes of footer


Extra = dict[str, Mapping[str, pa.DataType]]
"""Tables of one run, and the columns that each of them has beside its declared ones."""


class Backend(Protocol):
    """Rows come in between `begin` and `commit` or `rollback`, and go out as `changes` makes them."""

    changes: dict[str, Change]

    extra: Extra

    def keeps(self, name: str, rows: int) -> bool: ...
    def begin(self) -> None: ...
    def append(self, name: str, table: pa.Table, *, store: str = "exact") -> None: ...
    def commit(self, key: str) -> None: ...
    def rollback(self) -> None: ...
    def has_rows(self, name: str) -> bool: ...
    def read(self, name: str) -> pa.Table: ...
    def batches(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]: ...


def extra_of(about: Mapping[str, Any]) -> Extra:
    """The extra columns that a run's state or manifest tells of."""
    told = about.get("columns", {})
    return {table: {name: tables.type_of_words(words) for name, words in own.items()} for table, own in told.items()}


class Memory:
    """Rows in memory; nothing is ever on the disk."""

    def __init__(self, extra: Extra | None = None) -> None:
        self.extra: Extra = {} if extra is None else extra
        self.rows: defaultdict[str, list[pa.Table]] = defaultdict(list)
        self._joined: defaultdict[str, int] = defaultdict(int)  # how many of the first tables are of many units
        self._mark: dict[str, int] = {}
        self.changes: dict[str, Change] = {}

    def keeps(self, name: str, rows: int) -> bool:
        return True

    def has_rows(self, name: str) -> bool:
        """Whether a table has any row."""
        return name in self.rows

    def begin(self) -> None:
        self._mark = {name: len(rows) for name, rows in self.rows.items()}

    def append(self, name: str, table: pa.Table, *, store: str = "exact") -> None:
        self.rows[name].append(table)

    def commit(self, key: str) -> None:
        self._mark = {}
        for name, rows in self.rows.items():
            if len(rows) - self._joined[name] >= JOINED:  # a table of few rows is mostly the table
                rows[self._joined[name] :] = [parquet.together(rows[self._joined[name] :])]
                self._joined[name] += 1

    def rollback(self) -> None:
        for name in list(self.rows):
            del self.rows[name][self._mark.get(name, 0) :]
            if not self.rows[name]:
                del self.rows[name]

    def read(self, name: str, prompt_id: int | None = None) -> pa.Table:
        """All rows so far, or those of one prompt; small tables by key."""
        if name not in self.rows:
            return tables.schema(name, self.extra.get(name)).empty_table()
        table = parquet.together([_of_prompt(rows, prompt_id) for rows in self.rows[name]])
        return table if tables.TABLES[name].large else _changed(self, name, sorting.sort(table, tables.TABLES[name].keys))

    def batches(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """All rows so far, in pieces."""
        return (_changed(self, name, table).select(list(columns)) for table in self.rows.get(name, ()))


def _changed(backend: Backend, name: str, rows: pa.Table) -> pa.Table:
    return backend.changes[name](rows) if name in backend.changes else rows


def _of_prompt(rows: pa.Table, prompt_id: int | None) -> pa.Table:
    return rows if prompt_id is None else rows.filter(pc.equal(rows["prompt_id"], prompt_id))


class Disk:
    """Rows of finished units in part files, each named by a journal record once it is safe."""

    def __init__(self, journal: Journal, limits: Limits) -> None:
        self.journal, self.limits = journal, limits
        self.folder = journal.folder
        self.warnings: list[str] = []
        self.extra: Extra = extra_of(journal.state)
        self._small = Memory(self.extra)
        self._small_bytes = 0  # of units that wait; those of a unit that failed are counted too
        self._large: defaultdict[str, list[parquet.PartWriter]] = defaultdict(list)
        self._units: list[str] = []
        self._mark: dict[str, tuple[int, int]] = {}
        self._flushed = time.monotonic()
        self._failed: StorageFull | None = None
        self._ranges = reading.PromptRanges(lambda part: self.folder / part["path"])
        self.changes: dict[str, Change] = {}

    def keeps(self, name: str, rows: int) -> bool:
        return not tables.TABLES[name].large or rows < parquet.COALESCE_ROWS

    def begin(self) -> None:
        if self._failed:
            raise self._failed
        self._small.begin()
        self._mark = {name: (len(open_), open_[-1].rows) for name, open_ in self._large.items()}

    def append(self, name: str, table: pa.Table, *, store: str = "exact") -> None:
        if not tables.TABLES[name].large:
            self._small.append(name, table)
            self._small_bytes += table.nbytes
            return
        with self._guarded(), durable.uninterrupted():
            self._part(name, plain=store == "exact" and parquet.plainly(table)).append(table)

    def commit(self, key: str) -> None:
        self._units.append(key)
        self._small.commit(key)
        held = self._small_bytes + sum(part.bytes for open_ in self._large.values() for part in open_)
        if held >= self.limits.bytes or time.monotonic() - self._flushed >= self.limits.seconds:
            self.flush()

    def rollback(self) -> None:
        self._small.rollback()
        for name in list(self._large):
            count, rows = self._mark.get(name, (0, 0))
            for part in self._large[name][count:]:
                part.abandon()
            del self._large[name][count:]
            if not self._large[name]:
                del self._large[name]
            else:
                self._large[name][-1].drop(rows)

    def flush(self) -> None:
        """Put the finished units on the disk. Not inside a unit."""
        if self._failed:
            raise self._failed
        if not self._units:
            return
        with self._guarded(), durable.uninterrupted():
            sealed = self.seal_large() + self._write_small()
            durable.sync(self.folder)
            self.journal.record(self._units, sealed, self.warnings)
            self._forget()

    def abandon(self) -> None:
        """Remove what no record names."""
        for open_ in self._large.values():
            for part in open_:
                part.abandon()
        self._forget()

    def batches(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """All rows of a small table so far, in pieces."""
        needed = self.schema(name).names if name in self.changes else list(columns)
        for path in self._paths(name):
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(BATCH, columns=needed):
                    yield _changed(self, name, pa.Table.from_batches([batch])).select(list(columns))
        for table in self._small.batches(name, needed):
            yield _changed(self, name, table).select(list(columns))

    def _paths(self, name: str, prompt_id: int | None = None) -> list[Path]:
        """The parts of a small table; for a prompt those that can hold rows of it."""
        assert not tables.TABLES[name].large, f"'{name}' is read when the run is finished"
        return self._ranges.holding(self.journal.parts_of(name), prompt_id)

    def read(self, name: str, prompt_id: int | None = None) -> pa.Table:
        """All rows of a small table so far, or those of one prompt: those on the disk and those that wait."""
        where = None if prompt_id is None else pc.field("prompt_id") == prompt_id
        found = [pq.read_table(path, page_checksum_verification=True, filters=where) for path in self._paths(name, prompt_id)]
        found += [_of_prompt(rows, prompt_id) for rows in self._small.rows.get(name, [])]
        if not found:
            return self.schema(name).empty_table()
        return _changed(self, name, sorting.sort(parquet.together(found), tables.TABLES[name].keys))

    def schema(self, name: str) -> pa.Schema:
        """Of a table of this run."""
        return tables.schema(name, self.extra.get(name))

    def has_rows(self, name: str) -> bool:
        """Whether a small table has any row."""
        return bool(self.journal.parts_of(name)) or name in self._small.rows

    def _forget(self) -> None:
        self._small, self._small_bytes, self._units, self.warnings = Memory(self.extra), 0, [], []
        self._large.clear()
        self._flushed = time.monotonic()

    def _guarded(self) -> Any:
        return _Guard(self)

    def fail(self, error: StorageFull) -> None:
        """After a failed write nothing more is written: what is on the disk is the run so far."""
        self._failed = error
        with suppress(OSError):
            self.abandon()

    def _part(self, name: str, *, plain: bool) -> parquet.PartWriter:
        open_ = self._large[name]
        if open_ and open_[-1].plain == plain and not self._full(open_[-1]):
            return open_[-1]
        if open_:
            open_[-1].close()
        (self.folder / name).mkdir(exist_ok=True)
        number = self.journal.next_part(name) + len(open_)
        open_.append(parquet.PartWriter(self.folder / name / f"part-{number:05d}.parquet", self.schema(name), plain=plain))
        return open_[-1]

    def _full(self, part: parquet.PartWriter) -> bool:
        return part.bytes >= self.limits.part_bytes or part.groups >= self.limits.part_groups

    def small_names(self) -> list[str]:
        return sorted(self._small.rows)

    def seal_large(self) -> list[dict[str, Any]]:
        """Close the open parts under their own names: table, path, rows, bytes, hash of each."""
        sealed = []
        for name, open_ in sorted(self._large.items()):
            for part in open_:
                rows, written = part.seal()
                sealed.append(self._entry(name, part.path, rows, written))
            durable.sync(self.folder / name)
        return sealed

    def _write_small(self) -> list[dict[str, Any]]:
        sealed = []
        for name in sorted(self._small.rows):
            (self.folder / name).mkdir(exist_ok=True)
            path = self.folder / name / f"part-{self.journal.next_part(name):05d}.parquet"
            rows, written = parquet.write_file(path, self.schema(name), [self._small.read(name)])
            sealed.append(self._entry(name, path, rows, written))
        return sealed

    def _entry(self, name: str, path: Path, rows: int, written: durable.Written) -> dict[str, Any]:
        inside = path.relative_to(self.folder).as_posix()
        return {"table": name, "path": inside, "rows": rows, **written._asdict(), "footer": layout.footer_hash(path)}


class _Guard:
    """States disk errors, and marks the backend as failed."""

    def __init__(self, backend: Disk) -> None:
        self._backend = backend
        self._stated = durable.stated(backend.folder)

    def __enter__(self) -> None:
        self._stated.__enter__()

    def __exit__(self, *exc: Any) -> None:
        try:
            self._stated.__exit__(*exc)
        except StorageFull as error:
            self._backend.fail(error)
            raise
        if isinstance(exc[1], StorageFull):  # stated already
            self._backend.fail(exc[1])
