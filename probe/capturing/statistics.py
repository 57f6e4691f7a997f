"""What rows of attention amount to: entropy, effective keys, sink, previous, duplicate, induction, distance.

With w the weights of query i (they sum to less than 1 where a model has attention sinks): entropy -sum w ln w,
perplexity exp(entropy), ess 1 / sum w^2, sink w[0], prev w[i-1], distance sum w (i - j). duplicate: mass on earlier
positions that hold the query's own token; induction: mass on positions up to i whose predecessor holds it; both are 0 in
a row without such a position (Elhage et al. 2021; Olsson et al. 2022, 2209.11895).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probe.capturing.patterns import SAFE, Block, Source

NAMES = ("entropy", "perplexity", "ess", "sink", "prev", "duplicate", "induction", "distance")
NAT = 0.6931471805599453  # nats in a bit
DENSE = 1 / 8  # share of a block from which a mask is smaller than a list of its places


class _Places(NamedTuple):
    """Matches of a block: a mask (query, key from 0), or places in the flat (query, key) block and the queries they are of."""

    mask: Tensor | None
    flat: Tensor
    query: Tensor


class Matches:
    """Which earlier positions hold a query's token (duplicate) or follow it (induction), in the ids of one prompt."""

    def __init__(self, ids: Tensor) -> None:
        """ids (pos,)."""
        self._ids = ids
        self._before = torch.cat([ids.new_full((1,), -1), ids[:-1]])  # the token before each position
        self._found: dict[tuple[str, int, int, int], _Places] = {}
        self.rows = {name: torch.zeros(len(ids), dtype=torch.bool) for name in ("duplicate", "induction")}

    def add(self, name: str, mass: Tensor, block: Block, out: Tensor) -> None:
        """Add the mass (head, query, key) of the block's matches to out (head, pos)."""
        where = name, block.start, block.low, block.high  # the same for every layer and head
        if where not in self._found:
            self._found[where] = self._find(name, block)
        mask, flat, query = self._found[where]
        if mask is not None:
            out[:, block.start : block.end] += (mass * mask).sum(-1)
        elif len(flat):
            out.index_add_(1, query, mass.flatten(1).index_select(1, flat))

    def _find(self, name: str, block: Block) -> _Places:
        rows = torch.arange(block.start, block.end, device=self._ids.device)
        keys = torch.arange(block.high, device=self._ids.device)
        held = self._ids[: block.high] if name == "duplicate" else self._before[: block.high]
        latest = rows if name == "duplicate" else rows + 1
        mask = (self._ids[rows, None] == held) & (keys < latest[:, None])
        self.rows[name][block.start : block.end] = mask.any(-1).cpu()
        mask = mask[:, block.low :]
        query, key = mask.nonzero(as_tuple=True)
        dense = len(query) > DENSE * mask.numel()
        return _Places(mask if dense else None, query * mask.shape[1] + key, query + block.start)


class Lines:
    """One line a row of one prompt and layer. `add` takes a block's scores; what divides and logs waits until all are there."""

    def __init__(self, source: Source, matches: Matches) -> None:
        """Room for the sums of every row (head, pos): of mass (`total` with sinks, `kept` without), its moments and parts."""
        self._source, self._matches = source, matches
        names = ("total", "kept", "back", "norm", "score", *NAMES[3:7])
        sums = torch.zeros(len(names), source.n_heads, source.n, dtype=source.dtype, device=source.device)
        self.sums = dict(zip(names, sums, strict=True))
        self._after = sums.new_zeros(source.n)  # how far each row is from its block's first
        self._distances = torch.arange(source.n, -source.n, -1, dtype=source.dtype, device=source.device)

    def add(self, block: Block, scores: Tensor, room: Tensor) -> Tensor:
        """Weights of a block times their row's `total`, in `room`; uses up the scores in bits (head, query, key)."""
        source, (head, n_heads, start, end, low, high) = self._source, block
        sums = {name: values[head : head + n_heads, start:end] for name, values in self.sums.items()}
        sinks = source.sinks(block)
        if not (source.safe or source.normalized):
            sinks = _shift(scores, sinks)
        mass = torch.exp2(scores, out=room[: scores.numel()].view(scores.shape))
        torch.sum(mass, -1, out=sums["kept"])
        if source.normalized:
            sums["total"].fill_(1.0)
        else:
            sums["total"].copy_(sums["kept"] if sinks is None else sums["kept"] + torch.exp2(sinks))
        torch.linalg.vector_norm(mass, dim=-1, out=sums["norm"])
        # distances from the block's first query: small numbers where the weight is
        sums["back"].copy_(mass @ self._distances[source.n - start + low : source.n - start + high])
        self._after[start:end] = -self._distances[source.n : source.n + end - start]
        if low == 0:
            sums["sink"].copy_(mass[..., 0])
        offset = start - 1 - low
        previous = mass.diagonal(offset, dim1=1, dim2=2)
        first = max(0, -offset)  # the block's rows above it have no previous key
        sums["prev"][:, first : first + previous.shape[1]].copy_(previous)
        for name in ("duplicate", "induction"):
            self._matches.add(name, mass, block, self.sums[name][head : head + n_heads])
        torch.sum(scores.mul_(mass), -1, out=sums["score"])
        return mass

    def statistics(self) -> dict[str, Tensor]:
        """Each of `NAMES` (head, pos), once all blocks are in."""
        sums, total = self.sums, self.sums["total"]
        kept = sums["kept"] / total
        found = {name: sums[name] / total for name in NAMES[3:7]}
        found["distance"] = sums["back"] / total + self._after * kept
        found["ess"] = (total / sums["norm"]).square_()
        found["entropy"] = ((total.log2() * kept - sums["score"] / total) * NAT).clamp_(min=0)
        found["perplexity"] = found["entropy"].exp()
        return found


def _shift(scores: Tensor, sinks: Tensor | None) -> Tensor | None:
    """Make every row's largest score 0, in place, if any needs it; the sinks' scores after the same shift."""
    top = scores.amax(-1, keepdim=True)
    if sinks is not None:
        top = torch.maximum(top, sinks.unsqueeze(-1))
    if float(top.abs().max()) < SAFE:
        return sinks
    scores.sub_(top)
    return None if sinks is None else sinks - top.squeeze(-1)
