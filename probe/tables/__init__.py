"""The tables of a run: their columns, types and units. The only package that names columns; it writes nothing."""

from __future__ import annotations

import json

import pyarrow as pa

from probe.tables.columns import FLOATS, INTS, RUN, Column, Table
from probe.tables.flat import FLAT, FlatTable
from probe.tables.measured import MEASURED
from probe.tables.observed import OBSERVED
from probe.tables.over_problems import OVER_PROBLEMS

__all__ = ["FLAT", "FLOATS", "INTS", "RUN", "SCHEMA_VERSION", "TABLES", "Column", "FlatTable", "Table", "schema"]

SCHEMA_VERSION = 3  # the largest `since`

TABLES: dict[str, Table] = {t.name: t for t in (*OBSERVED, *MEASURED, *OVER_PROBLEMS)}


def schema(name: str) -> pa.Schema:
    """Arrow schema of a table, `run_id` first, with units in its metadata (keys `probe` and `PANDAS_ATTRS`)."""
    table = TABLES[name]
    units = {c.name: c.doc for c in (RUN, *table.columns)}
    probe = {"schema_version": SCHEMA_VERSION, "table": name, "row": table.row, "units": units}
    metadata = {"probe": json.dumps(probe), "PANDAS_ATTRS": json.dumps({"probe": probe})}
    return pa.schema([pa.field(c.name, c.type) for c in (RUN, *table.columns)], metadata=metadata)
