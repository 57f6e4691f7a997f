"""At which absolute positions a forward's tokens and keys stand, and which of them each edit changes. Knows no modules and no
calls. All of it is reckoned on the CPU, where nothing has to wait for the device that the model is on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.generation.utils import ALL_CACHE_NAMES

from probe.anatomy.units import Unit, in_units, out_of_units
from probe.devices import uploaded
from probe.errors import BadEdit
from probe.interventions.edits import AbsolutePositions, At, Edit

Start = int | Sequence[int] | Tensor
"""The position of a forward's first token, for every row or for each; negative where a row begins with padding."""

_GIVE_START = "give start=, the position of its first token"


class Forward(NamedTuple):
    """`positions` (batch, pos) of its tokens, negative for padding on the left; `seen` keys are in its cache, the first of
    row r at position `origin[r]` (batch,)."""

    positions: Tensor
    seen: int
    origin: Tensor

    def keys(self, n: int) -> Tensor:
        """Positions (batch, n) of the n keys of an attention call; what lies beyond the tokens (an empty cache) is negative."""
        new = self.positions.shape[1]
        columns = torch.arange(n) + max(0, self.seen + new - n)  # a sliding cache has lost the first ones
        found = self.origin[:, None] + columns
        own = (columns - self.seen).clamp(0, new - 1)
        found = torch.where(columns >= self.seen, self.positions[:, own], found)
        return torch.where(columns < self.seen + new, found, -1)


class ForwardPositions:
    """Follows the forwards of one model: `current` is the one under way, if the whole model runs."""

    def __init__(self, model: nn.Module, start: Start | None) -> None:
        self.start = start
        self.current: Forward | None = None
        self._signature = inspect.signature(model.forward)
        self._end: int | None = None  # of the last forward

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Forward:
        """A forward of the model begins with these arguments."""
        given = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        if isinstance(given.get("logits_to_keep"), Tensor):
            raise BadEdit("edits need logits at the end of a text, not at chosen positions", hint="logits_to_keep=1")
        tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        self.current = self._forward(tokens.shape[0], tokens.shape[1], given)
        return self.current

    def end(self) -> None:
        """The forward is over."""
        self.current = None

    def part(self, batch: int, n: int) -> Forward:
        """The forward under way; where only a part of the model runs, one of this shape that begins at `start`."""
        if self.current is not None:
            return self.current
        if self.start is None:
            raise BadEdit("only a part of the model runs, and it is not said where in the text", hint=_GIVE_START)
        return self._forward(batch, n, {})

    def _forward(self, batch: int, n: int, given: Mapping[str, Any]) -> Forward:
        steps = torch.arange(n)
        if self.start is not None:
            first = torch.as_tensor(self.start, device="cpu").expand(batch)
            seen = self._seen(given, n) if given else int(first.max())
            return Forward(first[:, None] + steps, seen, first - seen)
        seen, mask, told = self._seen(given, n), given.get("attention_mask"), given.get("position_ids")
        pads = torch.zeros(batch, dtype=torch.long)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            pads = (mask.cpu().cumsum(-1) == 0).sum(-1).expand(batch)
        plain = seen + steps - pads[:, None]
        if not (isinstance(told, Tensor) and told.ndim == 2 and told.shape[1] == n):
            return Forward(plain, seen, -pads)
        positions = told.cpu().expand(batch, n)
        return Forward(torch.where(plain < 0, plain, positions), seen, -pads)

    def _seen(self, given: Mapping[str, Any], n: int) -> int:
        """How many tokens the cache holds. A recurrent state cannot tell: it is taken to go on where the last forward ended."""
        cache = next((given[name] for name in ALL_CACHE_NAMES if given.get(name) is not None), None)
        seen: int | None = 0 if cache is None else _length(cache)
        if seen is None:
            seen = self._end
        if seen is None:
            if self.start is None:
                raise BadEdit("this model's cache does not tell how much it has read", hint=_GIVE_START)
            seen = 0
        self._end = seen + n
        return seen


def _length(cache: Any) -> int | None:
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):  # a list of states; layers of which none has a length
        return None


class Hits(NamedTuple):
    """Vectors that an edit meets: their row and column in a forward (n,), where they are, and what stands there."""

    row: Tensor
    column: Tensor
    at: At

    def __len__(self) -> int:
        return len(self.at.position)


class ActiveEdits:
    """The edits of a context, how often each met something, and which rows of the batch as it was a forward's rows are."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self.edits = tuple(edits)
        self.met: list[int | Tensor] = [0] * len(self.edits)  # a tensor where only the device knows
        self.rows: Sequence[int] | None = None
        self._batch = 0  # rows of the last forward that began a text
        self._by_row = any(edit.by_row for edit in self.edits)
        self._hits: dict[tuple[AbsolutePositions, tuple[int, ...] | None, torch.device], Hits] = {}
        self._hits_of: Tensor | None = None  # the positions that they are of

    def check_batch(self, forward: Forward) -> None:
        """Raises `BadEdit` where rows have left the batch and nobody said which: edits would go to the wrong ones."""
        batch = len(forward.positions)
        if not forward.seen:
            self._batch = batch
        elif self._by_row and self.rows is None and batch < self._batch:
            raise BadEdit(f"{self._batch - batch} rows left the batch, and edits are for single rows", hint="set .rows")

    def hits(self, i: int, positions: Tensor, device: torch.device) -> Hits | None:
        """Where edit i changes a tensor on a device, whose columns stand at positions (batch, pos); None where it does not."""
        absolute, rows = self.edits[i].absolute, self.edits[i].rows
        assert absolute is not None, "edits have positions"
        if self._hits_of is not positions:
            self._hits, self._hits_of = {}, positions
        if (absolute, rows, device) not in self._hits:  # edits of many layers at the same positions meet the same
            self._hits[absolute, rows, device] = self._found(i, absolute, positions, device)
        found = self._hits[absolute, rows, device]
        self.met[i] += len(found)
        return found if len(found) else None

    def _found(self, i: int, absolute: AbsolutePositions, positions: Tensor, device: torch.device) -> Hits:
        order = absolute.order(positions)
        mine, names, own = self._rows(i, len(positions))
        row, column = (mine[:, None] & (order >= 0) & (positions >= 0)).nonzero(as_tuple=True)
        there = uploaded(torch.stack([row, column, names[row], order[row, column], own[row]]), device)
        return Hits(there[0], there[1], At(there[2], positions[row, column], there[3], there[4]))

    def meant(self, i: int, absolute: AbsolutePositions, positions: Tensor) -> Tensor:
        """(batch, pos) bool: columns of edit i's rows that stand at those positions."""
        mine, _, _ = self._rows(i, len(positions))
        return mine[:, None] & (absolute.order(positions) >= 0) & (positions >= 0)

    def _rows(self, i: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row of a forward: whether the edit is for it, its name, its number among the edit's rows."""
        names = list(range(batch)) if self.rows is None else list(self.rows)
        if len(names) != batch:
            raise BadEdit(f"a batch of {batch} rows has {len(names)} names", hint="set .rows when rows leave the batch")
        rows = self.edits[i].rows
        mine = [rows is None or name in rows for name in names]
        own = [name if rows is None else rows.index(name) if name in rows else 0 for name in names]
        return torch.tensor(mine), torch.tensor(names), torch.tensor(own)


def changed(edit: Edit, value: Tensor, hits: Hits, *, unit: Unit = 1.0, owned: bool = False) -> Tensor:
    """value (batch, pos, d) or (batch, pos, head, d) with the vectors that were hit changed; strides stay as they were.

    Where the cell names heads or units, those alone. A copy, unless it is `owned` by an edit before. The edit sees the
    vectors in units of the site, as a read gives them, in fp32 or wider. What it leaves as it is keeps its bits. Raises
    `BadEdit` for what cannot be put back.
    """
    old = value[hits.row, hits.column]
    members = edit.cell.units if value.ndim == 3 else edit.cell.heads
    chosen = ... if members is None else (slice(None), uploaded(list(members), value.device))
    part = old[chosen]
    seen = _wide(in_units(part, unit))
    new = edit.change(seen, hits.at)
    assert new.shape == seen.shape, f"{edit} made {tuple(new.shape)} of {tuple(seen.shape)}"
    if isinstance(unit, Tensor) or unit != 1.0:
        new = torch.where(new == seen, _wide(part), out_of_units(new, unit))
        if isinstance(unit, Tensor) and not bool(new.isfinite().all()):
            dead = int((unit == 0).nonzero()[0])
            raise BadEdit(f"{edit} cannot be made: the model multiplies channel {dead} by 0", hint="edit resid_post")
    new = new.to(value.dtype)
    if members is not None:
        whole = old.clone()
        whole[chosen] = new
        new = whole
    result = value if owned else value.clone()
    result[hits.row, hits.column] = new
    return result


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
