"""The statistics of a run that was read again, from its tables alone: of many answers, of a rewind, of step importance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe import answers, sampling, stats
from probe import store as stores
from probe.requests import Relabel
from probe.rewinding.drawing import Samples
from probe.rewinding.effects import effect_rows, labels, merged_outcomes
from probe.rewinding.results import write_effects, write_over_problems
from probe.running import Running
from probe.step_importance.boundaries import resampling_rows
from probe.step_importance.task import add_q_values, write_over_steps
from probe.texts import arguments_of

NEED_A_MODEL = ("counterfactual", "early-answer")  # methods that depend on outcomes, and on more than the tables say
UNTOUCHED = ("rescored", "dependence")  # tables that outcomes have no part in


class Reread:
    """A run that is read again: the run that it becomes, the one it is made of, and the outcomes that others gave."""

    def __init__(self, run: Running, source: stores.Run, request: Relabel, given: set[str]) -> None:
        self.run, self.source, self.request, self.given = run, source, request, given

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What the run that it is made of was asked for, and what that came to."""
        return arguments_of(self.source)

    @property
    def before(self) -> str | None:
        """What was expected when it was drawn."""
        said = self.source.manifest["arguments"].get("expect")
        return None if said is None else str(said)

    @property
    def seed(self) -> int:
        """Of what is random in the statistics."""
        return int((self.arguments.get("sampling") or {}).get("seed") or 0)

    @property
    def paired(self) -> bool:
        """Whether arms share their noise."""
        engine = self.arguments.get("engine")
        return not isinstance(engine, Mapping) or bool(engine.get("addressed_noise", True))

    @cached_property
    def expected(self) -> dict[int, str | None]:
        """The class of right answers of each problem."""
        return sampling.expected_of_all(self.run.writer, self.request, self.given, self.before)

    def problems(self) -> Iterator[tuple[int, pa.Table]]:
        """Each problem of which anything was drawn, and its rows of `branches`."""
        prompts = sorted(set(self.source.scan("branches", columns=["prompt_id"])["prompt_id"].to_pylist()))
        for prompt in prompts:
            yield prompt, self.run.writer.read("branches", prompt_id=prompt)

    def reference(self, prompt: int, branches: pa.Table) -> str:
        """The class that is counted: the right one, else that of the original."""
        own = labels(branches, "original")
        return self.expected[prompt] or (own[0] if own else answers.NONE)

    def copy(self) -> None:
        """Tables that outcomes have no part in, as they were."""
        for name in UNTOUCHED:
            if name in self.source.tables and not self.run.writer.done(name):
                with self.run.writer.unit(name):
                    self.run.write(name, self.source.scan(name))


def sampled(again: Reread) -> dict[str, Any]:
    """The statistics of `sample`."""
    asked, given = again.request, again.given
    summary = sampling.measure(again.run, asked, asked.ks, given, seed=again.seed, before=again.before)
    kept = ("samples", "max_new", "sampling", "prompts", "errors")
    return {**summary, **{name: again.source.summary.get(name) for name in kept}}


def rewound(again: Reread) -> dict[str, Any]:
    """The effects of a `rewind`, at each place of each problem."""
    again.copy()
    counts = _pairs(again.source)
    places = []
    for prompt, branches in again.problems():
        steps = sorted({step for step in branches["step"].to_pylist() if step is not None}) or [None]
        for step in steps:
            own = branches if step is None else branches.filter(pc.equal(branches["step"], step))
            places.append(_place(again, prompt, step, own, again.reference(prompt, branches), counts.get((prompt, step))))
    prompts = len({one["prompt_id"] for one in places})
    summary: dict[str, Any] = {"prompts": prompts, "errors": 0, "places": places}
    if prompts > 1:
        summary["over_problems"] = write_over_problems(again.run, seed=again.seed)
    return summary


def _pairs(source: stores.Run) -> dict[tuple[int, int | None], int]:
    """How many pairs the differences of each place were of: what was drawn beyond them has no part in them."""
    if "effects" not in source.tables:
        return {}
    rows = source.scan("effects", columns=["prompt_id", "step", "metric", "n"]).to_pylist()
    only = source.scan("branches", columns=["prompt_id"])["prompt_id"][0].as_py()  # older runs were of one prompt
    return {
        (only if r["prompt_id"] is None else r["prompt_id"], r["step"]): r["n"]
        for r in rows
        if r["metric"] == "total_variation"
    }


def _place(again: Reread, prompt: int, step: int | None, branches: pa.Table, reference: str, n: int | None) -> dict[str, Any]:
    """Write the effects of one place; what is to be said of it."""
    expected = again.expected[prompt]
    if again.arguments.get("merge_answers") and not (again.request.labelled or again.request.rule.patterns):
        branches, reference, expected = merged_outcomes(branches, reference, expected)
    arms = {name: labels(branches, name) for name in ("control", "edited", "before")}
    n = len(arms["control"]) if n is None else n
    found: dict[str, Any] = {
        "prompt_id": prompt, "step": step, "edit": "", "reference": reference, "expected": expected, "samples": n,
        "headroom": None, "difference": None, "resolution": None, "paired": again.paired,
    }  # fmt: skip
    if arms["edited"]:
        edits = branches.filter(pc.equal(branches["arm"].cast(pa.string()), "edited"))
        edit = edits["edit"][0].as_py()
        rows = effect_rows(branches, edit, reference, expected, n=n, seed=again.seed, paired=again.paired)
        key = f"effects-{prompt}-step{step}"
        if not again.run.writer.done(key):
            with again.run.writer.unit(key):
                write_effects(again.run.writer, prompt, step, rows)
        control, edited = (np.asarray(arms[name][:n]) == reference for name in ("control", "edited"))
        found["edit"] = edit
        found["difference"] = next(r for r in rows if r["metric"] == "share" and r["outcome"] == reference)
        found["resolution"] = stats.resolution(control, edited, target=again.arguments.get("until"), paired=again.paired)
    if arms["before"]:
        _, counts = np.unique(arms["before"], return_counts=True)
        found["headroom"] = float(stats.entropy(counts))
    return found


def weighed(again: Reread) -> dict[str, Any]:
    """The importance of steps: what outcomes have a part in is made anew, where the tables alone suffice; the rest stays."""
    again.copy()
    old, samples = again.source.table_arrow("importance"), int(again.arguments["samples"])
    methods = set(old["method"].cast(pa.string()).to_pylist())
    gone = sorted({name for name in NEED_A_MODEL if any(method.startswith(name) for method in methods)})
    if gone:
        again.run.warn(f"{' and '.join(gone)} need the model, and were left out: importance with this rule measures them")
    summaries: list[dict[str, Any]] = []
    for prompt, branches in again.problems():
        steps = again.source.scan("steps", prompt_id=prompt, branch=0).sort_by("step").to_pylist()
        reference, key = again.reference(prompt, branches), f"importance-{prompt}"
        if not again.run.writer.done(key):
            with again.run.writer.unit(key):
                kept = _kept(old, prompt, (*NEED_A_MODEL, "resampling"))
                again.run.write("importance", kept)
                if any(method.startswith("resampling") for method in methods):
                    each = [Samples(samples)] * len(steps)
                    rows = resampling_rows(branches, reference, samples=each, seed=again.seed, paired=again.paired)
                    again.run.write("importance", _columns([asdict(row) for row in rows], prompt, steps))
        summaries.append(
            {"prompt_id": prompt, "steps": len(steps), "samples": samples, "reference": reference, "agreement": []}
        )
    add_q_values(again.run)
    if len(summaries) == 1:
        return summaries[0]
    over = write_over_steps(again.run, {one["prompt_id"]: one["reference"] for one in summaries}, seed=again.seed)
    return {"prompts": len(summaries), "errors": 0, "samples": samples, "problems": summaries, "over_problems": over}


def _kept(rows: pa.Table, prompt: int, without: tuple[str, ...]) -> pa.Table:
    """The rows of one problem by methods of other names."""
    stays = [not method.startswith(without) for method in rows["method"].cast(pa.string()).to_pylist()]
    own = pc.or_kleene(pc.equal(rows["prompt_id"], prompt), pc.is_null(rows["prompt_id"]))
    return rows.filter(pc.and_(own, pa.array(stays)))


def _columns(rows: list[dict[str, Any]], prompt: int, steps: list[dict[str, Any]]) -> Mapping[str, list[Any]]:
    about = [{**row, "prompt_id": prompt, **{k: steps[row["step"]][k] for k in ("kind", "text")}} for row in rows]
    return {name: [row[name] for row in about] for name in about[0]}
