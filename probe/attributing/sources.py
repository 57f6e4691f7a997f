"""Where a head's write came from: its values, key by key, weighted by the pattern. A second forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from probe.anatomy.parts import Location
from probe.attributing.decomposition import Decomposition
from probe.attributing.linear import Frozen, transposed
from probe.capturing import MemorySink, read
from probe.sites import parse_places

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

ROOM = 1e-3  # of a layer's largest contribution: the pattern is recomputed, and rounds otherwise


class HeadSources(NamedTuple):
    """value (pos, head, source): how much of each head's contribution was read at each source position."""

    layer: int
    value: Tensor


class _Rows(MemorySink):
    """Keeps the rows of the chosen queries only: kept[layer] (pos, head, key)."""

    def __init__(self, positions: Sequence[int], n: int, n_heads: dict[int, int]) -> None:
        super().__init__()
        self._number = {position: i for i, position in enumerate(positions)}
        self.kept = {layer: np.zeros((len(positions), heads, n)) for layer, heads in n_heads.items()}

    def attention(self, prompt: int, layer: int, columns: dict[str, Any]) -> None:
        for row, query in enumerate(columns["query"]):
            if int(query) in self._number:
                weights, keys = columns["weights"][row], columns["keys"]
                where = slice(0, len(weights)) if keys is None else keys[row]
                self.kept[layer][self._number[int(query)], columns["head"][row], where] = weights


def head_sources(
    lm: LanguageModel, ids: Sequence[int], positions: Sequence[int], parts: Decomposition
) -> tuple[list[HeadSources], list[str]]:
    """For each layer that was split into heads; and the layers where that is no sum over keys, in words.

    A head's contribution is the sum over keys of pattern * (value . direction).
    """
    anatomy = lm.anatomy
    able = [i for i in parts.heads if anatomy.has("v", i) and anatomy.has("pattern", i)]
    notes = [f"layer {i}: no source positions: its attention cannot be seen" for i in parts.heads if i not in able]
    if not able:
        return [], notes
    named = ",".join(map(str, able))
    places = [place for site in ("v", "pattern") for place in parse_places(f"{site}@{named}")]
    cells = anatomy.cells(places)
    cells = tuple(cell._replace(heads=None) for cell in cells)
    sink = _Rows(positions, len(ids), {i: anatomy.layers[i].n_heads for i in able})
    read(lm, torch.tensor([list(ids)], device=lm.device), [len(ids)], sink=sink, cells=cells)
    found = []
    for i in able:
        layer, heads = anatomy.layers[i], parts.heads[i]
        u = _values_direction(lm.model, heads.split.after, heads.direction, anatomy.site("z", i))
        v = anatomy.site("v", i).by_head(sink.activations["v", i, None][0].double().cpu())
        v = v.repeat_interleave(layer.n_heads // layer.n_kv_heads, dim=1)
        whole = torch.einsum("phd,pd->ph", heads.split.heads, heads.direction)
        if v.shape[-1] == u.shape[-1]:
            by_key = torch.from_numpy(sink.kept[i]) * torch.einsum("khd,phd->phk", v, u)  # k key, p pos
            if float((by_key.sum(-1) - whole).abs().max()) <= ROOM * float(whole.abs().max()) + 1e-6:
                found.append(HeadSources(i, by_key))
                continue
        notes.append(f"layer {i}: no source positions: its heads' values are changed after the pattern")
    return found, notes


def _values_direction(model: nn.Module, after: Frozen, direction: Tensor, z: Location) -> Tensor:
    """direction (n, d) on the write -> (n, head, d_head) on z, float64: back through norm and projection."""
    projection = model.get_submodule(z.tap.path)
    return z.by_head(transposed(projection, after.back(direction), z.n_heads * z.width))
