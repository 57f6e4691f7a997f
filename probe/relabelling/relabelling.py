"""The verb `answers`: what a run has drawn, read by another rule, and its statistics made anew. Runs no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from probe import answers
from probe import store as stores
from probe.errors import RunError
from probe.labelling import completions, label, labellers
from probe.labelling.completions import COLUMNS
from probe.outcomes import Outcome, OutcomeRule, outcome_class
from probe.relabelling.statistics import Reread, rewound, sampled, weighed
from probe.requests import Relabel, public
from probe.running import Running, running
from probe.texts import copy_prompts

KINDS: Mapping[str, Callable[[Reread], dict[str, Any]]] = {"sample": sampled, "rewind": rewound, "importance": weighed}


def run_relabel(request: Relabel) -> stores.Run:
    """Read the continuations of a run by another rule, and make its statistics anew, without drawing anything.

    The run that is made has `prompts`, `steps` and `branches` (with other outcomes) of the one it was made of, and its
    statistics: `sampled` and `sampled_means` of a run of `sample`, `effects` of `rewind`, `importance` of `importance`: what
    draws are compared for anew, what needs no outcomes as it was, and without `counterfactual` and `early-answer`, which need
    the model. The tokens stay there: `parent` says where.
    Special tokens are known by their shape (<|im_end|>), and the end token by its place.
    Raises `RunError`, `BadOption`, `BadJudge`.
    """
    source = stores.open_run(request.run)
    _check(source)
    came_to = {"source": source.run_id, "of": source.command, **labellers(request)}
    with running(request, None, word=source.command, resolved=came_to) as run:
        _copy(run, source)
        _read_again(run, source, request.rule)
        given = label(run, request, tokens_of=source)
        changed = _changed(run, source)
        summary = KINDS[source.command](Reread(run, source, request, given))
        return run.finish(
            {**summary, "of": source.command, "changed": changed}, parent=source.reference, seed=source.manifest.get("seed"),
            model=source.manifest.get("model"),
        )  # fmt: skip


relabel = public(run_relabel, Relabel)


def _check(source: stores.Run) -> None:
    if source.command == Relabel.command:
        parent = source.manifest.get("parent") or {}
        where = parent.get("path") or parent.get("run")
        raise RunError("this run was read again itself, and has no tokens", hint=f"read the one it was made of: {where}")
    if "rounds" in source.tables:
        raise RunError(
            "what this run drew, and how long, was chosen by its outcomes as they were read",
            hint="a run without --budget and --until can be read again",
        )
    if source.command not in KINDS or "branches" not in source.tables:
        hint = f"such runs are made by probe {', '.join(KINDS)}"
        raise RunError(f"a run of probe {source.command} has no continuations to read", hint=hint)


def _copy(run: Running, source: stores.Run) -> None:
    if not run.writer.done("copied"):
        with run.writer.unit("copied"):
            copy_prompts(source, run.writer)
            if "steps" in source.tables:
                run.write("steps", source.scan("steps"))


def _read_again(run: Running, source: stores.Run, rule: OutcomeRule) -> None:
    """The rows of `branches`, problem by problem."""
    stops = dict(zip(*(source.scan("prompts")[name].to_pylist() for name in ("prompt_id", "stop_reason")), strict=True))
    prompts = sorted(set(source.scan("branches", columns=["prompt_id"])["prompt_id"].to_pylist()))
    for unit, prompt in run.missing("reading", ((f"branches-{p}", p) for p in prompts), total=len(prompts)):
        branches = source.scan("branches", prompt_id=prompt).sort_by("branch")
        tokens = source.scan("tokens", columns=list(COLUMNS), prompt_id=prompt)
        found = []
        for row, text, completion, hidden in completions(branches, tokens):
            reason = row["stop_reason"]
            ended = (stops.get(prompt) if reason is None else reason) == "eos"
            found.append(outcome_class(
                completion, rule, stop_reason=reason or "eos", ended=ended, thinking=answers.opens_thinking(text), hidden=hidden
            ))  # fmt: skip
        with unit:
            run.write("branches", _with_outcomes(branches, found))


def _with_outcomes(branches: pa.Table, found: list[Outcome]) -> pa.Table:
    for name, values in zip(("outcome", "answer", "rule", "confidence"), zip(*found, strict=True), strict=True):
        at = branches.schema.get_field_index(name)
        field = branches.schema.field(at)
        branches = branches.set_column(at, field, pa.array(values, pa.string()).cast(field.type))
    return branches


def _changed(run: Running, source: stores.Run) -> dict[str, Any]:
    """How many continuations come to something else than before, and from what to what, the commonest first."""
    keys = ["prompt_id", "branch", "outcome"]
    old = {(row["prompt_id"], row["branch"]): row["outcome"] for row in source.scan("branches", columns=keys).to_pylist()}
    counts: dict[tuple[str, str], int] = {}
    total = 0
    for piece in run.writer.batches("branches", keys):
        for row in piece.to_pylist():
            total += 1
            pair = (old[row["prompt_id"], row["branch"]], row["outcome"])
            counts[pair] = counts.get(pair, 0) + (pair[0] != pair[1])
    most = sorted(((n, *pair) for pair, n in counts.items() if n), key=lambda item: (-item[0], *item[1:]))
    moved = [{"from": a, "to": b, "n": n} for n, a, b in most[:20]]
    return {"continuations": total, "changed": sum(counts.values()), "moved": moved}
