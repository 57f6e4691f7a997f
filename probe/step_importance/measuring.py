"""The verb `importance`: how much each step of a generation matters, by several methods. Knows the order of things."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe import answers, stats
from probe import store as stores
from probe.decoding import Sampling, differences
from probe.errors import BadOption, ProbeError
from probe.language_model import check_model, model_of
from probe.registries.importance_methods import Method, Size, check_options, methods_of
from probe.registries.step_edits import STUB
from probe.rewinding.effects import cut_off_across
from probe.rewinding.preparing import new_tokens, rollout_options, sampling_of
from probe.rewinding.results import parent_of, write_original
from probe.rewinding.rewinding import precision, seconds
from probe.rewinding.rollouts import Arm, Progress, RolloutOptions, draw, outcome_of
from probe.step_importance import boundaries, dependence, receiver_heads
from probe.step_importance.task import Measured, Row, Task, columns, discovered
from probe.texts import trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


class ImportancePlan(NamedTuple):
    """All that decides the numbers of an importance run. everything: methods that cannot be taken are left out."""

    methods: tuple[Method, ...]
    task: Task
    arms: tuple[Arm, ...]
    rollout: RolloutOptions
    everything: bool

    @property
    def sampled(self) -> bool:
        """Whether a method needs continuations of every boundary."""
        return any(method.sampled for method in self.methods)


def importance(
    run: stores.Run | str | Path, *, method: str = "resampling", lm: LanguageModel | None = None, other_model: bool = False,
    prompt_id: int | None = None, branch: int = 0, samples: int = 16, max_new: int | None = None,
    sampling: Sampling | None = None, seed: int = 0, answer: str = "auto", expect: str | None = None,
    split: str = "sentence", stub: str = STUB, candidates: tuple[str, ...] = (), embedder: str | None = None,
    suppress: str | None = None, heads: stores.Run | str | Path | None = None, out: str | Path | None = None,
    resume: bool = False, progress: Progress | None = None,
) -> stores.Run:  # fmt: skip
    """How much each step of a run's generation matters. method: one of `METHODS`, several with commas, or `all`.

    samples, max_new, sampling, seed: of the continuations from each boundary between steps, which `resampling` and
    `counterfactual` share. stub, candidates: for `early-answer`. embedder: a sentence-transformers model for
    `counterfactual` instead of the model's own activations.
    suppress: the heads that `suppression` keeps from looking, `pattern@5.3,7.1`; without it all of all layers.
    heads: an importance run over another text, whose receiver heads `receiver` takes instead of choosing them on this one.
    The rest is as in `rewind`.

    Tables: `importance` (a row a step and method), `dependence` (step x step, by `rescore` and `suppression`), and
    what was drawn in `branches` and `tokens`. With `all`, a method that this model or text cannot take is left out and
    said so; asked for alone it is an error. Raises `RunError`, `BadOption`, `BadModel`, `NonFinite`.
    """
    source = stores.open_run(run)
    if resume and (out is None or out == "auto"):
        raise BadOption("which run is to be resumed?", hint="name it with --out")
    lm = lm or model_of(source)
    if not other_model:
        check_model(source, lm)
    plan = _prepare(
        source, lm, method, prompt_id=prompt_id, branch=branch, samples=samples, max_new=max_new, sampling=sampling, seed=seed,
        answer=answer, expect=expect, split=split, stub=stub, candidates=candidates, embedder=embedder, suppress=suppress,
        heads=heads,
    )  # fmt: skip
    original = plan.task.original
    found = outcome_of(lm, original.ids, original.n_prompt, "eos", answer)
    path = (
        stores.fresh_path("importance", word=plan.methods[0].name if len(plan.methods) == 1 else "all")
        if out == "auto"
        else out
    )
    with stores.create(
        Path(path) if path else None,
        command="importance",
        arguments=_arguments(source, lm, plan, branch, expect),
        resume=resume,
    ) as writer:
        for note in differences(lm, plan.rollout.sampling):
            writer.warn(note)
        write_original(writer, source, original, branch, found)
        plan = plan._replace(task=replace(plan.task, writer=writer, progress=progress))
        summary, measured = _measure(writer, plan)
        rows = discovered([row for one in measured.values() for row in one.rows])
        if not writer.done("importance"):
            with writer.unit("importance"):
                writer.write("importance", columns(rows, original))
                for name, one in measured.items():
                    _keep_matrix(writer, name, one.matrix)
        return writer.finish(
            summary={**_summary(plan, rows), **summary, **_summaries(measured)},
            model=lm.identity,
            anatomy=lm.anatomy.to_dict(),
            seed=plan.task.seed,
            parent=parent_of(source, original, branch, original.steps[0].start),
        )


def plan_importance(run: stores.Run | str | Path, *, lm: LanguageModel | None = None, **what: Any) -> dict[str, Any]:
    """What `importance` would do; keywords as there. Decodes a few tokens to time them; writes nothing."""
    source = stores.open_run(run)
    lm = lm or model_of(source)
    defaults = {"prompt_id": None, "branch": 0, "samples": 16, "max_new": None, "sampling": None, "seed": 0, "answer": "auto",
                "expect": None, "split": "sentence", "stub": STUB, "candidates": (), "embedder": None,
                "suppress": None, "heads": None}  # fmt: skip
    what.pop("other_model", None)
    plan = _prepare(source, lm, what.pop("method", "resampling"), **{**defaults, **what})
    original, samples = plan.task.original, plan.task.samples
    rows = samples * len(plan.arms) if plan.sampled else 0
    tokens = samples * sum(arm.max_new for arm in plan.arms) if rows else 0
    rollout = plan.rollout._replace(max_new=-(-tokens // max(1, rows)))
    size = Size(original.n_prompt, [step.end - step.start for step in original.steps], samples)
    return {
        "model": lm.name, "methods": ", ".join(method.name for method in plan.methods), "steps": len(original.steps),
        "continuations": rows, "tokens": tokens, "tokens_read": {one.name: one.tokens(size) for one in plan.methods},
        "seconds": round(seconds(lm, [arm.prefix for arm in plan.arms], rollout, rows), 1) if rows else 0.0,
        **precision(samples),
        "tables": {"branches": {"rows": rows, "bytes": 100 * rows + 4 * tokens},
                   "tokens": {"rows": tokens, "bytes": 14 * tokens}},
    }  # fmt: skip


def _prepare(
    source: stores.Run, lm: LanguageModel, method: str, *, prompt_id: int | None, branch: int, samples: int,
    max_new: int | None, sampling: Sampling | None, seed: int, answer: str, expect: str | None, split: str, stub: str,
    candidates: tuple[str, ...], embedder: str | None, suppress: str | None, heads: stores.Run | str | Path | None,
) -> ImportancePlan:  # fmt: skip
    methods = methods_of(method)
    check_options(methods, suppress=suppress, heads=heads)
    if samples < 1:
        raise BadOption(f"samples is {samples}", hint="it is at least 1")
    if suppress is not None:
        dependence.check_place(lm, suppress)
    chosen = None
    if heads is not None:
        check_model(stores.open_run(heads), lm)
        chosen = receiver_heads.heads_of(stores.open_run(heads), source)
    original = trajectory(source, lm, prompt_id=prompt_id, branch=branch, split=split)
    if len(original.steps) < 2:
        raise BadOption(
            "the generation is one step: there is nothing to compare it with", hint="cut finer: --split line"
        )
    reference = (
        answers.key(expect, answer)
        if expect is not None
        else outcome_of(lm, original.ids, original.n_prompt, "eos", answer).key
    )
    longest = new_tokens(lm, original, max_new, original.n_prompt)
    rollout = rollout_options(lm, original, sampling or sampling_of(original, seed), longest, answer)
    arms = tuple(
        arm._replace(max_new=new_tokens(lm, original, max_new, arm.fork_pos)) for arm in boundaries.arms(lm, original)
    )
    task = Task(
        lm,
        original,
        reference,
        samples,
        rollout.sampling.seed,
        answer,
        split,
        stub,
        candidates,
        embedder,
        suppress,
        chosen,
    )
    return ImportancePlan(methods, task, arms, rollout, method == "all")


def _arguments(
    source: stores.Run, lm: LanguageModel, plan: ImportancePlan, branch: int, expect: str | None
) -> dict[str, Any]:
    task, rollout = plan.task, plan.rollout
    return {
        "source": source.run_id, "branch": branch, "methods": [method.name for method in plan.methods], "samples": task.samples,
        "max_new": rollout.max_new, "sampling": {**asdict(rollout.sampling), "stop": list(rollout.sampling.stop)},
        "answer": task.answer, "expect": expect,
        "split": task.split, "stub": task.stub, "candidates": list(task.candidates), "embedder": task.embedder,
        **({"suppress": task.suppress} if task.suppress else {}),
        **({"heads": [list(place) for place in task.heads.places]} if task.heads else {}),
        "prompt_id": task.original.prompt_id, **task.original.chat.arguments(), "generate": rollout.max_new,
        "model": lm.name, "dtype": str(lm.dtype),
    }  # fmt: skip


def _measure(writer: stores.Writer, plan: ImportancePlan) -> tuple[dict[str, Any], dict[str, Measured]]:
    """What is to be said of the draws, and what each method gives."""
    task, summary, found = plan.task, {}, {}
    if plan.sampled:
        draw(task.lm, writer, plan.arms, range(task.samples), plan.rollout, task.progress)
        names = [arm.name for arm in plan.arms]
        shares, warnings = cut_off_across(writer.read("branches"), names, task.samples)
        summary = {"max_new": [arm.max_new for arm in plan.arms], "truncated": shares}
        for text in warnings:
            writer.warn(text)
    for method in plan.methods:
        try:
            found[method.name] = resolve_name(method.measure)(task)
        except ProbeError as error:
            if not plan.everything:
                raise
            writer.warn(f"{method.name} was left out: {error.message}")
    return summary, found


def _keep_matrix(writer: stores.Writer, name: str, matrix: np.ndarray | None) -> None:
    if matrix is None:
        return
    source, target = np.nonzero(~np.isnan(matrix))
    if len(source):
        writer.write("dependence", {
            "method": [name] * len(source), "source": source.astype(np.int32), "target": target.astype(np.int32),
            "value": matrix[source, target],
        })  # fmt: skip


def _summaries(measured: dict[str, Measured]) -> dict[str, Any]:
    """What methods say besides their rows, by method."""
    return {name.replace("-", "_"): one.summary for name, one in measured.items() if one.summary}


def _summary(plan: ImportancePlan, rows: list[Row]) -> dict[str, Any]:
    by: dict[str, dict[int, Row]] = {}
    for row in rows:
        by.setdefault(row.method, {})[row.step] = row
    return {
        "steps": len(plan.task.original.steps), "methods": list(by), "samples": plan.task.samples,
        "reference": plan.task.reference,
        "most_important": {name: _top(list(found.values())) for name, found in by.items()}, "agreement": _agreement(by),
    }  # fmt: skip


def _top(rows: list[Row]) -> int | None:
    measured = [row for row in rows if row.estimate is not None]
    return max(measured, key=lambda row: abs(row.estimate or 0.0)).step if measured else None


def _agreement(by: dict[str, dict[int, Row]]) -> list[dict[str, Any]]:
    """Rank correlation of |estimate| over the steps that both methods measured; None where one of them says one thing only."""
    found = []
    for a, b in combinations(by, 2):
        both = [s for s in by[a] if s in by[b] and by[a][s].estimate is not None and by[b][s].estimate is not None]
        x, y = (np.abs([by[m][s].estimate or 0.0 for s in both]) for m in (a, b))
        rho, tau = (stats.spearman(x, y), stats.kendall_tau(x, y)) if len(both) > 2 else (np.nan, np.nan)
        clean = [None if np.isnan(v) else float(v) for v in (rho, tau)]
        found.append({"a": a, "b": b, "steps": len(both), "spearman": clean[0], "kendall": clean[1]})
    return found
