"""Where the stream begins and ends: embedding, final norm, head, and what is between the head and the logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy.chain import Block
from probe.anatomy.inside import is_leaf
from probe.anatomy.parts import Readout
from probe.anatomy.sums import misfit, tolerance
from probe.anatomy.tape import Event, Print, Tape
from probe.instrument import Tap


class Ends(NamedTuple):
    """The two ends of the stream; `error` is that of logits against the replayed readout."""

    embed: Tap | None
    final_norm: Tap | None
    head: str | None
    readout: Readout
    exact: bool
    error: float
    absent: dict[str, str]


def find_ends(model: nn.Module, recorded: Tape, blocks: tuple[Block, ...]) -> Ends:
    """logits = readout(head(final_norm(last resid_post))), replayed by calling those modules alone.

    The head is the innermost module with which that holds; it may be a whole part, such as a dense layer before the
    unembedding."""
    embed = _embed(recorded, blocks)
    heads = _heads(model, recorded)
    if not heads:
        why = "no module's output is the logits, scaled or capped"
        return Ends(embed, None, None, Readout(), False, math.inf, {"head": why, "final_norm": why})
    if not blocks:
        why = "there is no resid_post that it could read"
        return Ends(None, None, heads[0].path, Readout(), False, math.inf, {"final_norm": why})
    last = blocks[-1].after.print
    for head in heads:
        for norm in _norms(recorded, last, head):
            found = _replay(model, recorded, last, norm, head)
            if found is not None:
                readout, error = found
                absent = {} if norm else {"final_norm": "the head reads the last resid_post as it is"}
                return Ends(embed, norm, head.path, readout, True, error, absent)
    return Ends(
        embed, None, heads[0].path, Readout(), False, math.inf, {"final_norm": _why_not(recorded, last, heads[0])}
    )


def _embed(recorded: Tape, blocks: tuple[Block, ...]) -> Tap | None:
    """The module output that enters the first block; where there is none, the block's input itself."""
    if not blocks:
        return None
    first = blocks[0]
    givers = [e for e in recorded.events[: first.event.seq] if any(p.print == first.before.print for p in e.outputs)]
    givers = [e for e in givers if not any(e.path.startswith(f"{b.event.path}.") for b in blocks)]
    for event in givers:
        return next(p.tap for p in event.outputs if p.print == first.before.print)
    return first.before.tap


def _heads(model: nn.Module, recorded: Tape) -> list[Event]:
    """The modules whose output is the logits up to a scale and a cap: leaves first (the latest first), then whole parts."""
    logits, numbers = recorded.logits, _config_numbers(model)
    found: list[Event] = []
    tried: dict[int, bool] = {}
    for event in sorted(recorded.events, key=lambda e: (0, -e.seq) if is_leaf(e.module) else (1, e.seq)):
        for port in event.outputs:
            value = recorded.values.get(port.print)
            if event.path and event.inputs and value is not None and value.numel() == logits.numel():
                if port.print not in tried:
                    tried[port.print] = _fitted(value.reshape(logits.shape), logits, numbers) is not None
                if tried[port.print]:
                    found.append(event)
    return found


def apply_readout(readout: Readout, raw: Tensor) -> Tensor:
    """Head output -> logits."""
    scaled = raw * readout.scale if readout.scale != 1.0 else raw
    return scaled if readout.cap is None else readout.cap * torch.tanh(scaled / readout.cap)


def _fitted(raw: Tensor, logits: Tensor, numbers: list[float]) -> Readout | None:
    """logits = cap * tanh(scale * raw / cap): scale by least squares; the cap is one of the config's numbers."""
    raw, wanted, tol = raw.double(), logits.double(), tolerance(logits.dtype)
    for cap in (None, *numbers):
        if cap is None:
            linear = wanted
        elif float(wanted.abs().max()) < cap:
            linear = cap * torch.atanh(wanted / cap)
        else:
            continue
        scale = float((raw * linear).sum() / (raw * raw).sum())
        for candidate in (1.0, *numbers, *(1 / n for n in numbers), scale):
            if abs(candidate - scale) <= 1e-3 * abs(scale):
                readout = Readout(candidate, cap)
                if misfit(wanted, apply_readout(readout, raw)) <= tol:
                    return readout
    return None


def _config_numbers(model: nn.Module) -> list[float]:
    """Every positive number of the config: what a cap or a scale can be."""
    config = getattr(model, "config", None)

    def numbers(value: Any) -> Iterator[float]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from numbers(inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
            yield float(value)

    plain = config.to_dict() if config is not None else {}
    return sorted({*numbers(plain), 15.0, 20.0, 30.0, 50.0})


def _norms(recorded: Tape, last: Print, head: Event) -> Iterator[Tap | None]:
    """What may stand between the last resid_post and the head: nothing, or a module whose output the head reads, scaled
    or as it is."""
    read = head.inputs[0].print
    if read == last:
        yield None
    for event in recorded.events:
        if event.path and any(p.print == last for p in event.inputs):
            for port in event.outputs:
                if port.print == read or _is_multiple(recorded, port.print, read):
                    yield port.tap


def _is_multiple(recorded: Tape, one: Print, other: Print) -> bool:
    x, y = recorded.values.get(one), recorded.values.get(other)
    if x is None or y is None or x.shape != y.shape:
        return False
    scale = float((x.double() * y.double()).sum() / x.double().pow(2).sum().clamp_min(1e-30))
    return scale > 0 and misfit(y, scale * x.double()) <= tolerance(y.dtype)


def _replay(
    model: nn.Module, recorded: Tape, last: Print, norm: Tap | None, head: Event
) -> tuple[Readout, float] | None:
    """Scale, cap and error of logits computed anew from the last resid_post; None if they are not the model's."""
    x = recorded.values[last]
    try:
        with torch.no_grad():
            raw = head.module(x if norm is None else model.get_submodule(norm.path)(x))
    except (TypeError, AttributeError, ValueError, LookupError, RuntimeError):
        return None  # a part that wants more than the stream is neither norm nor head
    readout = _fitted(raw.reshape(recorded.logits.shape), recorded.logits, _config_numbers(model))
    if readout is None:
        return None
    return readout, misfit(recorded.logits, apply_readout(readout, raw).reshape(recorded.logits.shape))


def _why_not(recorded: Tape, last: Print, head: Event) -> str:
    """What leads from the last resid_post to the head, if not one module."""
    ways: dict[Print, list[Event]] = {last: []}
    waiting = [last]
    while waiting:
        print_ = waiting.pop(0)
        for event in recorded.events:
            if event.path and any(p.print == print_ for p in event.inputs):
                for port in event.outputs:
                    if port.print not in ways:
                        ways[port.print] = [*ways[print_], event]
                        waiting.append(port.print)
    way = ways.get(head.inputs[0].print)
    if not way:
        return "nothing leads from the last block to the head through modules alone"
    mixing = [e.path for e in way if len({p.print for p in e.inputs}) > 1]
    if mixing:
        return f"the logits come from more than the last resid_post: '{mixing[0]}' reads other tensors too"
    return f"not one module leads from the last resid_post to the head: {', '.join(e.path for e in way)}"
