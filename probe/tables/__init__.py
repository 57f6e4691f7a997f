"""The tables of a run: their columns, types and units. The only package that names columns; it writes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

from probe.tables.answered import ANSWERED
from probe.tables.columns import FLOATS, INTS, RUN, Column, Table, bounds_of
from probe.tables.corpora import CORPORA
from probe.tables.extra import type_in_words, type_of_words
from probe.tables.findings import FINDINGS
from probe.tables.flat import FLAT, FlatTable
from probe.tables.heads import HEAD_VIEWS
from probe.tables.measured import MEASURED
from probe.tables.observed import OBSERVED
from probe.tables.over_problems import OVER_PROBLEMS
from probe.tables.routing import ROUTING
from probe.tables.sampled import SAMPLED
from probe.tables.weights import WEIGHTS

__all__ = [
    "FLAT",
    "FLOATS",
    "INTS",
    "RUN",
    "SCHEMA_VERSION",
    "TABLES",
    "Column",
    "FlatTable",
    "Table",
    "bounds_of",
    "schema",
    "type_in_words",
    "type_of_words",
]

SCHEMA_VERSION = 4  # the largest `since`

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        *OBSERVED, *HEAD_VIEWS, *ROUTING, *ANSWERED, *MEASURED, *CORPORA, *WEIGHTS, *FINDINGS, *OVER_PROBLEMS, *SAMPLED,
    )
}  # fmt: skip


def schema(name: str, extra: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """Arrow schema of a table, `run_id` first, with units in its metadata (keys `probe` and `PANDAS_ATTRS`).

    extra: columns that one run's table has beside those declared here; they come last.
    """
    table = TABLES[name]
    units = {c.name: c.doc for c in (RUN, *table.columns)} | dict.fromkeys(extra or (), "a column of the file that was read")
    probe = {"schema_version": SCHEMA_VERSION, "table": name, "row": table.row, "units": units}
    metadata = {"probe": json.dumps(probe), "PANDAS_ATTRS": json.dumps({"probe": probe})}
    declared = [pa.field(c.name, c.type) for c in (RUN, *table.columns)]
    return pa.schema([*declared, *(pa.field(*one) for one in (extra or {}).items())], metadata=metadata)
