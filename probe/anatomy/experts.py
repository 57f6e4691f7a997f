"""Where a mixture of experts chooses: the module that is handed each token's experts and their weights, and the router's logits
that they come from; and what of a write is theirs. Knows no formula of a choice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy.inside import Inside
from probe.anatomy.mixing import values_at
from probe.anatomy.parts import Experts
from probe.anatomy.tape import Event, Port


class Routed(NamedTuple):
    """The router's logits (token, expert), the experts' tensors, and what they give, summed with their weights."""

    logits: Port
    experts: Experts
    output: Port


def find_router(inside: Inside, model: nn.Module, ids: Tensor, tried: dict[tuple[str, ...], float]) -> Routed | str:
    """The mixture of a block, or why it is not found.

    The experts are the module that is given whole numbers and weights (token, chosen) and whose output grows with the
    weights: twice the weights, twice the output. The router is the latest module before it that gives a number for each
    expert, of which larger ones have larger weights among those that are chosen.
    """
    for event, chosen, weights in _handed(inside):
        logits = _logits(inside, event, chosen, weights)
        if logits is None:
            return f"no module before '{inside.relative(event.path)}' gives a number for each expert that its weights go by"
        key = inside.relative(event.path), str(weights.shape)
        if key not in tried:
            tried[key] = _growth_error(model, ids, event, weights)
        if tried[key] > 1e-3:
            return f"what '{inside.relative(event.path)}' gives doesn't grow with the weights that it is given"
        experts = Experts(chosen.tap, weights.tap, logits.shape[-1], chosen.shape[-1])
        return Routed(logits, experts, event.outputs[0])
    return "no module of this block is handed each token's experts and their weights"


def find_shared(
    inside: Inside, model: nn.Module, ids: Tensor, routed: Port, write: Port, tried: dict[tuple[str, ...], float | str]
) -> Port | str:
    """What of a write is not the routed experts', or why the two are no terms of it: the write grows by what is added to
    theirs, times a number, and is more than theirs."""
    key = inside.relative(routed.tap.path), inside.relative(write.tap.path), str(write.shape)
    if key not in tried:
        tried[key] = _times(model, ids, routed, write)
    times = tried[key]
    return times if isinstance(times, str) else write._replace(tap=write.tap._replace(less=routed.tap, times=times))


def _times(model: nn.Module, ids: Tensor, routed: Port, write: Port) -> float | str:
    """By how many times what the routed experts' output grows by the write grows, where it holds other things too."""
    taps = [routed.tap, write.tap]
    one = values_at(model, ids, taps)
    two = values_at(model, ids, [write.tap], edits={routed.tap: lambda value: value * 2})
    added = (two[write.tap] - one[write.tap]).double().flatten()
    theirs, whole = (one[tap].double().flatten() for tap in taps)
    size = theirs.abs().max().clamp_min(1e-30)
    exact = float(added @ theirs / (theirs @ theirs).clamp_min(1e-30)) if theirs.shape == whole.shape else 0.0
    if abs(exact) < 1e-3 or float((added - exact * theirs).abs().max() / size) > 1e-3 * abs(exact):
        return "what the routed experts give is no term of what the MLP writes"
    times = next((short for short in (round(exact, n) for n in range(5)) if abs(short / exact - 1) < 1e-5), exact)
    if float((whole - times * theirs).abs().max() / whole.abs().max().clamp_min(1e-30)) < 1e-5:
        return "the routed experts make all of what the MLP writes: mlp_out is theirs"
    return times


def _handed(inside: Inside) -> Iterator[tuple[Event, Port, Port]]:
    """Calls that are given whole numbers and weights of one shape (token, chosen)."""
    for event in inside.events:
        for chosen in event.choices:
            for weights in event.inputs:
                if weights.shape == chosen.shape:
                    yield event, chosen, weights


def _logits(inside: Inside, event: Event, chosen: Port, weights: Port) -> Port | None:
    """The latest output before the call with a number for each expert.

    How many experts there are is seen where each has a matrix or a module of its own; where all stand in one matrix, one
    below another, their number divides its rows, and those that are chosen must be the largest."""
    experts, given = (inside.tape.values[p.fingerprint].reshape(p.shape) for p in (chosen, weights))
    rows = {p.shape[0] for p in event.module.parameters() if p.dim() > 1}
    sizes, k = rows | {sum(1 for _ in event.module.children())}, chosen.shape[-1]
    for before in reversed([e for e in inside.events if e.seq < event.seq]):
        for port in before.outputs:
            width = port.shape[-1]
            if port.shape[:-1] != chosen.shape[:-1] or width < k or int(experts.max()) >= width:
                continue
            value = inside.tape.values[port.fingerprint].reshape(port.shape)
            largest = any(n % width == 0 for n in rows) and torch.equal(
                value.topk(k).indices.sort(-1).values, experts.long().sort(-1).values
            )
            own = value.gather(-1, experts.long())
            by_logit = given.gather(-1, own.argsort(-1)).diff(dim=-1)
            if (width in sizes or largest) and bool((by_logit >= -1e-6).all()):
                return port
    return None


def _growth_error(model: nn.Module, ids: Tensor, event: Event, weights: Port) -> float:
    """By how much twice the weights is not twice the output, relative."""
    taken = event.outputs[0].tap
    one = values_at(model, ids, [taken])[taken].double()
    two = values_at(model, ids, [taken], edits={weights.tap: lambda value: value * 2})[taken].double()
    return float((two - 2 * one).abs().max() / one.abs().max().clamp_min(1e-30))
