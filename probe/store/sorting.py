"""Sorted parts into one sorted stream of rows, in memory of a few chunks. Reads Parquet, writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

CHUNK = 65_536  # rows of a result; a row group of the file that is made of them
_BATCH = 8_192


def order(table: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """Row numbers that sort the table by its keys; rows of equal keys stay in order."""
    words = [
        pc.cast(table[key], pa.string()) if pa.types.is_dictionary(table.schema.field(key).type) else table[key] for key in keys
    ]
    plain = pa.table(words, names=list(keys))
    return pc.sort_indices(plain, sort_keys=[(key, "ascending") for key in keys]).to_numpy()


def sort(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The rows by key, with fresh dictionaries (in order of appearance), so that equal rows give equal bytes."""
    rows = order(table, keys)
    if not np.array_equal(rows, np.arange(len(rows))):
        table = table.take(pa.array(rows))
    return fresh(table)


def fresh(table: pa.Table) -> pa.Table:
    """One chunk a column, dictionaries made anew."""
    table = table.combine_chunks()
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            words = pc.cast(table[i], field.type.value_type).combine_chunks().dictionary_encode()
            table = table.set_column(i, field, words.cast(field.type))
    return table


def merged(paths: Sequence[Path], keys: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of files that are each sorted by `keys`, sorted over all of them, CHUNK rows at a time.

    Holds one chunk, one batch of each file, and, unless each file follows the one before, the key columns of everything.
    """
    streams = [_Stream(path) for path in paths]
    try:
        for owners in _in_turn(paths) if _follow(paths, keys) else _mixed(paths, keys):
            counts = np.bincount(owners, minlength=len(paths))
            taken = pa.concat_tables([streams[i].take(int(n)) for i, n in enumerate(counts) if n])
            back = np.empty(len(owners), np.int64)
            back[np.argsort(owners, kind="stable")] = np.arange(len(owners))
            yield fresh(taken.take(pa.array(back)))
    finally:
        for stream in streams:
            stream.close()


def _mixed(paths: Sequence[Path], keys: Sequence[str]) -> Iterator[np.ndarray]:
    """Of which file each row of the result is, CHUNK rows at a time."""
    heads = [pq.read_table(path, columns=list(keys), page_checksum_verification=True) for path in paths]
    owner = np.repeat(np.arange(len(paths)), [head.num_rows for head in heads])
    rows = order(pa.concat_tables(heads), keys)
    del heads
    for start in range(0, len(rows), CHUNK):
        yield owner[rows[start : start + CHUNK]]


def _in_turn(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """The same where the files are one after the other."""
    ends = np.cumsum([pq.read_metadata(path).num_rows for path in paths])
    for start in range(0, int(ends[-1]), CHUNK):
        yield np.searchsorted(ends, np.arange(start, min(start + CHUNK, int(ends[-1]))), side="right")


def _follow(paths: Sequence[Path], keys: Sequence[str]) -> bool:
    """Whether no row of a file comes before one of an earlier file."""
    edges = [edge for path in paths for edge in _edges(path, keys)]
    return all(a <= b for a, b in pairwise(edges))


def _edges(path: Path, keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """The keys of a file's first and last row, if it has any."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        groups = [g for g in range(file.num_row_groups) if file.metadata.row_group(g).num_rows]
        ends = [file.read_row_group(group, columns=list(keys)) for group in (*groups[:1], *groups[-1:])]
    rows = [row for table, at in zip(ends, (0, -1), strict=False) for row in table.take([at % len(table)]).to_pylist()]
    return [tuple((row[key] is None, row[key]) for key in keys) for row in rows]  # nulls are the last


class _Stream:
    """The rows of one file, any number at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: pq.ParquetFile | None = None
        self._tables: list[pa.Table] = []
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._left = 0

    def take(self, n: int) -> pa.Table:
        if self._file is None:
            self._file = pq.ParquetFile(self._path, page_checksum_verification=True)
            self._batches = self._file.iter_batches(_BATCH)
            self._left = self._file.metadata.num_rows
        while sum(table.num_rows for table in self._tables) < n:
            self._tables.append(pa.Table.from_batches([next(self._batches)]))
        table = pa.concat_tables(self._tables)
        self._tables, self._left = [table.slice(n)], self._left - n
        if not self._left:
            self.close()  # there may be more files than a process may have open, or memory holds
        return table.slice(0, n)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._tables, self._batches = None, [], iter(())
