"""Values as they come (scalars, lists, NumPy, torch, Arrow) into the columns of a table. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe import tables

_MAX_VALUES = 2**31 - 1  # list offsets are int32


def build(
    name: str, columns: Mapping[str, Any] | pa.Table, *, run_id: str, store: str, copy: bool,
    extra: Mapping[str, pa.DataType] | None = None,
) -> pa.Table:  # fmt: skip
    """Rows of table `name` in its schema, with the run's `extra` columns; scalars repeat, absent columns are null, `run_id` is
    added.

    `store="bf16"` rounds every float32 to the nearest bfloat16 (ties to even; NaN and infinities stay). `copy` must be
    given when the rows outlive the call, because arrays are otherwise used where they lie.
    """
    assert store in ("exact", "bf16"), f"store is 'exact' or 'bf16', not {store!r}"
    schema = tables.schema(name, extra)
    if isinstance(columns, pa.Table):
        columns = {field: columns[field] for field in columns.column_names}
    unknown = set(columns) - set(schema.names)
    assert not unknown, f"table '{name}' has no columns {sorted(unknown)}"
    n = _rows(columns)
    arrays = []
    for field in schema:
        value = run_id if field.name == "run_id" else columns.get(field.name)
        if _length(value) is None:
            arrays.append(_repeat(value, n, field.type))
        else:
            arrays.append(_array(value, field.type, store=store, copy=copy))
    return pa.Table.from_arrays(arrays, schema=schema)


def round_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> float32 with the low 16 bits zero, rounded to nearest even as bfloat16 is."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    out = rounded.view(np.float32)
    nan = np.isnan(values)
    if nan.any():
        out[nan] = np.nan
    return out


def _length(value: Any) -> int | None:
    """Rows a value brings, None for a scalar."""
    if value is None or isinstance(value, (str, bytes, int, float, np.generic)):
        return None
    if getattr(value, "ndim", 1) == 0:
        return None
    return len(value)


def _rows(columns: Mapping[str, Any]) -> int:
    lengths = {name: n for name, value in columns.items() if (n := _length(value)) is not None}
    assert len(set(lengths.values())) <= 1, f"columns of different lengths: {lengths}"
    return next(iter(lengths.values()), 1)


def _repeat(value: Any, n: int, type: pa.DataType) -> pa.Array:
    return _repeated(value.item() if hasattr(value, "item") else value, n, type)


@lru_cache(maxsize=64)
def _repeated(value: Any, n: int, type: pa.DataType) -> pa.Array:
    if value is None:
        return pa.nulls(n, type)
    if pa.types.is_dictionary(type):
        return pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array([value], type.value_type)).cast(type)
    return pa.repeat(pa.scalar(value, type), n)


def _array(value: Any, type: pa.DataType, *, store: str, copy: bool) -> pa.Array | pa.ChunkedArray:
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        return _rounded(_cast(value, type)) if store == "bf16" else _cast(value, type)
    value = _numpy(value)
    if isinstance(value, np.ndarray):
        if copy:
            value = value.copy()
        if value.ndim == 2:
            return _vectors(value, type, store=store)
        assert value.ndim == 1, f"columns have one or two axes, not {value.ndim}"
        if store == "bf16" and pa.types.is_float32(type):
            value = round_bf16(value)
        if value.dtype != object:
            mask = value.mask if isinstance(value, np.ma.MaskedArray) else None
            return _cast(pa.array(np.asarray(value), mask=mask), type)
    array = _cast(pa.array(list(value), type.value_type if pa.types.is_dictionary(type) else type), type)
    return _rounded(array) if store == "bf16" else array


def _numpy(value: Any) -> Any:
    """torch tensors (without importing torch) as arrays over the same memory; bfloat16 as float32."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.float() if "bfloat16" in str(value.dtype) else value).numpy()


def _vectors(value: np.ndarray, type: pa.DataType, *, store: str) -> pa.Array | pa.ChunkedArray:
    """(n, width) -> n lists of `width`, over the same memory when it is contiguous and of the right type."""
    n, width = value.shape
    flat_type = type.value_type
    value = np.ascontiguousarray(value, dtype=flat_type.to_pandas_dtype())
    if store == "bf16" and pa.types.is_float32(flat_type):
        value = round_bf16(value)
    step = max(1, _MAX_VALUES // max(width, 1))
    chunks = []
    for start in range(0, max(n, 1), step):
        piece = value[start : start + step]
        offsets = pa.array(np.arange(len(piece) + 1, dtype=np.int32) * np.int32(width))
        chunks.append(pa.ListArray.from_arrays(offsets, pa.array(piece.reshape(-1)), type=type))
    return chunks[0] if len(chunks) == 1 else pa.chunked_array(chunks)


def _cast(array: pa.Array | pa.ChunkedArray, type: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """To the column's type; an integer that does not fit is an error, a float is rounded."""
    if array.type == type:
        return array
    if pa.types.is_dictionary(type) and not pa.types.is_dictionary(array.type):
        return array.cast(type.value_type).dictionary_encode().cast(type)
    return array.cast(type, safe=not pa.types.is_floating(type))


def _rounded(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """bf16 rounding of an Arrow array of float32 or of lists of it; others pass."""
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([_rounded(chunk) for chunk in array.chunks], type=array.type)
    if pa.types.is_float32(array.type):
        rounded = pa.array(round_bf16(np.asarray(array.fill_null(0.0))))
        return rounded if not array.null_count else pc.if_else(array.is_valid(), rounded, pa.scalar(None))
    if pa.types.is_list(array.type) and pa.types.is_float32(array.type.value_type):
        values = pa.array(round_bf16(array.values.to_numpy(zero_copy_only=False)))
        mask = array.is_null() if array.null_count else None
        if array.offset:  # offsets of a slice start elsewhere
            return _rounded(pa.concat_arrays([array, array.slice(0, 0)]))
        return pa.ListArray.from_arrays(array.offsets, values, type=array.type, mask=mask)
    return array
