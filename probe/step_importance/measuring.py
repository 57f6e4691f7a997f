"""The verb `importance`: how much each step of a generation matters, by several methods. Knows the order of things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pkgutil import resolve_name
from typing import Any, NamedTuple

import numpy as np

from probe import stats
from probe import store as stores
from probe.decoding import differences
from probe.decoding.costs import DrawingSource
from probe.decoding.rollouts import Engine
from probe.errors import BadModel, BadOption, ProbeError
from probe.labelling import counted, label, labellers
from probe.language_model import check_model
from probe.registries.importance_methods import Method, Size, methods_of
from probe.requests import Importance, public
from probe.rewinding.effects import cut_off_across
from probe.rewinding.planning import plan_drawing
from probe.rewinding.preparing import LEFT_OUT, LeftOut, OpenedRun, Origin, Problems, new_tokens, opened_for, rollout_options
from probe.rewinding.results import parent_of, write_failed, write_original
from probe.rewinding.rollouts import Arm, ArmSamples, RolloutOptions, blocks, draw
from probe.running import Running, running
from probe.serving import engine_of, remarks
from probe.step_importance import boundaries, dependence, receiver_heads
from probe.step_importance.drawing import ImportanceRounds, Swept
from probe.step_importance.task import Heads, Measured, StepImportance, Task, add_q_values, columns, write_over_steps


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

    @property
    def prompt_id(self) -> int:
        return self.origin.original.prompt_id


def run_importance(request: Importance) -> stores.Run:
    """How much each step of a run's generations matters, by one method or several.

    Those that draw continuations share those of each boundary between steps. Of a run with many prompts each is a problem by
    itself: its numbers are those that it has alone, but for `q_value`, which is over all steps of all of them.

    Tables: `importance` (a row a step and method), `dependence` (step x step, by `rescore` and `suppression`), and
    what was drawn in `branches` and `tokens`. With `all`, a method that this model or text cannot take is left out and
    said so; asked for alone it is an error: of the only prompt, or in the row of `prompts` of one of several. Raises
    `RunError`, `BadOption`, `BadModel`, `NonFinite`.
    """
    opened, methods = opened_for(request), methods_of(request.method)
    heads = _heads(opened, request)
    problems = Problems(opened, lambda origin: _plan(origin, request, methods, heads))
    engine = engine_of(opened.lm, request.engine)
    come_to = {
        **opened.resolved(), **(problems.only.origin.resolved(problems.only.rollout.max_new) if opened.alone else {}),
        "engine": engine.identity, "receiver_heads": [list(place) for place in heads.places] if heads else None,
        **labellers(request),
    }  # fmt: skip
    rounds, prepared = _rounds(request, methods, problems)
    word = methods[0].name if len(methods) == 1 else "all"
    with running(request, opened.lm, word=word, resolved=come_to) as run:
        run.warn(*differences(opened.lm, opened.sampling), *remarks(engine, opened.sampling))
        given = _labels(run, engine, problems, request)
        found: dict[int, dict[str, Any]] = {}
        for some in [prepared] if rounds else _blocks(run, problems, request):
            for plan in some:
                write_original(run.writer, plan.origin, request.branch)
            for plan in _drawn(run, engine, some, rounds):
                found |= _measured(run, _counting(run, plan, given), problems, paired=engine.addressed_noise)
        write_failed(run, opened.source, problems.failed)
        return _finish(run, problems, found, {} if rounds is None else {"drawing": rounds.summary})


importance = public(run_importance, Importance)


def plan_importance(request: Importance) -> dict[str, Any]:
    """What `importance` would do, and what its intervals would be good for: see `plan_drawing`. Writes nothing.

    `tokens_read`: what the model reads for each method, besides what is drawn; `prefixes`: to draw.
    """
    opened, methods = opened_for(request), methods_of(request.method)
    heads = _heads(opened, request)
    plans = list(Problems(opened, lambda origin: _plan(origin, request, methods, heads)))
    originals = [plan.origin.original for plan in plans]
    about = {
        "model": opened.lm.name, "methods": ", ".join(method.name for method in methods), "problems": len(plans),
        "steps": sum(len(one.steps) for one in originals),
    }  # fmt: skip
    drawing: dict[str, Any] = {"samples": request.samples, "continuations": 0, "tokens": 0, "seconds": 0.0, "tables": {}}
    if plans[0].sampled:
        sources = [DrawingSource(arm.prefix, arm.max_new, plan.rollout.sampling.seed) for plan in plans for arm in plan.arms]
        engine = engine_of(opened.lm, request.engine)
        drawing = plan_drawing(engine, sources, opened.sampling, request, request.samples, len(plans))
    sizes = [Size(one.n_prompt, [step.end - step.start for step in one.steps], drawing["samples"]) for one in originals]
    read = {one.name: sum(map(one.tokens, sizes)) for one in methods}
    read |= {"prefixes": drawing["tokens_read"]} if plans[0].sampled else {}
    return {**about, **drawing, "tokens_read": read}


def _heads(opened: OpenedRun, request: Importance) -> Heads | None:
    """The receiver heads that were chosen on another text; what is wrong with heads that are named is said here."""
    if request.suppress is not None:
        dependence.check_place(opened.lm, request.suppress)
    if request.heads is None:
        return None
    other = stores.open_run(request.heads)
    check_model(other, opened.lm)
    return receiver_heads.heads_of(other, opened.source)


def _plan(origin: Origin, request: Importance, methods: tuple[Method, ...], heads: Heads | None) -> ImportancePlan:
    """Check what is asked of one generation, and find the boundaries between its steps."""
    lm, original = origin.lm, origin.original
    if len(original.steps) < 2:
        raise BadOption("the generation is one step: there is nothing to compare it with", hint="cut finer: --split line")
    longest = new_tokens(lm, original, request.max_new, original.n_prompt)
    arms = tuple(
        arm._replace(max_new=new_tokens(lm, original, request.max_new, arm.fork_pos)) for arm in boundaries.arms(lm, original)
    )
    task = Task(lm, original, request, origin.reference, origin.seed, heads)
    return ImportancePlan(methods, origin, task, arms, rollout_options(origin, longest))


def _rounds(
    request: Importance, methods: tuple[Method, ...], problems: Problems[ImportancePlan]
) -> tuple[ImportanceRounds | None, list[ImportancePlan]]:
    """All problems, where they are drawn from together in rounds: how much each gets depends on the others."""
    if not request.in_rounds:
        return None, []
    if not (sampled := [method.name for method in methods if method.sampled]):
        raise BadOption(f"nothing is drawn by {request.method}", hint="--until and --budget are for resampling, counterfactual")
    plans, alone = list(problems), problems.opened.alone
    return ImportanceRounds(request, sampled, [Swept(one.task, one.arms, one.rollout, alone) for one in plans]), plans


def _labels(run: Running, engine: Engine, problems: Problems[ImportancePlan], request: Importance) -> set[str]:
    """Outcomes that others give: they are asked once, when everything is drawn. Those that were given."""
    if not request.labelled:
        return set()
    for some in _blocks(run, problems, request):
        for plan in some:
            write_original(run.writer, plan.origin, request.branch)
        _drawn(run, engine, some, None)
    return label(run, request)


def _counting(run: Running, plan: ImportancePlan, given: set[str]) -> ImportancePlan:
    """The same with the class that is counted, where others say what things come to."""
    if not plan.task.request.labelled:
        return plan
    reference, _ = counted(run, plan.task.request, plan.prompt_id, given)
    return plan._replace(task=replace(plan.task, reference=reference))


def _blocks(run: Running, problems: Problems[ImportancePlan], request: Importance) -> Iterator[list[ImportancePlan]]:
    """Problems whose continuations are drawn together; a worker draws and measures them."""
    return run.share(
        "problems", blocks((request.samples * len(plan.arms) * plan.sampled, plan) for plan in problems),
        total=len(problems.opened.prompts), size=len,
        lost=lambda some, error: problems.failed.extend(LeftOut(plan.prompt_id, error) for plan in some),
    )  # fmt: skip


def _drawn(
    run: Running, engine: Engine, plans: Sequence[ImportancePlan], rounds: ImportanceRounds | None
) -> Sequence[ImportancePlan]:
    """The same problems when continuations of their boundaries are there."""
    if rounds is not None:
        return [plan._replace(task=task) for plan, task in zip(plans, rounds.draw(run, engine), strict=True)]
    sampled = [plan for plan in plans if plan.sampled]
    stems = [plan.task.stem if plan.origin.opened.alone else None for plan in sampled]
    draw(run, engine, [
        ArmSamples(plan.arms, range(plan.task.request.samples), plan.rollout, stem)
        for plan, stem in zip(sampled, stems, strict=True)
    ])  # fmt: skip
    return plans


def _measured(
    run: Running, plan: ImportancePlan, problems: Problems[ImportancePlan], *, paired: bool
) -> dict[int, dict[str, Any]]:
    """Write the rows of one problem; what is to be said of it. A problem that no method can take is left out of several."""
    prompt, key = plan.prompt_id, f"importance-{plan.prompt_id}"
    if (told := run.kept(key)) is not None:
        return {prompt: told}
    try:
        summary, measured = _measure(run, plan._replace(task=replace(plan.task, run=run, paired=paired)))
    except ProbeError as error:
        if plan.origin.opened.alone or not isinstance(error, (*LEFT_OUT, BadModel)):
            raise
        run.warn(f"prompt {prompt}: {error.message}")
        problems.failed.append(LeftOut(prompt, error))
        return {}
    rows = [row for one in measured.values() for row in one.rows]
    of_methods = {name.replace("-", "_"): one.summary for name, one in measured.items() if one.summary}
    told = {**_summary(plan, rows), **summary, **of_methods}
    if not run.writer.done(key):
        with run.writer.unit(key):
            if rows:  # a method may have none, as early-answer where there is one candidate
                run.write("importance", columns(rows, plan.origin.original))
            for name, one in measured.items():
                _write_matrix(run, prompt, name, one.matrix)
                for table, found in one.tables.items():
                    run.write(table, found)
            run.keep(key, told)
    return {prompt: told}


def _finish(
    run: Running, problems: Problems[ImportancePlan], found: dict[int, dict[str, Any]], more: dict[str, Any]
) -> stores.Run:
    """The whole run: of one problem with all that is to be said of it, of several with what is to be said of all."""
    opened, branch = problems.opened, problems.opened.request.branch
    add_q_values(run)
    if opened.alone:
        start = problems.only.origin.original.steps[0].start
        parent = parent_of(opened, branch, prompt_id=opened.prompts[0], position=start)
        return run.finish({**found[opened.prompts[0]], **more}, seed=opened.sampling.seed, parent=parent)
    references = {prompt: one["reference"] for prompt, one in found.items()}
    summary = {
        "prompts": len(opened.prompts), "errors": len(problems.failed), "samples": opened.request.samples,
        "problems": [{"prompt_id": prompt, **one} for prompt, one in found.items()],
        "over_problems": write_over_steps(run, references, seed=opened.sampling.seed),
        **more,
    }  # fmt: skip
    return run.finish(summary, seed=opened.sampling.seed, parent=parent_of(opened, branch))


def _measure(run: Running, plan: ImportancePlan) -> tuple[dict[str, Any], dict[str, Measured]]:
    """What is to be said of the draws of one problem, and what each method gives."""
    request, summary, found = plan.task.request, {}, {}
    if plan.sampled:
        names, drawn = [arm.name for arm in plan.arms], plan.task.read("branches")
        all_have = min(n for one in plan.methods if one.sampled for n, _ in plan.task.samples(one.name))
        shares, warnings = cut_off_across(drawn, names, all_have, paired=plan.task.paired)
        summary = {"max_new": [arm.max_new for arm in plan.arms], "truncated": shares}
        run.warn(*(text if plan.origin.opened.alone else f"prompt {plan.prompt_id}: {text}" for text in warnings))
    for method in plan.methods:
        try:
            found[method.name] = resolve_name(method.measure)(plan.task)
        except ProbeError as error:
            if request.method != "all":
                raise
            run.warn(f"{method.name} was left out: {error.message}")
    return summary, found


def _write_matrix(run: Running, prompt: int, name: str, matrix: np.ndarray | None) -> None:
    if matrix is None:
        return
    source, target = np.nonzero(~np.isnan(matrix))
    if len(source):
        run.write("dependence", {
            "prompt_id": prompt, "method": name, "source": source.astype(np.int32), "target": target.astype(np.int32),
            "value": matrix[source, target],
        })  # fmt: skip


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
    measured = {row.step: row.size for row in rows if row.size is not None}
    return max(measured, key=lambda step: measured[step]) if measured else None


def _agreement(by: dict[str, dict[int, StepImportance]]) -> list[dict[str, Any]]:
    """Rank correlation of the sizes over the steps that both methods measured; None where one of them says one thing only."""
    found = []
    for a, b in combinations(by, 2):
        sizes = [(by[a][s].size, by[b][s].size) for s in by[a] if s in by[b]]
        both = np.array([pair for pair in sizes if None not in pair], np.float64).reshape(-1, 2)
        rho, tau = (stats.spearman(*both.T), stats.kendall_tau(*both.T)) if len(both) > 2 else (np.nan, np.nan)
        clean = [None if np.isnan(v) else float(v) for v in (rho, tau)]
        found.append({"a": a, "b": b, "steps": len(both), "spearman": clean[0], "kendall": clean[1]})
    return found
