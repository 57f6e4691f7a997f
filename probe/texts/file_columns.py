"""Columns that the rows of a file have beside their prompt: a name and one type each over all rows, and values in it."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

from probe import tables

TAKEN = "_given"  # what a name gets that is one of our own columns
MOST_FIELDS = 64  # of a struct: objects of more names are JSON
DEPTH = 6  # of types in types
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")  # not 007: it is a name
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.?[0-9]+)([eE][+-]?[0-9]+)?")


class FileColumns(NamedTuple):
    """The columns of a file: the name that each has in the table `prompts`, and its type, by its name in the file."""

    names: Mapping[str, str] = MappingProxyType({})
    kinds: Mapping[str, pa.DataType] = MappingProxyType({})

    @property
    def types(self) -> dict[str, pa.DataType]:
        """By the names in the table."""
        return {name: self.kinds[own] for own, name in self.names.items()}

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row under the names of the table, each value of its column's type."""
        return {self.names[name]: value_of(value, self.kinds[name]) for name, value in row.items()}


class ColumnsSeen:
    """Which columns a file has, while its rows come in.

    texts: the values are those of a CSV, where a column of numbers or of true and false is one, and an empty field of it null.
    """

    def __init__(self, *, texts: bool = False) -> None:
        self._texts = texts
        self._seen: dict[str, _Seen] = {}

    def see(self, row: Mapping[str, Any]) -> None:
        """Take in one row."""
        for name, value in row.items():
            self._seen.setdefault(name, _Seen()).see(_read(value) if self._texts else value)

    def columns(self) -> FileColumns:
        """In the order in which they came first; a name that is one of ours, in any case of letters, gets a suffix."""
        taken = {name.lower() for name in tables.schema("prompts").names}
        names = {}
        for name in self._seen:
            own = name or "unnamed"
            while own.lower() in taken:
                own += TAKEN
            taken.add(own.lower())
            names[name] = own
        return FileColumns(names, {name: seen.type() for name, seen in self._seen.items()})


class _Seen:
    """What kinds of value a column holds."""

    def __init__(self, depth: int = 0) -> None:
        self._kinds: set[str] = set()
        self._depth = depth
        self._items: _Seen | None = None
        self._fields: dict[str, _Seen] = {}

    def see(self, value: Any) -> None:
        kind = _kind(value)
        if kind is None:
            return
        self._kinds.add("json" if self._depth >= DEPTH and kind in ("list", "struct") else kind)
        if self._depth >= DEPTH:
            return
        if kind == "list":
            self._items = self._items or _Seen(self._depth + 1)
            for item in value:
                self._items.see(item)
        elif kind == "struct" and len(self._fields) <= MOST_FIELDS:
            for name, item in value.items():
                self._fields.setdefault(str(name), _Seen(self._depth + 1)).see(item)

    def type(self) -> pa.DataType:
        match sorted(self._kinds):
            case ["bool"]:
                return pa.bool_()
            case ["int"] | ["int", "large"] | ["large"]:
                return pa.int64()
            case ["float"] | ["float", "int"]:
                return pa.float64()
            case ["list"]:
                return pa.list_(pa.field("element", self._items.type() if self._items else pa.string()))
            case ["struct"] if self._named():
                return pa.struct([pa.field(name, seen.type()) for name, seen in self._fields.items()])
        return pa.string()

    def _named(self) -> bool:
        """Whether every reader takes these names for the fields of a struct."""
        names = {name.lower() for name in self._fields}
        return 0 < len(self._fields) <= MOST_FIELDS and len(names) == len(self._fields) and "" not in names


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) <= 2**53 else "large" if -(2**63) <= value < 2**63 else "json"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "string"
    return "list" if isinstance(value, (list, tuple)) else "struct" if isinstance(value, Mapping) else "json"


def _read(text: Any) -> Any:
    """What a field of a CSV says."""
    if not isinstance(text, str):
        return text
    bare = text.strip()
    if bare == "":
        return None
    if bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    if _INTEGER.fullmatch(bare):
        return int(bare) if len(bare) <= 20 else text
    return float(bare) if _FLOAT.fullmatch(bare) and not re.match(r"[+-]?0[0-9]", bare) else text


def value_of(value: Any, kind: pa.DataType) -> Any:
    """A value as a column of this type holds it; a text as it is and all else as JSON where that is text."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return text_of(value)
    if isinstance(value, str):
        value = _read(value)
    if pa.types.is_list(kind):
        return [value_of(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        fields = {str(name): item for name, item in value.items()}
        return {field.name: value_of(fields.get(field.name), field.type) for field in kind}
    return float(value) if pa.types.is_floating(kind) and value is not None else value


def text_of(value: Any) -> str:
    """A text as it is, all else as JSON; what no UTF-8 can hold (half a surrogate pair) is escaped."""
    text = value if isinstance(value, str) else json.dumps(plain_value(value), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def plain_value(value: Any) -> Any:
    """What came of a file as JSON can hold it: bytes as text (base64 where they are none), dates and others as they print."""
    if isinstance(value, Mapping):
        return {str(name): plain_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return b64encode(value).decode()
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def column_lists(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns: null where a row has no such value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
