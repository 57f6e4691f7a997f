"""How the rows of a panel are got in pandas and in DuckDB, as text to copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probe import tables

if TYPE_CHECKING:
    from probe.reporting.views import Panel
    from probe.store.run import Run


def of_panel(panel: Panel, run: Run) -> dict[str, str]:
    """`{"pandas": text, "duckdb": text}`: each gives the rows of the panel with all columns that the table has.

    Both are empty where the rows are of no table of the run. Of a run in memory the folder is called RUN.
    """
    if panel.table not in run.tables:
        return {"pandas": "", "duckdb": ""}
    folder = run.address or "RUN"
    large = tables.TABLES[panel.table].large
    where = {column: _listed(value) for column, value in panel.where.items()}
    return {
        "pandas": _pandas(f"{folder}/{panel.table}" + ("" if large else ".parquet"), where),
        "duckdb": _duckdb(f"{folder}/{panel.table}" + ("/*.parquet" if large else ".parquet"), where),
    }


def _listed(value: Any) -> Any:
    """A value, or a list of several, as Python's own."""
    found = value.tolist() if hasattr(value, "tolist") else value
    return list(found) if isinstance(found, Sequence | set | frozenset | range) and not isinstance(found, str) else found


def _pandas(path: str, where: Mapping[str, Any]) -> str:
    filters = [
        (column, "in" if isinstance(value, list) else "==", value) for column, value in where.items() if value is not None
    ]
    lines = ["import pandas as pd", f"rows = pd.read_parquet({path!r}" + (f", filters={filters!r})" if filters else ")")]
    lines += [f"rows = rows[rows[{column!r}].isna()]" for column, value in where.items() if value is None]
    return "\n".join(lines)


def _duckdb(path: str, where: Mapping[str, Any]) -> str:
    asked = [_condition(column, value) for column, value in where.items()]
    return f"select * from {_literal(path)}" + (f" where {' and '.join(asked)}" if asked else "")


def _condition(column: str, value: Any) -> str:
    name = '"' + column.replace('"', '""') + '"'
    if value is None:
        return f"{name} is null"
    if isinstance(value, list):
        return f"{name} in ({', '.join(_literal(one) for one in value)})"
    return f"{name} = {_literal(value)}"


def _literal(value: Any) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)
