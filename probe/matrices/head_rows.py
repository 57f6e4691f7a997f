"""What a survey of weights writes of heads, layer by layer: their circuits, tokens in them, and how they compose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from probe.errors import SiteAbsent
from probe.matrices.circuits import compose, product_norm, product_rank, readers, sign, writers
from probe.matrices.following import follow
from probe.matrices.heads import HeadMaps, HeadReader
from probe.matrices.memory import tokens_at_once
from probe.matrices.planning import ResolvedSurvey
from probe.matrices.vocabulary import Vocabulary
from probe.running import Running
from probe.sites.positions import listed
from probe.stats.clusters import q_values

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

CIRCUITS = ("QK", "OV")


def write_heads(run: Running, survey: ResolvedSurvey) -> None:
    """Layer by layer: every head's circuits; then all pairs of heads. Raises `SiteAbsent` where no head can be read."""
    reader = HeadReader(run.lm, offset=survey.offset)
    words = Vocabulary(run.lm) if {"heads", "tokens"} & set(survey.looks) else None
    sums = words.moments() if words is not None and "heads" in survey.looks else None
    pairs = _Pairs(run.lm) if "composition" in survey.looks and not run.writer.done("composition") else None
    known, reasons = 0, {}
    for done, layer in enumerate(survey.layers, 1):
        whole, reasons[layer] = (
            _kept(run, layer) if pairs is None and _is_done(run, survey, layer)
            else _write_layer(run, survey, layer, reader.layer(layer), words, sums, pairs)
        )  # fmt: skip
        known += whole
        run.report("heads", done, len(survey.layers))
    if not known:
        raise SiteAbsent(
            f"no head can be read: {'; '.join(grouped('heads', reasons))}", hint="--what matrices,norms needs no heads"
        )
    run.warn(*grouped("heads", reasons))
    if pairs is not None:
        pairs.write(run)


def _is_done(run: Running, survey: ResolvedSurvey, layer: int) -> bool:
    """Whether the run has the layer's heads already, and its tokens."""
    tokens = bool(survey.heads.get(layer)) and not run.writer.done(f"tokens {layer}")
    return run.writer.done(f"heads {layer}") and not tokens


def _kept(run: Running, layer: int) -> tuple[bool, list[str]]:
    """What `_write_layer` said of a layer that the run has."""
    rows = run.frame("head_circuits").query(f"layer == {layer}")
    return bool(rows[["qk_norm", "ov_norm"]].notna().any(axis=None)), [why for why in rows["absent"].iloc[0].split("; ") if why]


def _write_layer(
    run: Running, survey: ResolvedSurvey, layer: int, maps: HeadMaps | str, words: Vocabulary | None,
    sums: tuple[Tensor, Tensor] | None, pairs: _Pairs | None,
) -> tuple[bool, list[str]]:  # fmt: skip
    """Whether anything is known of the layer's heads, and why not all."""
    if isinstance(maps, str):
        return False, [maps]
    if sums is not None:
        run.write_all({"head_circuits": _circuits(maps, layer, *sums)}, unit=f"heads {layer}")
    if words is not None and survey.heads.get(layer) and not run.writer.done(f"tokens {layer}"):
        run.write_all({"token_circuits": _tokens(run.lm, words, maps, layer, survey)}, unit=f"tokens {layer}")
    if pairs is not None and not maps.absent:
        pairs.add(layer, maps)
    return len(maps.absent) < len(CIRCUITS), list(dict.fromkeys(maps.absent.values()))


def grouped(what: str, reasons: dict[int, list[str]]) -> list[str]:
    """A reason that many layers have, once."""
    by: dict[str, list[int]] = {}
    for layer, own in reasons.items():
        for why in own:
            by.setdefault(why, []).append(layer)
    return [f"{what} of layer {listed(layers)}: {why}" for why, layers in by.items()]


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
    step = tokens_at_once(lm, layer, survey.memory)
    parts = [follow(lm, words, maps, survey.tokens[i : i + step], survey.top) for i in range(0, len(survey.tokens), step)]
    rows = [(h, token, f) for h in survey.heads[layer]
            for token, f in zip(survey.tokens, (one for part in parts for one in part[h]), strict=True)]  # fmt: skip
    first = [(lm.token_text(f.attends[0][0]) if f.attends[0] else None) for _, _, f in rows]
    return {
        "layer": [layer] * len(rows), "head": [h for h, _, _ in rows], "token_id": [token for _, token, _ in rows],
        "token": [lm.token_text(token) for _, token, _ in rows],
        "attends_ids": [f.attends[0] for _, _, f in rows], "attends_scores": [f.attends[1] for _, _, f in rows],
        "own_score": [f.own_score for _, _, f in rows],
        "raises_ids": [f.raises[0] for _, _, f in rows], "raises": [f.raises[1] for _, _, f in rows],
        "lowers_ids": [f.lowers[0] for _, _, f in rows], "lowers": [f.lowers[1] for _, _, f in rows],
        "own_logit": [f.own_logit for _, _, f in rows], "attends": first,
        "writes": [lm.token_text(f.raises[0][0]) if f.raises[0] else None for _, _, f in rows],
    }  # fmt: skip


class _Pairs:
    """All pairs of a head and a head of a later layer. Holds what each head writes, and a few numbers a pair."""

    def __init__(self, lm: LanguageModel) -> None:
        self._baseline = lm.anatomy.d_model**-0.5
        self._wrote: dict[int, Tensor] = {}
        self._parts: list[dict[str, np.ndarray]] = []

    def add(self, layer: int, maps: HeadMaps) -> None:
        """The heads of the next layer, with those of all layers before."""
        query, key, value = (maps.folded(name) for name in ("query", "key", "value"))
        for kind, matrix in readers(query, key, value, maps.out).items() if self._wrote else ():
            for writer_layer, write in self._wrote.items():
                found = compose(matrix.float(), write)
                head, writer = np.indices(found.score.shape, dtype=np.int16)
                self._parts.append({
                    "kind": np.full(head.size, kind), "layer": np.full(head.size, layer, np.int16), "head": head.ravel(),
                    "writer_layer": np.full(head.size, writer_layer, np.int16), "writer": writer.ravel(),
                    "score": found.score.ravel(), "z": found.z.ravel(), "p_value": found.p_value.ravel(),
                })  # fmt: skip
        self._wrote[layer] = writers(value, maps.out).float()

    def write(self, run: Running) -> None:
        """The rows, with q-values over them all."""
        if self._parts:
            rows = {name: np.concatenate([one[name] for one in self._parts]) for name in self._parts[0]}
            rows["baseline"] = np.full(len(rows["z"]), self._baseline)
            rows["q_value"] = q_values(rows["p_value"])
            run.write_all({"compositions": {**rows, "kind": rows["kind"].tolist()}}, unit="composition")
