"""Norms and heads as the linear maps that they are at one point, in float64. Knows modules, not what stands where."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy import Anatomy
from probe.errors import SiteAbsent
from probe.instrument import device_of

ROOM = 16  # what rounding may leave, in units of the last place


class Frozen(NamedTuple):
    """norm(x) = scale * gain * (x - centre * mean(x)) + bias, its scale (n, 1) held at the value that it has at x (n, d)."""

    scale: Tensor
    gain: Tensor
    centre: float
    bias: Tensor

    def forward(self, part: Tensor) -> Tensor:
        """The linear part alone, of part (n, …, d)."""
        scale = self.scale.view(-1, *[1] * (part.ndim - 1))
        return scale * self.gain * (part - self.centre * part.mean(-1, keepdim=True))

    def back(self, direction: Tensor) -> Tensor:
        """The transposed map: direction (n, d) or (d,) on what the norm gives -> (n, d) on what it is given."""
        gained = self.gain * direction
        return self.scale * (gained - self.centre * gained.mean(-1, keepdim=True))


def call(module: nn.Module, value: Tensor) -> Tensor:
    """The module of value (n, d), in its own precision and place -> float64 (n, d') on the CPU."""
    with torch.no_grad():
        found: Tensor = module(value[None].to(device_of(module), dtype_of(module)))[0]
    return found.double().cpu()


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a module is given numbers in: its weights' type; float32 where it has none, or packed ones."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def transposed(projection: nn.Module, direction: Tensor, width: int) -> Tensor:
    """direction (n, d) on what a linear module gives -> (n, width) on what it is given, float64; its bias has no part.

    Zeros where torch follows no gradient through it: they are to be held against what the module gives."""
    size = direction.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    with torch.inference_mode(False), torch.enable_grad():
        given = torch.zeros(1, len(direction), width, device=device_of(projection), dtype=dtype_of(projection)).requires_grad_()
        found = _gradient(projection(given), given, direction / size)
    return found[0].double().cpu() * size


def _gradient(out: Tensor, given: Tensor, direction: Tensor) -> Tensor:
    """Of <direction, out> by `given`; zeros where torch follows none."""
    if not out.requires_grad:
        return torch.zeros_like(given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a kernel without a backward, and goes on
        (found,) = torch.autograd.grad(out, given, direction[None].to(out), allow_unused=True)
    return torch.zeros_like(given) if found is None else found


def freeze(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Frozen | None:
    """A norm at x (n, d), float64 but of values that a model in `dtype` computed; None where it is no such map.

    What it subtracts and its gain are read off what it makes of plain vectors, so it needs no name.
    """
    d = x.shape[-1]
    wave = torch.ones(d, dtype=torch.float64)
    wave[1::2] = -1.0
    wave[1] -= d % 2  # its mean is 0
    try:
        plain = (torch.zeros(1, d), torch.ones(1, d), wave[None])
        nothing, flat, waved, real = (call(module, value) for value in (*plain, x))
    except (TypeError, AttributeError, LookupError, RuntimeError):
        return None  # it wants more than the stream
    if real.shape != x.shape:
        return None
    bias = nothing[0]
    centre = 1.0 if float((flat - bias).norm()) < 1e-3 * float((waved - bias).norm()) else 0.0
    gain = (waved - bias)[0] / wave if centre else (flat - bias)[0]
    straight = gain * (x - centre * x.mean(-1, keepdim=True))
    left = real - bias
    scale = (left * straight).sum(-1, keepdim=True) / straight.pow(2).sum(-1, keepdim=True).clamp_min(1e-300)
    return Frozen(scale, gain, centre, bias) if close(left, scale * straight, dtype) else None


def identity(n: int, d: int) -> Frozen:
    """No norm at all."""
    return Frozen(torch.ones(n, 1).double(), torch.ones(d).double(), 0.0, torch.zeros(d).double())


def close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors (n, d) are the same but for the rounding of `dtype`, by each row's size."""
    room = max(2e-5, ROOM * torch.finfo(dtype).eps)
    return bool(((one - other).norm(dim=-1) <= room * one.norm(dim=-1).clamp_min(1e-30)).all())


class Unembedded(NamedTuple):
    """What a weighted sum of logits is of the head's input h (n, d): scale * (row . h + bias), before the cap. row (n, d) and
    bias (n,), or one for all."""

    row: Tensor
    bias: Tensor
    scale: float


def unembedded(model: nn.Module, anatomy: Anatomy, hidden: Tensor, ids: tuple[int, int | None]) -> Unembedded:
    """The logit of ids[0], less that of ids[1] unless None; as `weighted_unembedding`."""
    weights = torch.zeros(1, anatomy.d_vocab, dtype=torch.float64)
    weights[0, ids[0]] += 1.0
    if ids[1] is not None:
        weights[0, ids[1]] -= 1.0
    return weighted_unembedding(model, anatomy, hidden, weights)


def weighted_unembedding(model: nn.Module, anatomy: Anatomy, hidden: Tensor, weights: Tensor) -> Unembedded:
    """The sum of the logits by weights (n, d_vocab), or one row of them for all, as a linear function of the head's input;
    float64.

    hidden (n, d) is what the head reads in the text: where it is not linear there, `SiteAbsent`.
    """
    assert anatomy.head is not None
    head = model.get_submodule(anatomy.head)
    dtype = dtype_of(head)
    with torch.inference_mode(False), torch.enable_grad():
        origin = torch.zeros(1, len(weights), hidden.shape[-1], device=device_of(head), dtype=dtype).requires_grad_()
        given = head(origin)
        found = _gradient(given, origin, weights)
    row, bias = found[0].double().cpu(), _weighted(given.detach()[0].double().cpu(), weights)
    logits = call(head, hidden)
    real = _weighted(logits, weights)
    # each logit is rounded, and of rows that are nearly one the difference is small beside that
    size = hidden.norm(dim=-1) * row.norm(dim=-1) + bias.abs() + _weighted(logits.abs(), weights.abs())
    room = max(2e-5, ROOM * torch.finfo(dtype).eps)
    if bool((((hidden * row).sum(-1) + bias - real).abs() > room * size).any()):
        raise SiteAbsent("no logit can be taken apart: this model's head is not one matrix", hint="see probe models check")
    return Unembedded(row, bias, anatomy.readout.scale)


def _weighted(logits: Tensor, weights: Tensor) -> Tensor:
    """The sum of logits (n, d_vocab) by their weights; a token that is ruled out (−inf) has no part where its weight is 0."""
    return (torch.where(weights == 0, 0.0, logits) * weights).sum(-1)
