"""Thrift's compact protocol, as much of it as Parquet's headers and footers need. Knows no Parquet.

Source: apache/thrift, doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

TRUE, FALSE, I8, I16, I32, I64, BINARY, LIST, STRUCT = 1, 2, 3, 4, 5, 6, 8, 9, 12


_BYTES = [bytes([n]) for n in range(256)]


class Value(NamedTuple):
    """An encoded value and its type code."""

    type: int
    data: bytes


def varint(n: int) -> bytes:
    if n < 0x80:
        return _BYTES[n]
    out = bytearray()
    while n > 0x7F:
        out.append((n & 0x7F) | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _zigzag(n: int) -> bytes:
    return varint(n << 1 if n >= 0 else ~(n << 1))


def i16(n: int) -> Value:
    return Value(I16, _zigzag(n))


@lru_cache(maxsize=1024)
def i32(n: int) -> Value:
    return Value(I32, _zigzag(n))


def i64(n: int) -> Value:
    return Value(I64, _zigzag(n))


def flag(value: bool) -> Value:
    """A bool as a field: the type is the value."""
    return Value(TRUE if value else FALSE, b"")


def binary(value: bytes | str) -> Value:
    data = value.encode() if isinstance(value, str) else value
    return Value(BINARY, varint(len(data)) + data)


def many(type: int, values: Iterable[Value]) -> Value:
    """A list of values of one type."""
    data = [value.data for value in values]
    head = bytes([len(data) << 4 | type]) if len(data) < 15 else bytes([0xF0 | type]) + varint(len(data))
    return Value(LIST, head + b"".join(data))


def flags(values: Iterable[bool]) -> Value:
    """A list of bools: one byte each."""
    return many(TRUE, [Value(TRUE, bytes([TRUE if value else FALSE])) for value in values])


def struct(fields: dict[int, Value | None]) -> Value:
    """Field numbers (ascending) to values; None is left out."""
    out: list[bytes] = []
    last = 0
    for number, value in fields.items():
        if value is not None:
            assert 0 < number - last < 16, "field numbers ascend by less than 16"
            out += (_BYTES[(number - last) << 4 | value.type], value.data)
            last = number
    out.append(b"\0")
    return Value(STRUCT, b"".join(out))


def fields(data: bytes) -> dict[int, Value]:
    """The fields of an encoded struct, their values left encoded."""
    found, at, number = {}, 0, 0
    while data[at]:
        type, delta = data[at] & 15, data[at] >> 4
        at += 1
        if delta:
            number += delta
        else:
            raw, at = _read_varint(data, at)
            number = (raw >> 1) ^ -(raw & 1)
        end = _skip(data, at, type)
        found[number] = Value(type, data[at:end])
        at = end
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    n = shift = 0
    while True:
        byte = data[at]
        n |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return n, at


def _skip(data: bytes, at: int, type: int) -> int:
    """Where a value ends."""
    if type in (TRUE, FALSE):
        return at
    if type == I8:
        return at + 1
    if type in (I16, I32, I64):
        return _read_varint(data, at)[1]
    if type == BINARY:
        length, at = _read_varint(data, at)
        return at + length
    if type == LIST:
        size, inner = data[at] >> 4, data[at] & 15
        at += 1
        if size == 15:
            size, at = _read_varint(data, at)
        for _ in range(size):
            at = at + 1 if inner in (TRUE, FALSE) else _skip(data, at, inner)
        return at
    assert type == STRUCT, f"no field of Parquet has thrift type {type}"
    while data[at]:
        inner, delta = data[at] & 15, data[at] >> 4
        at += 1
        if not delta:
            _, at = _read_varint(data, at)
        at = _skip(data, at, inner)
    return at + 1
