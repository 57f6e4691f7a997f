"""What a method of importance is given and what it gives: a task, and rows of the table `importance`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from probe.decoding.teacher_forced import Prefix
from probe.over_problems import COLUMNS, importance_tables
from probe.requests import Importance
from probe.rewinding.drawing import Samples
from probe.stats import q_values
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
    what holds the draws and hears how far it is. paired: the same sample of two boundaries shares its noise. drawn: in rounds,
    how many samples each step has, by method, and why no more.
    """

    lm: LanguageModel
    original: Trajectory
    request: Importance
    reference: str = ""
    seed: int = 0
    heads: Heads | None = None
    run: Running | None = None
    paired: bool = True
    drawn: Mapping[str, Sequence[Samples]] = field(default_factory=dict)
    pilot: int | None = None  # in rounds: draws of each boundary in the first
    pooled: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)  # see `similarity.embeddings`

    def samples(self, method: str) -> Sequence[Samples]:
        """Of each step, for a method that is sampled."""
        return self.drawn.get(method) or [Samples(self.request.samples)] * len(self.original.steps)

    @cached_property
    def stem(self) -> Prefix:
        """What stands before the first step, read once: fork it before it grows."""
        return Prefix(self.lm, self.original.ids[: self.original.steps[0].start])

    def read(self, table: str) -> pa.Table:
        """What was drawn of this problem, for a method that is sampled."""
        assert self.run is not None, "such a method is sampled"
        return self.run.writer.read(table, prompt_id=self.original.prompt_id)

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
    stopped: str | None = None

    @property
    def size(self) -> float | None:
        """What steps are ranked by: |estimate|, less what it would be if nothing differed, where a method knows that."""
        return None if self.estimate is None else abs(self.estimate) - (self.floor or 0.0)


@dataclass(frozen=True)
class Measured:
    """Rows of one method; for some the matrix (step, step) of the table `dependence`, NaN where nothing is; its summary, and
    columns of tables of its own, by name."""

    rows: Sequence[StepImportance]
    matrix: np.ndarray | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)


def add_q_values(run: Running) -> None:
    """Fill in `q_value` of the run's `importance`, when all rows are there: over all steps of all problems that a method has a
    p of (Benjamini & Hochberg 1995)."""

    def keys(rows: pa.Table) -> Iterator[tuple[int, str, int]]:
        return zip(*(rows[name].to_pylist() for name in ("prompt_id", "method", "step")), strict=True)

    rows = run.frame("importance", ("prompt_id", "method", "step", "p_value"))
    methods, p, q = rows["method"].to_numpy(str), rows["p_value"].to_numpy(np.float64), np.full(len(rows), np.nan)
    for method in np.unique(methods):
        q[methods == method] = q_values(p[methods == method])
    of = dict(zip(zip(rows["prompt_id"], methods, rows["step"], strict=True), q, strict=True))

    def filled(some: pa.Table) -> pa.Table:
        at = some.schema.get_field_index("q_value")
        return some.set_column(
            at, some.schema.field(at), pa.array([of[key] for key in keys(some)], pa.float64(), from_pandas=True)
        )

    run.writer.amend("importance", filled)


def write_over_steps(run: Running, references: Mapping[int, str], *, seed: int) -> dict[str, Any]:
    """The tables over problems, of the importance that the run holds; what a summary says of them. references: the class of
    answers that is counted, by prompt."""
    over = importance_tables(
        run.frame("importance"), *(run.frame(name, columns) for name, columns in COLUMNS.items()),
        early_answers=run.frame("early_answers"), references=references, seed=seed,
    )  # fmt: skip
    run.write_all(over.tables, unit="over-problems")
    return over.summary


def columns(rows: Sequence[StepImportance], original: Trajectory) -> dict[str, list[Any]]:
    """Columns of the table `importance`."""
    about = {"prompt_id": original.prompt_id}
    steps = [original.steps[row.step] for row in rows]
    plain = [{**about, **asdict(row), "kind": step.kind, "text": step.text} for row, step in zip(rows, steps, strict=True)]
    return {name: [row[name] for row in plain] for name in plain[0]} if plain else {}
