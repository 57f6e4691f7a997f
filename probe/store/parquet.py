"""One Parquet file: how it is encoded, and a part that can forget its last rows. Knows no runs or journals."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from probe import durable

COALESCE_ROWS = 256  # fewer rows than this wait for more, or every row group would cost more than it holds
_GROUP_BYTES = 16 << 20


def options(schema: pa.Schema, *, plain: bool) -> dict[str, Any]:
    """Encodings: floats split by bytes and zstd, all else a dictionary; statistics of flat columns only.

    plain: lists of floats as they lie in memory. Exact ones hardly compress (27 of 32 bits), and take half as long so.
    """
    floats: list[str] = []
    others: list[str] = []
    flat: list[str] = []
    packed: dict[str, str] = {}
    for path, leaf, nested in (found for field in schema for found in _leaves(field.name, field.type)):
        as_is = plain and nested and pa.types.is_floating(leaf)
        packed[path] = "none" if as_is else "zstd"
        if not pa.types.is_floating(leaf):
            others.append(path)
        elif not as_is:
            floats.append(path)
        if not nested:
            flat.append(path)
    return {
        "compression": packed,
        "compression_level": {path: 1 for path, how in packed.items() if how == "zstd"},
        "use_dictionary": others,
        "use_byte_stream_split": floats,
        "write_statistics": flat,
        "write_page_index": True,
        "write_page_checksum": True,
        "write_batch_size": 1 << 18,
    }


def _leaves(path: str, kind: pa.DataType, *, nested: bool = False) -> Iterator[tuple[str, pa.DataType, bool]]:
    """The columns of values that Parquet makes of one: path, type, and whether they are inside of a list or a struct."""
    if pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type, nested=True)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type, nested=True)
    else:
        yield path, kind, nested


def plainly(table: pa.Table) -> bool:
    """Whether exact rows are stored plain: their only lists are of floats, as vectors and whole rows of attention are."""
    lists = [column for column in table.columns if pa.types.is_list(column.type) and column.null_count < len(column)]
    return bool(lists) and all(pa.types.is_floating(column.type.value_type) for column in lists)


def group_rows(table: pa.Table) -> int:
    """Rows of a row group: all of them, or about 16 MB."""
    each = max(1, table.nbytes // max(1, table.num_rows))
    return max(1, min(table.num_rows, max(512, _GROUP_BYTES // each)))


class FileWriter:
    """A Parquet file under its temporary name, written through the hashing sink. `plain`: see `options`."""

    def __init__(self, path: Path, schema: pa.Schema, *, plain: bool = False) -> None:
        self.path = path
        self._sink = durable.HashedFile(durable.temporary(path))
        self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), schema, **options(schema, plain=plain))

    @property
    def bytes(self) -> int:
        return self._sink.tell()

    def write(self, table: pa.Table) -> int:
        """Append rows; how many row groups they became."""
        size = group_rows(table)
        self._writer.write_table(table, row_group_size=size)
        return -(-table.num_rows // size)

    def seal(self) -> durable.Written:
        """Write the footer and sync; still under the temporary name."""
        self._writer.close()
        return self._sink.seal()

    def abandon(self) -> None:
        self._writer.is_open = False  # its destructor must not write a footer
        self._sink.abandon()


def write_file(path: Path, schema: pa.Schema, batches: Any) -> tuple[int, durable.Written]:
    """Write one whole file durably from an iterator of tables: its rows, size and hash."""
    file, rows = FileWriter(path, schema), 0
    try:
        for table in batches:
            file.write(table)
            rows += table.num_rows
        written = file.seal()
    except BaseException:
        file.abandon()
        raise
    durable.settle(path)
    durable.sync(path.parent)
    return rows, written


class _Counted(io.RawIOBase):
    """A stream that is written once from its start to its end, such as a pipe, with a place in it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._at = stream, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        self._stream.write(data)
        self._at += len(data)
        return len(data)


def write_stream(stream: BinaryIO, schema: pa.Schema, batches: Any) -> int:
    """Write one whole file into a stream, which stays open: its rows."""
    writer = pq.ParquetWriter(pa.PythonFile(_Counted(stream), mode="w"), schema, **options(schema, plain=False))
    rows = 0
    try:
        for table in batches:
            writer.write_table(table, row_group_size=group_rows(table))
            rows += table.num_rows
    except BaseException:
        writer.is_open = False  # its destructor must not write a footer
        raise
    writer.close()
    stream.flush()
    return rows


class PartWriter:
    """A part of a large table while it grows. Rows can be dropped again (`drop`) until it is sealed."""

    def __init__(self, path: Path, schema: pa.Schema, *, plain: bool) -> None:
        self.path, self.schema, self.plain = path, schema, plain
        self.rows = 0
        self.groups = 0
        self._file = FileWriter(path, schema, plain=plain)
        self._waiting: list[pa.Table] = []
        self._dropped: list[tuple[int, int]] = []
        self._written: durable.Written | None = None
        self._settled = False

    @property
    def bytes(self) -> int:
        return self._file.bytes + sum(table.nbytes for table in self._waiting)

    def append(self, table: pa.Table) -> None:
        """Add rows: a row group of their own, or together with the next ones if they are few."""
        if table.num_rows >= COALESCE_ROWS:
            self._push()
        self._waiting.append(table)
        self.rows += table.num_rows
        if sum(t.num_rows for t in self._waiting) >= COALESCE_ROWS:
            self._push()

    def _push(self) -> None:
        if self._waiting:
            table = self._waiting[0] if len(self._waiting) == 1 else together(self._waiting)
            self._waiting = []
            self.groups += self._file.write(table)

    def drop(self, start: int) -> None:
        """Forget the rows from `start` on."""
        if start < self.rows:
            self._dropped.append((start, self.rows))

    def close(self) -> None:
        """No more rows: write the footer."""
        if self._written is None:
            self._push()
            self._written = self._file.seal()

    def seal(self) -> tuple[int, durable.Written]:
        """Rows, size and hash of what is left; the file has its own name afterwards (its folder is not synced)."""
        self.close()
        dropped = sum(end - start for start, end in self._dropped)
        if not self._settled:
            if dropped:
                self._rewrite()
            durable.settle(self.path)
            self._settled = True
        assert self._written is not None
        return self.rows - dropped, self._written

    def _rewrite(self) -> None:
        """Copy what was not dropped to a second file that takes the place of the first."""
        second = FileWriter(self.path.with_name("kept-" + self.path.name), self.schema, plain=self.plain)
        try:
            with pq.ParquetFile(durable.temporary(self.path)) as source:
                start = 0
                for group in range(source.num_row_groups):
                    table = source.read_row_group(group)
                    for a, b in self._kept(start, start + table.num_rows):
                        second.write(table.slice(a - start, b - a))
                    start += table.num_rows
            self._written = second.seal()
        except BaseException:
            second.abandon()
            raise
        durable.temporary(second.path).replace(durable.temporary(self.path))

    def _kept(self, start: int, end: int) -> list[tuple[int, int]]:
        """Pieces of the rows [start, end) that were not dropped."""
        pieces, at = [], start
        for a, b in self._dropped:
            if at < min(a, end):
                pieces.append((at, min(a, end)))
            at = max(at, b)
        if at < end:
            pieces.append((at, end))
        return pieces

    def abandon(self) -> None:
        self._file.abandon()
        with suppress(OSError):
            durable.temporary(self.path).unlink(missing_ok=True)


def together(tables: list[pa.Table]) -> pa.Table:
    """One table of one chunk a column; dictionaries are unified, or later chunks would be written plain."""
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()
