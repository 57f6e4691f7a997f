"""What a block of attention rows amounts to: entropy, effective keys, sink, previous, duplicate, induction, distance.

With w the weights of query i (they sum to less than 1 where a model has attention sinks): entropy -sum w ln w,
perplexity exp(entropy), ess 1 / sum w^2, sink w[0], prev w[i-1], distance sum w (i - j) (Elhage et al. 2021; Olsson et al. 2022,
2209.11895). duplicate: mass on earlier positions with the query's own token. induction: mass on positions up to i whose predecessor
holds it. Both are 0 in a row without such a position.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probe.capturing.patterns import SAFE, Block, Source

NAMES = ("entropy", "perplexity", "ess", "sink", "prev", "duplicate", "induction", "distance")
NAT = 0.6931471805599453  # nats in a bit
DENSE = 1 / 8  # share of a block from which a mask is smaller than a list of its places


class Matches:
    """Which earlier positions hold a query's token (duplicate) or follow it (induction), for the ids of one prompt."""

    def __init__(self, ids: Tensor) -> None:
        """ids (pos,)."""
        self._ids = ids
        self._before = torch.cat([ids.new_full((1,), -1), ids[:-1]])  # the token before each position
        self._found: dict[tuple[str, int, int], _Places] = {}
        self.rows = {name: torch.zeros(len(ids), dtype=torch.bool) for name in ("duplicate", "induction")}

    def mass(self, name: str, weights: Tensor, block: Block) -> Tensor:
        """Weights (head, query, key) summed over the block's matches: (head, query)."""
        places = self._places(name, block)
        if places.mask is not None:
            return (weights * places.mask[:, block.low :]).sum(-1)
        total = weights.new_zeros(weights.shape[:2])
        if len(places.rows):
            flat = places.rows * weights.shape[2] + places.keys - block.low
            total.index_add_(1, places.rows, weights.flatten(1)[:, flat])
        return total

    def _places(self, name: str, block: Block) -> _Places:
        """The same for every layer and head, unless windows hide some of the keys."""
        where = name, block.start, block.low
        if where not in self._found:
            self._found[where] = self._find(name, block)
        return self._found[where]

    def _find(self, name: str, block: Block) -> _Places:
        rows = torch.arange(block.start, block.end, device=self._ids.device)
        keys = torch.arange(block.high, device=self._ids.device)
        held = self._ids[: block.high] if name == "duplicate" else self._before[: block.high]
        latest = rows if name == "duplicate" else rows + 1
        mask = (self._ids[rows, None] == held) & (keys < latest[:, None])
        self.rows[name][block.start : block.end] = mask.any(-1).cpu()
        mask[:, : block.low] = False
        if int(mask.sum()) > DENSE * mask.numel():
            return _Places(mask, rows, keys)
        return _Places(None, *mask.nonzero(as_tuple=True))


class _Places(NamedTuple):
    """A mask (query, key from 0), or the matching rows (counted from the block's start) and keys."""

    mask: Tensor | None
    rows: Tensor
    keys: Tensor


class Weighed(NamedTuple):
    """A block's statistics, each (head, query), and its weights `mass / total` (head, query, key); `kept` is the sum of mass over keys."""

    statistics: dict[str, Tensor]
    mass: Tensor
    kept: Tensor
    total: Tensor


def weigh(source: Source, block: Block, scores: Tensor, mass: Tensor, matches: Matches) -> Weighed:
    """Statistics of a block from its scores in bits (head, query, key); `scores` is used up, `mass` is a flat buffer."""
    sinks = source.sinks(block)
    if not (source.safe or source.normalized):
        sinks = _shift(scores, sinks)
    mass = torch.exp2(scores, out=mass[: scores.numel()].view(scores.shape))
    total = kept = mass.sum(-1)
    if source.normalized:
        total = torch.ones_like(kept)
    elif sinks is not None:
        total = kept + torch.exp2(sinks)
    _, rows, _ = block.shape
    query = torch.arange(rows, device=mass.device, dtype=mass.dtype)
    back = torch.arange(block.start - block.low, block.start - block.high, -1, device=mass.device, dtype=mass.dtype)
    distance = mass @ back + query * kept  # from the block's first query: small numbers where the weight is
    square = torch.linalg.vector_norm(mass, dim=-1).square_()
    found = {
        "sink": mass[..., 0] / total if block.low == 0 else torch.zeros_like(total),
        "prev": _previous(mass, block) / total,
        "duplicate": matches.mass("duplicate", mass, block) / total,
        "induction": matches.mass("induction", mass, block) / total,
        "distance": distance / total,
        "ess": total.square() / square,
    }
    surprise = total.log2() * kept - scores.mul_(mass).sum(-1)
    found["entropy"] = (surprise / total * NAT).clamp_(min=0)
    found["perplexity"] = found["entropy"].exp()
    return Weighed(found, mass, kept, total)


def _shift(scores: Tensor, sinks: Tensor | None) -> Tensor | None:
    """Make every row's largest score 0, in place, if any needs it; the sinks' scores after the same shift."""
    top = scores.amax(-1, keepdim=True)
    if sinks is not None:
        top = torch.maximum(top, sinks.unsqueeze(-1))
    if float(top.abs().max()) < SAFE:
        return sinks
    scores.sub_(top)
    return None if sinks is None else sinks - top.squeeze(-1)


def _previous(mass: Tensor, block: Block) -> Tensor:
    """The weight of each query on the position before it; 0 where there is none among the block's keys."""
    offset = block.start - 1 - block.low
    line = mass.diagonal(offset, dim1=1, dim2=2)
    missing = max(0, -offset)  # rows at the top whose previous key is not there
    return torch.nn.functional.pad(line, (missing, mass.shape[1] - missing - line.shape[-1]))
