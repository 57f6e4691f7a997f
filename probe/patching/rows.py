"""Rows of a sweep's run: texts, cells, means over pairs. Writes and reads tables; computes no activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from probe import stats
from probe.patching.grid import Slice
from probe.patching.metrics import changes, effects
from probe.patching.pairs import Pair
from probe.patching.sweep import Measured, View
from probe.store import Writer
from probe.texts import step_columns, token_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

CELL = ("site", "layer", "head", "pos", "step", "receiver")


def keep_texts(writer: Writer, lm: LanguageModel, pairs: Sequence[Pair]) -> None:
    """Both texts of each pair as prompts, so that the run needs no other."""
    for i, pair in enumerate(pairs):
        for prompt, ids, name in zip((2 * i, 2 * i + 1), (pair.clean, pair.corrupt), pair.names, strict=True):
            pieces = lm.pieces(ids)
            writer.write("prompts", {"prompt_id": [prompt], "text": [name], "rendered": [pieces.text],
                                     "n_tokens": [len(ids)], "error": [""]})  # fmt: skip
            writer.write("tokens", token_columns(prompt, ids, pieces, len(ids)))
        if pair.steps:
            writer.write("steps", step_columns(2 * i, pair.steps))


def keep_cells(
    writer: Writer, number: int, view: View, part: Slice, found: Measured, *, metric: str, tokens: Sequence[str],
    floor: float, receiver: str = "",
) -> None:  # fmt: skip
    """The cells of one slice. tokens: of the base. floor: of the pair (see `floor.py`). receiver: what the cells were sent
    to, on a path."""
    n, readout = len(part.swaps), found.readout
    patched, (clean, corrupt) = readout.of(metric), (float(x) for x in view.ends.of(metric))
    origins = view.pair.origins(view.direction)
    effect = effects(patched, clean, corrupt, view.direction)
    writer.write("patches", {
        "pair": np.full(n, number, np.int32), "site": [part.site] * n, "layer": np.full(n, part.layer, np.int16),
        "head": np.asarray([-1 if swap.head is None else swap.head for swap in part.swaps], np.int16),
        "pos": np.asarray(part.pos, np.int32), "step": np.asarray(part.step, np.int32),
        "positions": np.asarray([len(swap.positions) for swap in part.swaps], np.int32),
        "source_pos": np.asarray([-1 if pos < 0 else origins[pos] for pos in part.pos], np.int32),
        "token": pa.array([None if pos < 0 else tokens[pos] for pos in part.pos], pa.string()),
        "clean": np.full(n, clean), "corrupt": np.full(n, corrupt), "patched": patched, "effect": _nulls(effect),
        "change": _nulls(changes(patched, clean, corrupt, view.direction)), "floor": _nulls(np.full(n, floor)),
        "logit_diff": _nulls(readout.logit_diff), "logprob": _nulls(readout.logprob), "prob": _nulls(readout.prob),
        "kl": _nulls(readout.kl), "passed": found.passed, "receiver": [receiver] * n,
        "exact": _nulls(np.full(n, np.nan) if found.exact is None else found.exact),
    })  # fmt: skip


def keep_means(writer: Writer, pairs: Sequence[Pair], direction: str, *, seed: int) -> None:
    """One row for each cell, averaged over the pairs that have it and whose effect is defined."""
    frame = writer.read("patches").to_pandas()
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
        means.append({**row, "n": len(known)})
    writer.write("patch_means", {name: [row[name] for row in means] for name in means[0]})


def _nulls(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)
