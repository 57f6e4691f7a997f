"""Rows out of Parquet parts, opening only the row groups that can hold them. Knows keys, no runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from probe.errors import RunError


class Parts:
    """The files of one table, opened once: their footers say which row groups can hold a key."""

    def __init__(self, folder: Path, inside: Sequence[str], schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        self._inside = list(inside)
        self._footers: list[tuple[Path, pq.FileMetaData]] | None = None

    def read(self, columns: Sequence[str] | None, where: Mapping[str, Any]) -> pa.Table:
        """Rows where every key has its value, in the order they were written; `columns` of them."""
        wanted = list(columns) if columns is not None else self.schema.names
        needed = list(dict.fromkeys([*wanted, *where]))
        found = []
        for path, footer in self._open():
            groups = [g for g in range(footer.num_row_groups) if _may_hold(footer, g, where)]
            if groups:
                found.append(self._groups(path, footer, groups, needed))
        table = pa.concat_tables(found) if found else self.schema.empty_table().select(needed)
        return filtered(table, where).select(wanted).replace_schema_metadata(self.schema.metadata)

    def batches(self, rows: int) -> Any:
        """All rows, a table of at most so many at a time."""
        for path, footer in self._open():
            with self._stated(path), pq.ParquetFile(path, metadata=footer, page_checksum_verification=True) as file:
                for batch in file.iter_batches(rows):
                    yield pa.Table.from_batches([batch])

    def _groups(self, path: Path, footer: pq.FileMetaData, groups: list[int], columns: list[str]) -> pa.Table:
        with self._stated(path), pq.ParquetFile(path, metadata=footer, page_checksum_verification=True) as file:
            return file.read_row_groups(groups, columns=columns)

    def _open(self) -> list[tuple[Path, pq.FileMetaData]]:
        if self._footers is None:
            footers = []
            for name in self._inside:
                path = self.folder / name
                with self._stated(path):
                    footers.append((path, pq.read_metadata(path)))
            self._footers = footers
        return self._footers

    def _stated(self, path: Path) -> _Stated:
        return _Stated(self.folder, path)


class _Stated:
    """Damaged and missing files as one clear error."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder, self._path = folder, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise RunError(f"'{self._path}' is missing", hint=f"probe runs check {self._folder}") from error
        if isinstance(error, (OSError, pa.ArrowException)):
            raise RunError(f"'{self._path}' is damaged", hint=f"probe runs check {self._folder}") from error


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
    assert len(flat) % len(column) == 0, "rows of different widths"
    return flat.reshape(len(column), -1)


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, set, range, np.ndarray)) else [value]


def _may_hold(footer: pq.FileMetaData, group: int, where: Mapping[str, Any]) -> bool:
    rows = footer.row_group(group)
    for key, value in where.items():
        statistics = rows.column(_position(footer, key)).statistics
        if statistics is None or not statistics.has_min_max:
            continue
        if all(one < statistics.min or one > statistics.max for one in _values(value)):
            return False
    return True


def _position(footer: pq.FileMetaData, key: str) -> int:
    for i in range(footer.num_columns):
        if footer.schema.column(i).path == key:
            return i
    raise AssertionError(f"no flat column {key!r}")
