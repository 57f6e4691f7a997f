"""`probe tables`: what stands in the tables of a run, from their declarations."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import with_options
from .completing import completed
from .groups import Output

if TYPE_CHECKING:
    import pyarrow as pa

    from probe.tables import Table

Name = Annotated[str | None, typer.Argument(help="A table; without one, all are listed.", autocompletion=completed("tables"))]


@with_options
def command(output: Output, name: Name = None) -> None:
    """Show what a table of a run holds: its columns with types, units and meanings, and an example query."""
    from probe.errors import BadOption
    from probe.tables import TABLES

    from .terminal import show_document, show_table

    if name is not None and name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise BadOption(f"there is no table '{name}'", hint=f"{meant}there are {', '.join(TABLES)}")
    if output.as_json:
        wanted = TABLES.values() if name is None else [TABLES[name]]
        show_document({"command": "tables", "summary": {"tables": [described(table) for table in wanted]}})
    elif name is None:
        rows = [(table.name, table.row, " ".join(table.verbs)) for table in TABLES.values()]
        show_table(("table", "a row is", "written by"), rows)
    else:
        _show(TABLES[name])


def described(table: Table) -> dict[str, Any]:
    """A table's declaration as plain values."""
    return {
        "table": table.name, "row": table.row, "keys": list(table.keys), "verbs": list(table.verbs),
        "file": file_of(table), "example": table.example, "columns": [
            {"column": name, "type": kind, "since": since, "meaning": meaning} for name, kind, since, meaning in columns(table)
        ],
    }  # fmt: skip


def columns(table: Table) -> list[tuple[str, str, str, str]]:
    """(name, type, the schema version that has it first, meaning with its unit) of each column, `run_id` first."""
    from probe.tables import RUN

    return [(c.name, type_name(c.type), str(c.since), c.doc) for c in (RUN, *table.columns)]


def file_of(table: Table) -> str:
    """Where its rows are, below a run's folder."""
    return f"{table.name}/*.parquet" if table.large else f"{table.name}.parquet"


def type_name(kind: pa.DataType) -> str:
    """An Arrow type in a word: int32, float32, bool, text, list of int32."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind) or pa.types.is_string(kind):
        return "text"
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"list of {type_name(kind.value_type)}"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def _show(table: Table) -> None:
    from .terminal import show_table

    typer.echo(f"{table.name}: a row is {table.row}")
    typer.echo(f"in {file_of(table)}, written by {', '.join(table.verbs)}; a row's key: {', '.join(table.keys)}\n")
    show_table(("column", "type", "since", "meaning"), columns(table))
    typer.echo(f"\nexample, in DuckDB (RUN is a run's folder):\n  {table.example}")
