"""Tables whose rows are whole rows of a matrix, laid flat: one value a row, for tools that know no lists."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from probe.tables.columns import BRANCH, HEAD, LAYER, PROMPT, QUERY, RUN, Column, f32, i32

KEY = i32("key", "position looked at", since=3)


class FlatTable(NamedTuple):
    """A table laid flat. `values`: the list that is laid out; `keys`: the list of its places, null in a row that has all."""

    table: str
    row: str
    columns: tuple[Column, ...]
    values: str
    keys: str | None = None

    @property
    def schema(self) -> pa.Schema:
        """Its Arrow schema."""
        return pa.schema([pa.field(column.name, column.type) for column in (RUN, *self.columns)])


_ROW = (PROMPT, BRANCH, LAYER, HEAD, QUERY, KEY)
FLAT = {
    flat.table: flat
    for flat in (
        FlatTable("attention", "a weight", (*_ROW, f32("weight", "of the query on the key", since=3)), "weights", "keys"),
        FlatTable("scores", "a score", (*_ROW, f32("score", "before the softmax, scaled and capped", since=3)), "scores"),
    )
}
