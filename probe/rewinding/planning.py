"""What a rewind would take and be good for, said before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from probe import stats
from probe.decoding import Sampling
from probe.decoding.costs import DrawingSource, cost_of, pace_of
from probe.decoding.rollouts import Engine
from probe.requests import Rewind
from probe.requests.budget import BudgetOptions
from probe.rewinding.preparing import Problems, opened_for, plans_of
from probe.rewinding.rounds import MOST
from probe.serving import engine_of

RHO = 0.5  # correlation of the two arms that is assumed before anything is known
BETWEEN = 0.1  # standard deviation of differences between problems, likewise
ASSUMES = f"P = 0.5, arms that correlate by {RHO:g}, differences that vary by {BETWEEN:g} between problems"


def plan_rewind(request: Rewind) -> dict[str, Any]:
    """What `rewind` would do, and what its intervals would be good for: see `plan_drawing`. Writes nothing."""
    opened = opened_for(request)
    plans = [plan for plans in Problems(opened, lambda origin: plans_of(origin, request, dry=True)) for plan in plans]
    sources = [DrawingSource(a.prefix, plan.rollout.max_new, plan.rollout.sampling.seed) for plan in plans for a in plan.named]
    problems = len({id(plan.origin) for plan in plans})
    one = {"position": plans[0].fork.target.start, "arms": len(plans[0].named)} if len(plans) == 1 else {}
    return {
        "model": opened.lm.name, "edit": str(request.step_edit), "problems": problems, "places": len(plans), **one,
        **plan_drawing(engine_of(opened.lm, request.engine), sources, opened.sampling, request, request.samples, problems),
    }  # fmt: skip


def plan_drawing(
    engine: Engine, sources: Sequence[DrawingSource], sampling: Sampling, request: BudgetOptions, samples: int, problems: int
) -> dict[str, Any]:
    """What drawing from every source takes, and how wide the intervals become. A few tokens are drawn, to time them.

    In rounds every source is taken to get the same, as much as there are means for. `half_width` is that of the 95 % interval
    of one step's difference in P(answer), `half_width_mean` that of its mean over problems, both for what `assumes` says;
    `tells_from_0` is the smallest difference of one step that is told from 0 in 4 of 5 runs, None where so few pairs tell
    none, or in rounds, where it is not known.
    """
    pace = pace_of(engine, sources, sampling)
    n = _samples(request, samples, cost_of(sources, 1, pace).seconds, sum(one.max_new for one in sources))
    half = stats.anytime_half_width(n, rho=RHO) if request.in_rounds else stats.half_width(n, rho=RHO)
    mean = stats.mean_half_width(problems, n, between=BETWEEN, rho=RHO)
    return {
        "samples": n, **cost_of(sources, n, pace).plan(), "half_width": round(half, 3),
        "half_width_mean": None if mean is None else round(mean, 3),
        "tells_from_0": None if request.in_rounds else stats.size_told(n, (1 - RHO) / 2), "assumes": ASSUMES,
    }  # fmt: skip


def _samples(request: BudgetOptions, samples: int, seconds: float, tokens: int) -> int:
    """Of each source: as asked for; in rounds as many as the means suffice for, where one of each takes so much, or else as
    narrow an interval needs."""
    budget = request.spending
    if budget.tokens is not None:
        return max(1, min(MOST, budget.tokens // max(1, tokens)))
    if budget.seconds is not None:
        return max(1, min(MOST, math.floor(budget.seconds / max(seconds, 1e-9))))
    if request.until is None:
        return samples
    few, enough = 0, MOST
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if stats.anytime_half_width(middle, rho=RHO) <= request.until else (middle, enough)
    return max(samples, enough)
