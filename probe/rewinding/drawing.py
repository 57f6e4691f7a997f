"""What a rewind draws: so many samples of every arm of every place, or rounds until each difference is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe.answers import merge
from probe.decoding.rollouts import Engine
from probe.decoding.teacher_forced import Prefix
from probe.requests import Rewind
from probe.rewinding.preparing import RewindPlan
from probe.rewinding.rollouts import Arm, ArmSamples, draw
from probe.rewinding.rounds import Boundary, Drawn, allocation_of, draw_in_rounds
from probe.rewinding.teacher_forced import LEAST
from probe.stats import Allocation

if TYPE_CHECKING:
    from probe.running import Running


class Samples(NamedTuple):
    """How many of both arms of a place are compared, and in rounds why no more were drawn."""

    n: int
    stopped: str | None = None


def draw_samples(run: Running, engine: Engine, plans: Sequence[RewindPlan]) -> list[Samples]:
    """Draw `samples` of every arm, but of the arm that is drawn from before the step as many as a z-score of the edit needs:
    where they differ, which greedy ones do not."""
    draw(run, engine, [_wanted(plan, plan.named, range(plan.request.samples)) for plan in plans])
    draw(run, engine, [
        _wanted(plan, [arm for arm in plan.named if arm.prefix == plan.arms.before], range(plan.request.samples, LEAST))
        for plan in plans if plan.arms.new and plan.request.samples < LEAST and plan.rollout.sampling.temperature
    ])  # fmt: skip
    return [Samples(plan.request.samples) for plan in plans]


def _wanted(plan: RewindPlan, arms: Sequence[Any], samples: range) -> ArmSamples:
    return ArmSamples(arms, samples, plan.rollout, _stem(plan))


def _stem(plan: RewindPlan) -> Prefix | None:
    """What the model has read of a place's text; the text before many places is read again by each."""
    return plan.fork.stem if plan.only else None


class RewindRounds:
    """The arms of all places as boundaries: control and edited of one are the ends of its difference."""

    def __init__(self, request: Rewind, plans: list[list[RewindPlan]]) -> None:
        """Raises `BadOption` for a budget that is too small to begin with."""
        self.request, self.plans = request, plans
        self.summary: dict[str, Any] = {}
        self.places = [plan for some in plans for plan in some]
        self.boundaries: list[Boundary] = []
        at: list[dict[str, int]] = []
        for plan in self.places:
            at.append({arm.name: len(self.boundaries) + i for i, arm in enumerate(plan.named)})
            self.boundaries += [self._boundary(plan, arm) for arm in plan.named]
        self.cells = [k for k, plan in enumerate(self.places) if plan.arms.edited is not None]
        ends = [(at[k]["control"], at[k]["edited"]) for k in self.cells]
        self.of = [k for k, plan in enumerate(self.places) for _ in plan.named]
        self.allocation = allocation_of(self.boundaries, ends, request)

    def _boundary(self, plan: RewindPlan, arm: Arm) -> Boundary:
        least = LEAST if plan.arms.new and arm.prefix == plan.arms.before else 0
        over = plan.rollout.is_over(plan.origin.lm, arm.prefix, arm.n_prompt)
        return Boundary(arm, plan.rollout, 0 if over else arm.max_new or plan.rollout.max_new, least)

    def draw(self, run: Running, engine: Engine) -> list[Samples]:
        """Draw until every difference is known or nothing more can be paid for; how many pairs each place has then."""
        boundaries = [one._replace(stem=_stem(self.places[k])) for one, k in zip(self.boundaries, self.of, strict=True)]
        self.summary = draw_in_rounds(run, engine, boundaries, self.allocation, self.request, self._look)
        drawn = [Samples(self.request.samples)] * len(self.places)
        for cell, k in enumerate(self.cells):
            drawn[k] = Samples(int(self.allocation.pairs[0, cell]), str(self.allocation.stopped[0, cell]))
        return drawn

    def _look(self, allocation: Allocation, drawn: Sequence[Drawn]) -> None:
        allocation.look([_hits(self.places[k], one.outcomes) for one, k in zip(drawn, self.of, strict=True)])


def _hits(plan: RewindPlan, outcomes: Sequence[str]) -> np.ndarray:
    """Whether each outcome is the class that the place's difference is about."""
    reference = plan.reference
    if plan.request.merge_answers:
        first = merge([reference, *outcomes])
        reference, outcomes = first[reference], [first[one] for one in outcomes]
    return np.array([one == reference for one in outcomes], bool)
