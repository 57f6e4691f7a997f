"""The types that a column which a user brings can have, and how a document names them in words. Knows no values."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_WORDS = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}


def type_in_words(kind: pa.DataType) -> Any:
    """A type as JSON: `int`, `{"list": "string"}`, `{"struct": {"a": "float"}}`. Raises `ValueError` for any other."""
    if pa.types.is_list(kind):
        return {"list": type_in_words(kind.value_type)}
    if pa.types.is_struct(kind):
        return {"struct": {field.name: type_in_words(field.type) for field in kind}}
    for word, known in _WORDS.items():
        if kind == known:
            return word
    raise ValueError(f"no column of a user's is of type {kind}")


def type_of_words(words: Any) -> pa.DataType:
    """The type that `type_in_words` said so. Raises `ValueError`."""
    match words:
        case str() if words in _WORDS:
            return _WORDS[words]
        case {"list": inner}:
            return pa.list_(pa.field("element", type_of_words(inner)))
        case {"struct": dict(fields)} if fields:
            return pa.struct([pa.field(name, type_of_words(inner)) for name, inner in fields.items()])
    raise ValueError(f"{words!r} is no type of a column")
