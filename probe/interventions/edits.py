"""The edits: what each makes of an activation. They know vectors and positions, no model, no file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from probe.devices import uploaded
from probe.errors import BadEdit
from probe.sites import SITES, Cell, Positions
from probe.sites.positions import listed

_BLOCK = 64  # positions whose noise is drawn at once


class AbsolutePositions(NamedTuple):
    """Absolute positions: those listed (ascending) and, unless None, every one from `onward` on."""

    listed: tuple[int, ...] = ()
    onward: int | None = None

    def order(self, positions: Tensor) -> Tensor:
        """The number of each position (…), on the CPU, among them, -1 where it is none of them."""
        found = torch.full_like(positions, -1)
        if self.listed:
            known = torch.tensor(self.listed)
            near = torch.searchsorted(known, positions.contiguous()).clamp(max=len(known) - 1)
            found = torch.where(known[near] == positions, near, found)
        if self.onward is not None:
            found = torch.where(positions >= self.onward, positions - self.onward + len(self.listed), found)
        return found

    def known(self, n: int) -> int:
        """How many lie before position n."""
        return sum(p < n for p in self.listed) + (0 if self.onward is None else max(0, n - self.onward))

    @property
    def first(self) -> int:
        return self.listed[0] if self.listed else self.onward or 0

    @property
    def last(self) -> float:
        return float("inf") if self.onward is not None else self.listed[-1]


class At(NamedTuple):
    """Where n vectors come from: their rows of the batch, their absolute positions (on the CPU), their number among the
    edit's, and which row of per-row values is theirs. Each (n,)."""

    row: Tensor
    position: Tensor
    order: Tensor
    own: Tensor


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of one cell, in all rows of a batch or only in `rows`. `absolute`: its positions, once a text is known."""

    cell: Cell
    rows: tuple[int, ...] | None = field(default=None, kw_only=True)
    absolute: AbsolutePositions | None = field(default=None, kw_only=True, repr=False)
    op: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, value in self.tensors().items():
            if not bool(value.isfinite().all()):
                raise BadEdit(f"the {name} of {self} has values that are not numbers", hint="make it anew")

    def change(self, value: Tensor, at: At) -> Tensor:
        """value (n, d) or (n, head, d), fp32 or wider -> what takes its place. Never writes in place.

        Where the cell names units, d are these alone, and so wide are the edit's own vectors."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def for_row(self, number: int, row: int, absolute: AbsolutePositions) -> Edit:
        """The part of it that changes only `row` of the batch, the `number`th of its own rows."""
        return replace(self, rows=(row,), absolute=absolute)

    @property
    def by_row(self) -> bool:
        """Whether it does not do the same in every row of a batch."""
        return self.rows is not None

    @property
    def where(self) -> str:
        """Its place as it would be written."""
        site, positions = self.cell.site, self.cell.positions
        return f"{site}{_layer(self.cell)}{'' if positions == Positions() else f':{positions}'}"

    def __str__(self) -> str:
        return f"{self.where}={self.op}{self.size}"

    @property
    def size(self) -> str:
        """What numbers follow its name, as they would be written."""
        return ""


def _layer(cell: Cell) -> str:
    if not SITES[cell.site].per_layer:
        return ""
    if cell.units is not None:
        letter = SITES[cell.site].unit[0]
        return "@" + ",".join(f"{cell.layer}.{letter}{numbers}" for numbers in listed(cell.units).split(","))
    if cell.heads is None:
        return f"@{cell.layer}"
    return "@" + ",".join(f"{cell.layer}.{head}" for head in cell.heads)


@dataclass(frozen=True, eq=False)
class Zero(Edit):
    """h ← 0."""

    op: ClassVar[str] = "zero"

    def change(self, value: Tensor, at: At) -> Tensor:
        return torch.zeros_like(value)


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """h ← factor · h."""

    factor: float
    op: ClassVar[str] = "scale"

    @property
    def size(self) -> str:
        return f":{self.factor!r}"

    def change(self, value: Tensor, at: At) -> Tensor:
        return value * self.factor


@dataclass(frozen=True, eq=False)
class Mean(Edit):
    """h ← vector, the same at each position. vector (d,), or (head, d) with one for each of the cell's heads."""

    vector: Tensor
    op: ClassVar[str] = "mean"

    def change(self, value: Tensor, at: At) -> Tensor:
        return self.vector.to(value).expand_as(value)


@dataclass(frozen=True, eq=False)
class Patch(Edit):
    """h ← values. values (pos, [head,] d), one for each position of the cell in their order; (batch, pos, [head,] d) has
    its own for each row. Where positions go on without end, those after the last value stay as they are."""

    values: Tensor
    op: ClassVar[str] = "patch"

    @property
    def by_row(self) -> bool:
        return self.rows is not None or self.per_row

    @property
    def per_row(self) -> bool:
        """Whether each row has its own values."""
        return self.values.ndim == 3 + SITES[self.cell.site].per_head

    @property
    def length(self) -> int:
        """Positions that there are values for."""
        return self.values.shape[1 if self.per_row else 0]

    def change(self, value: Tensor, at: At) -> Tensor:
        order = at.order.clamp(max=self.length - 1)
        values = self.values.to(value)
        found = values[at.own, order] if self.per_row else values[order]
        beyond = (at.order >= self.length).view(-1, *[1] * (value.ndim - 1))
        return torch.where(beyond, value, found)

    def for_row(self, number: int, row: int, absolute: AbsolutePositions) -> Edit:
        values = self.values[number : number + 1] if self.per_row else self.values
        return replace(self, rows=(row,), absolute=absolute, values=values)


@dataclass(frozen=True, eq=False)
class Resample(Edit):
    """h ← a vector drawn from pool (n, [head,] d), by position: edits of one seed and pool size draw the same numbers, so
    that several sites are taken from one place of another text."""

    pool: Tensor
    seed: int = 0
    op: ClassVar[str] = "resample"

    def change(self, value: Tensor, at: At) -> Tensor:
        drawn = _by_block(at.position, lambda block: _drawn(self.seed, block, len(self.pool)))
        return self.pool.to(value)[uploaded(drawn, value.device)]


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """h ← h + strength · vector. vector (d,), or (head, d) (Turner et al. 2023, 2308.10248)."""

    vector: Tensor
    strength: float = 1.0
    op: ClassVar[str] = "add"

    def change(self, value: Tensor, at: At) -> Tensor:
        return value + self.strength * self.vector.to(value)


@dataclass(frozen=True, eq=False)
class Project(Edit):
    """h ← h − (h·v̂) v̂ with v̂ = vector / ‖vector‖. vector (d,), or (head, d) (Arditi et al. 2024, 2406.11717)."""

    vector: Tensor
    op: ClassVar[str] = "project"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not bool(self.vector.norm(dim=-1).gt(0).all()):
            raise BadEdit(f"the vector of {self} is zero and has no direction", hint="make it anew")

    def change(self, value: Tensor, at: At) -> Tensor:
        wide, vector = value.double(), self.vector.to(value.device, torch.float64)
        unit = vector / vector.norm(dim=-1, keepdim=True)
        return (wide - (wide * unit).sum(-1, keepdim=True) * unit).to(value)


@dataclass(frozen=True, eq=False)
class Noise(Edit):
    """h ← h + sigma · ε, ε normal, in the activation's own unit: a function of (seed, site, layer, head or named unit,
    position), so it is the same in a decode loop and in one forward, alone and in a batch (corrupted runs: Meng et al.
    2022, 2202.05262)."""

    sigma: float
    seed: int = 0
    op: ClassVar[str] = "noise"

    @property
    def size(self) -> str:
        return f":{self.sigma!r}:{self.seed}"

    def change(self, value: Tensor, at: At) -> Tensor:
        d, units = value.shape[-1], self.cell.units
        if units is not None:
            letter = SITES[self.cell.site].unit[0]
            columns = [_by_block(at.position, functools.partial(self._block, f"{letter}{unit}", 1)) for unit in units]
            return value + self.sigma * uploaded(torch.cat(columns, dim=-1), value.device).to(value)
        heads = [None] if value.ndim == 2 else list(self.cell.heads or range(value.shape[1]))
        drawn = [_by_block(at.position, functools.partial(self._block, head, d)) for head in heads]
        noise = drawn[0] if value.ndim == 2 else torch.stack(drawn, dim=1)
        return value + self.sigma * uploaded(noise, value.device).to(value)

    def _block(self, member: int | str | None, d: int, block: int) -> Tensor:
        return _normal(f"{self.seed} {self.cell.site} {self.cell.layer} {member}", block, d)


@dataclass(frozen=True, eq=False)
class Cut(Edit):
    """The cell's positions, as queries, no longer see the keys: −inf before the softmax. A query that is left with no key
    at all reads nothing: its head's output is zero."""

    keys: Positions
    absolute_keys: AbsolutePositions | None = field(default=None, kw_only=True, repr=False)
    op: ClassVar[str] = "cut"

    def __str__(self) -> str:
        return f"{self.where}=cut:{self.keys}"


def _by_block(positions: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
    """What `draw(block)` (block of positions, …) gives at each position (n,)."""
    places = positions.tolist()
    blocks = {block: draw(block) for block in {p // _BLOCK for p in places}}
    return torch.stack([blocks[p // _BLOCK][p % _BLOCK] for p in places])


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve a forward with gradients too
def _normal(address: str, block: int, d: int) -> Tensor:
    return torch.randn(_BLOCK, d, generator=_generator(f"{address} {block}"))


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)
def _drawn(seed: int, block: int, n: int) -> Tensor:
    return torch.randint(n, (_BLOCK,), generator=_generator(f"{seed} {block}"))


def _generator(address: str) -> torch.Generator:
    digest = hashlib.sha256(address.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
