"""What a rewind would cost and how well it could tell: tokens, seconds, the width of the interval."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import stats
from probe.decoding import decode
from probe.language_model import model_of
from probe.rewinding.preparing import prepare
from probe.rewinding.rollouts import ROWS, Drawing
from probe.store import Run, open_run

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

TIMED = 4  # tokens that are decoded to time the rest
RHO = 0.5  # correlation of the two arms that is assumed before anything is known


def plan_rewind(run: Run | str | Path, *, to: str, lm: LanguageModel | None = None, **what: Any) -> dict[str, Any]:
    """What `rewind` would do; keywords as there. Decodes a few tokens to time them; writes nothing.

    `half_width` is that of the 95 % interval of the paired difference in P(answer) at P = ½ and a correlation of RHO
    between the arms: the widest that is to be expected. `tells_from_0` is the smallest difference that is then told from 0 in
    4 of 5 runs; None where so few pairs tell none.
    """
    source = open_run(run)
    lm = lm or model_of(source)
    plan = prepare(lm, source, to=to, drawing_steps=False, **what)
    rows = plan.samples * len(plan.named)
    tokens = rows * plan.drawing.max_new
    return {
        "model": lm.name, "edit": str(plan.edit), "position": plan.target.start, "arms": len(plan.named),
        "continuations": rows, "tokens": tokens,
        "seconds": round(seconds(lm, [arm.prefix for arm in plan.named], plan.drawing, rows), 1),
        **precision(plan.samples),
        "tables": {"branches": {"rows": rows, "bytes": rows * (100 + 4 * plan.drawing.max_new)},
                   "tokens": {"rows": tokens, "bytes": 14 * tokens}},
    }  # fmt: skip


def precision(n: int) -> dict[str, float | None]:
    """What n pairs are good for: see `plan_rewind`."""
    return {"half_width": round(stats.half_width(n, rho=RHO), 3), "tells_from_0": stats.size_told(n, (1 - RHO) / 2)}


def seconds(lm: LanguageModel, prefixes: Sequence[Sequence[int]], drawing: Drawing, rows: int) -> float:
    """Time of `rows` continuations of full length of these prefixes in turn, from a few tokens of one batch."""
    width = min(rows, ROWS)
    prefixes = [prefixes[i % len(prefixes)] for i in range(width)]
    began = time.perf_counter()
    decode(lm, prefixes, max_new=1, sampling=drawing.sampling)
    first = time.perf_counter() - began
    decode(lm, prefixes, max_new=1 + TIMED, sampling=drawing.sampling)
    each = max(0.0, time.perf_counter() - began - 2 * first) / TIMED
    return math.ceil(rows / ROWS) * (first + each * drawing.max_new)
