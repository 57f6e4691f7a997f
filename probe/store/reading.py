"""Rows out of Parquet files, opening only the row groups that can hold them, and one site of one layer as an array."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from probe import tables
from probe.errors import RunError
from probe.store import layout


class HeldGroup(NamedTuple):
    """The last row group of which rows were asked for, by its file and number there: of its columns those that were read."""

    path: Path
    number: int
    columns: dict[str, pa.ChunkedArray]


class TableFiles:
    """The files of one table, opened once: their footers say which row groups can hold a key.

    Of a small table the row group that was read last is held: who goes through a run prompt by prompt finds the next one there.
    """

    def __init__(
        self, folder: Path, files: Sequence[Mapping[str, Any]], table: tables.Table, *, version: int,
        extra: Mapping[str, pa.DataType] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.schema = folder, tables.schema(table.name, extra)
        self._files = list(files)  # as the manifest has them
        self._version = version  # of the schema that the files were written with
        self._promised = {column.name for column in (tables.RUN, *table.columns) if column.since <= version} | set(extra or ())
        self._warned = False
        self._footers: list[tuple[Path, pq.FileMetaData, bool]] | None = None
        self._large, self._held = table.large, HeldGroup(Path(), 0, {})

    def read(self, columns: Sequence[str] | None, where: Mapping[str, Any]) -> pa.Table:
        """Rows where every key has its value, in the order they were written; `columns` of them."""
        wanted = list(columns) if columns is not None else self.schema.names
        needed = list(dict.fromkeys([*wanted, *where]))
        found = [self.schema.empty_table().select(needed)]
        for path, footer, intact in self._open():
            with self._stated(path):
                groups = [g for g in range(footer.num_row_groups) if not intact or _may_hold(footer, g, where)]
                if len(groups) == 1 and where and not self._large:
                    found.append(self._one_group(path, footer, groups[0], needed))
                elif groups:
                    found.append(self._groups(path, footer, groups, needed))
        return filtered(pa.concat_tables(found), where).select(wanted)

    def batches(self, rows: int) -> Any:
        """All rows, a table of at most so many at a time."""
        for path, footer, _ in self._open():
            with self._stated(path), pq.ParquetFile(path, metadata=footer, page_checksum_verification=True) as file:
                for batch in file.iter_batches(rows, columns=self.schema.names):
                    yield self._fitted(pa.Table.from_batches([batch]), self.schema.names)

    def _one_group(self, path: Path, footer: pq.FileMetaData, number: int, columns: list[str]) -> pa.Table:
        held = self._held  # another thread may hold another one meanwhile
        if (held.path, held.number) != (path, number):
            self._held = held = HeldGroup(path, number, {})
        if missing := [name for name in columns if name not in held.columns]:
            table = self._groups(path, footer, [number], missing)
            held.columns.update(zip(missing, table.columns, strict=True))
        schema = self.schema.empty_table().select(columns).schema
        return pa.Table.from_arrays([held.columns[name] for name in columns], schema=schema)

    def _groups(self, path: Path, footer: pq.FileMetaData, groups: list[int], columns: list[str]) -> pa.Table:
        with pq.ParquetFile(path, metadata=footer, page_checksum_verification=True) as file:
            return self._fitted(file.read_row_groups(groups, columns=columns), columns)

    def _fitted(self, table: pa.Table, columns: list[str]) -> pa.Table:
        """The columns in the table's schema; those that the file is too old to have are null."""
        table.validate(full=True)
        kept = self.schema.empty_table().select(columns).schema
        arrays = [
            table[name] if name in table.column_names else pa.nulls(len(table), kept.field(name).type) for name in columns
        ]
        return pa.Table.from_arrays(arrays, schema=kept)

    def _open(self) -> list[tuple[Path, pq.FileMetaData, bool]]:
        """Each file with its footer, and whether that is known to be as it was written: pyarrow ends the process where it is
        asked for the statistics of a damaged one (seen with pyarrow 26). Files of older runs have no hash of it."""
        if self._footers is None:
            footers = []
            for file in self._files:
                path = layout.own(self.folder, file["path"])
                with self._stated(path):
                    if file.get("footer") and layout.footer_hash(path) != file["footer"]:
                        raise ValueError("the footer is another than was written")
                    footer = pq.read_metadata(path)
                    self._compare(path, footer.schema.to_arrow_schema())
                    footers.append((path, footer, bool(file.get("footer"))))
            self._footers = footers
        return self._footers

    def _compare(self, path: Path, found: pa.Schema) -> None:
        """Refuses a file with columns of other types, or with other names in the place of those that its schema promises.
        Warns of columns that no later schema explains: they are passed over."""
        for field in found:
            if field.name in self.schema.names and field.type != self.schema.field(field.name).type:
                raise ValueError(f"column '{field.name}' holds {field.type}")
        unknown = set(found.names) - set(self.schema.names)
        if unknown and self._promised - set(found.names):
            raise ValueError("it has other columns")
        if len(set(found.names)) != len(found.names):
            raise ValueError("a column is there twice")
        if unknown and self._version <= tables.SCHEMA_VERSION and not self._warned:
            self._warned = True
            text = f"'{path}' has columns that this probe does not know, and they are passed over: "
            warnings.warn(text + ", ".join(sorted(unknown)), stacklevel=2)

    def _stated(self, path: Path) -> _Stated:
        return _Stated(self.folder, path)


# what comes out of reading a file that is not what it says: names and statistics are decoded, sizes believed
_PARSING = (OSError, pa.ArrowException, ValueError, LookupError, TypeError, OverflowError, MemoryError)


class _Stated:
    """Damaged and missing files as one clear error."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder, self._path = folder, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise RunError(f"'{self._path}' is missing", hint=f"probe runs check {self._folder}") from error
        if isinstance(error, _PARSING):
            raise RunError(f"'{self._path}' is damaged", hint=f"probe runs check {self._folder}") from error


class PromptRanges:
    """Which prompts the parts of a run that is being made can hold, as their footers say. Each footer is read once."""

    def __init__(self, find: Callable[[Mapping[str, Any]], Path]) -> None:
        """find: where a part is, of its entry in the journal."""
        self._find = find
        self._ranges: dict[str, tuple[int, int] | None] = {}  # of a part's path; None: it does not say

    def holding(self, parts: Iterable[Mapping[str, Any]], prompt_id: int | None) -> list[Path]:
        """Where those parts are that can hold rows of a prompt; of all for None."""
        return [self._find(part) for part in parts if prompt_id is None or self._may_hold(part, prompt_id)]

    def _may_hold(self, part: Mapping[str, Any], prompt_id: int) -> bool:
        if part["path"] not in self._ranges:
            self._ranges[part["path"]] = _range(pq.read_metadata(self._find(part)), "prompt_id")
        found = self._ranges[part["path"]]
        return found is None or found[0] <= prompt_id <= found[1]


def filtered(table: pa.Table, where: Mapping[str, Any]) -> pa.Table:
    """The rows where every key has its value (or one of its values)."""
    for key, value in where.items():
        column = table[key]
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        values = pa.array(_values(value)).cast(column.type)
        mask = pc.is_in(column, value_set=values)
        if not pc.all(mask).as_py():
            table = table.filter(mask)
    return table


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Lists of one width as a (rows, width) array; without a copy when they lie in one chunk."""
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.empty((0, 0), np.float32)
    flat = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    if len(flat) % len(column):
        raise RunError("the run is damaged: its vectors have different widths", hint="probe runs check RUN")
    return flat.reshape(len(column), -1)


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, set, range, np.ndarray)) else [value]


def _may_hold(footer: pq.FileMetaData, group: int, where: Mapping[str, Any]) -> bool:
    rows = footer.row_group(group)
    for key, value in where.items():
        column = _position(footer, key)
        statistics = None if column is None else rows.column(column).statistics
        if statistics is None or not statistics.has_min_max:
            continue
        if all(one < statistics.min or one > statistics.max for one in _values(value)):
            return False
    return True


def _range(footer: pq.FileMetaData, key: str) -> tuple[int, int] | None:
    """The least and the greatest value of a column in all row groups; None where one of them does not say."""
    column = _position(footer, key)
    if column is None:
        return None
    found = [footer.row_group(group).column(column).statistics for group in range(footer.num_row_groups)]
    if not all(one is not None and one.has_min_max for one in found):
        return None
    return min((one.min for one in found), default=0), max((one.max for one in found), default=-1)


def _position(footer: pq.FileMetaData, key: str) -> int | None:
    for i in range(footer.num_columns):
        if footer.schema.column(i).path == key:
            return i
    return None
