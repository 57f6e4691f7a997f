"""What a model multiplies a tensor by before it adds it to the stream: from the tensor to the site and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Unit = float | Tensor
"""A number, or one for each of d_model."""


def unit_of(model: nn.Module, coefficient: float, gains: tuple[str, ...]) -> Unit:
    unit: Unit = coefficient
    for name in gains:
        unit = model.get_parameter(name).detach().flatten() * unit
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
