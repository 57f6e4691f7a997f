"""Parquet's uncompressed data pages: headers, levels, dictionaries. Knows no files and no footers.

Source: apache/parquet-format, Encodings.md and parquet.thrift.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from zlib_ng import zlib_ng  # zlib's CRC-32, fifteen times as fast

from probe.store import thrift as t

_DATA, _DICTIONARY = 0, 2  # page types
PLAIN, RLE, RLE_DICTIONARY = 0, 3, 8  # encodings
INT32, FLOAT, BYTE_ARRAY = 1, 4, 6  # physical types
NUMBERS = {INT32: "<i4", FLOAT: "<f4"}


def physical(type: pa.DataType) -> int | None:
    if pa.types.is_dictionary(type):
        return BYTE_ARRAY if pa.types.is_string(type.value_type) else None
    if pa.types.is_int32(type) or pa.types.is_int16(type):
        return INT32
    return FLOAT if pa.types.is_float32(type) else None


class Flat:
    """A flat column as the key of a cache: the same positions and words come with every layer."""

    def __init__(self, array: pa.Array) -> None:
        self.array = array
        words = tuple(array.dictionary.to_pylist()) if pa.types.is_dictionary(array.type) else ()
        held = tuple(None if buffer is None else buffer.to_pybytes() for buffer in array.buffers()[:2])
        self._key = (array.type, len(array), array.offset, held, words)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flat) and self._key == other._key


class Encoded(NamedTuple):
    """A flat column chunk: dictionary page, data page, smallest and largest value."""

    words: bytes | None
    data: bytes
    bounds: tuple[bytes, bytes] | None


@lru_cache(maxsize=64)
def encoded(flat: Flat) -> Encoded:
    """Words as a dictionary page and packed indices, numbers plain; nulls as definition levels."""
    array, n = flat.array, len(flat.array)
    valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else np.ones(n, bool)
    define = sized(_packed(valid.astype(np.int64), 1))
    array = array.drop_null() if array.null_count else array
    if pa.types.is_dictionary(array.type):
        words = pc.cast(array, pa.string()).dictionary_encode()
        found = [word.encode() for word in words.dictionary.to_pylist()]
        plain = b"".join(struct.pack("<i", len(word)) + word for word in found)
        width = max(1, (len(found) - 1).bit_length())
        body = bytes([width]) + _packed(words.indices.to_numpy(zero_copy_only=False).astype(np.int64), width)
        bounds = (min(found), max(found)) if found else None
        dictionary = _dictionary_page(len(found), plain)
        return Encoded(dictionary, data_page(n, RLE_DICTIONARY, define + body), bounds)
    kind = np.dtype("<f4") if pa.types.is_floating(array.type) else np.dtype("<i4")
    values = array.to_numpy(zero_copy_only=False).astype(kind)
    bounds = None
    if len(values) and kind.kind == "i":
        bounds = (struct.pack("<i", int(values.min())), struct.pack("<i", int(values.max())))
    return Encoded(None, data_page(n, PLAIN, define + values.tobytes()), bounds)


def data_page(n: int, encoding: int, head: bytes, body: bytes | memoryview = b"") -> bytes:
    """Header and levels of a data page of `n` values; `body` is what the caller writes right after them."""
    about = t.struct({1: t.i32(n), 2: t.i32(encoding), 3: t.i32(RLE), 4: t.i32(RLE)})
    return _header(_DATA, {5: about}, head, body) + head


def _dictionary_page(n: int, data: bytes) -> bytes:
    return _header(_DICTIONARY, {7: t.struct({1: t.i32(n), 2: t.i32(PLAIN)})}, data) + data


def _header(type: int, about: dict[int, t.Value | None], head: bytes, body: bytes | memoryview = b"") -> bytes:
    size = len(head) + len(body)
    crc = zlib_ng.crc32(body, zlib_ng.crc32(head))
    signed = crc - (1 << 32) if crc >> 31 else crc
    return t.struct({1: t.i32(type), 2: t.i32(size), 3: t.i32(size), 4: t.i32(signed), **about}).data


def sized(data: bytes) -> bytes:
    return struct.pack("<i", len(data)) + data


def _packed(values: np.ndarray, width: int) -> bytes:
    """The RLE/bit-packing hybrid: one run if all are equal, else all packed `width` bits each."""
    if not len(values):
        return b""
    if (values == values[0]).all():
        return t.varint(len(values) << 1) + int(values[0]).to_bytes((width + 7) // 8, "little")
    groups = -(-len(values) // 8)
    padded = np.zeros(groups * 8, np.int64)
    padded[: len(values)] = values
    bits = ((padded[:, None] >> np.arange(width)) & 1).astype(np.uint8)
    return t.varint(groups << 1 | 1) + np.packbits(bits.reshape(-1), bitorder="little").tobytes()


@lru_cache(maxsize=1024)
def _repeats(width: int) -> bytes:
    """Repetition levels of one row: a 0, then a 1 for each further element."""
    return b"\x02\x00" + (t.varint((width - 1) << 1) + b"\x01" if width > 1 else b"")


def levels(widths: np.ndarray, null: np.ndarray) -> tuple[bytes, bytes, int]:
    """Repetition and definition levels of rows, and how many there are; an empty or null row has one of each."""
    first = int(widths[0])
    if first and (widths == first).all():
        n = first * len(widths)
        return _repeats(first) * len(widths), t.varint(n << 1) + b"\x02", n
    return _ragged(tuple(widths.tolist()), tuple(null.tolist()))


@lru_cache(maxsize=1024)
def _ragged(widths: tuple[int, ...], null: tuple[bool, ...]) -> tuple[bytes, bytes, int]:
    repeat, define = bytearray(), bytearray()
    for width, missing in zip(widths, null, strict=True):
        repeat += _repeats(width)
        define += t.varint(max(width, 1) << 1) + bytes([2 if width else 0 if missing else 1])
    return bytes(repeat), bytes(define), sum(max(width, 1) for width in widths)
