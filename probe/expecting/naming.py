"""Whether an expectation can be kept by runs of a command: its tables, their columns, and what kind of value each holds."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache

import pyarrow as pa

from probe.errors import BadExpectation
from probe.expecting.grammar import ORDERS, ClosedRange, ColumnOf, Expectation, Literal, Term, parse
from probe.tables import TABLES, schema

COUNTED = ("max", "min", "mean", "median", "sum")  # of numbers only


@cache
def checked(text: str, command: str | None = None) -> Expectation:
    """The expectation that a text says, of runs of a command. Raises `BadExpectation` for what cannot be read, for a table
    or a column that there is not (naming the nearest), and for words where numbers are compared."""
    found = parse(text)
    left = _kind(found.left, command, text)
    if isinstance(found.right, ClosedRange):
        _comparable(left, "number", text)
        return found
    right = _kind(found.right, command, text)
    _comparable(left, right, text)
    if found.comparison in ORDERS:
        for kind in (left, right):
            _comparable(kind, "number", text)
    return found


def _kind(term: Term, command: str | None, text: str) -> str:
    """number, text or truth; anything of what the summary holds, which is known at the end."""
    if isinstance(term, bool):
        return "truth"
    if isinstance(term, float | str):
        return "number" if isinstance(term, float) else "text"
    if not isinstance(term, ColumnOf):
        return "anything"
    _know(term.table, _tables_of(command), text, "no table", f"a run of {command} may have" if command else "tables are")
    if command and TABLES[term.table].large:
        hint = f"when the run is there: probe.expect(run, {text!r})"
        raise BadExpectation(f"'{text}': '{term.table}' is too large to be read before the run is whole", hint=hint)
    for condition in term.where:
        kind = _kind_of_column(term.table, condition.column, text)
        _comparable(kind, _kind_of(condition.value), text)
        if condition.comparison in ORDERS:
            _comparable(kind, "number", text)
    kind = "number" if term.column is None else _kind_of_column(term.table, term.column, text)
    if term.function in COUNTED:
        _comparable(kind, "number", text)
    return "number" if term.function == "count" else kind


def _kind_of(value: Literal) -> str:
    return "truth" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def _tables_of(command: str | None) -> list[str]:
    """Those that runs of the command may have; all of them for a command of which no table says so."""
    return [name for name, table in TABLES.items() if command in table.verbs] or list(TABLES)


def _kind_of_column(table: str, column: str, text: str) -> str:
    known = schema(table)
    _know(column, known.names, text, f"no column of '{table}'", "it has")
    kind = known.field(column).type
    if pa.types.is_nested(kind):
        raise BadExpectation(f"'{text}': '{table}.{column}' holds a list in each row", hint="compare a column of single values")
    if pa.types.is_boolean(kind):
        return "truth"
    return "number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else "text"


def _know(name: str, known: Iterable[str], text: str, what: str, there: str) -> None:
    known = [one for one in known if one != "run_id"]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(repr(one) for one in near)}?" if near else f"{there}: {', '.join(known)}"
        raise BadExpectation(f"'{text}': '{name}' is {what}", hint=meant)


def _comparable(one: str, other: str, text: str) -> None:
    if "anything" not in (one, other) and one != other:
        raise BadExpectation(f"'{text}' compares {one} with {other}", hint="numbers with numbers, a text with a text")
