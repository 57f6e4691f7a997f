"""A DataFrame as few bytes that a browser reads fast: the format stands in `web/README.md`. Knows no pictures."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

EXACT = 2**53  # from here on a double skips integers
_INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4")  # smallest first
_BLOCK = 2**20
_LEVEL, _QUICK = 6, 4  # of zlib: 9 saves under 1 % and takes ten times as long; 4 is three times as fast and 8 % larger
_MANY = 4 * 2**20  # bytes from which on it is quick


@dataclass(frozen=True)
class PackedFrame:
    """A frame as the page holds it.

    description: `{"rows": n, "columns": [column]}` as in `web/README.md`.
    stream: the zlib stream of the columns.
    steps: name of a column that was rounded -> the step of its values, in the column's unit.
    """

    description: dict[str, Any]
    stream: bytes = field(repr=False)
    steps: Mapping[str, float]


@dataclass(frozen=True)
class _PackedColumn:
    description: dict[str, Any]
    parts: tuple[bytes, ...]
    step: float | None = None


def packed(frame: pd.DataFrame, rounding: Mapping[str, int] | None = None) -> PackedFrame:
    """The frame's columns one after another, deflated.

    rounding: column of floats (or of lists of floats) -> how many equal steps lead from its least to its largest value, at
    most 65,535 (one less where it has nulls); values are rounded to the nearest. A column that has an infinite value, and
    one of whole numbers, stays exact: the first has no step, the second is small already.
    """
    names = [str(name) for name in frame.columns]
    columns = [_column(_values(frame.iloc[:, i]), (rounding or {}).get(name), name=name) for i, name in enumerate(names)]
    descriptions, parts = _each_once(columns)
    packer = zlib.compressobj(_QUICK if sum(map(len, parts)) > _MANY else _LEVEL)
    stream = [packer.compress(part) for part in parts]
    return PackedFrame(
        {"rows": len(frame), "columns": descriptions},
        b"".join([*stream, packer.flush()]),
        {name: column.step for name, column in zip(names, columns, strict=True) if column.step is not None},
    )


def _each_once(columns: Sequence[_PackedColumn]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Descriptions, and the bytes of the columns; those of an earlier one are not there again: `as` is its index."""
    known: dict[tuple[Any, ...], int] = {}
    descriptions: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for i, column in enumerate(columns):
        about = column.description
        kind = about["of"] if about["type"] == "number" else json.dumps({**about, "name": None})
        first = known.setdefault((kind, *column.parts), i)
        descriptions.append(about if first == i else {**about, "as": first})
        parts += column.parts if first == i else ()
    return descriptions, parts


def raw_bytes(frame: pd.DataFrame) -> int:
    """About how many bytes the values of a frame are before they are deflated, without packing it."""
    total = 0
    for _, column in frame.items():
        values = _values(column)
        if isinstance(values, np.ndarray):
            total += values.nbytes
        else:
            arrays = sum(value.nbytes for value in values if isinstance(value, np.ndarray))
            total += arrays + 4 * len(values)
    return total


def _values(column: pd.Series) -> np.ndarray | list[Any]:
    """A column as a NumPy array of numbers or booleans, or as a list of values with None where there is none."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.to_numpy()
    missing = column.isna().to_numpy()
    return [None if gone else value for gone, value in zip(missing, column.tolist(), strict=True)]


def _column(values: np.ndarray | Sequence[Any], rounding: int | None, *, name: str | None = None) -> _PackedColumn:
    named = {} if name is None else {"name": name}
    if not isinstance(values, np.ndarray):
        return _of_objects(list(values), rounding, named)
    if values.dtype.kind == "b":
        return _PackedColumn({**named, "type": "bool"}, (values.astype(np.uint8).tobytes(),))
    if values.dtype.kind in "iu":
        return _integers(values, np.zeros(len(values), bool), named)
    return _floats(values, rounding, named)


def _of_objects(values: list[Any], rounding: int | None, named: dict[str, Any]) -> _PackedColumn:
    """A column whose values are Python's: its type is that which all of them have, else text."""
    missing = np.array([value is None for value in values], bool)
    kinds = {_kind(value) for value in values if value is not None}
    if kinds == {"bool"}:
        codes = np.array([2 if value is None else int(value) for value in values], np.uint8)
        return _PackedColumn({**named, "type": "bool"}, (codes.tobytes(),))
    if kinds == {"int"}:
        whole = [0 if value is None else int(value) for value in values]
        if all(-(2**63) <= value < 2**63 for value in whole):
            return _integers(np.array(whole, np.int64), missing, named)
    if kinds in ({"float"}, {"float", "int"}) and all(abs(v) <= EXACT for v in values if _kind(v) == "int"):
        return _floats(np.array([np.nan if value is None else value for value in values], np.float64), rounding, named)
    if kinds == {"list"}:
        return _lists(values, rounding, named)
    return _texts([None if value is None else _as_text(value) for value in values], named)


def _kind(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, np.integer)):
        return "int"
    if isinstance(value, (float, np.floating)):
        return "float"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, (list, tuple, np.ndarray)) else "other"


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (Mapping, list, tuple, np.ndarray)):
        return json.dumps(value, default=lambda one: one.tolist() if hasattr(one, "tolist") else str(one))
    return str(value)


def _integers(values: np.ndarray, missing: np.ndarray, named: dict[str, Any], *, whole: bool = True) -> _PackedColumn:
    """Whole numbers in the fewest bytes that hold them and a value for null; beyond 2^53 their digits as text.

    whole: the column is one of integers (else one of floats that happen to be whole: a csv writes those as 3.0).
    """
    present = values[~missing]
    low, high = (int(present.min()), int(present.max())) if len(present) else (0, 0)
    if max(-low, high) > EXACT:
        return _texts([None if gone else str(value) for gone, value in zip(missing, values.tolist(), strict=True)], named)
    about = {**named, "type": "number", "integer": whole}
    gaps = bool(missing.any())
    for of in _INTEGERS:
        limits = np.iinfo(of)
        if gaps and low >= limits.min and high < limits.max:
            stored = np.where(missing, limits.max, values).astype(f"<{of}")
            return _PackedColumn({**about, "of": of, "null": int(limits.max)}, (_transposed(stored),))
        if not gaps and low >= limits.min and high <= limits.max:
            return _PackedColumn({**about, "of": of}, (_transposed(values.astype(f"<{of}")),))
    return _PackedColumn({**about, "of": "f8"}, (_transposed(np.where(missing, np.nan, values).astype("<f8")),))


def _floats(values: np.ndarray, rounding: int | None, named: dict[str, Any]) -> _PackedColumn:
    missing = np.isnan(values)
    present = values[~missing]
    if len(present) and np.all(np.isfinite(present)) and np.all(present == np.floor(present)) and not _negative_zero(present):
        small = np.abs(present).max() < 2**31  # larger ones are no shorter than the floats they came as
        if small:
            return _integers(np.where(missing, 0, values).astype(np.int64), missing, named, whole=False)
    if rounding and len(present):
        found = _rounded(values, missing, rounding, named)
        if found is not None:
            return found
    of = "f8" if values.dtype.itemsize == 8 else "f4"
    about = {**named, "type": "number", "integer": False, "of": of}
    return _PackedColumn(about, (_transposed(values.astype(f"<{of}")),))


def _negative_zero(values: np.ndarray) -> bool:
    return bool(np.any((values == 0) & np.signbit(values)))


def _rounded(values: np.ndarray, missing: np.ndarray, rounding: int, named: dict[str, Any]) -> _PackedColumn | None:
    """value -> round((value - least) / step), the largest stored integer for a null; None where there is no such step."""
    gaps, limit = bool(missing.any()), rounding
    of = "u1" if limit <= np.iinfo("u1").max else "u2"
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    step = (high - low) / (limit - gaps)
    if not np.isfinite(step) or step <= 0:
        return None
    stored = np.empty(len(values), f"<{of}")
    for start in range(0, len(values), _BLOCK):  # the attention of a long text fills the memory a few times over
        some = slice(start, start + _BLOCK)
        one = np.where(missing[some], low, values[some]).astype(np.float64)
        stored[some] = np.where(missing[some], limit, np.rint((one - low) / step))
    about = {**named, "type": "number", "integer": False, "of": of, "base": low, "step": step}
    return _PackedColumn({**about, "null": limit} if gaps else about, (_transposed(stored),), step)


def _texts(values: Sequence[str | None], named: dict[str, Any]) -> _PackedColumn:
    words: dict[str, int] = {}
    codes = [0 if value is None else words.setdefault(value, len(words) + 1) for value in values]
    of = next(of for of in ("u1", "u2", "u4") if len(words) <= np.iinfo(of).max)
    listed = json.dumps(list(words), separators=(",", ":")).encode("ascii")
    about = {**named, "type": "text", "of": of, "words": len(listed)}
    return _PackedColumn(about, (_transposed(np.array(codes, f"<{of}")), listed))


def _lists(values: Sequence[Any], rounding: int | None, named: dict[str, Any]) -> _PackedColumn:
    lengths = np.array([0 if value is None else len(value) + 1 for value in values], "<u4")
    items = _column(_joined([value for value in values if value is not None]), rounding)
    about = {**named, "type": "list", "items": items.description}
    return _PackedColumn(about, (_transposed(lengths), *items.parts), items.step)


def _joined(values: Sequence[Any]) -> np.ndarray | list[Any]:
    """The items of all lists, as one array where all are arrays of numbers of one dimension."""
    filled = [value for value in values if len(value)]
    if filled and all(isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biuf" for value in filled):
        return np.concatenate(filled)
    items: Iterable[Any] = chain.from_iterable(
        value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else value for value in filled
    )
    return [None if _missing(item) else item for item in items]


def _missing(item: Any) -> bool:
    return item is None or (not isinstance(item, (str, list, tuple, Mapping, np.ndarray)) and item != item)  # NaN


def _transposed(values: np.ndarray) -> bytes:
    """First bytes of all items, then second ones …: neighbours are alike, and deflate better."""
    size = values.dtype.itemsize
    return values.tobytes() if size == 1 else values.view(np.uint8).reshape(-1, size).T.tobytes()
