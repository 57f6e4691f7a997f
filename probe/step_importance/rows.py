"""One row of the table `importance`, and what is done to all rows of a method: Benjamini-Hochberg over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from probe import stats
from probe.texts import Trajectory


@dataclass
class Row:
    """A step's importance. NaN-free: what was not measured is None. `control` is the method's own control, and `floor`
    the mean estimate where nothing differs, both in its unit."""

    method: str
    step: int
    estimate: float | None
    unit: str
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    q_value: float | None = None
    control: float | None = None
    floor: float | None = None
    n: int | None = None


def discovered(rows: Sequence[Row]) -> list[Row]:
    """The rows with `q_value` filled in, over the steps of each method that has p-values (Benjamini & Hochberg 1995)."""
    for method in {row.method for row in rows}:
        tested = [row for row in rows if row.method == method and row.p_value is not None]
        if tested:
            for row, q in zip(tested, stats.benjamini_hochberg(np.asarray([r.p_value for r in tested])), strict=True):
                row.q_value = float(q)
    return list(rows)


def columns(rows: Sequence[Row], original: Trajectory) -> dict[str, list[Any]]:
    """Columns of the table `importance`."""
    found: dict[str, list[Any]] = {name: [] for name in (*asdict(rows[0]), "kind", "text")} if rows else {}
    for row in rows:
        step = original.steps[row.step]
        for name, value in {**asdict(row), "kind": step.kind, "text": step.text}.items():
            found[name].append(value)
    return found
