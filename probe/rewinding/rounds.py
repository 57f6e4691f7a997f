"""Draws in rounds: after each it is asked which differences are known, and from where the next continuations narrow most.

Knows no method: what is compared is given as boundaries, as the pairs of them that a difference lies between, and as a look at
their outcomes. What is decided depends on what was drawn, and for a budget of time on the clock; it is kept in the table
`rounds` before the round begins, so that a run that is resumed goes on as it would have.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from probe.decoding.rollouts import Engine
from probe.decoding.teacher_forced import Prefix
from probe.errors import BadOption
from probe.requests.budget import SMALLER, BudgetOptions
from probe.rewinding.rollouts import Arm, ArmSamples, RolloutOptions, blocks, draw
from probe.stats import Allocation, StoppingRule

if TYPE_CHECKING:
    from probe.running import Running

MOST = 1024  # continuations of a boundary
PILOT = 4  # of each boundary, before it is known what they take in time


class Boundary(NamedTuple):
    """What is drawn from: an arm of a problem. least: continuations that it has at least; ceiling: tokens that one can have."""

    arm: Arm
    rollout: RolloutOptions
    ceiling: int
    least: int = 0
    stem: Prefix | None = None


class Drawn(NamedTuple):
    """What was drawn from a boundary, by sample: classes of answers, and tokens (n,)."""

    outcomes: list[str]
    tokens: np.ndarray


Look = Callable[[Allocation, Sequence[Drawn]], None]
"""Tells an allocation what was found: `Allocation.look` or `settle` for each of its measures."""


def allocation_of(
    boundaries: Sequence[Boundary], ends: Sequence[tuple[int, int]], request: Any, *, measures: int = 1
) -> Allocation:
    """Nothing drawn yet. Raises `BadOption` for a budget that does not pay for one continuation of each boundary."""
    rule = StoppingRule(known=request.until)
    if request.budget is not None:
        rule = StoppingRule(differs=True, smaller=request.until or SMALLER)
    found = Allocation(np.array(ends), np.array([one.ceiling for one in boundaries]), rule, MOST, measures)
    if not _first(found, boundaries, request).any():
        least = int(found.ceiling @ [max(1, one.least) for one in boundaries])
        raise BadOption(
            f"a budget of {request.spending.tokens} tokens may not pay for the first continuations of each arm",
            hint=f"at least {least} do; or fewer prompts (--prompt), or shorter (--max-new)",
        )
    return found


def _first(found: Allocation, boundaries: Sequence[Boundary], request: Any) -> np.ndarray:
    samples = min(PILOT, request.samples) if request.spending.seconds else request.samples
    return found.first(samples, request.spending.tokens, least=np.array([one.least for one in boundaries]))


def draw_in_rounds(
    run: Running, engine: Engine, boundaries: Sequence[Boundary], allocation: Allocation, request: BudgetOptions, look: Look
) -> dict[str, Any]:
    """Draw until every difference is known, or nothing more can be paid for; what is to be said of it."""
    clock = _Clock(request.spending.seconds)
    recorded = _recorded(run, boundaries)
    number = 0
    while True:
        before = allocation.drawn
        if number < len(recorded):
            target: np.ndarray | None = np.maximum(before, recorded[number].samples)
            clock.go_on_from(recorded[number].seconds)
        elif run.writer.done("rounds"):
            target = None
        else:
            target = allocation.next(_left(request, allocation, clock)) if number else _first(allocation, boundaries, request)
            if target is not None:
                with run.writer.unit(f"round-{number}"):
                    _record(run, boundaries, number, before, target, clock)
        if target is None:
            break
        _draw(run, engine, boundaries, before, target)
        drawn = _drawn(run.writer.read("branches"), boundaries, target)
        allocation.record([one.tokens for one in drawn])
        look(allocation, drawn)
        number += 1
    allocation.close()
    if not run.writer.done("rounds"):
        with run.writer.unit("rounds"):
            pass
    return _summary(allocation, request, number, clock)


class _Clock:
    """The time that drawing took, with that of the process before, as far as it was written down."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.before, self.begun = seconds, 0.0, time.monotonic()

    @property
    def elapsed(self) -> float | None:
        """Seconds; None where they do not count."""
        return None if self.seconds is None else self.before + time.monotonic() - self.begun

    def go_on_from(self, seconds: float | None) -> None:
        """As if so much had passed by now."""
        self.before, self.begun = seconds or 0.0, time.monotonic()


def _left(request: BudgetOptions, allocation: Allocation, clock: _Clock) -> float | None:
    """Tokens that can still be drawn; of a time as many as at the pace so far."""
    budget, spent = request.spending, float(allocation.spent.sum())
    if budget.tokens is not None:
        return budget.tokens - spent
    if budget.seconds is None or clock.elapsed is None:
        return None
    return max(0.0, budget.seconds - clock.elapsed) * spent / max(clock.elapsed, 1e-9)


class _Recorded(NamedTuple):
    """A round that was decided before: samples (boundary,), 0 where it raises none, and the time until then."""

    samples: np.ndarray
    seconds: float | None


def _record(
    run: Running, boundaries: Sequence[Boundary], number: int, before: np.ndarray, target: np.ndarray, clock: _Clock
) -> None:
    raised = [boundaries[i] for i in np.flatnonzero(target > before).tolist()]
    run.write("rounds", {
        "round": [number] * len(raised), "prompt_id": [one.rollout.prompt_id for one in raised],
        "number": [one.arm.number for one in raised], "step": pa.array([one.arm.step for one in raised], pa.int32()),
        "arm": [one.arm.name for one in raised], "samples": target[target > before].astype(np.int32),
        "seconds": pa.array([clock.elapsed] * len(raised), pa.float64()),
    })  # fmt: skip


def _recorded(run: Running, boundaries: Sequence[Boundary]) -> list[_Recorded]:
    """The rounds that the run has already, when it is resumed."""
    if not run.writer.done("round-0"):
        return []
    rows = run.writer.read("rounds").to_pylist()
    places = {(one.rollout.prompt_id, one.arm.number): i for i, one in enumerate(boundaries)}
    found = [_Recorded(np.zeros(len(boundaries), np.int64), None) for _ in range(1 + max(row["round"] for row in rows))]
    for row in rows:
        found[row["round"]].samples[places[row["prompt_id"], row["number"]]] = row["samples"]
        found[row["round"]] = found[row["round"]]._replace(seconds=row["seconds"])
    return found


def _draw(run: Running, engine: Engine, boundaries: Sequence[Boundary], before: np.ndarray, target: np.ndarray) -> None:
    problems: dict[int, list[ArmSamples]] = defaultdict(list)
    for one, begin, end in zip(boundaries, before.tolist(), target.tolist(), strict=True):
        if end > begin:
            problems[one.rollout.prompt_id].append(ArmSamples([one.arm], range(begin, end), one.rollout, one.stem))
    sized = ((sum(len(one.samples) for one in some), some) for some in problems.values())
    for several in blocks(sized):
        draw(run, engine, [one for some in several for one in some])


def _drawn(branches: pa.Table, boundaries: Sequence[Boundary], target: np.ndarray) -> list[Drawn]:
    """The first so many samples of each boundary: a run that is resumed may have more."""
    places = {(one.rollout.prompt_id, one.arm.number): i for i, one in enumerate(boundaries)}
    of = {one.rollout.prompt_id: one.arm.of for one in boundaries}
    found: list[list[tuple[int, str, int]]] = [[] for _ in boundaries]
    names = ("prompt_id", "branch", "sample", "outcome", "n_tokens")
    for prompt, branch, sample, outcome, tokens in zip(*(branches[name].to_pylist() for name in names), strict=True):
        if sample >= 0 and prompt in of:
            place = places.get((prompt, (branch - 1) % of[prompt]))
            if place is not None and sample < target[place]:
                found[place].append((sample, outcome, tokens))
    rows = [sorted(some) for some in found]
    return [Drawn([row[1] for row in some], np.array([row[2] for row in some], np.float64)) for some in rows]


def _summary(allocation: Allocation, request: BudgetOptions, rounds: int, clock: _Clock) -> dict[str, Any]:
    """JSON-able. saved: the share of what as many samples everywhere would have cost."""
    spent, uniform = float(allocation.spent.sum()), allocation.uniform()
    return {
        "budget": request.budget, "until": request.until, "rounds": rounds, "continuations": int(allocation.drawn.sum()),
        "tokens": int(spent), "uniform_tokens": round(uniform), "saved": max(0.0, 1 - spent / uniform) if uniform else 0.0,
        "stopped": dict(Counter(allocation.stopped.ravel().tolist()).most_common()),
        **({} if clock.seconds is None else {"seconds": round(clock.elapsed or 0.0, 1)}),
    }  # fmt: skip
