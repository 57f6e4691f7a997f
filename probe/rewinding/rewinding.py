"""The verb `rewind`: go back, edit, draw both arms on with shared noise, measure. Knows the order of things."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from probe import stats
from probe import store as stores
from probe.answers import merge
from probe.decoding import decode, differences
from probe.decoding.teacher_forced import suffix_logprobs
from probe.errors import BadOption
from probe.language_model import model_of
from probe.rewinding import results
from probe.rewinding.effects import cut_off_between, effect_rows, half_width
from probe.rewinding.preparing import RewindPlan, prepare
from probe.rewinding.rollouts import ROWS, Progress, RolloutOptions, changing, draw
from probe.rewinding.teacher_forced import LEAST, off_policy, rescore

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

MOST = 1024  # continuations of an arm that `until` may ask for
TIMED = 4  # tokens that are decoded to time the rest
RHO = 0.5  # correlation of the two arms that is assumed before anything is known


def rewind(
    run: stores.Run | str | Path, *, to: str, lm: LanguageModel | None = None, out: str | Path | None = None,
    resume: bool = False, progress: Progress | None = None, **what: Any,
) -> stores.Run:  # fmt: skip
    """Go back to a place in a run's generation, edit, let both go on `samples` times (16), and measure what changed.

    to: `step4`, `57`, `tok=TEXT`, `regex=/Wait/`. At most one edit: `replace`, `insert`, `swap` ("RUN:step3";
    swap_prompt, swap_branch, swap_split say which generation of that run and how it is cut), `prompt_b`
    (texts), or `delete`, `truncate` (with `stub`), `append_wait`, `numbers`, `negate`, `filler`,
    `resample_until_different` (True); and `edit`, changes of activations (`resid_post@12=add:FILE`) from the last token
    before the first drawn one on. With neither it draws on from there and compares nothing.
    lm: the model, if it is loaded already; another than the run's needs `other_model=True`. until: draw on until the
    paired difference is known to +- that much. sampling: default the run's own, or temperature 0.6 and top-p 0.95 if that
    was greedy; seed. max_new: tokens of a continuation,
    default half as many again as the original still needed there. answer: how outcomes are read (see `answers.extract`);
    expect: the right one; merge_answers: classes whose formulas simplify to one are one. prompt_id, branch, split: which
    generation and how it is cut. out, resume: as in `trace`.

    Tables: `branches`, `effects`, `rescored`, `tokens` (each branch from where it forks), `steps`, `prompts`.
    Raises `RunError`, `BadOption`, `OutOfRange`, `NonFinite`.
    """
    source = stores.open_run(run)
    if resume and (out is None or out == "auto"):
        raise BadOption("which run is to be resumed?", hint="name it with --out")
    lm = lm or model_of(source)
    plan = prepare(lm, source, to=to, **what)
    path = (
        stores.fresh_path("rewind", word=plan.edit.kind.replace("_", "-"))
        if out == "auto"
        else Path(out)
        if out
        else None
    )
    with stores.create(path, command="rewind", arguments=plan.arguments, resume=resume) as writer:
        for note in differences(lm, plan.rollout.sampling):
            writer.warn(note)
        results.write_original(writer, source, plan.original, plan.branch, plan.outcome)
        return _measure(lm, writer, plan, _draw(lm, writer, plan, progress))


def plan_rewind(
    run: stores.Run | str | Path, *, to: str, lm: LanguageModel | None = None, **what: Any
) -> dict[str, Any]:
    """What `rewind` would do; keywords as there. Decodes a few tokens to time them; writes nothing.

    `half_width` is that of the 95 % interval of the paired difference in P(answer) at P = ½ and a correlation of RHO
    between the arms: the widest that is to be expected. `tells_from_0` is the smallest difference that is then told from 0 in
    4 of 5 runs; None where so few pairs tell none.
    """
    source = stores.open_run(run)
    lm = lm or model_of(source)
    plan = prepare(lm, source, to=to, dry=True, **what)
    rows = plan.samples * len(plan.named)
    tokens = rows * plan.rollout.max_new
    return {
        "model": lm.name, "edit": str(plan.edit), "position": plan.target.start, "arms": len(plan.named),
        "continuations": rows, "tokens": tokens,
        "seconds": round(seconds(lm, [arm.prefix for arm in plan.named], plan.rollout, rows), 1),
        **precision(plan.samples),
        "tables": {"branches": {"rows": rows, "bytes": rows * (100 + 4 * plan.rollout.max_new)},
                   "tokens": {"rows": tokens, "bytes": 14 * tokens}},
    }  # fmt: skip


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


def _draw(lm: LanguageModel, writer: stores.Writer, plan: RewindPlan, progress: Progress | None) -> int:
    """Draw `samples` of every arm, or on until the interval is narrow enough; how many pairs there are then.

    The arm that is drawn from before the step gets at least as many as a z-score of the edit needs.
    """
    before, n = 0, plan.samples
    while True:
        draw(lm, writer, plan.named, range(before, n), plan.rollout, progress)
        narrow = plan.until is None or plan.arms.edited is None or n >= MOST
        if narrow or half_width(writer.read("branches"), plan.reference, n) <= (plan.until or 0):
            break
        before, n = n, min(MOST, 2 * n)
    if plan.arms.new:
        own = [arm for arm in plan.named if arm.prefix == plan.arms.before]
        draw(lm, writer, own, range(n, max(n, LEAST)), plan.rollout, progress)
    return n


def _merged(branches: pa.Table, plan: RewindPlan) -> tuple[pa.Table, RewindPlan]:
    """Outcomes with the classes that a computer algebra system finds equal made one, if that was asked for.

    The table `branches` of the run keeps each answer's own class.
    """
    if not plan.merging:
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
    arms, tail = plan.arms, plan.original.ids[len(plan.arms.control) :]
    assert arms.edited is not None, "there is an edited arm"
    if not plan.changes or not tail:
        return rescore(lm, arms.control, arms.edited, tail)
    edited = next(arm for arm in plan.named if arm.changes)
    (kept,) = suffix_logprobs(lm, arms.control, [tail])
    with changing(lm, edited, len(tail)):
        (changed,) = suffix_logprobs(lm, arms.edited, [tail])
    return kept, changed


def _measure(lm: LanguageModel, writer: stores.Writer, plan: RewindPlan, n: int) -> stores.Run:
    """Effects, re-scored tail, off-policy z and summary of what was drawn."""
    branches, plan = _merged(writer.read("branches"), plan)
    for text in cut_off_between(branches, n) if plan.arms.edited is not None else []:
        writer.warn(text)
    arms, seed = plan.arms, plan.rollout.sampling.seed
    rows: list[dict[str, Any]] = []
    scored = far = None
    if arms.edited is not None:
        rows = effect_rows(branches, plan.what, plan.reference, plan.expected, n=n, seed=seed)
        scored = _rescored(lm, plan)
    if arms.new:
        before = next(arm.name for arm in plan.named if arm.prefix == arms.before)
        far = off_policy(lm, arms.before, arms.new, results.sampled_ids(writer, branches, before))
    if not writer.done("effects"):
        with writer.unit("effects"):
            results.write_effects(writer, rows)
            results.write_rescored(writer, plan.original, len(arms.control), scored)
    parent = results.parent_of(plan.source, plan.original, plan.branch, len(arms.before))
    return writer.finish(
        summary=results.summarize(lm, plan, branches, rows, scored, far, n),
        model=lm.identity, anatomy=lm.anatomy.to_dict(), seed=seed, parent=parent,
    )  # fmt: skip
