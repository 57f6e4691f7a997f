"""How alike the residual streams of two models are, layer by layer: cosine, distance, linear CKA, at a sample of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.capturing import MemorySink
from probe.devices import Readback, uploaded
from probe.sites import Cell, parse_places

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

POSITIONS = 512  # of all texts together, evenly spread: their Gram matrices are what CKA costs
PLACES = "resid_pre@0,resid_post@all"


def why_not(a: LanguageModel, b: LanguageModel) -> str:
    """Why layers can't be compared; empty if they can."""
    for lm in (a, b):
        missing = [layer for layer in range(lm.anatomy.n_layers) if not lm.anatomy.has("resid_post", layer)]
        if not lm.anatomy.n_layers or missing or not lm.anatomy.has("resid_pre", 0):
            return f"no residual stream was found in '{lm.name}'"
    if a.anatomy.n_layers != b.anatomy.n_layers:
        return f"A has {a.anatomy.n_layers} layers and B {b.anatomy.n_layers}: none of one stands for one of the other"
    return ""


def cells_of(lm: LanguageModel) -> tuple[Cell, ...]:
    """The stream before the first block and after each."""
    anatomy = lm.anatomy
    return anatomy.cells(parse_places(PLACES))


def sample(lengths: Sequence[int]) -> list[list[int]]:
    """Positions of each text to look at: all but the first (often a hundred times longer than any other), evenly thinned."""
    every = [(text, pos) for text, n in enumerate(lengths) for pos in range(1, n)]
    stride = max(1, math.ceil(len(every) / POSITIONS))
    chosen: list[list[int]] = [[] for _ in lengths]
    for text, pos in every[::stride]:
        chosen[text].append(pos)
    return chosen


class Sampled(MemorySink):
    """Keeps vectors of one text at some positions: `found[site, layer]` (n, d_model) float32."""

    def __init__(self, positions: Sequence[int]) -> None:
        super().__init__()
        self._positions = torch.tensor(list(positions), dtype=torch.long)
        self.found: dict[tuple[str, int], Tensor] = {}
        self.readback = Readback()

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        own = values[0, uploaded(self._positions, values.device)].float()
        self.readback.put([own], partial(self.found.__setitem__, (site, layer)))


def similarity_columns(a: Sequence[Sampled], b: Sequence[Sampled]) -> dict[str, Any]:
    """Columns of `similarity` from the samples of all texts, in the same order."""
    rows = []
    for site, layer in a[0].found:
        x, y = (torch.cat([one.found[site, layer] for one in side]).double() for side in (a, b))
        rows.append({"site": site, "layer": layer, **_pointwise(x, y), **_cka(x, y), "n": len(x)})
    return {name: [row[name] for row in rows] for name in rows[0]}


def _pointwise(x: Tensor, y: Tensor) -> dict[str, float | None]:
    """Cosine and relative distance of vectors at the same position; None where the widths differ."""
    if x.shape[1] != y.shape[1]:
        return {"cosine": None, "cosine_min": None, "distance": None}
    length = ((x * x).sum(-1) * (y * y).sum(-1)).sqrt()
    cosine = (x * y).sum(-1) / length
    apart = (y - x).norm(dim=-1) / x.norm(dim=-1)
    found = {"cosine": float(cosine.mean()), "cosine_min": float(cosine.min()), "distance": float(apart.mean())}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _cka(x: Tensor, y: Tensor) -> dict[str, float | None]:
    """Linear CKA of x (n, d), y (n, d'): HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of the Gram matrices of centred columns."""
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    found: dict[str, float | None] = {}
    for name, hsic, least in (("cka", _hsic, 2), ("cka_debiased", _unbiased, 4)):
        if len(x) < least:
            found[name] = None
            continue
        own, other = hsic(k, k), hsic(m, m)
        found[name] = hsic(k, m) / math.sqrt(own * other) if own > 0 and other > 0 else None
    return found


def _hsic(k: Tensor, m: Tensor) -> float:
    return float((k * m).sum())


def _unbiased(k: Tensor, m: Tensor) -> float:
    """Song et al. 2012 (JMLR 13, eq. 5), times n(n - 3): no diagonal, so that a position is not alike itself."""
    n = len(k)
    k, m = k - k.diag().diag(), m - m.diag().diag()
    rows, columns = k.sum(0), m.sum(0)
    ends = rows.sum() * columns.sum() / ((n - 1) * (n - 2))
    return float((k * m).sum() + ends - 2 / (n - 2) * (rows @ columns))
