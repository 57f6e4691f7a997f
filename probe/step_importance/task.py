"""What a method of importance is given and what it gives: a task, and rows of the table `importance`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from probe.decoding.teacher_forced import Prefix
from probe.requests import Importance
from probe.texts import Trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.running import Running


class Heads(NamedTuple):
    """Receiver heads (layer, head) and on which text they were chosen, in words."""

    places: tuple[tuple[int, int], ...]
    text: str


@dataclass(frozen=True)
class Task:
    """A generation whose steps are to be measured, and what is asked of it.

    reference: the class of answers that probabilities are of. heads: receiver heads that were chosen on another text. run:
    what holds the draws and hears how far it is.
    """

    lm: LanguageModel
    original: Trajectory
    request: Importance
    reference: str = ""
    seed: int = 0
    heads: Heads | None = None
    run: Running | None = None

    @cached_property
    def stem(self) -> Prefix:
        """What stands before the first step, read once: fork it before it grows."""
        return Prefix(self.lm, self.original.ids[: self.original.steps[0].start])

    def read(self, table: str) -> pa.Table:
        """A table of what was drawn, for a method that is sampled."""
        assert self.run is not None, "such a method is sampled"
        return self.run.writer.read(table)

    def report(self, what: str, done: int, total: int) -> None:
        """Tell who watches how far it is."""
        if self.run is not None:
            self.run.report(what, done, total)


@dataclass
class StepImportance:
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


@dataclass(frozen=True)
class Measured:
    """Rows of one method; for some the matrix (step, step) of the table `dependence`, NaN where nothing is; its summary."""

    rows: Sequence[StepImportance]
    matrix: np.ndarray | None = None
    summary: dict[str, Any] = field(default_factory=dict)


def discovered(rows: Sequence[StepImportance]) -> list[StepImportance]:
    """The rows with `q_value` filled in, over the steps of each method that has p-values (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    for method in {row.method for row in rows}:
        tested = [row for row in rows if row.method == method and row.p_value is not None]
        if tested:
            for row, q in zip(tested, false_discovery_control([r.p_value for r in tested]), strict=True):
                row.q_value = float(q)
    return list(rows)


def columns(rows: Sequence[StepImportance], original: Trajectory) -> dict[str, list[Any]]:
    """Columns of the table `importance`."""
    found: dict[str, list[Any]] = {name: [] for name in (*asdict(rows[0]), "kind", "text")} if rows else {}
    for row in rows:
        step = original.steps[row.step]
        for name, value in {**asdict(row), "kind": step.kind, "text": step.text}.items():
            found[name].append(value)
    return found
