"""The verb `importance`: how much each step of a generation matters, by several methods. Knows the order of things."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pkgutil import resolve_name
from typing import Any, NamedTuple

import numpy as np

from probe import stats
from probe import store as stores
from probe.decoding import differences
from probe.errors import BadOption, ProbeError
from probe.language_model import check_model
from probe.registries.importance_methods import Method, Size, methods_of
from probe.requests import Importance, public
from probe.rewinding.effects import cut_off_across
from probe.rewinding.preparing import Origin, new_tokens, origin_of, rollout_options
from probe.rewinding.results import parent_of, write_original
from probe.rewinding.rewinding import precision, seconds, tables_of
from probe.rewinding.rollouts import Arm, RolloutOptions, draw
from probe.running import Running, running
from probe.step_importance import boundaries, dependence, receiver_heads
from probe.step_importance.task import Measured, StepImportance, Task, columns, discovered


class ImportancePlan(NamedTuple):
    """A request on one generation: its methods, and the arms of those that are sampled."""

    methods: tuple[Method, ...]
    origin: Origin
    task: Task
    arms: tuple[Arm, ...]
    rollout: RolloutOptions

    @property
    def sampled(self) -> bool:
        """Whether a method needs continuations of every boundary."""
        return any(method.sampled for method in self.methods)


def run_importance(request: Importance) -> stores.Run:
    """How much each step of a run's generation matters, by one method or several.

    Those that draw continuations share those of each boundary between steps.

    Tables: `importance` (a row a step and method), `dependence` (step x step, by `rescore` and `suppression`), and
    what was drawn in `branches` and `tokens`. With `all`, a method that this model or text cannot take is left out and
    said so; asked for alone it is an error. Raises `RunError`, `BadOption`, `BadModel`, `NonFinite`.
    """
    plan = prepare(request)
    origin, original, task = plan.origin, plan.origin.original, plan.task
    heads = [list(place) for place in task.heads.places] if task.heads else None
    word = plan.methods[0].name if len(plan.methods) == 1 else "all"
    with running(request, origin.lm, word=word, resolved={**origin.resolved(plan.rollout), "receiver_heads": heads}) as run:
        run.warn(*differences(origin.lm, plan.rollout.sampling))
        write_original(run.writer, origin, request.branch)
        summary, measured = _measure(run, plan._replace(task=replace(task, run=run)))
        rows = discovered([row for one in measured.values() for row in one.rows])
        if not run.writer.done("importance"):
            with run.writer.unit("importance"):
                run.write("importance", columns(rows, original))
                for name, one in measured.items():
                    _write_matrix(run, name, one.matrix)
        return run.finish(
            {**_summary(plan, rows), **summary, **_summaries(measured)}, seed=task.seed,
            parent=parent_of(origin, request.branch, original.steps[0].start),
        )  # fmt: skip


importance = public(run_importance, Importance)


def plan_importance(request: Importance) -> dict[str, Any]:
    """What `importance` would do. Decodes a few tokens to time them; writes nothing.

    `tokens_read`: what the model reads for each method, besides what is drawn.
    """
    plan = prepare(request)
    original, lm, samples = plan.origin.original, plan.origin.lm, request.samples
    rows = samples * len(plan.arms) if plan.sampled else 0
    tokens = samples * sum(arm.max_new for arm in plan.arms) if rows else 0
    rollout = plan.rollout._replace(max_new=-(-tokens // max(1, rows)))
    size = Size(original.n_prompt, [step.end - step.start for step in original.steps], samples)
    return {
        "model": lm.name, "methods": ", ".join(method.name for method in plan.methods), "steps": len(original.steps),
        "continuations": rows, "tokens": tokens, "tokens_read": {one.name: one.tokens(size) for one in plan.methods},
        "seconds": round(seconds(lm, [arm.prefix for arm in plan.arms], rollout, rows), 1) if rows else 0.0,
        **precision(samples), **tables_of(rows, tokens),
    }  # fmt: skip


def prepare(request: Importance) -> ImportancePlan:
    """Check what is asked, and find the boundaries between steps."""
    origin, methods, chosen = origin_of(request), methods_of(request.method), None
    lm, original = origin.lm, origin.original
    if request.suppress is not None:
        dependence.check_place(lm, request.suppress)
    if request.heads is not None:
        other = stores.open_run(request.heads)
        check_model(other, lm)
        chosen = receiver_heads.heads_of(other, origin.source)
    if len(original.steps) < 2:
        raise BadOption("the generation is one step: there is nothing to compare it with", hint="cut finer: --split line")
    longest = new_tokens(lm, original, request.max_new, original.n_prompt)
    arms = tuple(
        arm._replace(max_new=new_tokens(lm, original, request.max_new, arm.fork_pos)) for arm in boundaries.arms(lm, original)
    )
    task = Task(lm, original, request, origin.reference, origin.sampling.seed, chosen)
    return ImportancePlan(methods, origin, task, arms, rollout_options(origin, longest, request.answer))


def _measure(run: Running, plan: ImportancePlan) -> tuple[dict[str, Any], dict[str, Measured]]:
    """What is to be said of the draws, and what each method gives."""
    request, summary, found = plan.task.request, {}, {}
    if plan.sampled:
        draw(run, plan.arms, range(request.samples), plan.rollout, plan.task.stem)
        names = [arm.name for arm in plan.arms]
        shares, warnings = cut_off_across(run.writer.read("branches"), names, request.samples)
        summary = {"max_new": [arm.max_new for arm in plan.arms], "truncated": shares}
        run.warn(*warnings)
    for method in plan.methods:
        try:
            found[method.name] = resolve_name(method.measure)(plan.task)
        except ProbeError as error:
            if request.method != "all":
                raise
            run.warn(f"{method.name} was left out: {error.message}")
    return summary, found


def _write_matrix(run: Running, name: str, matrix: np.ndarray | None) -> None:
    if matrix is None:
        return
    source, target = np.nonzero(~np.isnan(matrix))
    if len(source):
        run.write("dependence", {
            "method": [name] * len(source), "source": source.astype(np.int32), "target": target.astype(np.int32),
            "value": matrix[source, target],
        })  # fmt: skip


def _summaries(measured: dict[str, Measured]) -> dict[str, Any]:
    """What methods say besides their rows, by method."""
    return {name.replace("-", "_"): one.summary for name, one in measured.items() if one.summary}


def _summary(plan: ImportancePlan, rows: list[StepImportance]) -> dict[str, Any]:
    by: dict[str, dict[int, StepImportance]] = {}
    for row in rows:
        by.setdefault(row.method, {})[row.step] = row
    return {
        "steps": len(plan.origin.original.steps), "methods": list(by), "samples": plan.task.request.samples,
        "reference": plan.task.reference,
        "most_important": {name: _top(list(found.values())) for name, found in by.items()}, "agreement": _agreement(by),
    }  # fmt: skip


def _top(rows: list[StepImportance]) -> int | None:
    measured = [row for row in rows if row.estimate is not None]
    return max(measured, key=lambda row: abs(row.estimate or 0.0)).step if measured else None


def _agreement(by: dict[str, dict[int, StepImportance]]) -> list[dict[str, Any]]:
    """Rank correlation of |estimate| over the steps that both methods measured; None where one of them says one thing only."""
    found = []
    for a, b in combinations(by, 2):
        both = [s for s in by[a] if s in by[b] and by[a][s].estimate is not None and by[b][s].estimate is not None]
        x, y = (np.abs([by[m][s].estimate or 0.0 for s in both]) for m in (a, b))
        rho, tau = (stats.spearman(x, y), stats.kendall_tau(x, y)) if len(both) > 2 else (np.nan, np.nan)
        clean = [None if np.isnan(v) else float(v) for v in (rho, tau)]
        found.append({"a": a, "b": b, "steps": len(both), "spearman": clean[0], "kendall": clean[1]})
    return found
