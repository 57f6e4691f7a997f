"""The load of each expert over all texts of a run, from its table `routing` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probe.stats.intervals import wilson

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.sites import Cell
    from probe.store import Writer


def write_loads(anatomy: Anatomy, cells: tuple[Cell, ...], writer: Writer) -> list[dict[str, Any]]:
    """Write `expert_load`: one piece of `routing` is held at a time, for there may be more than memory holds. Returns, by
    layer, how many experts were never chosen and the most loaded one, for the summary; [] where no router was recorded."""
    layers = sorted({cell.layer for cell in cells if cell.site == "router"})
    if not layers:
        return []
    counts: dict[int, np.ndarray] = {}
    for layer in layers:
        experts = anatomy.layers[layer].experts
        assert experts is not None, "a router was found by its experts"
        counts[layer] = np.zeros((2, experts.n_experts))
    rows, slots = dict.fromkeys(layers, 0), dict.fromkeys(layers, 0)
    for piece in writer.batches("routing", ("layer", "experts", "weights")):
        where = piece["layer"].to_numpy()
        for layer in layers:
            mine = piece.filter(where == layer)
            chosen = mine["experts"].combine_chunks().flatten().to_numpy()
            counts[layer][0] += np.bincount(chosen, minlength=counts[layer].shape[1])
            weights = mine["weights"].combine_chunks().flatten().to_numpy()
            counts[layer][1] += np.bincount(chosen, weights=weights, minlength=counts[layer].shape[1])
            rows[layer] += mine.num_rows
            slots[layer] += len(chosen)
    found = []
    with writer.unit("expert_load", again=True):
        for layer, (tokens, weight) in counts.items():
            n = len(tokens)
            intervals = [wilson(k, rows[layer]) for k in tokens]
            writer.write("expert_load", {
                "layer": layer, "expert": np.arange(n, dtype=np.int32), "tokens": tokens.astype(np.int32), "of": rows[layer],
                "share": [one.estimate for one in intervals], "low": [one.low for one in intervals],
                "high": [one.high for one in intervals], "uniform": slots[layer] / max(1, rows[layer]) / n,
                "mean_weight": [w / k if k else None for w, k in zip(weight.tolist(), tokens.tolist(), strict=True)],
            })  # fmt: skip
            most = int(tokens.argmax())
            found.append({
                "layer": layer, "experts": n, "never": int((tokens == 0).sum()), "most": most,
                "share": intervals[most].estimate,
            })  # fmt: skip
    return found
