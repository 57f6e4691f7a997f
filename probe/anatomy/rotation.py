"""Queries and keys before their rotation: which values of a module's output they are, tried on the model; knows no formula of
a rotation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy.inside import Inside
from probe.anatomy.mixing import values_at
from probe.anatomy.sums import tolerance
from probe.anatomy.tape import Attended, Event, Port
from probe.anatomy.units import Entries
from probe.instrument import AttentionCall

DIGITS = 32  # base in which a value's number is written: as many numbers as any precision keeps apart
MAX_CANDIDATES = 12
ROUNDING = 0.25  # of a digit


class Picked(NamedTuple):
    """A tensor, and which of its values are the site's."""

    port: Port
    entries: Entries


class Carrier(NamedTuple):
    """Path of the module within the block, which of its outputs, its values, and whether they are rotated after it."""

    path: str
    key: int | str
    entries: Entries
    rotates: bool


Tried = dict[str, Carrier | str]
"""By "query" and "key"."""

Called = dict[str, Tensor]
"""By "query" and "key": (pos, head, d_head) of one attention call."""


def unrotated(
    inside: Inside, attended: Attended, which: str, model: nn.Module, ids: Tensor, known: dict[tuple[str, ...], Tried]
) -> Picked | str:
    """The module output that becomes the call's queries (or keys) by a rotation alone, or why there is none.

    A rotation leaves position 0 as it is and keeps every length. So numbers are put in the place of an output, which
    number a value at position 0 of the call shows is the value it came from, and lengths must be kept at all positions.
    One factor for all values is allowed. The latest output is taken that is rotated after it; where nothing is rotated,
    the latest that is the call's queries. Layers are built alike: one is tried, the others are checked on their numbers.
    """
    events = list(_candidates(inside, attended))
    key = (inside.relative(attended.path), *(f"{inside.relative(e.path)} {[p.shape for p in e.outputs]}" for e in events))
    if key not in known:
        known[key] = _try(inside, attended, events, model, ids)
    found = known[key][which]
    if isinstance(found, str):
        return found
    given, heads = (attended.query, attended.n_heads) if which == "query" else (attended.key, attended.n_kv_heads)
    called = inside.tape.values[given].reshape(inside.tape.n_tokens, heads, attended.d_head)
    for event in events:
        for port in event.outputs:
            if inside.relative(event.path) == found.path and port.tap.key == found.key:
                value = inside.tape.values[port.fingerprint].reshape(port.shape)  # equal numbers may stand in another shape
                vectors = _by_position(value, found.entries.axis)[:, found.entries.numbers(attended.d_head, value.device)]
                if rotation_error(vectors, called) <= 5 * tolerance(called.dtype):
                    return Picked(port, found.entries)
    return "what its modules give doesn't become them by a rotation here"


def rotation_error(before: Tensor, after: Tensor) -> float:
    """By how much `after` (pos, head, d) is not a rotation of `before` times one number: position 0 must be the same, and
    every vector as long. Relative to the root mean square of `after`."""
    one, other = before.double(), after.double().to(before.device)
    size = other.pow(2).mean().sqrt().clamp_min(1e-30)
    factor = other.norm() / one.norm().clamp_min(1e-30)
    here = (factor * one[0] - other[0]).abs().max()
    lengths = (factor * one.norm(dim=-1) - other.norm(dim=-1)).abs().max() / math.sqrt(one.shape[-1])
    return float(torch.maximum(here, lengths) / size)


def _candidates(inside: Inside, attended: Attended) -> Iterator[Event]:
    """What ran within the attention module before its call, the latest first."""
    before = [e for e in inside.events if e.seq < attended.seq and inside.contains(attended.path, e.path)]
    few = [e for e in before if any(_axis(p, inside.tape.n_tokens) for p in e.outputs)]
    yield from reversed(few[-MAX_CANDIDATES:])


def _axis(port: Port, n_tokens: int) -> int:
    """Of the positions, of (1, pos, …), (pos, …) or (1, head, pos, d); 0 where there is none."""
    shape = port.shape
    if shape[0] == n_tokens or (len(shape) > 2 and shape[:2] == (1, n_tokens)):
        return 1
    return 2 if len(shape) == 4 and shape[0] == 1 and shape[2] == n_tokens else 0


def _by_position(value: Tensor, axis: int) -> Tensor:
    """(pos, all values there)."""
    flat = value.movedim(2, 1) if axis == 2 else value
    return flat.flatten(0, 1).flatten(1) if value.shape[0] == 1 else flat.flatten(1)


def _try(inside: Inside, attended: Attended, events: Sequence[Event], model: nn.Module, ids: Tensor) -> Tried:
    why = "no module's output becomes them by a rotation: they are put together from several, scaled, or normed after it"
    found: Tried = {"query": why, "key": why}
    for event in events:
        for port in event.outputs:
            axis = _axis(port, inside.tape.n_tokens)
            wanted = [which for which, one in found.items() if isinstance(one, str) or not one.rotates]
            if not axis or not wanted:
                continue
            for which, (entries, rotates) in _carried(model, ids, attended, port, axis, wanted).items():
                if rotates or (isinstance(found[which], str) and not _is_late(inside, port, axis, model, ids)):
                    found[which] = Carrier(inside.relative(event.path), port.tap.key, entries, rotates)
    return found


def _is_late(inside: Inside, port: Port, axis: int, model: nn.Module, ids: Tensor) -> bool:
    """Whether an output knows its position: of a block that is given the same vector at each, it is not the same at each."""

    def level(value: Tensor) -> Tensor:
        return value[:, :1].expand_as(value).clone()

    seen = values_at(model, ids, [port.tap], edits={inside.block.before.tap: level})[port.tap]
    rows = _by_position(seen, axis).double()
    return float((rows - rows[0]).abs().max()) > 1e-3 * float(rows.abs().max())


def _carried(
    model: nn.Module, ids: Tensor, attended: Attended, port: Port, axis: int, wanted: Sequence[str]
) -> dict[str, tuple[Entries, bool]]:
    """Which values of the output are the call's, and whether they are rotated; only of those that it becomes alone."""
    n = math.prod(port.shape) // ids.shape[1]
    ones = torch.ones(n, dtype=torch.float64)
    one, two = (_called(model, ids, attended, port, axis, factor * ones) for factor in (1.0, 2.0))
    factors = {which: one[which][0] for which in wanted if _is_constant(one[which][0], two[which][0] - one[which][0])}
    if not factors:
        return {}
    found: dict[str, tuple[Entries, bool]] = {}
    codes = [torch.arange(n) // DIGITS**i % DIGITS + 1.0 for i in range(max(1, math.ceil(math.log(n, DIGITS))))]
    seen = [_called(model, ids, attended, port, axis, code.double()) for code in codes]
    for which, factor in factors.items():
        digits = [each[which][0] / factor - 1 for each in seen]
        index = sum(digit.round().long() * DIGITS**i for i, digit in enumerate(digits))
        off = max(float((digit - digit.round()).abs().max()) for digit in digits)
        assert isinstance(index, Tensor)
        entries = _entries(index, n, axis) if off <= ROUNDING else None
        room = 64 * tolerance(model.dtype)  # type: ignore[arg-type]
        if entries is not None and all(
            rotation_error(code[index].expand_as(each[which]), each[which]) <= room
            for code, each in zip(codes, seen, strict=True)
        ):
            moved = max(float((each[which] - each[which][0]).abs().max()) for each in seen)
            found[which] = entries, moved > ROUNDING * float(factor.mean())
    return found


def _is_constant(factor: Tensor, slope: Tensor) -> bool:
    """Whether twice the input gives twice the output, and all values have one factor."""
    room = 0.02 * float(factor.abs().max())
    same = float((factor - factor.mean()).abs().max()) <= room and float((factor - slope).abs().max()) <= room
    return same and float(factor.mean()) > 0


def _called(model: nn.Module, ids: Tensor, attended: Attended, port: Port, axis: int, row: Tensor) -> Called:
    """The call's queries and keys when the output is `row` (n,) at every position."""
    seen: Called = {}

    def put(value: Tensor) -> Tensor:
        first = value.movedim(2, 1) if axis == 2 else value
        new = row.to(first).expand(ids.shape[1], -1).reshape(first.shape)
        return new.movedim(1, 2) if axis == 2 else new

    def keep(path: str, call: AttentionCall, output: Tensor) -> None:
        if (path, call.visit) == (attended.path, attended.visit):
            seen["query"], seen["key"] = (x.detach()[0].transpose(0, 1).double().cpu() for x in (call.query, call.key))

    values_at(model, ids, [], edits={port.tap: put}, observer=keep)
    return seen


def _entries(index: Tensor, n: int, axis: int) -> Entries | None:
    """index (head, d) as a start for each head and one order for all; None where it is not of that form, or not one to one."""
    inside = bool((index >= 0).all()) and bool((index < n).all())
    if not inside or len(index.unique()) < index.numel():
        return None
    starts = index.min(dim=1).values
    order = index - starts[:, None]
    if not bool((order == order[0]).all()):
        return None
    plain = bool((order[0] == torch.arange(index.shape[1])).all())
    return Entries(tuple(starts.tolist()), () if plain else tuple(order[0].tolist()), axis)
