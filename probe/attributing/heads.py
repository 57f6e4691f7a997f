"""An attention's write as a sum over heads, through its output projection and a norm after it, if one is there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy.inside import is_leaf, is_linear
from probe.anatomy.parts import Layer, Write
from probe.attributing.linear import Frozen, call, close, freeze, identity


class Split(NamedTuple):
    """write (n, d) = sum of heads (n, head, d) + bias (n, d), to rounding. `after` is what stands behind the projection."""

    heads: Tensor
    bias: Tensor
    after: Frozen


def split(model: nn.Module, layer: Layer, write: Write, z: Tensor | None, value: Tensor) -> Split | str:
    """The write `value` (n, d) over the heads of z (n, head * d_head), float64; or why it can't be split."""
    if z is None:
        return layer.absent.get("z", "its heads' values were not found")
    projection = model.get_submodule(layer.taps["z"].path)
    if not is_linear(projection):
        return "what reads the heads' values is not one matrix"
    n, width = z.shape
    masked = torch.zeros(n, layer.n_heads, layer.n_heads, width // layer.n_heads, dtype=torch.float64)
    for head in range(layer.n_heads):
        masked[:, head, head] = z.unflatten(-1, (layer.n_heads, -1))[:, head]
    bias = call(projection, torch.zeros(1, width))[0]
    heads = (call(projection, masked.flatten(2).flatten(0, 1)) - bias).unflatten(0, (n, layer.n_heads))
    after = _after(model, write, heads.sum(1) + bias, value, next(projection.parameters()).dtype)
    if isinstance(after, str):
        return after
    return Split(after.forward(heads), after.forward(bias.expand(n, -1)) + after.bias, after)


def _after(model: nn.Module, write: Write, out: Tensor, value: Tensor, dtype: torch.dtype) -> Frozen | str:
    """What makes the write of the projection's output, (n, d): nothing, a number, or a norm, with its scale frozen."""
    if out.shape != value.shape:
        return "the projection does not give the write"
    number = float((out * value).sum() / out.pow(2).sum().clamp_min(1e-300))
    if close(value, number * out, dtype):
        plain = identity(*out.shape)
        return plain._replace(scale=plain.scale * (1.0 if abs(number - 1.0) < 1e-5 else number))
    module = model.get_submodule(write.tap.path)
    if write.tap.side == "output" and is_leaf(module):
        norm = freeze(module, out, dtype)
        if norm is not None and close(value, norm.forward(out) + norm.bias, dtype):
            return norm
    return "between the heads and the write is more than a norm"


def values_direction(model: nn.Module, layer: Layer, after: Frozen, direction: Tensor, width: int) -> Tensor:
    """direction (n, d) on the write -> (n, head, d_head) on z (n, width), float64: back through norm and projection."""
    projection = model.get_submodule(layer.taps["z"].path)
    like = next(projection.parameters())
    behind = after.back(direction)
    size = behind.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    with torch.inference_mode(False), torch.enable_grad():
        z = torch.zeros(1, len(direction), width, device=like.device, dtype=like.dtype).requires_grad_()
        out = projection(z)
        (found,) = torch.autograd.grad(out, z, (behind / size)[None].to(out))
    return (found[0].double().cpu() * size).unflatten(-1, (layer.n_heads, -1))
