"""The verb `rewind`: go back, edit, draw both arms on with shared noise, measure. Knows the order of things."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from probe import stats
from probe import store as stores
from probe.answers import merge
from probe.decoding import decode, differences
from probe.decoding.teacher_forced import suffix_logprobs
from probe.requests import Rewind, public
from probe.rewinding import results
from probe.rewinding.effects import cut_off_between, effect_rows, half_width
from probe.rewinding.preparing import RewindPlan, prepare
from probe.rewinding.rollouts import ROWS, RolloutOptions, changing, draw
from probe.rewinding.teacher_forced import LEAST, after, off_policy, rescore
from probe.running import Running, running

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

MOST = 1024  # continuations of an arm that `until` may ask for
TIMED = 4  # tokens that are decoded to time the rest
RHO = 0.5  # correlation of the two arms that is assumed before anything is known


def run_rewind(request: Rewind) -> stores.Run:
    """Go back to a place in a run's generation, edit, let both arms go on, and measure what changed.

    At most one edit of the step, and changes of activations (`edit`); with neither it draws on from there and compares nothing.
    Both arms share their noise, so that a difference between them is the edit's (METHODS M21).

    Tables: `branches`, `effects`, `rescored`, `tokens` (each branch from where it forks), `steps`, `prompts`.
    Raises `RunError`, `BadOption`, `OutOfRange`, `NonFinite`.
    """
    plan = prepare(request)
    origin, lm = plan.origin, plan.origin.lm
    word = request.step_edit.kind.replace("_", "-")
    came_to = {**origin.resolved(plan.rollout), "changes": [str(one) for one in plan.changes]}
    with running(request, lm, word=word, resolved=came_to) as run:
        run.warn(*differences(lm, plan.rollout.sampling))
        results.write_original(run.writer, origin, request.branch)
        return _measure(run, plan, _draw(run, plan))


rewind = public(run_rewind, Rewind)


def plan_rewind(request: Rewind) -> dict[str, Any]:
    """What `rewind` would do. Decodes a few tokens to time them; writes nothing.

    `half_width` is that of the 95 % interval of the paired difference in P(answer) at P = ½ and a correlation of RHO
    between the arms: the widest that is to be expected. `tells_from_0` is the smallest difference that is then told from 0 in
    4 of 5 runs; None where so few pairs tell none.
    """
    plan = prepare(request, dry=True)
    lm, max_new = plan.origin.lm, plan.rollout.max_new
    rows = request.samples * len(plan.named)
    tokens = rows * max_new
    return {
        "model": lm.name, "edit": str(request.step_edit), "position": plan.fork.target.start, "arms": len(plan.named),
        "continuations": rows, "tokens": tokens,
        "seconds": round(seconds(lm, [arm.prefix for arm in plan.named], plan.rollout, rows), 1),
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


def _draw(run: Running, plan: RewindPlan) -> int:
    """Draw `samples` of every arm, or on until the interval is narrow enough; how many pairs there are then.

    The arm that is drawn from before the step gets at least as many as a z-score of the edit needs.
    """
    until, n = plan.request.until, plan.request.samples
    before = 0
    while True:
        draw(run, plan.named, range(before, n), plan.rollout, plan.fork.stem)
        narrow = until is None or plan.arms.edited is None or n >= MOST
        if narrow or half_width(run.writer.read("branches"), plan.reference, n) <= (until or 0):
            break
        before, n = n, min(MOST, 2 * n)
    if plan.arms.new:
        own = [arm for arm in plan.named if arm.prefix == plan.arms.before]
        draw(run, own, range(n, max(n, LEAST)), plan.rollout, plan.fork.stem)
    return n


def _merged(branches: pa.Table, plan: RewindPlan) -> tuple[pa.Table, RewindPlan]:
    """Outcomes with the classes that a computer algebra system finds equal made one, if that was asked for.

    The table `branches` of the run keeps each answer's own class.
    """
    if not plan.request.merge_answers:
        return branches, plan
    found = branches["outcome"].cast(pa.string()).to_pylist()
    known = [plan.reference, *([plan.expected] if plan.expected is not None else []), *found]
    first = merge(known)
    column = branches.schema.get_field_index("outcome")
    merged = branches.set_column(column, "outcome", pa.array([first[key] for key in found]))
    expected = None if plan.expected is None else first[plan.expected]
    return merged, replace(plan, reference=first[plan.reference], expected=expected)


def _rescored(lm: LanguageModel, plan: RewindPlan) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs of what followed in the original, after the control's prefix and after the edited one's."""
    arms, tail = plan.arms, plan.origin.original.ids[len(plan.arms.control) :]
    assert arms.edited is not None, "there is an edited arm"
    if not plan.changes or not tail:
        return rescore(plan.fork.stem, arms.control, arms.edited, tail)
    edited = next(arm for arm in plan.named if arm.changes)
    kept = after(plan.fork.stem, arms.control, [tail])[0]
    with changing(lm, edited, len(tail)):
        (changed,) = suffix_logprobs(lm, arms.edited, [tail])
    return kept, changed


def _measure(run: Running, plan: RewindPlan, n: int) -> stores.Run:
    """Effects, re-scored tail, off-policy z and summary of what was drawn."""
    writer, lm = run.writer, plan.origin.lm
    branches, plan = _merged(writer.read("branches"), plan)
    arms, seed = plan.arms, plan.rollout.sampling.seed
    rows: list[dict[str, Any]] = []
    scored = far = None
    if arms.edited is not None:
        run.warn(*cut_off_between(branches, n))
        rows = effect_rows(branches, plan.what, plan.reference, plan.expected, n=n, seed=seed)
        scored = _rescored(lm, plan)
    if arms.new:
        before = next(arm.name for arm in plan.named if arm.prefix == arms.before)
        far = off_policy(plan.fork.stem, arms.before, arms.new, results.sampled_ids(branches, writer.read("tokens"), before))
    if not writer.done("effects"):
        with writer.unit("effects"):
            results.write_effects(writer, rows)
            results.write_rescored(writer, plan.origin.original, len(arms.control), scored)
    return run.finish(
        results.summarize(plan, branches, rows, scored, far, n), seed=seed,
        parent=results.parent_of(plan.origin, plan.request.branch, len(arms.before)),
    )  # fmt: skip
