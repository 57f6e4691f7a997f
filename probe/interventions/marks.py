"""Which vectors of a forward each edit meets, and the change of just those. Knows no modules and no calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probe.anatomy.parts import Unit, in_units, out_of_units
from probe.errors import BadEdit
from probe.interventions.edits import At, Edit
from probe.interventions.forwards import Forward
from probe.interventions.spots import Spots


class Hits(NamedTuple):
    """Vectors that an edit meets: their row and column in a forward (n,), and what stands there."""

    row: Tensor
    column: Tensor
    at: At


class Marks:
    """The edits of a context, how often each met something, and which rows of the batch as it was a forward's rows are."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self.edits = tuple(edits)
        self.met = [0] * len(self.edits)
        self.rows: Sequence[int] | None = None
        self._batch = 0  # rows of the last forward that began a text
        self._by_row = any(edit.by_row for edit in self.edits)

    def check_batch(self, forward: Forward) -> None:
        """Raises `BadEdit` where rows have left the batch and nobody said which: edits would go to the wrong ones."""
        batch = len(forward.positions)
        if not forward.seen:
            self._batch = batch
        elif self._by_row and self.rows is None and batch < self._batch:
            raise BadEdit(f"{self._batch - batch} rows left the batch, and edits are for single rows", hint="set .rows")

    def hits(self, i: int, positions: Tensor) -> Hits | None:
        """Where edit i changes a tensor whose columns stand at positions (batch, pos); None where it does not."""
        spots = self.edits[i].spots
        assert spots is not None, "edits are settled"
        order = spots.order(positions)
        mine, names, own = self._rows(i, len(positions), positions.device)
        row, column = (mine[:, None] & (order >= 0) & (positions >= 0)).nonzero(as_tuple=True)
        if not len(row):
            return None
        self.met[i] += len(row)
        return Hits(row, column, At(names[row], positions[row, column], order[row, column], own[row]))

    def meant(self, i: int, spots: Spots, positions: Tensor) -> Tensor:
        """(batch, pos) bool: columns of edit i's rows that stand at the spots."""
        mine, _, _ = self._rows(i, len(positions), positions.device)
        return mine[:, None] & (spots.order(positions) >= 0) & (positions >= 0)

    def _rows(self, i: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row of a forward: whether the edit is for it, its name, its number among the edit's rows."""
        names = list(range(batch)) if self.rows is None else list(self.rows)
        if len(names) != batch:
            raise BadEdit(f"a batch of {batch} rows has {len(names)} names", hint="set .rows when rows leave the batch")
        rows = self.edits[i].rows
        mine = [rows is None or name in rows for name in names]
        own = [name if rows is None else rows.index(name) if name in rows else 0 for name in names]
        return (
            torch.tensor(mine, device=device),
            torch.tensor(names, device=device),
            torch.tensor(own, device=device),
        )


def changed(edit: Edit, value: Tensor, hits: Hits, *, unit: Unit = 1.0, owned: bool = False) -> Tensor:
    """value (batch, pos, d) or (batch, pos, head, d) with the vectors that were hit changed; strides stay as they were.

    A copy, unless it is `owned` by an edit before. The edit sees the vectors in units of the site, as a read gives
    them, in fp32 or wider. What it leaves as it is keeps its bits. Raises `BadEdit` for what cannot be put back.
    """
    old = value[hits.row, hits.column]
    heads = None if edit.cell.heads is None or value.ndim == 3 else list(edit.cell.heads)
    part = old if heads is None else old[:, heads]
    seen = _wide(in_units(part, unit))
    new = edit.change(seen, hits.at)
    assert new.shape == seen.shape, f"{edit} made {tuple(new.shape)} of {tuple(seen.shape)}"
    if isinstance(unit, Tensor) or unit != 1.0:
        new = torch.where(new == seen, _wide(part), out_of_units(new, unit))
        if isinstance(unit, Tensor) and not bool(new.isfinite().all()):
            dead = int((unit == 0).nonzero()[0])
            raise BadEdit(f"{edit} cannot be made: the model multiplies channel {dead} by 0", hint="edit resid_post")
    new = new.to(value.dtype)
    if heads is not None:
        whole = old.clone()
        whole[:, heads] = new
        new = whole
    result = value if owned else value.clone()
    result[hits.row, hits.column] = new
    return result


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
