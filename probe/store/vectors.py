"""Parquet files of exact float32 lists, written as fast as a disk takes them. Knows one page layout, reads nothing.

Exact activations and whole rows of attention hardly compress (27 of 32 bits), and a general Parquet writer spends four
times the time of hashing and writing on levels and copies. Here the values go from where they lie to the file: plain,
uncompressed pages whose levels are one short run a row. Everything else is as pyarrow writes it: the schema and the
metadata are copied from an empty file of its making. Source: apache/parquet-format, README, Encodings.md, parquet.thrift.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from probe.store import pages
from probe.store import thrift as t

_PAGE_BYTES = 2 << 20


def fits(table: pa.Table) -> bool:
    """Whether this writer is for such rows: float32 lists, all other lists null, and words, small integers and floats."""
    lists = [column for column in table.columns if pa.types.is_list(column.type)]
    held = [column.type.value_type for column in lists if column.null_count < len(column)]
    leaves = [c.type.value_type if pa.types.is_list(c.type) else c.type for c in table.columns]
    return held == [pa.float32()] and all(pages.physical(leaf) is not None for leaf in leaves)


class VectorWriter:
    """Writes tables of a schema that `fits` into a sink; the counterpart of `pq.ParquetWriter`."""

    def __init__(self, write: Callable[[bytes | memoryview], int], schema: pa.Schema) -> None:
        self._write, self._schema = write, schema
        self._at = 0
        self._groups: list[_Group] = []
        self._put(b"PAR1")

    def write_table(self, table: pa.Table) -> None:
        """One row group."""
        table = table.combine_chunks()
        start = self._at
        chunks = [self._chunk(field, table[i].chunk(0)) for i, field in enumerate(self._schema)] if len(table) else []
        if chunks:
            self._groups.append(_Group(chunks, len(table), start, self._at - start))

    def close(self) -> None:
        """Page index and footer."""
        chunks = [chunk for group in self._groups for chunk in group.chunks]
        for chunk in chunks:
            chunk.column_index = self._index(chunk.bounds_index())
        for chunk in chunks:
            chunk.offset_index = self._index(chunk.pages_index())
        template = _template(self._schema)
        groups = [group.described(i) for i, group in enumerate(self._groups)]
        footer = t.struct({
            1: template[1], 2: template[2], 3: t.i64(sum(group.rows for group in self._groups)),
            4: t.many(t.STRUCT, groups), 5: template[5], 6: t.binary("mechprobe version 1"), 7: template[7],
        })  # fmt: skip
        self._put(footer.data + struct.pack("<i", len(footer.data)) + b"PAR1")

    def _put(self, data: bytes | memoryview) -> None:
        """Append; `data` is of bytes."""
        self._write(data)
        self._at += len(data)

    def _index(self, value: t.Value | None) -> tuple[int, int] | None:
        if value is None:
            return None
        start = self._at
        self._put(value.data)
        return start, len(value.data)

    def _chunk(self, field: pa.Field, array: pa.Array) -> _Chunk:
        chunk = _Chunk(field, self._at, len(array))
        if pa.types.is_list(field.type):
            self._vectors(chunk, array)
        else:
            self._flat(chunk, array)
        chunk.bytes = self._at - chunk.start
        return chunk

    def _flat(self, chunk: _Chunk, array: pa.Array) -> None:
        key = pages.Flat(array)
        encoded = pages.encoded(key)
        chunk.values, chunk.nulls, chunk.bounds = len(array), array.null_count, encoded.bounds
        if encoded.words is not None:
            chunk.dictionary_at = self._at
            self._put(encoded.words)
        chunk.pages.append(_Page(self._at, len(encoded.data), 0))
        self._put(encoded.data)

    def _vectors(self, chunk: _Chunk, array: pa.ListArray) -> None:
        """Levels as one or two runs a row, values from where they are."""
        offsets, number = array.offsets.to_numpy(), pages.NUMBERS[_leaf(array.type)]
        values = np.ascontiguousarray(array.values.to_numpy(zero_copy_only=False), dtype=number)
        null = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else np.zeros(len(array), bool)
        chunk.nulls = -1  # of its leaves; not said, like their bounds
        for row, end in _paged(offsets):
            rep, define, n = pages.levels(np.diff(offsets[row : end + 1]), null[row:end])
            body = values[offsets[row] : offsets[end]].view(np.uint8).data
            start = self._at
            self._put(pages.data_page(n, pages.PLAIN, pages.sized(rep) + pages.sized(define), body))
            self._put(body)
            chunk.pages.append(_Page(start, self._at - start, row))
            chunk.values += n


class _Page(NamedTuple):
    at: int
    bytes: int
    first_row: int


class _Chunk:
    """One column of one row group, and where it went."""

    def __init__(self, field: pa.Field, start: int, rows: int) -> None:
        self.field, self.start, self.rows = field, start, rows
        self.bytes = self.values = self.nulls = 0
        self.pages: list[_Page] = []
        self.bounds: tuple[bytes, bytes] | None = None
        self.dictionary_at: int | None = None
        self.column_index: tuple[int, int] | None = None
        self.offset_index: tuple[int, int] | None = None

    def bounds_index(self) -> t.Value | None:
        """ColumnIndex: flat columns have one page, so its bounds are the chunk's."""
        return None if self.bounds is None else _bounds_index(self.nulls, self.bounds)

    def pages_index(self) -> t.Value:
        """OffsetIndex."""
        places = [t.struct({1: t.i64(p.at), 2: t.i32(p.bytes), 3: t.i64(p.first_row)}) for p in self.pages]
        return t.struct({1: t.many(t.STRUCT, places)})

    def described(self) -> t.Value:
        """ColumnChunk."""
        meta = t.struct({
            **_head(self.field, self.dictionary_at is not None), 5: t.i64(self.values),
            6: t.i64(self.bytes), 7: t.i64(self.bytes), 9: t.i64(self.pages[0].at),
            11: None if self.dictionary_at is None else t.i64(self.dictionary_at),
            12: _statistics(self.nulls, self.bounds),
        })  # fmt: skip
        offsets, bounds = self.offset_index, self.column_index
        return t.struct({
            2: t.i64(0), 3: meta,
            4: t.i64(offsets[0]) if offsets else None, 5: t.i32(offsets[1]) if offsets else None,
            6: t.i64(bounds[0]) if bounds else None, 7: t.i32(bounds[1]) if bounds else None,
        })  # fmt: skip


class _Group(NamedTuple):
    chunks: list[_Chunk]
    rows: int
    start: int
    bytes: int

    def described(self, number: int) -> t.Value:
        """RowGroup."""
        columns = t.many(t.STRUCT, [chunk.described() for chunk in self.chunks])
        return t.struct({
            1: columns, 2: t.i64(self.bytes), 3: t.i64(self.rows), 5: t.i64(self.start), 6: t.i64(self.bytes),
            7: t.i16(number),
        })  # fmt: skip


def _paged(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Rows of each page: at least one, and no more than fill it."""
    row, rows = 0, len(offsets) - 1
    while row < rows:
        full = int(np.searchsorted(offsets, offsets[row] + _PAGE_BYTES // 4, side="right")) - 1
        end = max(row + 1, min(full, rows))
        yield row, end
        row = end


def _leaf(type: pa.DataType) -> int:
    """The physical type of a column, or of its lists' elements."""
    physical = pages.physical(type.value_type if pa.types.is_list(type) else type)
    assert physical is not None, f"{type} is not for this writer"
    return physical


@lru_cache(maxsize=64)
def _head(field: pa.Field, has_dictionary: bool) -> dict[int, t.Value]:
    """What ColumnMetaData says of a column in every row group: type, encodings, path, codec."""
    path = [field.name, "list", "element"] if pa.types.is_list(field.type) else [field.name]
    encodings = [pages.RLE, pages.PLAIN] + ([pages.RLE_DICTIONARY] if has_dictionary else [])
    return {
        1: t.i32(_leaf(field.type)),
        2: t.many(t.I32, [t.i32(encoding) for encoding in encodings]),
        3: t.many(t.BINARY, [t.binary(name) for name in path]),
        4: t.i32(0),
    }


@lru_cache(maxsize=256)
def _bounds_index(nulls: int, bounds: tuple[bytes, bytes]) -> t.Value:
    low, high = (t.many(t.BINARY, [t.binary(bound)]) for bound in bounds)
    return t.struct({1: t.flags([False]), 2: low, 3: high, 4: t.i32(0), 5: t.many(t.I64, [t.i64(nulls)])})


@lru_cache(maxsize=256)
def _statistics(nulls: int, bounds: tuple[bytes, bytes] | None) -> t.Value:
    low, high = bounds or (None, None)
    return t.struct({
        3: t.i64(nulls) if nulls >= 0 else None,
        5: None if high is None else t.binary(high), 6: None if low is None else t.binary(low),
    })  # fmt: skip


@lru_cache(maxsize=8)
def _template(schema: pa.Schema) -> dict[int, t.Value]:
    """The footer of an empty file of this schema, as pyarrow writes it: schema, metadata, column orders."""
    out = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), out)
    data = out.getvalue().to_pybytes()
    length = struct.unpack("<i", data[-8:-4])[0]
    return t.fields(data[-8 - length : -8])
