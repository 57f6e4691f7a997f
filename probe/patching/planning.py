"""What a sweep would take: cells, forwards, memory, bytes on disk. Runs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from probe.patching.grid import slices
from probe.patching.memory import row_bytes, rows_at_once
from probe.patching.pairs import Pair
from probe.patching.preparing import Plan, prepare
from probe.patching.routes import sends

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

ROW_BYTES = {"patches": 90, "prompts": 200, "tokens": 14, "patch_means": 60}


class Cost(NamedTuple):
    """Of one pair: cells, forwards (and backwards), bytes of the largest of them."""

    cells: int
    passes: int
    peak: int


def plan_patch(lm: LanguageModel, **what: Any) -> dict[str, Any]:
    """What `patch` would do; keywords as there. Runs nothing, writes nothing. Cells before the first difference need no
    pass; a model that cannot be entered in the middle takes more."""
    plan = prepare(lm, **what)
    cost = _foretold if plan.method == "attribution" else _sent if plan.path else _exact
    costs = [cost(lm, pair, plan) for pair in plan.pairs]
    cells = sum(one.cells for one in costs)
    tokens = sum(len(pair.clean) + len(pair.corrupt) for pair in plan.pairs)
    counts = {"patches": cells, "prompts": 2 * len(plan.pairs), "tokens": tokens}
    return {
        "model": lm.name, "pairs": len(plan.pairs), "direction": plan.direction, "metric": plan.metric, "cells": cells,
        "passes": sum(one.passes for one in costs) + plan.sample, "pass_memory_bytes": max(one.peak for one in costs),
        "tables": {name: {"rows": rows, "bytes": rows * ROW_BYTES[name]} for name, rows in counts.items()},
    }  # fmt: skip


def _exact(lm: LanguageModel, pair: Pair, plan: Plan) -> Cost:
    """Batches of cells, slice by slice."""
    n = len(pair.base(plan.direction))
    cells = forwards = peak = 0
    for part in slices(lm, pair, plan.asked, plan.direction):
        cells += len(part.swaps)
        at, needed = 0, sorted(
            swap.positions[0] for swap in part.swaps if plan.source != "clean" or swap.positions[-1] >= pair.first
        )  # fmt: skip
        while at < len(needed):
            new = n - needed[at]
            size = rows_at_once(lm, new=new, n=n, budget=plan.memory)
            peak = max(peak, min(size, len(needed) - at) * row_bytes(lm, new=new, n=n))
            at, forwards = at + size, forwards + 1
    return Cost(cells, forwards, peak)


def _foretold(lm: LanguageModel, pair: Pair, plan: Plan) -> Cost:
    """Two forwards and a backward, which keeps what every layer computed; for integrated gradients four forwards more, and
    both for each step."""
    n = len(pair.base(plan.direction))
    cells = sum(len(part.swaps) for part in slices(lm, pair, plan.asked, plan.direction))
    return Cost(cells, 3 + (4 + 2 * plan.ig if plan.ig else 0), lm.anatomy.n_layers * row_bytes(lm, new=n, n=n))


def _sent(lm: LanguageModel, pair: Pair, plan: Plan) -> Cost:
    """A batch of senders, and then a batch for each of their receivers."""
    assert plan.path is not None
    n = len(pair.base(plan.direction))
    size = rows_at_once(lm, new=n, n=n, budget=plan.memory)
    paths = forwards = rows = 0
    for send in sends(lm, pair, plan.path, plan.asked, plan.direction):
        paths += len(send.paths)
        senders = list(dict.fromkeys(sender for sender, _ in send.paths))
        for first in range(0, len(senders), size):
            some = set(senders[first : first + size])
            rows = max(rows, len(some))
            receivers = {receiver for sender, receiver in send.paths if sender in some and receiver.site != "logits"}
            forwards += 1 + len(receivers)
    return Cost(paths, forwards, rows * row_bytes(lm, new=n, n=n))
