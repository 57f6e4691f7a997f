"""Sorted parts into one sorted stream of rows, in memory of a few chunks. Reads Parquet, writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

CHUNK = 65_536  # rows of a result; a row group of the file that is made of them
_BATCH = 8_192


def order(table: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """Row numbers that sort the table by its keys; rows of equal keys stay in order."""
    words = [
        pc.cast(table[key], pa.string()) if pa.types.is_dictionary(table.schema.field(key).type) else table[key]
        for key in keys
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

    Holds the key columns of everything, one chunk, and one batch of each file.
    """
    heads = [pq.read_table(path, columns=list(keys), page_checksum_verification=True) for path in paths]
    owner = np.repeat(np.arange(len(paths)), [head.num_rows for head in heads])
    rows = order(pa.concat_tables(heads), keys)
    del heads
    streams = [_Stream(path) for path in paths]
    try:
        for start in range(0, len(rows), CHUNK):
            owners = owner[rows[start : start + CHUNK]]
            counts = np.bincount(owners, minlength=len(paths))
            taken = pa.concat_tables([streams[i].take(int(n)) for i, n in enumerate(counts) if n])
            back = np.empty(len(owners), np.int64)
            back[np.argsort(owners, kind="stable")] = np.arange(len(owners))
            yield fresh(taken.take(pa.array(back)))
    finally:
        for stream in streams:
            stream.close()


class _Stream:
    """The rows of one file, any number at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: pq.ParquetFile | None = None
        self._tables: list[pa.Table] = []

    def take(self, n: int) -> pa.Table:
        if self._file is None:
            self._file = pq.ParquetFile(self._path, page_checksum_verification=True)
            self._batches = self._file.iter_batches(_BATCH)
        while sum(table.num_rows for table in self._tables) < n:
            self._tables.append(pa.Table.from_batches([next(self._batches)]))
        table = pa.concat_tables(self._tables)
        self._tables = [table.slice(n)]
        return table.slice(0, n)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
