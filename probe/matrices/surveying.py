"""The verb `weights`: matrices, norms, heads and how they compose, of a model that reads nothing. Knows no arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probe import store as stores
from probe.errors import BadOption, SiteAbsent
from probe.matrices.circuits import compose, product_norm, product_rank, readers, sign, writers
from probe.matrices.heads import HeadMaps, HeadReader
from probe.matrices.naming import Matrix, gains, matrices
from probe.matrices.planning import ResolvedSurvey, resolved
from probe.matrices.spectra import entries, singular_values, spectrum
from probe.matrices.vocabulary import Vocabulary, follow
from probe.requests import WeightSurvey, public
from probe.running import Running, running
from probe.stats.clusters import q_values

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

IGNORED = (
    "What is told of heads is of their matrices alone: what other parts add to the stream, positions that are added, biases, "
    "sinks and the scale of norms (but at the first read of a token's own embedding) are left out."
)
CIRCUITS = ("QK", "OV")
SMALLEST, ALIKE = 1e-12, 1e-4  # of a difference: what is one; of its largest singular value: what counts towards its rank


def run_weights(lm: LanguageModel, request: WeightSurvey) -> stores.Run:
    """What a model's weights are, without a text: of every matrix its norms and spectrum; of every norm its gain; of every head
    the sign of its QK and OV circuits through the embedding (copying score), tokens in them, and Q-, K- and V-composition
    between heads against random rotations (Elhage et al. 2021).

    Matrices of heads are read off the attention itself; grouped keys and fused projections need no names. Roles come from what
    a parameter has a part in. Tables: `matrices`, `norm_gains`, `head_circuits`, `token_circuits`, `compositions`,
    `matrix_differences`. Raises `BadOption`, `SiteAbsent` where no head can be read, `OutOfRange`.
    """
    survey = resolved(lm, request)
    with running(request, lm, word=survey.word, resolved=survey.came_to) as run:
        if run.writer.whole:
            return run.writer.whole
        run.write_all({"prompts": {"prompt_id": [0], "text": [f"the weights of {lm.title}"], "error": [""]}}, unit="subject")
        if "matrices" in survey.looks:
            _matrices(run, survey)
        if "norms" in survey.looks:
            _norms(run, survey)
        if survey.of_heads:
            try:
                _heads(run, survey)
            except SiteAbsent as error:  # what else was asked for is there
                if not {"matrices", "norms"} & set(survey.looks):
                    raise
                run.warn(error.message)
        if survey.against is not None:
            _differences(run, survey)
        return run.finish(_summary(run, survey))


weights = public(run_weights, WeightSurvey)


def _matrices(run: Running, survey: ResolvedSurvey) -> None:
    found, odd = matrices(run.lm, survey.own_layers)
    if odd:
        run.warn(f"{len(odd)} parameters can't be read (quantised, or not in memory): {', '.join(odd[:3])}")
    for unit, one in run.missing("matrices", ((f"matrix {m.unit}", m) for m in found), total=len(found)):
        with unit:
            s, e = spectrum(singular_values(one.value)), entries(one.value)
            run.write("matrices", {
                **_named(one), "rows": [one.value.shape[0]], "columns": [one.value.shape[1]], "frobenius": [e.frobenius],
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


def _heads(run: Running, survey: ResolvedSurvey) -> None:
    """Layer by layer: every head's circuits; then all pairs of heads."""
    reader = HeadReader(run.lm, offset=survey.offset)
    words = Vocabulary(run.lm) if {"heads", "tokens"} & set(survey.looks) else None
    sums = words.moments() if words is not None and "heads" in survey.looks else None
    read: dict[int, HeadMaps] = {}
    reasons: list[str] = []
    whole = 0  # layers of which something is known
    for done, layer in enumerate(survey.layers, 1):
        maps = reader.layer(layer)
        if isinstance(maps, str):
            reasons.append(f"layer {layer}: {maps}")
        else:
            whole += len(maps.absent) < len(CIRCUITS)
            reasons += [f"layer {layer}: {why}" for why in dict.fromkeys(maps.absent.values())]
            if sums is not None and not run.writer.done(f"heads {layer}"):
                run.write_all({"head_circuits": _circuits(maps, layer, *sums)}, unit=f"heads {layer}")
            if words is not None and survey.heads.get(layer) and not run.writer.done(f"tokens {layer}"):
                run.write_all({"token_circuits": _tokens(run.lm, words, maps, layer, survey)}, unit=f"tokens {layer}")
            if "composition" in survey.looks and not maps.absent:
                read[layer] = maps
        run.report("heads", done, len(survey.layers))
    if whole == 0:
        raise SiteAbsent(f"no head can be read: {'; '.join(_grouped(reasons))}", hint="--what matrices,norms needs no heads")
    run.warn(*_grouped(reasons))
    if "composition" in survey.looks and not run.writer.done("composition"):
        _compositions(run, read)


def _grouped(reasons: list[str]) -> list[str]:
    """A reason that many layers have, once."""
    by: dict[str, list[str]] = {}
    for reason in reasons:
        where, _, why = reason.partition(": ")
        by.setdefault(why, []).append(where.removeprefix("layer "))
    return [f"heads of layer {', '.join(layers)}: {why}" for why, layers in by.items()]


def _circuits(maps: HeadMaps, layer: int, same: Tensor, across: Tensor) -> dict[str, Any]:
    query, key, value, out = maps.folded("query"), maps.folded("key"), maps.folded("value"), maps.out
    n, per = len(query), len(query) // len(maps.key)
    nothing = [None] * n
    rows: dict[str, Any] = {
        "layer": [layer] * n, "head": list(range(n)), "kv_head": [h // per for h in range(n)],
        "absent": ["; ".join(dict.fromkeys(maps.absent.values()))] * n,
    }  # fmt: skip
    for word, circuit, tall, wide, score in (("qk", "QK", query.mT, key, "matching"), ("ov", "OV", out, value, "copying")):
        missing = circuit in maps.absent
        signs = None
        if not missing:
            # W_E W_Q^T W_K W_E^T, and W_E W_V^T W_O^T W_U^T
            signs = [sign(k, same, q.T) for q, k in zip(query, key, strict=True)] if word == "qk" else [
                sign(v, across, o) for v, o in zip(value, out, strict=True)
            ]  # fmt: skip
        rows |= {
            f"{word}_norm": nothing if missing else product_norm(tall, wide).tolist(),
            f"{word}_rank": nothing if missing else product_rank(tall, wide).tolist(),
            score: [one.score for one in signs] if signs else nothing,
            f"{score}_z": [one.z for one in signs] if signs else nothing,
            f"{score}_p": [one.p_value for one in signs] if signs else nothing,
        }
    return rows


def _tokens(lm: LanguageModel, words: Vocabulary, maps: HeadMaps, layer: int, survey: ResolvedSurvey) -> dict[str, Any]:
    found = follow(lm, words, maps, survey.tokens, survey.top)
    rows = [(h, i, found[h][i]) for h in survey.heads[layer] for i in range(len(survey.tokens))]
    first = [(lm.token_text(f.attends[0][0]) if f.attends[0] else None) for _, _, f in rows]
    return {
        "layer": [layer] * len(rows), "head": [h for h, _, _ in rows], "token_id": [survey.tokens[i] for _, i, _ in rows],
        "token": [lm.token_text(survey.tokens[i]) for _, i, _ in rows],
        "attends_ids": [f.attends[0] for _, _, f in rows], "attends_scores": [f.attends[1] for _, _, f in rows],
        "own_score": [f.own_score for _, _, f in rows],
        "raises_ids": [f.raises[0] for _, _, f in rows], "raises": [f.raises[1] for _, _, f in rows],
        "lowers_ids": [f.lowers[0] for _, _, f in rows], "lowers": [f.lowers[1] for _, _, f in rows],
        "own_logit": [f.own_logit for _, _, f in rows], "attends": first,
        "writes": [lm.token_text(f.raises[0][0]) if f.raises[0] else None for _, _, f in rows],
    }  # fmt: skip


def _compositions(run: Running, read: dict[int, HeadMaps]) -> None:
    """All pairs of a head and a head of a later layer, and q-values over them all."""
    parts: list[dict[str, np.ndarray]] = []
    wrote: dict[int, Tensor] = {}
    for done, (layer, maps) in enumerate(read.items(), 1):
        query, key, value = (maps.folded(name) for name in ("query", "key", "value"))
        for kind, matrix in readers(query, key, value, maps.out).items() if wrote else ():
            for writer_layer, write in wrote.items():
                found = compose(matrix.float(), write)
                head, writer = np.indices(found.score.shape)
                parts.append({
                    "kind": np.full(head.size, kind), "layer": np.full(head.size, layer), "head": head.ravel(),
                    "writer_layer": np.full(head.size, writer_layer), "writer": writer.ravel(),
                    "score": found.score.ravel(), "z": found.z.ravel(), "p_value": found.p_value.ravel(),
                })  # fmt: skip
        wrote[layer] = writers(value, maps.out).float()
        run.report("composition", done, len(read))
    if parts:
        rows = {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
        rows["baseline"] = np.full(len(rows["z"]), run.lm.anatomy.d_model**-0.5)
        rows["q_value"] = q_values(rows["p_value"])
        run.write_all({"compositions": {**rows, "kind": rows["kind"].tolist()}}, unit="composition")


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
    for unit, one in run.missing("differences", ((f"difference {m.unit}", m) for m in pairs), total=len(pairs)):
        with unit:
            there = theirs[one.name].detach()
            there = there[one.expert] if one.expert >= 0 else there.flatten(1)
            gap = there.cpu().double() - one.value.cpu().double()
            size, norm = float(one.value.double().norm()), float(gap.norm())
            values = singular_values(gap) if norm > SMALLEST * size else torch.zeros(1).double()
            s = spectrum(values)
            run.write("matrix_differences", {
                **_named(one), "relative": [norm / size if size else None], "frobenius": [norm], "spectral": [float(values[0])],
                "effective_rank": [s.effective_rank], "rank": [int((values > ALIKE * values[0]).sum())],
                "changed": [float((gap != 0).double().mean())],
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
    if survey.against is not None:
        frame = run.frame("matrix_differences").sort_values("relative", ascending=False, kind="stable")
        keep = ["name", "role", "relative", "spectral", "effective_rank", "rank"]
        found |= {"against": survey.against.title, "differ": int((frame["relative"] > 0).sum()),
                  "differ_most": frame[frame["relative"] > 0][keep].head(8).to_dict("records")}  # fmt: skip
    return found
