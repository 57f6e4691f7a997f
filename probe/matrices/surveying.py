"""The verb `weights`: matrices, norms, heads and how they compose, of a model that reads nothing. Knows no arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probe import store as stores
from probe.errors import BadOption, SiteAbsent
from probe.instrument import in_memory
from probe.matrices.head_rows import write_heads
from probe.matrices.naming import Matrix, MatrixReader, gains, matrices
from probe.matrices.neuron_rows import write_neurons
from probe.matrices.planning import ResolvedSurvey, resolved
from probe.matrices.spectra import change, entries, singular_values, spectrum
from probe.requests import WeightSurvey, public
from probe.running import Running, running
from probe.stats.clusters import q_values

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

IGNORED = (
    "What is told of heads and neurons is of their matrices alone: what other parts add to the stream, positions that are "
    "added, sinks, biases of heads, and the scale of norms (but at the first read of a token's own embedding) are left out."
)
SMALLEST, ALIKE = 1e-12, 1e-4  # of a difference: what is one; of its largest singular value: what counts towards its rank


def run_weights(lm: LanguageModel, request: WeightSurvey) -> stores.Run:
    """What a model's weights are, without a text: of every matrix its norms and spectrum; of every norm its gain; of every head
    the sign of its QK and OV circuits through the embedding (copying score), tokens in them, and Q-, K- and V-composition
    between heads against random rotations (Elhage et al. 2021); of every neuron the tokens that lie along what it
    reads and what it writes.

    Matrices of heads are read off the attention itself; grouped keys and fused projections need no names. Roles come from what
    a parameter has a part in. Tables: `matrices`, `norm_gains`, `head_circuits`, `token_circuits`, `compositions`,
    `neuron_weights`, `matrix_differences`. Raises `BadOption`, `SiteAbsent` where no head can be read, `OutOfRange`.
    """
    survey = resolved(lm, request)
    with running(request, lm, word=survey.word, resolved=survey.came_to) as run, ExitStack() as held:
        for one in (lm, survey.against):
            if one is not None:
                # the ends; a block's weights come in while it is looked at
                blocks = [one.model.get_submodule(layer.block) for layer in one.anatomy.layers]
                held.enter_context(in_memory(one.model, without=blocks))
        if run.writer.whole:
            return run.writer.whole
        run.write_all({"prompts": {"prompt_id": [0], "text": [f"the weights of {lm.title}"], "error": [""]}}, unit="subject")
        if "matrices" in survey.looks:
            _matrices(run, survey)
        if "norms" in survey.looks:
            _norms(run, survey)
        if survey.of_heads:
            _beside(run, survey, write_heads)
        if "neurons" in survey.looks:
            _beside(run, survey, write_neurons)
        if survey.against is not None:
            _differences(run, survey)
        return run.finish(_summary(run, survey))


weights = public(run_weights, WeightSurvey)


def _beside(run: Running, survey: ResolvedSurvey, write: Callable[[Running, ResolvedSurvey], None]) -> None:
    """What a model may not have; an error only where nothing else is asked for."""
    try:
        write(run, survey)
    except SiteAbsent as error:
        if not {"matrices", "norms"} & set(survey.looks):
            raise
        run.warn(error.message)


def _matrices(run: Running, survey: ResolvedSurvey) -> None:
    found, odd = matrices(run.lm, survey.own_layers)
    if odd:
        run.warn(f"{len(odd)} parameters can't be read (quantised, or not in memory): {', '.join(odd[:3])}")
    reader = MatrixReader(run.lm.model)
    for unit, one in run.missing("matrices", ((f"matrix {m.unit}", m) for m in found), total=len(found)):
        with unit:
            value = reader.value(one)
            s, e = spectrum(singular_values(value)), entries(value)
            run.write("matrices", {
                **_named(one), "rows": [value.shape[0]], "columns": [value.shape[1]], "frobenius": [e.frobenius],
                "spectral": [float(s.values[0])], "stable_rank": [s.stable_rank], "effective_rank": [s.effective_rank],
                "condition": [s.condition], "mean": [e.mean], "sd": [e.sd], "max_abs": [e.max_abs], "zeros": [e.zeros],
                "singular_values": [s.values[: survey.top].float().tolist()], "tied": [", ".join(one.also)],
            })  # fmt: skip


def _named(one: Matrix) -> dict[str, Any]:
    return {"name": [one.name], "role": [one.role], "layer": [one.layer], "expert": [one.expert]}


def _norms(run: Running, survey: ResolvedSurvey) -> None:
    found = gains(run.lm, survey.own_layers)
    g = [one.gain.double().cpu() for one in found]
    if found:
        run.write_all({"norm_gains": {
            "name": [one.name for one in found], "role": [one.role for one in found], "layer": [one.layer for one in found],
            "width": [len(v) for v in g], "mean": [float(v.mean()) for v in g],
            "sd": [float(v.std(correction=0)) for v in g], "least": [float(v.min()) for v in g],
            "greatest": [float(v.max()) for v in g], "greatest_channel": [int(v.abs().argmax()) for v in g],
            "bias": [float(one.bias.double().norm()) for one in found],
        }}, unit="norms")  # fmt: skip


def _differences(run: Running, survey: ResolvedSurvey) -> None:
    """Matrix by matrix of the same name and shape; what only one of the models has is said."""
    other = survey.against
    assert other is not None, "there is a model to compare with"
    mine, _ = matrices(run.lm, survey.own_layers)
    theirs = dict(other.model.named_parameters(remove_duplicate=False))
    pairs = [m for m in mine if m.name in theirs and theirs[m.name].shape == run.lm.model.get_parameter(m.name).shape]
    if not pairs:
        raise BadOption(f"'{other.title}' has no matrix of the same name and shape", hint="compare models of one architecture")
    if left := sorted({m.name for m in mine} - {m.name for m in pairs}):
        run.warn(f"{len(left)} matrices are not in both models with one shape: {', '.join(left[:3])}")
    ours, others = MatrixReader(run.lm.model), MatrixReader(other.model)
    for unit, one in run.missing("differences", ((f"difference {m.unit}", m) for m in pairs), total=len(pairs)):
        with unit:
            here, there = ours.value(one), others.value(one)
            size, moved = entries(here).frobenius, change(there, here)
            some = moved.frobenius > SMALLEST * size
            values = singular_values(there, here) if some else torch.zeros(1).double()
            s = spectrum(values)
            run.write("matrix_differences", {
                **_named(one), "relative": [moved.frobenius / size if size else None], "frobenius": [moved.frobenius],
                "spectral": [float(values[0])], "effective_rank": [s.effective_rank], "changed": [moved.changed],
                "rank": [int((values > ALIKE * values[0]).sum())],
            })  # fmt: skip


def _summary(run: Running, survey: ResolvedSurvey) -> dict[str, Any]:
    """How much was looked at, and what stands out."""
    found: dict[str, Any] = {"what": list(survey.looks), "layers": len(survey.layers), "ignored": IGNORED}
    if "matrices" in survey.looks:
        frame = run.frame("matrices")
        found |= {"matrices": len(frame), "entries": int((frame["rows"] * frame["columns"]).sum())}
    if "heads" in survey.looks and len(frame := run.frame("head_circuits")):
        keep = ["layer", "head", "copying", "copying_z", "matching", "matching_z"]
        copying = frame.dropna(subset=["copying"])
        q = q_values(copying["copying_p"].to_numpy()) if len(copying) else np.zeros(0)
        best = copying.sort_values("copying", ascending=False, kind="stable")
        found |= {
            "heads": len(frame), "copying_heads": int(((q <= 0.05) & (copying["copying"] > 0)).sum()),
            "copies_most": best[keep].head(8).to_dict("records"),
        }  # fmt: skip
    if "composition" in survey.looks and run.writer.done("composition"):
        frame = run.frame("compositions")
        best = frame.sort_values("z", ascending=False, kind="stable").head(8)
        found |= {"pairs": len(frame), "composed": int((frame["q_value"] <= 0.05).sum()),
                  "composes_most": best.drop(columns=["run_id", "baseline"]).to_dict("records")}  # fmt: skip
    if "neurons" in survey.looks and len(frame := run.frame("neuron_weights")):
        q = q_values(frame["p_value"].to_numpy())
        best = frame.assign(size=frame["cosine"].abs()).sort_values("size", ascending=False, kind="stable").head(12)
        keep = ["layer", "neuron", "direction", "cosine", "up_token", "down_token"]
        found |= {"neurons": len(frame[["layer", "neuron"]].drop_duplicates()), "along_tokens": int((q <= 0.05).sum()),
                  "directions": len(frame), "along_most": best[keep].to_dict("records")}  # fmt: skip
    if survey.against is not None:
        frame = run.frame("matrix_differences").sort_values("relative", ascending=False, kind="stable")
        keep = ["name", "role", "relative", "spectral", "effective_rank", "rank"]
        found |= {"against": survey.against.title, "differ": int((frame["relative"] > 0).sum()),
                  "differ_most": frame[frame["relative"] > 0][keep].head(8).to_dict("records")}  # fmt: skip
    return found
