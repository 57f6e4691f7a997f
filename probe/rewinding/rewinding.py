"""The verb `rewind`: go back, edit, draw both arms on with shared noise, measure. Knows the order of things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe import store as stores
from probe.decoding import differences
from probe.decoding.rollouts import Engine
from probe.decoding.teacher_forced import suffix_logprobs
from probe.errors import ProbeError
from probe.interventions import parse_all
from probe.labelling import counted, label, labellers
from probe.requests import Rewind, public
from probe.rewinding import results
from probe.rewinding.drawing import RewindRounds, Samples, draw_samples
from probe.rewinding.effects import cut_off_between, effect_rows, merged_outcomes
from probe.rewinding.preparing import LeftOut, OpenedRun, Problems, RewindPlan, opened_for, plans_of
from probe.rewinding.rollouts import blocks, changing
from probe.rewinding.teacher_forced import after, off_policy, rescore
from probe.running import Running, running
from probe.serving import engine_of, in_process, remarks
from probe.serving import suffix_logprobs as scores_of

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def run_rewind(request: Rewind) -> stores.Run:
    """Go back to a place in a run's generations, edit, let both arms go on, and measure what changed.

    At most one edit of the step, and changes of activations (`edit`); with neither it draws on from there and compares nothing.
    Both arms share their noise, so that a difference between them is the edit's (METHODS M21). Of a run with many prompts
    each is a problem by itself: its numbers are those that it has alone. Where the place cannot be found or edited in one of
    them, its row of `prompts` says why; in the only one it is an error.

    Tables: `branches`, `effects`, `rescored`, `tokens` (each branch from where it forks), `steps`, `prompts`.
    Raises `RunError`, `BadOption`, `OutOfRange`, `NonFinite`.
    """
    opened = opened_for(request)
    engine = engine_of(opened.lm, request.engine)
    if request.edit:
        in_process(engine, "--edit")
    problems = Problems(opened, lambda origin: plans_of(origin, request))
    came_to = {**opened.resolved(), **_alone(problems), "engine": engine.identity, "changes": _changes(opened, request)}
    came_to |= labellers(request)
    rounds = RewindRounds(request, list(problems)) if request.in_rounds else None
    with running(request, opened.lm, word=request.step_edit.kind.replace("_", "-"), resolved=came_to) as run:
        run.warn(*differences(opened.lm, opened.sampling), *remarks(engine, opened.sampling))
        given = _labels(run, engine, problems, request)
        found: list[results.MeasuredPlace] = []
        for some in _shared(run, problems, request) if rounds is None else [rounds.plans]:
            for plans in some:
                results.write_original(run.writer, plans[0].origin, request.branch)
            places = [plan for plans in some for plan in plans]
            drawn = draw_samples(run, engine, places) if rounds is None else rounds.draw(run, engine)
            for plan, samples in zip(places, drawn, strict=True):
                found.append(_measure(run, engine, _counting(run, plan, given), samples))
        results.write_failed(run, opened.source, problems.failed)
        return _finish(run, request, problems, found, {} if rounds is None else {"drawing": rounds.summary})


rewind = public(run_rewind, Rewind)


def _alone(problems: Problems[list[RewindPlan]]) -> dict[str, Any]:
    """What the manifest says besides of a run about one place of one problem."""
    if not problems.opened.alone:
        return {}
    plan = problems.only[0]
    return plan.origin.resolved(plan.rollout.max_new)


def _changes(opened: OpenedRun, request: Rewind) -> list[str]:
    """The changes of activations in words."""
    return [str(one) for one in parse_all(opened.lm, request.edit, seed=opened.sampling.seed)]


def _shared(run: Running, problems: Problems[list[RewindPlan]], request: Rewind) -> Iterator[list[list[RewindPlan]]]:
    """The places of problems whose continuations are drawn together; a worker draws and measures them."""

    def lose(some: list[list[RewindPlan]], error: ProbeError) -> None:
        problems.failed += [LeftOut(plans[0].origin.original.prompt_id, error) for plans in some]

    some, total = blocks(_with_sizes(problems, request)), len(problems.opened.prompts)
    return run.share("problems", some, total=total, size=len, lost=lose)


def _with_sizes(problems: Problems[list[RewindPlan]], request: Rewind) -> Iterator[tuple[int, list[RewindPlan]]]:
    """The places of each problem, and how many continuations they need at first."""
    return ((request.samples * sum(len(plan.named) for plan in plans), plans) for plans in problems)


def _labels(run: Running, engine: Engine, problems: Problems[list[RewindPlan]], request: Rewind) -> set[str]:
    """Outcomes that others give: they are asked once, when everything is drawn. Those that were given."""
    if not request.labelled:
        return set()
    for some in _shared(run, problems, request):
        for plans in some:
            results.write_original(run.writer, plans[0].origin, request.branch)
        draw_samples(run, engine, [plan for plans in some for plan in plans])
    return label(run, request)


def _counting(run: Running, plan: RewindPlan, given: set[str]) -> RewindPlan:
    """The same with the class that is counted, where others say what things come to."""
    if not plan.request.labelled:
        return plan
    reference, expected = counted(run, plan.request, plan.origin.original.prompt_id, given)
    return replace(plan, reference=reference, expected=expected)


def _branches(run: Running, plan: RewindPlan) -> pa.Table:
    """What was drawn from one place of one problem."""
    own = run.writer.read("branches", prompt_id=plan.origin.original.prompt_id)
    return own.filter(pc.equal(own["step"], plan.step))


def _merged(branches: pa.Table, plan: RewindPlan) -> tuple[pa.Table, RewindPlan]:
    """Outcomes with the classes that a computer algebra system finds equal made one, if that was asked for.

    The table `branches` of the run keeps each answer's own class.
    """
    if not plan.request.merge_answers:
        return branches, plan
    merged, reference, expected = merged_outcomes(branches, plan.reference, plan.expected)
    return merged, replace(plan, reference=reference, expected=expected)


def _rescored(lm: LanguageModel, engine: Engine, plan: RewindPlan) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs of what followed in the original, after the control's prefix and after the edited one's."""
    arms, tail = plan.arms, plan.origin.original.ids[len(plan.arms.control) :]
    assert arms.edited is not None, "there is an edited arm"
    if not engine.activations and tail and arms.edited != arms.control:
        (kept,), (changed,) = (scores_of(engine, lm, prefix, [tail]) for prefix in (arms.control, arms.edited))
        return kept, changed
    if not plan.changes or not tail:
        return rescore(plan.fork.stem, arms.control, arms.edited, tail)
    edited = next(arm for arm in plan.named if arm.changes)
    kept = after(plan.fork.stem, arms.control, [tail])[0]
    with changing(lm, edited, len(tail)):
        (changed,) = suffix_logprobs(lm, arms.edited, [tail])
    return kept, changed


def _measure(run: Running, engine: Engine, plan: RewindPlan, samples: Samples) -> results.MeasuredPlace:
    """Effects, re-scored tail, off-policy z and summary of what was drawn from one place."""
    paired, (n, stopped) = engine.addressed_noise, samples
    prompt = plan.origin.original.prompt_id
    key = f"effects-{prompt}-step{plan.step}"
    if (told := run.kept(key)) is not None:
        return results.MeasuredPlace(prompt, told)
    drawn = _branches(run, plan)
    branches, plan = _merged(drawn, plan)
    arms, rows = plan.arms, []
    scored = far = None
    if arms.edited is not None:
        run.warn(*_about(plan, cut_off_between(branches, n, paired=paired)))
        rows = effect_rows(
            branches, plan.what, plan.reference, plan.expected, n=n, seed=plan.origin.seed, paired=paired, stopped=stopped,
            longest=plan.rollout.max_new,
        )  # fmt: skip
        scored = _rescored(run.lm, engine, plan)
    if arms.new and plan.only:  # of several places nothing is said of it
        before = next(arm.name for arm in plan.named if arm.prefix == arms.before)
        own = results.sampled_ids(branches, run.writer.read("tokens", prompt_id=prompt), before)
        far = off_policy(plan.fork.stem, arms.before, arms.new, own)
    summary = results.summarize(plan, branches, rows, scored, far, n, paired=paired, stopped=stopped)
    summary = summary if plan.only else results.line_of(summary)
    if not run.writer.done(key):
        with run.writer.unit(key):
            results.write_effects(run.writer, prompt, plan.step, rows)
            results.write_rescored(run.writer, plan, scored)
            run.keep(key, summary)
    plan.fork.forget()
    return results.MeasuredPlace(prompt, summary)


def _about(plan: RewindPlan, warnings: Sequence[str]) -> list[str]:
    """Warnings that say which problem and step they are of, where there are several."""
    return [text if plan.only else f"prompt {plan.origin.original.prompt_id}, step {plan.step}: {text}" for text in warnings]


def _finish(
    run: Running, request: Rewind, problems: Problems[list[RewindPlan]], found: Sequence[results.MeasuredPlace],
    more: dict[str, Any],
) -> stores.Run:  # fmt: skip
    """The whole run: of one place with all that is to be said of it, of several with what is to be said of all."""
    opened = problems.opened
    prompt, position, summary = None, None, None
    if opened.alone:
        prompt = opened.prompts[0]
        if request.to != "all":
            (one,), (plan,) = found, problems.only
            position, summary = len(plan.arms.before), one.summary
    parent = results.parent_of(opened, request.branch, prompt_id=prompt, position=position)
    if summary is None:
        summary = results.summarize_all(found, problems.failed)
        if len({one.prompt_id for one in found}) > 1:
            summary["over_problems"] = results.write_over_problems(run, seed=opened.sampling.seed)
    summary = {**summary, **more}
    return run.finish(summary, seed=opened.sampling.seed, parent=parent)
