"""Draws from every boundary between steps in rounds, until the differences of all steps are known. Makes no rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe.decoding.rollouts import Engine
from probe.requests import Importance
from probe.rewinding.drawing import Samples
from probe.rewinding.rollouts import Arm, RolloutOptions
from probe.rewinding.rounds import Boundary, Drawn, allocation_of, draw_in_rounds
from probe.stats import Allocation
from probe.step_importance.boundaries import LEAST, apart, told_apart
from probe.step_importance.task import Task

if TYPE_CHECKING:
    from probe.running import Running


class Swept(NamedTuple):
    """One problem: its task, the arms at its boundaries, and how they go on."""

    task: Task
    arms: tuple[Arm, ...]
    rollout: RolloutOptions
    alone: bool


class ImportanceRounds:
    """The boundaries of all problems; those before and after a step are the ends of its difference, by each sampled method."""

    def __init__(self, request: Importance, methods: Sequence[str], problems: Sequence[Swept]) -> None:
        """Raises `BadOption` for a budget that is too small to begin with."""
        self.request, self.methods, self.problems = request, tuple(methods), problems
        self.summary: dict[str, Any] = {}
        self.first = np.cumsum([0, *(len(one.arms) for one in problems)])  # boundary of each problem
        self.ends = [(a + i, a + i + 1) for a, one in zip(self.first, problems, strict=False) for i in range(len(one.arms) - 1)]
        self.cell = np.cumsum([0, *(len(one.arms) - 1 for one in problems)])
        boundaries = [self._boundary(one, arm) for one in problems for arm in one.arms]
        self.allocation = allocation_of(boundaries, self.ends, request, measures=len(self.methods))
        self.boundaries, self.pilots = boundaries, [0] * len(problems)

    def _boundary(self, one: Swept, arm: Arm) -> Boundary:
        over = one.rollout.is_over(one.task.lm, arm.prefix, arm.n_prompt)
        return Boundary(arm, one.rollout, 0 if over else arm.max_new or one.rollout.max_new)

    def draw(self, run: Running, engine: Engine) -> list[Task]:
        """Draw until every step is known or nothing more can be paid for; the tasks, with what was drawn for each."""
        self.problems = [one._replace(task=replace(one.task, run=run)) for one in self.problems]
        boundaries = [
            one._replace(stem=problem.task.stem if problem.alone else None)
            for problem, begin in zip(self.problems, self.first, strict=False)
            for one in self.boundaries[begin : begin + len(problem.arms)]
        ]
        self.summary = draw_in_rounds(run, engine, boundaries, self.allocation, self.request, self._look)
        return [replace(one.task, drawn=self._samples(k), pilot=self.pilots[k]) for k, one in enumerate(self.problems)]

    def _samples(self, k: int) -> Mapping[str, Sequence[Samples]]:
        """Of each step of one problem, by each method."""
        own = slice(self.cell[k], self.cell[k + 1])
        found = self.allocation
        return {
            name: [Samples(int(n), str(why)) for n, why in zip(found.pairs[m, own], found.stopped[m, own], strict=True)]
            for m, name in enumerate(self.methods)
        }

    def _look(self, allocation: Allocation, drawn: Sequence[Drawn]) -> None:
        for k in range(len(self.problems)):
            own = drawn[self.first[k] : self.first[k + 1]]
            self.pilots[k] = self.pilots[k] or min(len(boundary.outcomes) for boundary in own)
        for measure, name in enumerate(self.methods):
            if name == "counterfactual":
                for k in range(len(self.problems)):
                    self._look_at_others(k, measure, drawn)
            else:
                references = [one.task.reference for one in self.problems for _ in one.arms]
                hits = [np.array([c == r for c in one.outcomes], bool) for one, r in zip(drawn, references, strict=True)]
                allocation.look(hits, measure=measure)

    def _look_at_others(self, k: int, measure: int, drawn: Sequence[Drawn]) -> None:
        """The open steps of one problem against the draws that say something else."""
        begin, end = self.cell[k], self.cell[k + 1]
        cells = begin + np.flatnonzero(self.allocation.stopped[measure, begin:end] == "")
        if not len(cells):
            return
        task = replace(self.problems[k].task, pilot=self.pilots[k])
        n = [min(len(drawn[a].outcomes), len(drawn[b].outcomes)) for a, b in self.ends[begin:end]]
        different = told_apart(task, n).different
        bounds = []
        for cell in cells.tolist():
            a, b = self.ends[cell]
            step = cell - int(begin)
            other = [c for c, d in zip(drawn[a].outcomes, different[step], strict=False) if d]
            kept = drawn[b].outcomes[: n[step]]
            bounds.append(apart(other, kept, task.reference, looks=True)[1:3] if len(other) >= LEAST else (-1.0, 1.0))
        low, high = np.array(bounds).T
        self.allocation.settle(cells, np.array(n)[cells - begin], low, high, measure=measure)
