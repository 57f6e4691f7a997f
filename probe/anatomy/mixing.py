"""What feels a change of one position, or of one head, tried on the model itself; knows no equations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy.tape import Attended, Port
from probe.instrument import AttentionCall, Observer, Tap, attending, tapping

VISIBLE = 1e-4  # of the activation's own size: more than rounding, less than anything a part does on purpose


class Reach(NamedTuple):
    """How many other positions feel a change of position 0, and whether the position itself does."""

    others: int
    own: bool


def values_at(
    model: nn.Module,
    ids: Tensor,
    taps: Iterable[Tap],
    *,
    edits: Mapping[Tap, Callable[[Tensor], Tensor | None]] | None = None,
    observer: Observer | None = None,
) -> dict[Tap, Tensor]:
    """One forward, with `edits` at their taps and `observer` on the attention calls; what the taps saw."""
    seen: dict[Tap, Tensor] = {}

    def reader(tap: Tap) -> Callable[[Tensor], None]:
        return lambda x: seen.__setitem__(tap, x.detach().clone())

    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(tapping(model, edits or {}))
        stack.enter_context(tapping(model, {tap: reader(tap) for tap in taps}))
        if observer is not None:
            stack.enter_context(attending(model, observer))
        model(input_ids=ids, use_cache=False)
    return seen


def reach(model: nn.Module, ids: Tensor, given: Port, taken: Port) -> Reach:
    """Change position 0 of what a module is given and look where what it gives changes."""

    def disturb(x: Tensor) -> Tensor:
        rows = x.clone().reshape(ids.shape[1], -1)
        noise = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
        rows[0] += 3 * rows[0].std() * noise.to(rows)
        return rows.reshape(x.shape)

    before = values_at(model, ids, [taken.tap])[taken.tap]
    after = values_at(model, ids, [taken.tap], edits={given.tap: disturb})[taken.tap]
    one, other = (x.double().reshape(ids.shape[1], -1) for x in (before, after))
    felt = (one - other).abs().amax(-1) > VISIBLE * one.pow(2).mean().sqrt()
    return Reach(int(felt[1:].sum()), bool(felt[0]))


def fed(model: nn.Module, ids: Tensor, calls: Sequence[Attended], terms: Sequence[Port]) -> list[bool]:
    """Which terms are made of these attention calls' results alone: with those at 0, they are alike at all positions.

    The first half of the positions doesn't count: a convolution sees the start of the text there."""
    which = {(call.path, call.visit) for call in calls}

    def silence(path: str, call: AttentionCall, output: Tensor) -> Tensor | None:
        return torch.zeros_like(output) if (path, call.visit) in which else None

    taps = [port.tap for port in terms]
    plain, silent = values_at(model, ids, taps), values_at(model, ids, taps, observer=silence)

    def spread(x: Tensor) -> float:
        late = x.double().reshape(ids.shape[1], -1)[ids.shape[1] // 2 :]
        return float((late - late[0]).abs().max())

    return [spread(silent[tap]) <= VISIBLE * spread(plain[tap]) for tap in taps]


def headwise(model: nn.Module, ids: Tensor, attended: Attended, candidates: Sequence[Port]) -> Port | None:
    """The candidate that is the attention's result times something: scaling head h scales slice h alone, by as much."""
    factors = 1 + torch.arange(attended.n_heads) % 7 / 4

    def scale(path: str, call: AttentionCall, output: Tensor) -> Tensor | None:
        if (path, call.visit) != (attended.path, attended.visit):
            return None
        return output * factors.to(output)[:, None]  # output (batch, pos, head, d_head)

    taps = [port.tap for port in candidates]
    plain, scaled = values_at(model, ids, taps), values_at(model, ids, taps, observer=scale)
    for port in candidates:
        if port.shape[-1] % attended.n_heads:
            continue
        one, other = plain[port.tap].double(), scaled[port.tap].double()
        heads = one.reshape(*one.shape[:-1], attended.n_heads, -1) * factors.double()[:, None]
        gap = (heads.reshape(one.shape) - other).abs().max() / other.abs().max()
        if float(gap) < VISIBLE + 8 * torch.finfo(plain[port.tap].dtype).eps:
            return port
    return None
