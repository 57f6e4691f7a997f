"""What drawing would take, said before anything is drawn: continuations, tokens, seconds, bytes, and widths of intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probe import stats
from probe.decoding import decode
from probe.requests import Rewind
from probe.rewinding.preparing import Problems, opened_for, plans_of
from probe.rewinding.rollouts import ROWS, RolloutOptions

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

TIMED = 4  # tokens that are decoded to time the rest
RHO = 0.5  # correlation of the two arms that is assumed before anything is known


def plan_rewind(request: Rewind) -> dict[str, Any]:
    """What `rewind` would do. Decodes a few tokens to time them; writes nothing.

    `half_width` is that of the 95 % interval of the paired difference in P(answer) at P = ½ and a correlation of RHO
    between the arms: the widest that is to be expected. `tells_from_0` is the smallest difference that is then told from 0 in
    4 of 5 runs; None where so few pairs tell none.
    """
    opened = opened_for(request)
    plans = [plan for plans in Problems(opened, lambda origin: plans_of(origin, request, dry=True)) for plan in plans]
    named = [(arm, plan.rollout) for plan in plans for arm in plan.named]
    rows = request.samples * len(named)
    tokens = request.samples * sum(rollout.max_new for _, rollout in named)
    longest = max(plans, key=lambda plan: plan.rollout.max_new)
    one = {"position": plans[0].fork.target.start, "arms": len(plans[0].named)} if len(plans) == 1 else {}
    return {
        "model": opened.lm.name, "edit": str(request.step_edit), "problems": len({id(plan.origin) for plan in plans}),
        "places": len(plans), **one, "continuations": rows, "tokens": tokens,
        "seconds": round(seconds(opened.lm, [arm.prefix for arm, _ in named], longest.rollout, rows), 1),
        **precision(request.samples), **tables_of(rows, tokens),
    }  # fmt: skip


def tables_of(rows: int, tokens: int) -> dict[str, Any]:
    """What so many continuations take on disk."""
    branches = {"rows": rows, "bytes": rows * 100 + 4 * tokens}
    return {"tables": {"branches": branches, "tokens": {"rows": tokens, "bytes": 14 * tokens}}}


def precision(n: int) -> dict[str, float | None]:
    """What n pairs are good for: see `plan_rewind`."""
    return {"half_width": round(stats.half_width(n, rho=RHO), 3), "tells_from_0": stats.size_told(n, (1 - RHO) / 2)}


def seconds(lm: LanguageModel, prefixes: Sequence[Sequence[int]], rollout: RolloutOptions, rows: int) -> float:
    """Time of `rows` continuations of full length of these prefixes in turn, from a few tokens of one batch."""
    width = min(rows, ROWS)
    prefixes = [prefixes[i % len(prefixes)] for i in range(width)]
    began = time.perf_counter()
    decode(lm, prefixes, max_new=1, sampling=rollout.sampling)
    first = time.perf_counter() - began
    decode(lm, prefixes, max_new=1 + TIMED, sampling=rollout.sampling)
    each = max(0.0, time.perf_counter() - began - 2 * first) / TIMED
    return math.ceil(rows / ROWS) * (first + each * rollout.max_new)
