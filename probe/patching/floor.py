"""The floor under the difference of clean and corrupt: what patches move the metric by that know nothing of the other text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probe.interventions import Patch
from probe.interventions.edits import AbsolutePositions
from probe.patching.metrics import read_out
from probe.patching.sources import activations, generator
from probe.sites import Cell, Positions

if TYPE_CHECKING:
    from probe.interventions import Edit
    from probe.patching.sweep import Scene

LAYERS = 5  # evenly from the first to the last
DRAWS = 4  # random patches of a layer
SHARE = 0.95  # of all of them move the metric by less than the floor


def floor(scene: Scene, *, metric: str, address: str, edits: tuple[Edit, ...] = ()) -> float:
    """The change of the metric that 95 % of random patches stay under; NaN where no block's input can be patched.

    A random patch adds to the base's `resid_pre` of one layer, at every aligned position, a vector of random direction
    that is as long as the other text's value differs from it. Given the other text's own values in place of these, the
    same patch moves the metric by nearly all that clean and corrupt differ by.
    """
    lm, pair = scene.base.lm, scene.pair
    there = [layer for layer in range(lm.anatomy.n_layers) if lm.anatomy.has("resid_pre", layer)]
    layers = sorted({there[i * len(there) // LAYERS] for i in range(LAYERS)}) if there else []
    origins = pair.origins(scene.direction)
    where = sorted(p for p in origins if p >= pair.first or not lm.anatomy.causal)
    if not layers or not where:
        return float("nan")
    old, new = (
        activations(lm, ids, "resid_pre", layers, edits)
        for ids in (pair.base(scene.direction), pair.source(scene.direction))
    )
    start, moved = float(scene.start.of(metric)[0]), []
    for layer in layers:
        own = old[layer][where]
        length = (new[layer][[origins[p] for p in where]] - own).norm(dim=-1, keepdim=True)
        values = own + length * _directions(own, f"{address} floor {layer}")
        logits = _patched(scene, layer, where, values)
        moved.append(read_out(logits, pair.target, scene.clean).of(metric) - start)
    return float(np.quantile(np.abs(np.concatenate(moved)), SHARE))


def _directions(like: Tensor, address: str) -> Tensor:
    """Random unit vectors (DRAWS, pos, d_model)."""
    drawn = torch.randn((DRAWS, *like.shape), generator=generator(address)).to(like)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def _patched(scene: Scene, layer: int, where: list[int], values: Tensor) -> Tensor:
    """Logits (DRAWS, d_vocab) of the base with values (DRAWS, pos, d_model) in its stream."""
    cell = Cell("resid_pre", layer, None, Positions(tuple(map(str, where))))
    edit = Patch(cell, values, absolute=AbsolutePositions(tuple(where)))
    if scene.base.way is None:
        return scene.base.whole(DRAWS, [edit])
    return scene.base.rest(DRAWS, [edit], layer=layer, start=where[0])
