"""The cells of a sweep: which site, layer, head and positions are patched at once; and the edit of a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from probe.errors import BadOption, OutOfRange
from probe.interventions import Patch
from probe.interventions.checking import cells
from probe.interventions.edits import AbsolutePositions, At
from probe.patching.pairs import Pair
from probe.requests import PatchSweep
from probe.sites import SITES, Cell, Positions, parse_places

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


@dataclass(frozen=True)
class LayerCells:
    """One site of one layer: what each of its cells changes in the base text (`locations`), its position (-1: several) and
    its step (-1: none)."""

    site: str
    layer: int
    locations: tuple[CellPositions, ...]
    pos: tuple[int, ...]
    step: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.locations)


def places(lm: LanguageModel, request: PatchSweep) -> tuple[Cell, ...]:
    """The cells of the model that are asked for, before they are taken apart. Raises `BadPlace` and its kinds."""
    found: list[Cell] = []
    for word in request.sites:
        for place in parse_places(word):
            if "patch" not in SITES[place.site].uses:
                raise BadOption(f"'{place.site}' cannot be patched position by position", hint="take z, or resid_post")
            if SITES[place.site].per_layer and not lm.anatomy.n_layers:
                lm.anatomy.tap(place.site, 0)  # says why
            text = str(place)
            if not place.parts and SITES[place.site].per_layer:
                heads = f".{request.heads}" if request.heads and SITES[place.site].per_head else ""
                text = f"{place.site}@{_joined(str(request.layers), heads)}"
                if place.positions.parts != ("all",):
                    text += f":{place.positions}"
            if place.positions.parts == ("all",) and request.positions != "all":
                text += f":{request.positions}"
            found += cells(lm, text)
    for cell in found:
        check_whole(cell)
    if request.heads and not any(cell.heads for cell in found):
        raise BadOption("no site that was asked for has heads", hint="--sites z, q, k or v")
    return tuple(dict.fromkeys(found))


def check_whole(cell: Cell) -> None:
    """Raises `BadOption` for single neurons."""
    if cell.units is not None:
        what, where = SITES[cell.site].unit, f"{cell.site}@{cell.layer}"
        raise BadOption(f"cells of {cell.site} are whole, not single {what}s", hint=f"patch {where}, or --edit {where}.n3=zero")


def _joined(layers: str, heads: str) -> str:
    return ",".join(f"{layer.strip()}{heads}" for layer in layers.split(","))


def cells_of(lm: LanguageModel, pair: Pair, request: PatchSweep) -> tuple[LayerCells, ...]:
    """The cells of one pair, by site and layer, ascending: by head where a site has heads, else by position, unless the
    request says otherwise. Positions are of the base, and of those that are aligned.

    Raises `OutOfRange` where none is left, and what reading positions raises.
    """
    base, origins = pair.base(request.towards), pair.origins(request.towards)
    tokens = lm.pieces(base).tokens
    found = []
    for cell in places(lm, request):
        steps = pair.clean_steps if request.towards == "noise" else pair.corrupt_steps
        named = cell.positions.indices(len(base), len(base), steps=steps, tokens=tokens)
        here = [p for p in named if p in origins]
        if not here:
            raise OutOfRange(f"{cell.site}:{cell.positions} has no position that both texts have", hint="see --align")
        by = request.by or (("head",) if cell.heads else ("pos",))
        groups = _groups(here, by, steps)
        heads: Sequence[int | None] = cell.heads if cell.heads and "head" in by else (None,)
        if heads == (None,) and cell.heads and len(cell.heads) < lm.anatomy.n_heads(cell.site, cell.layer):
            raise BadOption(f"only some heads of {cell.site} are asked for", hint="add head to --by")
        rows = [(CellPositions(tuple(where), head), pos, step) for where, pos, step in groups for head in heads]
        found.append(LayerCells(cell.site, cell.layer, *(tuple(column) for column in zip(*rows, strict=True))))
    return tuple(found)


def _groups(
    positions: Sequence[int], by: Sequence[str], steps: Sequence[tuple[int, int]]
) -> list[tuple[Sequence[int], int, int]]:
    """(positions patched at once, the position if it is one, the step)."""
    if "pos" in by:
        step = {p: i for i, (start, end) in enumerate(steps) for p in range(start, end)}
        return [((p,), p, step.get(p, -1)) for p in positions]
    if "step" in by:
        if not steps:
            raise BadOption("the texts have no steps", hint="--by step is for runs with a generation")
        spans = [([p for p in positions if start <= p < end], i) for i, (start, end) in enumerate(steps)]
        return [(where, -1, i) for where, i in spans if where]
    return [(positions, positions[0] if len(positions) == 1 else -1, -1)]


class CellPositions(NamedTuple):
    """What one row changes: its positions, ascending, and its head (None: the whole width)."""

    positions: tuple[int, ...]
    head: int | None


@dataclass(frozen=True, eq=False)
class BatchPatch(Patch):
    """h ← values where `chosen` (batch, pos) or (batch, pos, head): row r of the batch takes its own, the rest stays."""

    chosen: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def change(self, value: Tensor, at: At) -> Tensor:
        values = self.values[at.order].to(value)
        return torch.where(self.chosen[at.own, at.order][..., None].to(value.device), values, value)

    @property
    def by_row(self) -> bool:
        return True


def batch_patch(site: str, layer: int, rows: Sequence[CellPositions], values: Tensor) -> BatchPatch:
    """The edit in which row i does `rows[i]`. values (pos, [head,] d): what each position of the whole text may take."""
    where = sorted({p for row in rows for p in row.positions})
    number = {p: i for i, p in enumerate(where)}
    heads = values.shape[1:-1]
    chosen = torch.zeros(len(rows), len(where), *heads, dtype=torch.bool)
    for r, row in enumerate(rows):
        columns = [number[p] for p in row.positions]
        chosen[r, columns] = True if row.head is None else torch.arange(*heads) == row.head
    cell = Cell(site, layer, None, Positions(tuple(map(str, where))))
    absolute = AbsolutePositions(tuple(where))
    return BatchPatch(cell, values[where], chosen, absolute=absolute)
