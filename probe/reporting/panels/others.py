"""Rows of tables that have no picture of their own, as they are: nothing that a run holds is left out of sight."""

from __future__ import annotations

from collections.abc import Iterator, Set

import pandas as pd
import pyarrow as pa

from probe import tables
from probe.reporting.panels.context import Context, panel_name
from probe.reporting.views import Coordinate, Listing, Panel, ShownColumn

MOST = 100_000  # rows
LONG = 120  # characters
TITLES = {"prompts": "The prompt"}
CURSORS: dict[str, Coordinate] = {
    "pos": "token", "query": "token", "layer": "layer", "head": "head", "step": "step", "branch": "branch",
}  # fmt: skip


def others(context: Context, shown: Set[str]) -> Iterator[Panel]:
    """A listing of each table that no panel is of: its columns that are no lists, and that say something."""
    for name in context.run.tables:
        if name in shown:
            continue
        schema = context.run.schema(name)
        columns = [field.name for field in schema if not pa.types.is_nested(field.type)]
        where = {"prompt_id": context.prompt_id} if "prompt_id" in columns else {}
        frame = context.rows(name, columns=columns) if where else _flat(context, name, columns)
        if not len(frame):
            continue
        note = "" if len(frame) <= MOST else f"The first {MOST:,} of {len(frame):,} rows."
        frame = frame.head(MOST)
        kept = [one for one in columns if one not in ("run_id", "prompt_id") and _says(frame[one])]
        long = _longest(frame[kept])
        yield Listing(
            panel_name("table", name), TITLES.get(name, f"Table {name}: {tables.TABLES[name].row}"), name, frame,
            where=where, note=note, text=long,
            columns=tuple(
                ShownColumn(one, one.replace("_", " "), _digits(frame[one]), CURSORS.get(one)) for one in kept if one != long
            ),
        )  # fmt: skip


def _flat(context: Context, name: str, columns: list[str]) -> pd.DataFrame:
    """A table that is not about single prompts: the same frame with each of them."""
    return context.tables.once((name, "flat"), lambda: context.whole(name)[columns])


def _longest(frame: pd.DataFrame) -> str | None:
    """The column whose texts are so long that they are shown one at a time."""
    texts = {name: int(frame[name].astype(str).str.len().max()) for name in frame if pd.api.types.is_string_dtype(frame[name])}
    name = max(texts, key=lambda one: texts[one], default=None)
    return name if name is not None and texts[name] > LONG else None


def _says(values: pd.Series) -> bool:
    return bool(values.notna().any()) and not bool((values.astype(str) == "").all())


def _digits(values: pd.Series) -> int | None:
    return 4 if pd.api.types.is_float_dtype(values) and bool((values.dropna() % 1 != 0).any()) else None
