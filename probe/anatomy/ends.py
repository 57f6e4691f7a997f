"""Where the stream begins and ends: embedding, final norm, head, and what is between the head and the logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy.chain import Block
from probe.anatomy.inside import is_leaf
from probe.anatomy.mixing import values_at
from probe.anatomy.parts import LOGITS, Readout
from probe.anatomy.sums import loudest, misfit, tolerance
from probe.anatomy.tape import Event, Fingerprint, Port, Tape

LOUD = 20.0  # no cap leaves logits of this size as they are


class Ends(NamedTuple):
    """The two ends of the stream; `error` is that of logits against the replayed readout."""

    ports: dict[str, Port]  # by site
    head: str | None
    readout: Readout
    exact: bool
    error: float
    absent: dict[str, str]
    masked: tuple[tuple[int, int], ...] = ()


def find_ends(model: nn.Module, ids: Tensor, recorded: Tape, blocks: tuple[Block, ...]) -> Ends:
    """logits = readout(head(final_norm(last resid_post))), replayed by calling those modules alone.

    The head is the innermost module with which that holds; it may be a whole part, such as a dense layer before the
    unembedding."""
    embed = _embed(recorded, blocks)
    ports = {"embed": embed} if embed else {}
    numbers = _config_numbers(model)
    heads = _heads(recorded, numbers)
    if not heads:
        why = "no module's output is the logits, scaled or capped"
        return Ends(ports, None, Readout(), False, math.inf, {"head": why, "final_norm": why})
    if not blocks:
        why = "there is no resid_post that it could read"
        return Ends(ports, heads[0].path, Readout(), False, math.inf, {"final_norm": why})
    last = blocks[-1].after.fingerprint
    for head in heads:
        for norm in _norms(recorded, last, head):
            raw = _replay(model, recorded.values[last], norm, head)
            if raw is None or raw.numel() != recorded.logits.numel():
                continue
            hidden = _hidden_like(raw.reshape(recorded.logits.shape), recorded.logits)
            readout = _scaled(hidden, recorded.logits, _cap(model, ids, recorded, head, numbers), numbers)
            if readout is not None:
                masked = _ranges(hidden.isneginf() & ~raw.reshape(hidden.shape).isneginf())
                error = _error(readout, hidden, recorded.logits)
                absent = {} if norm else {"final_norm": "the head reads the last resid_post as it is"}
                ports |= {"final_norm": norm} if norm else {}
                return Ends(ports, head.path, readout, True, error, absent, masked)
    return Ends(ports, heads[0].path, Readout(), False, math.inf, {"final_norm": _why_not(recorded, last, heads[0])})


def _embed(recorded: Tape, blocks: tuple[Block, ...]) -> Port | None:
    """The module output that enters the first block; where there is none, the block's input itself."""
    if not blocks:
        return None
    first = blocks[0]
    givers = [
        e for e in recorded.events[: first.event.seq] if any(p.fingerprint == first.before.fingerprint for p in e.outputs)
    ]
    givers = [e for e in givers if not any(e.path.startswith(f"{b.event.path}.") for b in blocks)]
    for event in givers:
        return next(p for p in event.outputs if p.fingerprint == first.before.fingerprint)
    return first.before


def _heads(recorded: Tape, numbers: list[float]) -> list[Event]:
    """The modules whose output is the logits up to a scale and a cap: leaves first (the latest first), then whole parts."""
    logits = recorded.logits
    found: list[Event] = []
    tried: dict[int, bool] = {}
    for event in sorted(recorded.events, key=lambda e: (0, -e.seq) if is_leaf(e.module) else (1, e.seq)):
        for port in event.outputs:
            value = recorded.values.get(port.fingerprint)
            if event.path and event.inputs and value is not None and value.numel() == logits.numel():
                if port.fingerprint not in tried:
                    shaped = _hidden_like(value.reshape(logits.shape), logits)
                    tried[port.fingerprint] = _fitted(shaped, logits, numbers) is not None
                if tried[port.fingerprint]:
                    found.append(event)
    return found


def _hidden_like(raw: Tensor, logits: Tensor) -> Tensor:
    """What a head gives, with -inf at the ids that the logits rule out at every position: padding of the vocabulary."""
    return raw.masked_fill(logits.isneginf().flatten(0, -2).all(0), -torch.inf)


def _ranges(hidden: Tensor) -> tuple[tuple[int, int], ...]:
    """Runs of ids, [first, last + 1), that hold at every position of (1, pos, d_vocab) bool."""
    every = torch.nn.functional.pad(hidden.flatten(0, -2).all(0).int(), (1, 1))
    starts, ends = (found.nonzero()[:, 0].tolist() for found in (every.diff() == 1, every.diff() == -1))
    return tuple(zip(starts, ends, strict=True))


def apply_readout(readout: Readout, raw: Tensor) -> Tensor:
    """Head output -> logits."""
    scaled = raw * readout.scale if readout.scale != 1.0 else raw
    return scaled if readout.cap is None else readout.cap * torch.tanh(scaled / readout.cap)


def _fitted(raw: Tensor, logits: Tensor, numbers: list[float]) -> Readout | None:
    """logits = cap * tanh(scale * raw / cap): the cap is one of the config's numbers, the scale too or by least squares.

    A cap must pay: small logits look uncapped too, but fit less well."""
    caps = [cap for cap in numbers if float(loudest(logits)) < cap]
    plain, *capped = (_scaled(raw, logits, cap, numbers) for cap in (None, *caps))
    best = min((r for r in capped if r is not None), key=lambda r: _error(r, raw, logits), default=plain)
    if plain is None or best is None:
        return best
    return plain if _error(plain, raw, logits) <= 2 * _error(best, raw, logits) else best


def _scaled(raw: Tensor, logits: Tensor, cap: float | None, numbers: list[float]) -> Readout | None:
    """The readout with that cap, at the plainest scale that is about as good as any: 1, a number, a fitted one."""
    x, wanted = raw.double().reshape(logits.shape), logits.double()
    there = ~(x.isneginf() & wanted.isneginf())
    linear = wanted if cap is None else cap * torch.atanh((wanted / cap).clamp(-0.999999, 0.999999))
    scale = float((x * linear)[there].sum() / (x * x)[there].sum().clamp_min(1e-30))
    near = [c for c in (1.0, *numbers, *(1 / n for n in numbers), scale) if abs(c - scale) <= 1e-2 * abs(scale)]
    found = [Readout(c, cap) for c in near]
    errors = [_error(readout, raw, logits) for readout in found]
    least = min(errors, default=math.inf)
    if least > tolerance(logits.dtype):
        return None
    return next(readout for readout, error in zip(found, errors, strict=True) if error <= 2 * least)


def _error(readout: Readout, raw: Tensor, logits: Tensor) -> float:
    return misfit(logits, apply_readout(readout, raw.double()).reshape(logits.shape))


def _cap(model: nn.Module, ids: Tensor, recorded: Tape, head: Event, numbers: list[float]) -> float | None:
    """The cap, as the model shows it when the head's input is so large that the logits reach LOUD."""
    given, n = head.inputs[0].tap, recorded.logits.numel()
    raw = next(p.tap for p in head.outputs if math.prod(p.shape) == n)
    louder = LOUD / loudest(recorded.logits)
    loud = values_at(model, ids, [raw, LOGITS], edits={given: lambda x: x * louder.to(x)})
    found = _fitted(_hidden_like(loud[raw].reshape(loud[LOGITS].shape), loud[LOGITS]), loud[LOGITS], numbers)
    return found.cap if found else None


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


def _norms(recorded: Tape, last: Fingerprint, head: Event) -> Iterator[Port | None]:
    """What may stand between the last resid_post and the head: nothing, or a module whose output the head reads, scaled
    or as it is."""
    read = head.inputs[0].fingerprint
    if read == last:
        yield None
    for event in recorded.events:
        if event.path and any(p.fingerprint == last for p in event.inputs):
            for port in event.outputs:
                if port.fingerprint == read or _is_multiple(recorded, port.fingerprint, read):
                    yield port


def _is_multiple(recorded: Tape, one: Fingerprint, other: Fingerprint) -> bool:
    x, y = recorded.values.get(one), recorded.values.get(other)
    if x is None or y is None or x.shape != y.shape:
        return False
    scale = float((x.double() * y.double()).sum() / x.double().pow(2).sum().clamp_min(1e-30))
    return scale > 0 and misfit(y, scale * x.double()) <= tolerance(y.dtype)


def _replay(model: nn.Module, resid: Tensor, norm: Port | None, head: Event) -> Tensor | None:
    """What the head gives for the last resid_post when those modules alone are called; None if they can't be."""
    try:
        with torch.no_grad():
            found = head.module(resid if norm is None else model.get_submodule(norm.tap.path)(resid))
    except (TypeError, AttributeError, ValueError, LookupError, RuntimeError):
        return None  # a part that wants more than the stream is neither norm nor head
    return found.to(resid.device) if isinstance(found, Tensor) else None


def _why_not(recorded: Tape, last: Fingerprint, head: Event) -> str:
    """What leads from the last resid_post to the head, if not one module."""
    ways: dict[Fingerprint, list[Event]] = {last: []}
    waiting = [last]
    while waiting:
        fingerprint = waiting.pop(0)
        for event in recorded.events:
            if event.path and any(p.fingerprint == fingerprint for p in event.inputs):
                for port in event.outputs:
                    if port.fingerprint not in ways:
                        ways[port.fingerprint] = [*ways[fingerprint], event]
                        waiting.append(port.fingerprint)
    way = ways.get(head.inputs[0].fingerprint)
    if not way:
        cast = next((e.path for e in recorded.events if e.path and any(_reads_cast(recorded, p, e) for p in ways)), None)
        if cast is not None:
            return f"what the last resid_post becomes is cast to another precision before '{cast}' reads it"
        return "nothing leads from the last block to the head through modules alone"
    mixing = [e.path for e in way if len({p.fingerprint for p in e.inputs}) > 1]
    if mixing:
        return f"the logits come from more than the last resid_post: '{mixing[0]}' reads other tensors too"
    return f"not one module leads from the last resid_post to the head: {', '.join(e.path for e in way)}"


def _reads_cast(recorded: Tape, fingerprint: Fingerprint, event: Event) -> bool:
    """Whether the event is given that tensor in another precision."""
    whole = recorded.values.get(fingerprint)
    given = (recorded.values.get(port.fingerprint) for port in event.inputs)
    return whole is not None and any(
        x is not None and x.dtype != whole.dtype and x.shape == whole.shape and torch.equal(x, whole.to(x.dtype)) for x in given
    )
