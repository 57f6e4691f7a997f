"""A sweep's run: rows of texts, cells and means over pairs, and what the run says of itself. Computes no activation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from probe import stats
from probe.patching.cells import LayerCells
from probe.patching.exact import Baselines, CellMetrics
from probe.patching.metrics import changes, defined, effects, unit_of
from probe.patching.pairs import Pair
from probe.patching.planning import Patching
from probe.stats import pearson, spearman
from probe.store import Writer
from probe.texts import step_columns, token_columns

if TYPE_CHECKING:
    import pandas as pd

    from probe.language_model import LanguageModel

CELL = ("site", "layer", "head", "neuron", "pos", "step", "receiver")


def write_texts(writer: Writer, lm: LanguageModel, pairs: Sequence[Pair]) -> None:
    """Both texts of each pair as prompts, so that the run needs no other."""
    for i, pair in enumerate(pairs):
        for prompt, ids, name in zip((2 * i, 2 * i + 1), (pair.clean, pair.corrupt), pair.names, strict=True):
            pieces = lm.pieces(ids)
            writer.write("prompts", {"prompt_id": [prompt], "text": [name], "rendered": [pieces.text],
                                     "n_tokens": [len(ids)], "error": [""]})  # fmt: skip
            writer.write("tokens", token_columns(prompt, ids, pieces, len(ids)))
        if pair.steps:
            writer.write("steps", step_columns(2 * i, pair.steps))


def write_lost(writer: Writer, lost: Mapping[int, str]) -> None:
    """Say why pairs came to nothing, in the rows of their texts."""

    def told(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("error")
        found = zip(rows["prompt_id"].to_pylist(), rows["error"].to_pylist(), strict=True)
        errors = [lost.get(prompt // 2, error) for prompt, error in found]
        return rows.set_column(at, rows.schema.field(at), pa.array(errors, pa.string()))

    writer.amend("prompts", told)


def write_cells(
    writer: Writer, number: int, baselines: Baselines, part: LayerCells, found: CellMetrics, *, metric: str,
    tokens: Sequence[str], floor: float, receiver: str = "",
) -> None:  # fmt: skip
    """Rows of some cells. tokens: of the base. floor: of the pair. receiver: what they were sent to, on a path."""
    n, readout = len(part.locations), found.readout
    patched, (clean, corrupt) = readout.of(metric), (float(x) for x in baselines.ends.of(metric))
    origins = baselines.pair.origins(baselines.direction)
    effect = effects(patched, clean, corrupt, baselines.direction)
    writer.write("patches", {
        "pair": np.full(n, number, np.int32), "site": [part.site] * n, "layer": np.full(n, part.layer, np.int16),
        "head": np.asarray([-1 if swap.head is None else swap.head for swap in part.locations], np.int16),
        "neuron": np.asarray([-1 if swap.unit is None else swap.unit for swap in part.locations], np.int32),
        "pos": np.asarray(part.pos, np.int32), "step": np.asarray(part.step, np.int32),
        "positions": np.asarray([len(swap.positions) for swap in part.locations], np.int32),
        "source_pos": np.asarray([-1 if pos < 0 else origins[pos] for pos in part.pos], np.int32),
        "token": pa.array([None if pos < 0 else tokens[pos] for pos in part.pos], pa.string()),
        "clean": np.full(n, clean), "corrupt": np.full(n, corrupt), "patched": patched, "effect": _nulls(effect),
        "change": _nulls(changes(patched, clean, corrupt, baselines.direction)), "floor": _nulls(np.full(n, floor)),
        "logit_diff": _nulls(readout.logit_diff), "logprob": _nulls(readout.logprob), "prob": _nulls(readout.prob),
        "kl": _nulls(readout.kl), "passed": found.passed, "receiver": [receiver] * n,
        "exact": _nulls(np.full(n, np.nan) if found.exact is None else found.exact),
        "estimate": _nulls(
            np.full(n, np.nan) if found.estimated is None else effects(found.estimated, clean, corrupt, baselines.direction)
        ),
        "control": part.control or [False] * n,
    })  # fmt: skip


def write_means(writer: Writer, pairs: Sequence[Pair], direction: str, *, seed: int) -> None:
    """One row for each cell, averaged over the pairs that have it and whose effect is defined."""
    frame = writer.read("patches").to_pandas()
    frame["step"] = frame["step"].where(frame["pos"] < 0, -1)  # a position means the same whatever step it is in
    lengths = np.asarray([len(pair.base(direction)) for pair in pairs])
    if len(set(lengths)) > 1:
        single = frame["pos"] >= 0
        frame["pos"] = frame["pos"].where(~single, frame["pos"] - lengths[frame["pair"]])
    means: list[dict[str, Any]] = []
    for key, group in frame.groupby(list(CELL), observed=True, sort=True):
        known = group["effect"].dropna().to_numpy()
        row = dict(zip(CELL, key, strict=True))
        if len(known):
            mean = stats.bootstrap_mean(known, seed=seed, draws=2000)
            low, high = (mean.low, mean.high) if len(known) > 1 else (None, None)
            row |= {"effect": mean.estimate, "ci_low": low, "ci_high": high}
        else:
            row |= {"effect": None, "ci_low": None, "ci_high": None}
        row |= {name: float(group[name].mean()) for name in ("patched", "change")}
        means.append({**row, "n": len(known), "estimate": group["estimate"].mean(), "control": bool(group["control"].iloc[0])})
    columns: dict[str, Any] = {name: [row[name] for row in means] for name in means[0]}
    writer.write("patch_means", columns | {"estimate": _nulls(np.asarray(columns["estimate"], float))})


def _nulls(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)


STRONGEST = 10
SHOWN = 8  # differing tokens of a pair


def summarize(writer: Writer, lm: LanguageModel, patching: Patching) -> dict[str, Any]:
    """Of the tables that were written."""
    request, pairs, measured = patching.request, patching.pairs, patching.measured
    metric, direction = request.metric, request.towards
    frame = writer.read("patches").to_pandas()
    several = len(pairs) > 1
    cells = writer.read("patch_means").to_pandas() if several else frame
    own = cells[~cells["control"].astype(bool)]
    order = own["effect"].abs().sort_values(ascending=False, kind="stable").index[:STRONGEST]
    strongest = [_cell(row) for row in cells.loc[order].to_dict("records") if abs(row["effect"]) > 0]
    ends = frame.groupby("pair")[["clean", "corrupt", "floor"]].first()
    small = ends[(ends["clean"] - ends["corrupt"]).abs() < ends["floor"]]
    return {
        "pairs": len(pairs), "metric": metric, "unit": unit_of(metric, pairs[0].target), "direction": direction,
        "from": request.source,
        "cells": len(frame), "passed": int(frame["passed"].sum()),
        "clean": float(ends["clean"].mean()), "corrupt": float(ends["corrupt"].mean()),
        "floor": _plain(ends["floor"].mean()), "small": [int(i) for i in small.index],
        "undefined": [int(i) for i, row in ends.iterrows() if not defined(row["clean"], row["corrupt"])],
        "answer": pairs[0].answers[0], "against": pairs[0].answers[1], "tokens": len(pairs[0].base(direction)),
        "differing": _differing(lm, pairs[0]), "strongest": strongest, "method": request.method,
        "ig": request.ig, "path": request.path,
        "agreement": _agreement(frame) if request.sampled else None, "neurons": _chosen(patching, cells),
        "measured": None if measured is None else {
            "measure_at": measured.measure_at, "pos": measured.position,
            "total_variation": measured.variation, "outcome": measured.outcome,
        },
        "at": None if measured is not None or request.measure_at is None else {
            "measure_at": request.measure_at, "pos": len(pairs[0].clean) - 1, "token": lm.labels(pairs[0].clean)[-1],
        },
    }  # fmt: skip


def _agreement(frame: pd.DataFrame) -> dict[str, Any] | None:
    """How estimated effects go with those of the cells that were run too, of neurons all of them; None where either does not
    vary, or nothing was estimated."""
    if frame["estimate"].notna().any():
        tried = frame[frame["estimate"].notna()]
        estimated, exact = (tried[name].to_numpy() for name in ("estimate", "effect"))
    else:
        tried = frame[frame["exact"].notna() & frame["effect"].notna()]
        span = (tried["clean"] - tried["corrupt"]).to_numpy()
        estimated, exact = (tried[name].to_numpy() / span for name in ("patched", "exact"))
    if not len(tried):
        return None
    rho, r = spearman(estimated, exact), pearson(estimated, exact)
    error = np.abs(estimated - exact).max()
    return {"n": len(tried), "spearman": _plain(rho), "pearson": _plain(r), "largest_error": _plain(error)}


def _chosen(patching: Patching, cells: pd.DataFrame) -> dict[str, Any] | None:
    """How many neurons were chosen of how many, and what those do that were drawn beside; None where none was chosen."""
    if not patching.neurons:
        return None
    cells = cells[cells["neuron"] >= 0]
    control = cells.loc[cells["control"].astype(bool), ["effect", "change"]].abs()
    return {
        "of": sum(map(len, patching.neurons[0])), "chosen": len(cells) - len(control), "control": len(control),
        **{f"control_{name}": _plain(control[name].max()) for name in control},
    }  # fmt: skip


def _cell(row: dict[str, Any]) -> dict[str, Any]:
    names = (*CELL, "token", "effect", "ci_low", "ci_high", "change", "patched", "n", "estimate")
    return {name: _plain(row[name]) for name in names if name in row}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _differing(lm: LanguageModel, pair: Pair) -> list[dict[str, Any]]:
    """The first aligned places whose tokens differ."""
    clean, corrupt = (lm.labels(ids) for ids in (pair.clean, pair.corrupt))
    return [{"pos": a, "corrupt_pos": b, "clean": clean[a], "corrupt": corrupt[b]} for a, b in pair.differing[:SHOWN]]
