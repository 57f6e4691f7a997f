"""Which values of a tensor are a site, and what a model multiplies them by before it adds them to the stream: from the tensor
to the site and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from probe.instrument import weight_of

Unit = float | Tensor
"""A number, or one for each of d_model."""


class Entries(NamedTuple):
    """Which values of a tensor at a tap are a site's: value i of head h is `starts[h] + order[i]` of all at a position, or
    `starts[h] + i` where `order` is empty. axis: of the positions in that tensor, 1, or 2 where heads come before them."""

    starts: tuple[int, ...]
    order: tuple[int, ...] = ()
    axis: int = 1

    def numbers(self, width: int, device: torch.device) -> Tensor:
        """(head, width), for a head of so many values."""
        order = torch.tensor(self.order, device=device) if self.order else torch.arange(width, device=device)
        return torch.tensor(self.starts, device=device)[:, None] + order


def unit_of(model: nn.Module, coefficient: float, gains: tuple[str, ...]) -> Unit:
    unit: Unit = coefficient
    for name in gains:
        unit = weight_of(model, name).flatten() * unit
    return unit


def in_units(value: Tensor, unit: Unit) -> Tensor:
    """The tensor at a tap (…, d) -> the site, rounded as the model would; the same tensor where the unit is 1."""
    if isinstance(unit, Tensor):
        return value * unit.to(value.device)
    return value if unit == 1.0 else value * unit


def out_of_units(value: Tensor, unit: Unit) -> Tensor:
    """The inverse; not finite where the model multiplies a channel by 0, so that nothing could be added to it."""
    return value / unit.to(value.device) if isinstance(unit, Tensor) else value / unit


def slope_in_units(slope: Tensor, unit: Unit) -> Tensor:
    """A derivative by the tensor at a tap -> by the site; 0 in a channel that the model multiplies by 0."""
    found = out_of_units(slope, unit)
    return torch.where(unit.to(slope.device) == 0, 0.0, found) if isinstance(unit, Tensor) else found
