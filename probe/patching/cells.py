"""The cells of a sweep: which site, layer, head and positions are patched at once; and the edit of a batch of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from probe.devices import uploaded
from probe.errors import BadOption, OutOfRange
from probe.interventions import Patch
from probe.interventions.checking import cells
from probe.interventions.edits import AbsolutePositions, At
from probe.patching.pairs import Pair
from probe.requests import PatchSweep
from probe.sites import SITES, Cell, Positions, parse_places

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


class PositionGroup(NamedTuple):
    """Positions of the base text that are patched at once, ascending; the position if it is one, else -1; and the step, -1
    where there is none."""

    positions: tuple[int, ...]
    pos: int
    step: int


@dataclass(frozen=True)
class LayerCells:
    """One site of one layer: what each of its cells changes in the base text (`locations`), its position (-1: several) and
    its step (-1: none). `control`: which of them were drawn at random, to compare with; empty where none was."""

    site: str
    layer: int
    locations: tuple[CellPositions, ...]
    pos: tuple[int, ...]
    step: tuple[int, ...]
    control: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.locations)


@dataclass(frozen=True)
class LayerNeurons:
    """One site of one layer, all of whose neurons can be chosen, each with each group of positions."""

    site: str
    layer: int
    groups: tuple[PositionGroup, ...]
    n_units: int

    def __len__(self) -> int:
        return len(self.groups) * self.n_units


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
    if request.heads and not any(cell.heads for cell in found):
        raise BadOption("no site that was asked for has heads", hint="--sites z, q, k or v")
    for site in {cell.site for cell in found if cell.units} if not request.by else ():
        if any(cell.site == site and not cell.units for cell in found):
            raise BadOption(f"some neurons of {site} and whole layers of it", hint="--by neuron, or a sweep for each")
    if request.of_neurons and not any(SITES[cell.site].unit for cell in found):
        raise BadOption("no site that was asked for has neurons", hint="--sites mlp_post")
    return tuple(dict.fromkeys(found))


def check_whole(cell: Cell) -> None:
    """Raises `BadOption` for single neurons."""
    if cell.units is not None:
        what, where = SITES[cell.site].unit, f"{cell.site}@{cell.layer}"
        raise BadOption(f"cells of {cell.site} are whole, not single {what}s", hint=f"patch {where}, or --edit {where}.n3=zero")


def _joined(layers: str, heads: str) -> str:
    return ",".join(f"{layer.strip()}{heads}" for layer in layers.split(","))


def cells_of(lm: LanguageModel, pair: Pair, request: PatchSweep) -> tuple[LayerCells, ...]:
    """The cells of one pair, by site and layer, ascending: by head where a site has heads, by neuron where neurons are named,
    else by position, unless the request says otherwise. Positions are of the base, and of those that are aligned. Neurons
    that are to be chosen are not among them: see `neurons_of`.

    Raises `OutOfRange` where none is left, and what reading positions raises.
    """
    found = []
    for cell, groups in _grouped(lm, pair, request):
        if _is_open(cell, request):
            continue
        by = _apart(cell, request)
        heads: Sequence[int | None] = cell.heads if cell.heads and "head" in by else (None,)
        if heads == (None,) and cell.heads and len(cell.heads) < lm.anatomy.n_heads(cell.site, cell.layer):
            raise BadOption(f"only some heads of {cell.site} are asked for", hint="add head to --by")
        if cell.units and "neuron" not in by:
            raise BadOption(f"only some neurons of {cell.site} are asked for", hint="add neuron to --by")
        rows = [
            (CellPositions(where, head, unit), pos, step)
            for where, pos, step in groups for head in heads for unit in cell.units or (None,)
        ]  # fmt: skip
        found.append(LayerCells(cell.site, cell.layer, *(tuple(column) for column in zip(*rows, strict=True))))
    return tuple(found)


def neurons_of(lm: LanguageModel, pair: Pair, request: PatchSweep) -> tuple[LayerNeurons, ...]:
    """The layers of one pair among whose neurons some are to be chosen. Raises as `cells_of` does."""
    return tuple(
        LayerNeurons(cell.site, cell.layer, tuple(groups), lm.anatomy.n_units(cell.site, cell.layer))
        for cell, groups in (_grouped(lm, pair, request) if request.of_neurons else ())
        if _is_open(cell, request)
    )


def _is_open(cell: Cell, request: PatchSweep) -> bool:
    """Whether neurons are patched alone there, and none is named."""
    return request.of_neurons and bool(SITES[cell.site].unit) and cell.units is None


def _apart(cell: Cell, request: PatchSweep) -> Sequence[str]:
    """The axes along which the cells of a place are told apart."""
    return request.by or (("head",) if cell.heads else ("neuron",) if cell.units else ("pos",))


def _grouped(lm: LanguageModel, pair: Pair, request: PatchSweep) -> Iterator[tuple[Cell, list[PositionGroup]]]:
    """Each place that is asked for, with the positions that are patched there at once."""
    base, origins = pair.base(request.towards), pair.origins(request.towards)
    tokens = lm.pieces(base).tokens
    for cell in places(lm, request):
        steps = pair.clean_steps if request.towards == "noise" else pair.corrupt_steps
        named = cell.positions.indices(len(base), len(base), steps=steps, tokens=tokens)
        here = [p for p in named if p in origins]
        if not here:
            raise OutOfRange(f"{cell.site}:{cell.positions} has no position that both texts have", hint="see --align")
        yield cell, _groups(here, _apart(cell, request), steps)


def _groups(positions: Sequence[int], by: Sequence[str], steps: Sequence[tuple[int, int]]) -> list[PositionGroup]:
    if "pos" in by:
        step = {p: i for i, (start, end) in enumerate(steps) for p in range(start, end)}
        return [PositionGroup((p,), p, step.get(p, -1)) for p in positions]
    if "step" in by:
        if not steps:
            raise BadOption("the texts have no steps", hint="--by step is for runs with a generation")
        spans = [(tuple(p for p in positions if start <= p < end), i) for i, (start, end) in enumerate(steps)]
        return [PositionGroup(where, -1, i) for where, i in spans if where]
    return [PositionGroup(tuple(positions), positions[0] if len(positions) == 1 else -1, -1)]


class CellPositions(NamedTuple):
    """What one row changes: its positions, ascending, and its head or its neuron (None: the whole width)."""

    positions: tuple[int, ...]
    head: int | None
    unit: int | None = None

    def of(self, values: Tensor) -> Tensor:
        """What it changes of values (pos, [head,] d): (own positions, [head,] d), of a neuron (own positions,)."""
        own = values[list(self.positions)]
        if self.unit is not None:
            return own[..., self.unit]
        return own if self.head is None else own[:, self.head]


@dataclass(frozen=True, eq=False)
class BatchPatch(Patch):
    """h ← values where `chosen` (batch, pos), (batch, pos, head) or, of a cell's neurons, (batch, pos, unit): row r of the
    batch takes its own, the rest stays."""

    chosen: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def change(self, value: Tensor, at: At) -> Tensor:
        values, chosen = self.values[at.order].to(value), uploaded(self.chosen, value.device)[at.own, at.order]
        return torch.where(chosen if self.cell.units is not None else chosen[..., None], values, value)

    @property
    def by_row(self) -> bool:
        return True


def batch_patch(site: str, layer: int, rows: Sequence[CellPositions], values: Tensor) -> BatchPatch:
    """The edit in which row i does `rows[i]`. values (pos, [head,] d): what each position of the whole text may take."""
    where = sorted({p for row in rows for p in row.positions})
    own = values[where]
    units = tuple(sorted({row.unit for row in rows if row.unit is not None}))
    if units:
        own = own[:, list(units)]
    number = {p: i for i, p in enumerate(where)}
    members = torch.tensor(units) if units else torch.arange(*own.shape[1:-1]) if own.ndim > 2 else None
    chosen = torch.zeros(len(rows), len(where), *(() if members is None else members.shape), dtype=torch.bool)
    for r, row in enumerate(rows):
        member = row.unit if units else row.head
        chosen[r, [number[p] for p in row.positions]] = True if member is None or members is None else members == member
    cell = Cell(site, layer, None, Positions(tuple(map(str, where))), units or None)
    return BatchPatch(cell, own, chosen, absolute=AbsolutePositions(tuple(where)))
