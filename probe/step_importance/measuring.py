"""The verb `importance`: how much each step of a generation matters, by several methods. Knows the order of things."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe import answers, stats
from probe import store as stores
from probe.decoding import Sampling, differences
from probe.errors import BadOption, ProbeError
from probe.language_model import check_model, model_of
from probe.rewinding import keeping, truncation
from probe.rewinding.edits import STUB
from probe.rewinding.preparing import drawing_from, new_tokens, sampling_of
from probe.rewinding.rollouts import Arm, Drawing, Progress, draw, outcome
from probe.step_importance import boundaries, dependence, early_answers, otherwise, receiver_heads
from probe.step_importance.rows import Row, columns, discovered
from probe.texts import Trajectory, trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

METHODS = ("resampling", "counterfactual", "suppression", "early-answer", "rescore", "receiver")
DRAWN = ("resampling", "counterfactual")


class Asked(NamedTuple):
    """All that decides the numbers of an importance run."""

    methods: tuple[str, ...]
    original: Trajectory
    arms: tuple[Arm, ...]
    drawing: Drawing
    samples: int
    split: str
    stub: str
    candidates: tuple[str, ...]
    embedder: str | None
    reference: str
    everything: bool
    suppress: str | None
    heads: receiver_heads.Heads | None


def importance(
    run: stores.Run | str | Path, *, method: str = "resampling", lm: LanguageModel | None = None, other_model: bool = False,
    prompt_id: int | None = None, branch: int = 0, samples: int = 16, max_new: int | None = None,
    sampling: Sampling | None = None, seed: int = 0, answer: str = "auto", expect: str | None = None,
    split: str = "sentence", stub: str = STUB, candidates: tuple[str, ...] = (), embedder: str | None = None,
    suppress: str | None = None, heads: stores.Run | str | Path | None = None, out: str | Path | None = None,
    resume: bool = False, progress: Progress | None = None,
) -> stores.Run:  # fmt: skip
    """How much each step of a run's generation matters. method: one of METHODS, several with commas, or `all`.

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
    asked = _asked(
        source, lm, method, prompt_id=prompt_id, branch=branch, samples=samples, max_new=max_new, sampling=sampling, seed=seed,
        answer=answer, expect=expect, split=split, stub=stub, candidates=candidates, embedder=embedder, suppress=suppress,
        heads=heads,
    )  # fmt: skip
    found = outcome(lm, asked.original.ids, asked.original.n_prompt, "eos", answer)
    path = (
        stores.fresh_path("importance", word=asked.methods[0] if len(asked.methods) == 1 else "all")
        if out == "auto"
        else out
    )
    with stores.create(
        Path(path) if path else None,
        command="importance",
        arguments=_arguments(source, lm, asked, branch, expect),
        resume=resume,
    ) as writer:
        for note in differences(lm, asked.drawing.sampling):
            writer.warn(note)
        keeping.keep_original(writer, source, asked.original, branch, found)
        rows, matrices, more = _measure(lm, writer, asked, progress)
        if not writer.done("importance"):
            with writer.unit("importance"):
                writer.write("importance", columns(rows, asked.original))
                for name, matrix in matrices.items():
                    _keep_matrix(writer, name, matrix)
        parent = keeping.parent(source, asked.original, branch, asked.original.steps[0].start)
        return writer.finish(
            summary=_summary(asked, rows, more),
            model=lm.identity,
            anatomy=lm.anatomy.to_dict(),
            seed=seed,
            parent=parent,
        )


def plan_importance(run: stores.Run | str | Path, *, lm: LanguageModel | None = None, **what: Any) -> dict[str, Any]:
    """What `importance` would do; keywords as there. Decodes a few tokens to time them; writes nothing."""
    from probe.rewinding.planning import precision, seconds

    source = stores.open_run(run)
    lm = lm or model_of(source)
    defaults = {"prompt_id": None, "branch": 0, "samples": 16, "max_new": None, "sampling": None, "seed": 0, "answer": "auto",
                "expect": None, "split": "sentence", "stub": STUB, "candidates": (), "embedder": None,
                "suppress": None, "heads": None}  # fmt: skip
    what.pop("other_model", None)
    asked = _asked(source, lm, what.pop("method", "resampling"), **{**defaults, **what})
    drawn = asked.samples * len(asked.arms) if set(asked.methods) & set(DRAWN) else 0
    tokens = asked.samples * sum(arm.max_new for arm in asked.arms) if drawn else 0
    drawing = asked.drawing._replace(max_new=-(-tokens // max(1, drawn)))
    return {
        "model": lm.name, "methods": ", ".join(asked.methods), "steps": len(asked.original.steps), "continuations": drawn,
        "tokens": tokens,
        "seconds": round(seconds(lm, [arm.prefix for arm in asked.arms], drawing, drawn), 1) if drawn else 0.0,
        **precision(asked.samples),
        "tables": {"branches": {"rows": drawn, "bytes": 100 * drawn + 4 * tokens},
                   "tokens": {"rows": tokens, "bytes": 14 * tokens}},
    }  # fmt: skip


def _asked(
    source: stores.Run, lm: LanguageModel, method: str, *, prompt_id: int | None, branch: int, samples: int,
    max_new: int | None, sampling: Sampling | None, seed: int, answer: str, expect: str | None, split: str, stub: str,
    candidates: tuple[str, ...], embedder: str | None, suppress: str | None, heads: stores.Run | str | Path | None,
) -> Asked:  # fmt: skip
    methods = METHODS if method == "all" else tuple(dict.fromkeys(part.strip() for part in method.split(",")))
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise BadOption(f"unknown method '{unknown[0]}'", hint=f"{', '.join(METHODS)} or all")
    if samples < 1:
        raise BadOption(f"samples is {samples}", hint="it is at least 1")
    if suppress is not None:
        if "suppression" not in methods:
            raise BadOption("these heads are for suppression, which is not asked for", hint="--method suppression")
        dependence.check_place(lm, suppress)
    chosen = None
    if heads is not None:
        if "receiver" not in methods:
            raise BadOption("these heads are for receiver, which is not asked for", hint="--method receiver")
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
        else outcome(lm, original.ids, original.n_prompt, "eos", answer).key
    )
    longest = new_tokens(lm, original, max_new, original.n_prompt)
    drawing = drawing_from(lm, original, sampling or sampling_of(original, seed), longest, answer)
    arms = tuple(
        arm._replace(max_new=new_tokens(lm, original, max_new, arm.fork_pos)) for arm in boundaries.arms(lm, original)
    )
    return Asked(
        methods, original, arms, drawing, samples, split, stub, candidates, embedder, reference, method == "all", suppress,
        chosen,
    )  # fmt: skip


def _arguments(source: stores.Run, lm: LanguageModel, asked: Asked, branch: int, expect: str | None) -> dict[str, Any]:
    sampling = {**asdict(asked.drawing.sampling), "stop": list(asked.drawing.sampling.stop)}
    return {
        "source": source.run_id, "branch": branch, "methods": list(asked.methods), "samples": asked.samples,
        "max_new": asked.drawing.max_new, "sampling": sampling, "answer": asked.drawing.how, "expect": expect,
        "split": asked.split, "stub": asked.stub, "candidates": list(asked.candidates), "embedder": asked.embedder,
        **({"suppress": asked.suppress} if asked.suppress else {}),
        **({"heads": [list(place) for place in asked.heads.places]} if asked.heads else {}),
        "prompt_id": asked.original.prompt_id, **asked.original.chat.arguments(), "generate": asked.drawing.max_new,
        "model": lm.name, "dtype": str(lm.dtype),
    }  # fmt: skip


def _measure(
    lm: LanguageModel, writer: stores.Writer, asked: Asked, progress: Progress | None
) -> tuple[list[Row], dict[str, np.ndarray], dict[str, Any]]:
    """Rows of every method, step x step matrices, and what else the methods say, by method."""
    rows: list[Row] = []
    matrices: dict[str, np.ndarray] = {}
    more: dict[str, Any] = {}
    if set(asked.methods) & set(DRAWN):
        draw(lm, writer, asked.arms, range(asked.samples), asked.drawing, progress)
        more["max_new"] = [arm.max_new for arm in asked.arms]
        names = [arm.name for arm in asked.arms]
        more["truncated"], said = truncation.across(writer.read("branches"), names, asked.samples)
        for text in said:
            writer.warn(text)
    for method in asked.methods:
        try:
            rows += _by(method, lm, writer, asked, matrices, more, progress)
        except ProbeError as error:
            if not asked.everything:
                raise
            writer.warn(f"{method} was left out: {error.message}")
    return discovered(rows), matrices, more


def _by(
    method: str, lm: LanguageModel, writer: stores.Writer, asked: Asked, matrices: dict[str, np.ndarray],
    more: dict[str, Any], progress: Progress | None,
) -> list[Row]:  # fmt: skip
    original, seed = asked.original, asked.drawing.sampling.seed
    if method == "resampling":
        found = writer.read("branches")
        return boundaries.resampling(found, len(original.steps), asked.reference, n=asked.samples, seed=seed)
    if method == "counterfactual":
        rows, more[method] = otherwise.counterfactual(
            lm, writer, original, n=asked.samples, split=asked.split, embedder=asked.embedder, reference=asked.reference,
            seed=seed,
        )  # fmt: skip
        return rows
    if method == "rescore":
        rows, matrices[method] = dependence.rescored(lm, original, progress)
        return rows
    if method == "suppression":
        rows, matrices[method] = dependence.suppressed(lm, original, progress, place=asked.suppress)
        return rows
    if method == "early-answer":
        rows, more[method] = early_answers.early_answers(
            lm, original, stub=asked.stub, how=asked.drawing.how, reference=asked.reference, candidates=asked.candidates,
            progress=progress,
        )  # fmt: skip
        return rows
    rows, more[method] = receiver_heads.received(lm, original, seed=seed, heads=asked.heads)
    return rows


def _keep_matrix(writer: stores.Writer, name: str, matrix: np.ndarray) -> None:
    source, target = np.nonzero(~np.isnan(matrix))
    if len(source):
        writer.write("dependence", {
            "method": [name] * len(source), "source": source.astype(np.int32), "target": target.astype(np.int32),
            "value": matrix[source, target],
        })  # fmt: skip


def _summary(asked: Asked, rows: list[Row], more: dict[str, Any]) -> dict[str, Any]:
    by: dict[str, dict[int, Row]] = {}
    for row in rows:
        by.setdefault(row.method, {})[row.step] = row
    return {
        "steps": len(asked.original.steps), "methods": list(by), "samples": asked.samples, "reference": asked.reference,
        "most_important": {name: _top(list(found.values())) for name, found in by.items()},
        "agreement": _agreement(by), **{key.replace("-", "_"): value for key, value in more.items()},
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
