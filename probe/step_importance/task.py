"""What a method of importance is given and what it gives: a task, and rows of the table `importance`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe import stats
from probe.registries.step_edits import STUB
from probe.texts import Trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.store import Writer

Progress = Callable[[str, int, int], None]


class Heads(NamedTuple):
    """Receiver heads (layer, head) and on which text they were chosen, in words."""

    places: tuple[tuple[int, int], ...]
    text: str


@dataclass(frozen=True)
class Task:
    """A generation whose steps are to be measured, and all that methods may ask: see `importance` for the words.

    reference: the class of answers that probabilities are of. writer: the run that holds what was drawn.
    """

    lm: LanguageModel
    original: Trajectory
    reference: str = ""
    samples: int = 16
    seed: int = 0
    answer: str = "auto"
    split: str = "sentence"
    stub: str = STUB
    candidates: Sequence[str] = ()
    embedder: str | None = None
    suppress: str | None = None
    heads: Heads | None = None
    writer: Writer | None = None
    progress: Progress | None = None

    @property
    def run(self) -> Writer:
        """The run that holds what was drawn, for a method that needs it."""
        assert self.writer is not None, "such a method is sampled"
        return self.writer

    def report(self, what: str, done: int, total: int) -> None:
        """Tell who watches how far it is."""
        if self.progress:
            self.progress(what, done, total)


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


@dataclass(frozen=True)
class Measured:
    """Rows of one method; for some the matrix (step, step) of the table `dependence`, NaN where nothing is; its summary."""

    rows: Sequence[Row]
    matrix: np.ndarray | None = None
    summary: dict[str, Any] = field(default_factory=dict)


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
