"""The events of one block and how its tensors flow into each other; knows blocks, not which write is what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from probe.anatomy.chain import Block
from probe.anatomy.tape import Attended, Event, Fingerprint, Port, Tape


@dataclass(frozen=True)
class Inside:
    """One block's call: what ran within it, in order."""

    block: Block
    events: tuple[Event, ...]
    attended: tuple[Attended, ...]
    owners: tuple[str, ...]  # paths of all blocks: a module that blocks share goes by the path in its first owner
    tape: Tape

    @property
    def resid_pre(self) -> Tensor:
        return self.tape.values[self.block.before.fingerprint]

    @property
    def resid_post(self) -> Tensor:
        return self.tape.values[self.block.after.fingerprint]

    def value(self, port: Port) -> Tensor:
        """A tensor in the stream's shape."""
        return self.tape.values[port.fingerprint].reshape(self.block.before.shape)

    def relative(self, path: str) -> str:
        """The path within the block: `self_attn.o_proj`."""
        owner = max((o for o in self.owners if path.startswith(f"{o}.") or path == o), key=len, default="")
        return path.removeprefix(owner).removeprefix(".")

    def depth(self, path: str) -> int:
        return self.relative(path).count(".") + bool(self.relative(path))

    def is_like_the_stream(self, port: Port) -> bool:
        """Of the stream's shape, (1, pos, d), or flattened to (pos, d)."""
        return port.shape in {self.block.before.shape, self.block.before.shape[1:]}

    def outputs(self) -> list[Port]:
        """What descendants gave in the stream's shape; of equal ones the outermost, whole parts first, then the earliest.

        In order of computation."""
        chosen: dict[Fingerprint, Port] = {}
        order: dict[Fingerprint, int] = {}
        for event in sorted(self.events, key=lambda e: (self.depth(e.path), is_leaf(e.module), e.seq)):
            for port in event.outputs:
                if self.is_like_the_stream(port):
                    chosen.setdefault(port.fingerprint, port)
                    order.setdefault(port.fingerprint, event.seq)
        for fingerprint in (self.block.before.fingerprint, self.block.after.fingerprint):
            chosen.pop(fingerprint, None)
        return sorted(chosen.values(), key=lambda p: order[p.fingerprint])

    def givers(self, fingerprint: Fingerprint) -> Iterator[Event]:
        """The calls that gave this tensor, outermost first."""
        found = [e for e in self.events if any(p.fingerprint == fingerprint for p in e.outputs)]
        yield from sorted(found, key=lambda e: self.depth(e.path))

    def sources(self, port: Port) -> list[Event]:
        """The calls that a tensor comes from: through leaves (norms, dropouts, linear layers) up to a whole part."""
        found: list[Event] = []
        waiting, seen = [port.fingerprint], {self.block.before.fingerprint}
        while waiting:
            fingerprint = waiting.pop(0)
            if fingerprint in seen:
                continue
            seen.add(fingerprint)
            givers = list(self.givers(fingerprint))
            found += [e for e in givers if e not in found]
            if all(is_leaf(e.module) for e in givers):
                waiting += [p.fingerprint for e in givers for p in e.inputs if self.is_like_the_stream(p)]
        return found

    def contains(self, outer: str, inner: str) -> bool:
        return inner == outer or inner.startswith(f"{outer}.")

    def ancestors(self, path: str) -> list[Event]:
        """The calls that hold the module at `path`, itself included, outermost first."""
        return sorted((e for e in self.events if self.contains(e.path, path) and self.depth(e.path)), key=lambda e: len(e.path))


def is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def is_linear(module: nn.Module) -> bool:
    """A leaf with one matrix, and a bias or none."""
    weight = getattr(module, "weight", None)
    return is_leaf(module) and weight is not None and weight.dim() == 2 and len(list(module.parameters())) <= 2


def insides(blocks: Sequence[Block], recorded: Tape) -> tuple[Inside, ...]:
    """Events between the end of one block and the end of the next, as far as they lie in blocks.

    The blocks may have been visited before the first of these visits: what ran then is left out."""
    owners = tuple(dict.fromkeys(b.event.path for b in blocks))
    ends = [e.seq for e in recorded.events if e.path in owners]
    within = tuple(f"{owner}." for owner in owners)
    found = []
    for block in blocks:
        end = block.event.seq
        start = max((n for n in ends if n < end), default=-1)
        events = tuple(e for e in recorded.events[start + 1 : end] if e.path.startswith(within))
        attended = tuple(a for a in recorded.attended if start < a.seq <= end and a.path.startswith(within))
        found.append(Inside(block, events, attended, owners, recorded))
    return tuple(found)
