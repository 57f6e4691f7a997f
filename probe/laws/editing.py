"""Laws of edits: a site is one thing, read and written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import SiteAbsent
from probe.interventions import Add, Edit, Patch, applying
from probe.laws.reading import captured, everything, layers_with, relative_gap, stream_error, vectors
from probe.sites import SITES, Cell, sites_of
from probe.sites.positions import EVERYWHERE

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Seen = dict[tuple[str, int, int | None], Tensor]


def own_patches_change_nothing(lm: LanguageModel, ids: list[int]) -> float:
    """All activations and logits, recorded while one site of every layer is set to what was recorded there before."""
    before = _seen(lm, ids)
    worst = 0.0
    for site in (name for name in vectors() if "change" in SITES[name].uses):
        edits: list[Edit] = [_own_patch(lm, site, layer, before) for layer in layers_with(lm, site)]
        edits = [edit for edit in edits if _can_be_made(lm, edit, ids)]
        if edits:
            after = _seen(lm, ids, edits)
            worst = max(worst, *(relative_gap(after[where], before[where]) for where in before))
    return worst


def writes_can_be_added_to(lm: LanguageModel, ids: list[int]) -> float:
    """A vector is added to one write of every layer: the first of them must be that much larger, and all sums hold."""
    before = _seen(lm, ids)
    stream_error(lm, before)  # raises where there is nothing to add to
    worst = 0.0
    for site in sites_of("write"):
        layers = [layer for layer in layers_with(lm, site) if lm.anatomy.layers[layer].sum]
        if not layers:
            continue
        first = before[site, layers[0], None].double()
        noise = torch.randn(first.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        vector = noise.to(first.device) * first.pow(2).mean().sqrt()
        cells = [Cell(site, layer, None, EVERYWHERE) for layer in layers]
        after = _seen(lm, ids, [Add(cell, vector.float()) for cell in cells])
        moved = after[site, layers[0], None].double() - first
        worst = max(worst, float((moved - vector).norm() / (moved * 0 + vector).norm()), stream_error(lm, after))
    return worst


def _seen(lm: LanguageModel, ids: list[int], edits: list[Edit] | None = None) -> Seen:
    with applying(lm, edits or [], ids=ids):
        return captured(lm, [ids], everything(lm))[0].activations


def _own_patch(lm: LanguageModel, site: str, layer: int, seen: Seen) -> Patch:
    if not SITES[site].per_head:
        return Patch(Cell(site, layer, None, EVERYWHERE), seen[site, layer, None][0].clone())
    heads = tuple(range(lm.anatomy.n_heads(site, layer)))
    return Patch(Cell(site, layer, heads, EVERYWHERE), torch.stack([seen[site, layer, h][0] for h in heads], dim=1))


def _can_be_made(lm: LanguageModel, edit: Edit, ids: list[int]) -> bool:
    """resid_mid may be read where it cannot be changed."""
    try:
        with applying(lm, [edit], ids=ids):
            return True
    except SiteAbsent:
        return False
