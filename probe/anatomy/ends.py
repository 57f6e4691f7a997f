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
from probe.anatomy.tape import Event, Tape
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
    """logits = readout(head(final_norm(last resid_post))), each link an equality of tensors, all of it replayed."""
    absent: dict[str, str] = {}
    embed = _embed(recorded, blocks)
    head, readout = _head(model, recorded)
    if head is None:
        absent["head"] = "no module's output is the logits, scaled or capped"
        absent["final_norm"] = absent["head"]
        return Ends(embed, None, None, Readout(), False, math.inf, absent)
    norm = _final_norm(recorded, blocks, head)
    if norm is None:
        last = blocks[-1].after.print if blocks else None
        direct = any(p.print == last for p in head.inputs)
        absent["final_norm"] = (
            "the head reads the last resid_post as it is"
            if direct
            else "no one module leads from resid_post to the head"
        )
    error = _replay(model, recorded, blocks, norm, head, readout)
    exact = error <= tolerance(recorded.logits.dtype) * 10
    return Ends(embed, norm, head.path, readout, exact, error, absent)


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


def _head(model: nn.Module, recorded: Tape) -> tuple[Event | None, Readout]:
    """The innermost latest module whose output is the logits up to a scale and a cap."""
    logits = recorded.logits
    n = logits.numel()
    for event in reversed(recorded.events):
        if not event.path or not is_leaf(event.module):
            continue
        for port in event.outputs:
            value = recorded.values.get(port.print)
            if value is not None and value.numel() == n:
                readout = _fitted(value.reshape(logits.shape), logits, _config_numbers(model))
                if readout is not None:
                    return event, readout
    return None, Readout()


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


def _final_norm(recorded: Tape, blocks: tuple[Block, ...], head: Event) -> Tap | None:
    """The module that takes the last resid_post and gives what the head reads."""
    if not blocks or not head.inputs:
        return None
    last, read = blocks[-1].after.print, head.inputs[0].print
    for event in recorded.events:
        if event.path and any(p.print == last for p in event.inputs) and any(p.print == read for p in event.outputs):
            return next(p.tap for p in event.outputs if p.print == read)
    return None


def _replay(
    model: nn.Module, recorded: Tape, blocks: tuple[Block, ...], norm: Tap | None, head: Event, readout: Readout
) -> float:
    """Error of logits computed anew from the last resid_post, by calling those modules alone."""
    if not blocks:
        return math.inf
    x = recorded.values[blocks[-1].after.print]
    if norm is None and head.inputs[0].print != blocks[-1].after.print:
        return math.inf
    with torch.no_grad():
        if norm is not None:
            x = model.get_submodule(norm.path)(x)
        raw = head.module(x)
    return misfit(recorded.logits, apply_readout(readout, raw).reshape(recorded.logits.shape))
