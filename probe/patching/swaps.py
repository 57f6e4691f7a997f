"""The edit of a batch of cells: each row takes other values at its own positions and heads. Knows tensors, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from probe.interventions import Patch
from probe.interventions.edits import AbsolutePositions, At
from probe.sites import Cell, Positions


class Swap(NamedTuple):
    """What one row changes: its positions, ascending, and its head (None: the whole width)."""

    positions: tuple[int, ...]
    head: int | None


@dataclass(frozen=True, eq=False)
class Swaps(Patch):
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


def swaps(site: str, layer: int, rows: Sequence[Swap], values: Tensor) -> Swaps:
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
    return Swaps(cell, values[where], chosen, absolute=absolute)
