"""Whether what was expected is so: an expectation beside a run's summary and the rows of its tables. Reads no files."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from probe.durable import jsonable
from probe.expecting.grammar import ClosedRange, ColumnOf, Condition, Expectation, SummaryPath, Term
from probe.tables import TABLES, bounds_of

HELD, FAILED, UNRESOLVED = "held", "failed", "not resolved"
RowsOf = Callable[[str], pa.Table | None]  # the rows of a table, by its name; None where the run does not have it


@dataclass(frozen=True)
class Verdict:
    """What became of an expectation.

    verdict: held, failed, or not resolved at this n: an interval lies on both sides, or there is no value. found, low, high:
    the value that decided, and its interval (where it has one). at: the keys of its row. rows: with a value. why: in words.
    """

    that: str
    verdict: str
    found: float | str | bool | None = None
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    at: Mapping[str, Any] | None = None
    why: str = ""


class Values(NamedTuple):
    """Of one row, or of several: each value and the ends of its interval, which are the value where it is one of a point."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows: pa.Table | None = None  # the keys of the rows, where they are those of a table
    why: str = ""  # there is no value

    @classmethod
    def point(cls, value: Any) -> Values:
        found = np.asarray([value], dtype=object if isinstance(value, str) else None)
        return cls(found, found, found)

    @classmethod
    def none(cls, why: str) -> Values:
        empty = np.zeros(0)
        return cls(empty, empty, empty, why=why)


def verdict_of(expectation: Expectation, summary: Mapping[str, Any], rows: RowsOf) -> Verdict:
    """Compare what was expected with what was found; nothing that a run may or may not hold is an error."""
    left, right = expectation.left, expectation.right
    found = _values(left, summary, rows)
    if found.why:
        return Verdict(expectation.text, UNRESOLVED, why=found.why)
    if isinstance(right, ClosedRange):
        limits = found._replace(low=np.full(len(found.value), right.low), high=np.full(len(found.value), right.high))
    else:
        limits = _values(right, summary, rows)
        if len(limits.value) > 1 and not (limits.rows and found.rows and limits.rows.equals(found.rows)):
            limits = Values.none(f"the right side has {len(limits.value)} rows: one is wanted, or those of the left")
        if limits.why:
            return Verdict(expectation.text, UNRESOLVED, why=limits.why)
    if _is_words(found) != _is_words(limits) and not isinstance(right, ClosedRange):
        return Verdict(expectation.text, UNRESOLVED, found=_plain(found.value[0]), why="a number is compared with a text")
    held, failed = _compared(expectation.comparison, found, limits)
    if isinstance(left, ColumnOf) and left.function == "any":
        verdict, deciding = (HELD, held) if held.any() else (FAILED, failed) if failed.all() else (UNRESOLVED, ~held & ~failed)
    else:
        verdict, deciding = (FAILED, failed) if failed.any() else (HELD, held) if held.all() else (UNRESOLVED, ~held & ~failed)
    return _said(expectation, verdict, found, int(np.flatnonzero(deciding)[0]))


def _said(expectation: Expectation, verdict: str, found: Values, i: int) -> Verdict:
    value, low, high = (_plain(one[i]) for one in found[:3])
    bounds: dict[str, Any] = {} if (low, high) == (value, value) else {"low": low, "high": high}
    why = ""
    if verdict == UNRESOLVED:
        why = "its interval is not known" if bounds and None in bounds.values() else "its interval lies on both sides"
    of_rows: dict[str, Any] = (
        {} if found.rows is None else {"rows": found.rows.num_rows, "at": found.rows.slice(i, 1).to_pylist()[0]}
    )
    return Verdict(expectation.text, verdict, value, **bounds, **of_rows, why=why)


def _compared(comparison: str, a: Values, b: Values) -> tuple[np.ndarray, np.ndarray]:
    """Of each value whether the comparison holds, and whether it fails, wherever in their intervals both are."""
    if comparison == "in":
        return (a.low >= b.low) & (a.high <= b.high), (a.high < b.low) | (a.low > b.high)
    if comparison in ("=", "!="):
        same, other = a.low == b.low, a.value != b.value
        if not _is_words(a):
            same, other = (a.low == b.high) & (a.high == b.low), (a.high < b.low) | (a.low > b.high)
        return (same, other) if comparison == "=" else (other, same)
    if comparison in (">", ">="):
        a, b, comparison = b, a, comparison.replace(">", "<")
    if comparison == "<":
        return a.high < b.low, a.low >= b.high
    return a.high <= b.low, a.low > b.high


def _is_words(values: Values) -> bool:
    return values.value.dtype == object


def _plain(value: Any) -> Any:
    return jsonable(value)


def _values(term: Term, summary: Mapping[str, Any], rows: RowsOf) -> Values:
    if isinstance(term, SummaryPath):
        return _in_summary(term, summary)
    return _in_rows(term, rows) if isinstance(term, ColumnOf) else Values.point(term)


def _in_summary(path: SummaryPath, summary: Mapping[str, Any]) -> Values:
    at: Any = summary
    around: Mapping[str, Any] = summary
    name, said = "", "summary"
    for key in path.keys:
        if isinstance(at, Mapping) and str(key) in at:
            around, name, at = at, str(key), at[str(key)]
        elif isinstance(at, Sequence) and not isinstance(at, str) and isinstance(key, int) and -len(at) <= key < len(at):
            around, name, at = {}, "", at[key]
        else:
            near = difflib.get_close_matches(str(key), list(at), n=3) if isinstance(at, Mapping) else []
            return Values.none(f"'{said}' has no '{key}'" + (f"; near it: {', '.join(near)}" if near else ""))
        said += f".{key}"
    if isinstance(at, Mapping) and (inner := next((one for one in ("value", "estimate", "mean") if one in at), None)):
        around, name, at = at, inner, at[inner]
    if at is None or not isinstance(at, int | float | str):
        return Values.none(f"'{said}' is no single value" if at is not None else f"'{said}' has no value")
    bounds = bounds_of(name, around)
    point = Values.point(at)
    if bounds is None or isinstance(at, str):
        return point
    low, high = (np.asarray([np.nan if around[one] is None else around[one]], dtype=float) for one in bounds)
    return Values(point.value.astype(float), low, high)


def _in_rows(term: ColumnOf, rows_of: RowsOf) -> Values:
    table = rows_of(term.table)
    if table is None:
        return Values.none(f"the run has no table '{term.table}'")
    for condition in term.where:
        table = table.filter(pa.array(_chosen(table, condition), pa.bool_()))
    if term.column is None:
        return Values.point(table.num_rows)
    value = _array(table, term.column)
    there = _there(value)
    if term.function == "count":
        return Values.point(int(there.sum()))
    if not there.any():
        return Values.none(f"no row of '{term.table}' is selected" if not len(value) else f"'{term.column}' has no value there")
    table, value = table.filter(pa.array(there, pa.bool_())), value[there]
    if term.function in ("mean", "median", "sum"):
        return Values.point(float(getattr(np, term.function)(value)))
    bounds = None if value.dtype == object else bounds_of(term.column, table.column_names)
    low, high = (value, value) if bounds is None else (_array(table, one) for one in bounds)
    rows = table.select(list(TABLES[term.table].keys))
    if term.function not in ("max", "min"):
        return Values(value, low, high, rows)
    i = int(getattr(np, f"arg{term.function}")(value))
    return Values(value[i : i + 1], low[i : i + 1], high[i : i + 1], rows.slice(i, 1))


def _chosen(table: pa.Table, condition: Condition) -> np.ndarray:
    """Which rows are those; one without a value there is none of them."""
    value = _array(table, condition.column)
    held, _ = _compared(condition.comparison, Values(value, value, value), Values.point(condition.value))
    return np.asarray(held, dtype=bool) & _there(value)


def _there(values: np.ndarray) -> np.ndarray:
    return np.asarray([one is not None for one in values], dtype=bool) if values.dtype == object else ~np.isnan(values)


def _array(table: pa.Table, column: str) -> np.ndarray:
    """A column as numbers (null as NaN), or as objects."""
    values = table[column]
    if pa.types.is_dictionary(values.type) or pa.types.is_string(values.type):
        return np.asarray(values.cast(pa.string()).to_pylist(), dtype=object)
    return np.asarray([np.nan if one is None else float(one) for one in values.to_pylist()], dtype=float)
