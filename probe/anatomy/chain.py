"""Finds chains of blocks: siblings in which each one's output is the next one's input; knows no sums."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from probe.anatomy.tape import Event, Port, Tape


class Block(NamedTuple):
    """One call of one block: the stream enters at `before` and leaves at `after`."""

    event: Event
    before: Port
    after: Port


def find_chains(model: nn.Module, recorded: Tape) -> list[tuple[Block, ...]]:
    """Chains of blocks, each in order of computation; those that hold more weights come first.

    Links are calls of modules that stand in one list, or that are siblings of one class. A chain of one counts only
    where no longer one is there: then it is the only module of its list.
    """
    chains = _chains(recorded, lambda port: is_stream(port, recorded.n_tokens))
    longer = [c for c in chains if len(c) > 1] or [c for c in chains if _is_alone(model, c[0].event)]
    return sorted(longer, key=_weights, reverse=True)


def why_no_chain(recorded: Tape) -> str:
    """What was found instead of a chain that hands on (1, pos, d_model)."""
    others = [c for c in _chains(recorded, lambda port: len(port.shape) in {3, 4} and port.shape[-1] > 1) if len(c) > 1]
    best = max(others, key=_weights, default=None)
    if best is None or not _weights(best)[0]:
        return "no chain of sibling modules hands a (batch, pos, d_model) stream from one to the next"
    where, shape = best[0].event.path.rpartition(".")[0], best[0].before.shape
    streams = [n for n in shape[:-1] if n not in {1, recorded.n_tokens}]
    described = f"'{where}' hands on tensors of shape {shape} for {recorded.n_tokens} tokens"
    if len(shape) == 4 and len(streams) == 1:
        return f"there are {streams[0]} residual streams, not one: {described}"
    return f"{described}, not (batch, pos, d_model)"


def elsewhere(chains: Sequence[tuple[Block, ...]], chosen: tuple[Block, ...]) -> str:
    """The other chains of blocks that run outside the chosen one; "" if there are none."""
    owners = {block.event.path for block in chosen}
    calls: Counter[str] = Counter()
    for chain in chains:
        for block in chain if chain is not chosen and len(chain) > 1 else ():
            if not any(block.event.path.startswith(f"{owner}.") for owner in owners):
                calls[block.event.path.rpartition(".")[0]] += 1
    described = ", ".join(f"'{where}' ({n} calls)" for where, n in calls.items())
    return f"other blocks run outside this stream: {described}" if described else ""


def _chains(recorded: Tape, may_be: Callable[[Port], bool]) -> list[tuple[Block, ...]]:
    """All chains of siblings whose first link is given a tensor that may be a stream."""
    siblings: dict[str, list[Event]] = defaultdict(list)
    for event in recorded.events:
        parent, _, name = event.path.rpartition(".")
        siblings[parent if name.isdigit() else f"{parent}:{type(event.module).__name__}"].append(event)
    return [chain for events in siblings.values() for chain in _runs(events, may_be)]


def _runs(events: list[Event], may_be: Callable[[Port], bool]) -> list[tuple[Block, ...]]:
    """Maximal runs of consecutive calls in which the stream goes on."""
    chains: list[tuple[Block, ...]] = []
    current: list[Block] = []
    for event in events:
        before = next((p for p in event.inputs if current and p.fingerprint == current[-1].after.fingerprint), None)
        if before is None:
            chains.append(tuple(current))
            current = []
            before = next((p for p in event.inputs if may_be(p)), None)
        after = next((p for p in event.outputs if before is not None and p.shape == before.shape), None)
        if before is None or after is None:
            chains.append(tuple(current))
            current = []
        else:
            current.append(Block(event, before, after))
    chains.append(tuple(current))
    return [c for c in chains if c]


def is_stream(port: Port, n_tokens: int) -> bool:
    """(1, pos, d), or (1, pos, streams, d)."""
    return len(port.shape) in {3, 4} and port.shape[:2] == (1, n_tokens) and port.shape[-1] > 1


def _weights(chain: tuple[Block, ...]) -> tuple[int, int]:
    modules = {id(b.event.module): b.event.module for b in chain}.values()
    return sum(p.numel() for m in modules for p in m.parameters()), len(chain)


def _is_alone(model: nn.Module, event: Event) -> bool:
    parent, _, name = event.path.rpartition(".")
    return name == "0" and len(list(model.get_submodule(parent).children())) == 1
