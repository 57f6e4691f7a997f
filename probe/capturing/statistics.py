"""What rows of attention amount to: entropy, effective keys, sink, previous, duplicate, induction, distance.

With w the weights of query i (they sum to less than 1 where a model has attention sinks): entropy -sum w ln w,
perplexity exp(entropy), ess 1 / sum w^2, sink w[0], prev w[i-1], distance sum w (i - j). duplicate: mass on earlier
positions that hold the query's own token; induction: mass on positions up to i whose predecessor holds it; both are 0 in
a row without such a position (Elhage et al. 2021; Olsson et al. 2022, 2209.11895).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.capturing.patterns import ScoreSource, Tile
from probe.capturing.sinks import Columns
from probe.devices import uploaded
from probe.scoring import largest

NAMES = ("entropy", "perplexity", "ess", "sink", "prev", "duplicate", "induction", "distance")
MATCHED = ("duplicate", "induction")
SUMS = ("kept", "rest", "back", "norm", "score", "sink", "prev", "best", *MATCHED)  # of a row's mass: see `RowStatistics`
NAT = 0.6931471805599453  # nats in a bit
SMALL, LARGE = 2.0**-50, 2.0**50  # row sums between which neither a mass, its square nor a long sum leaves float32
DENSE = 1 / 8  # share of a tile from which a mask is smaller than a list of its places
REMEMBERED = 2**27  # bytes of matches that one layer finds for all; beyond, each layer finds its own


class _Places(NamedTuple):
    """Matches of a tile: places in its flat (query, key), how many of them each row has, and masks where they are dense."""

    flat: Tensor  # (head, match)
    counts: Tensor  # (head, MATCHED * query)
    masks: list[tuple[int, Tensor]]  # (which of MATCHED, mask (query, key))

    def to(self, device: torch.device) -> _Places:
        """The same, on a device."""
        masks = [(i, uploaded(mask, device)) for i, mask in self.masks]
        return _Places(uploaded(self.flat, device), uploaded(self.counts, device), masks)

    @property
    def size(self) -> int:
        """Bytes of the matches, which all heads share."""
        return self.flat.element_size() * self.flat.shape[1] + sum(mask.numel() for _, mask in self.masks)


class Earlier(NamedTuple):
    """Where each position's token was before: places[firsts[i] : firsts[i] + counts[i]], ascending. All (pos,) int64."""

    places: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray


def _earlier(ids: np.ndarray) -> Earlier:
    places = ids.argsort(kind="stable")
    sorted_ids, ranks = ids[places], np.empty(len(ids), np.int64)
    ranks[places] = np.arange(len(ids))
    firsts = np.searchsorted(sorted_ids, ids)
    return Earlier(places, firsts, ranks - firsts)


class Matches:
    """Which earlier positions hold a query's token (duplicate) or follow it (induction), in the ids of one prompt."""

    def __init__(self, ids: Tensor) -> None:
        """ids (pos,)."""
        self._ids = ids
        self._before = torch.cat([ids.new_full((1,), -1), ids[:-1]])  # the token before each position
        self._found: dict[tuple[int, int, int, int, torch.device], _Places] = {}
        self._room = REMEMBERED
        self.earlier = _earlier(ids.cpu().numpy())
        again = torch.from_numpy(self.earlier.counts > 0)
        self.rows = dict.fromkeys(MATCHED, again)  # a token seen before also has what followed it

    def add(self, mass: Tensor, tile: Tile, out: Tensor) -> None:
        """Put the mass (head, query, key) of the tile's matches into out (head, MATCHED, query)."""
        where = tile.n_heads, tile.start, tile.low, tile.high, mass.device  # the same for every layer of a device
        if (places := self._found.get(where)) is None:
            places = self._find(tile).to(mass.device)
            if places.size <= self._room:
                self._found[where] = places
                self._room -= places.size
        if places.flat.numel():
            found = mass.flatten(1).gather(1, places.flat)
            out.copy_(torch.segment_reduce(found, "sum", lengths=places.counts, axis=1, unsafe=True).view(out.shape))
        for i, mask in places.masks:
            out[:, i] = (mass * mask).sum(-1)

    def _find(self, tile: Tile) -> _Places:
        rows = torch.arange(tile.start, tile.end, device=self._ids.device)
        keys = torch.arange(tile.low, tile.high, device=self._ids.device)
        flat, counts, masks = [], [], []
        for i, name in enumerate(MATCHED):
            held = self._ids if name == "duplicate" else self._before
            latest = rows if name == "duplicate" else rows + 1
            mask = (self._ids[rows, None] == held[tile.low : tile.high]) & (keys < latest[:, None])
            if dense := int(mask.sum()) > DENSE * mask.numel():
                masks.append((i, mask))
            flat.append(mask.flatten().nonzero()[: 0 if dense else None, 0])
            counts.append(mask.sum(-1) * (not dense))
        return _Places(
            torch.cat(flat).expand(tile.n_heads, -1), torch.cat(counts).repeat(tile.n_heads, 1), masks
        )  # fmt: skip


class RowStatistics:
    """Statistics of each row of one prompt and layer. `add` takes a tile's scores; divisions and logarithms wait for the last.

    Sums of a row's mass: kept by keys, what goes to no key (rest), mass * (query - key) from the tile's first query (back),
    its length as a vector (norm), mass * score, and that of single keys.
    """

    def __init__(self, pattern: ScoreSource, matches: Matches, *, peaks: bool) -> None:
        """Room for the sums of every row (head, pos): of mass, its moments and parts. peaks: the largest weight as well."""
        self._pattern, self._matches = pattern, matches
        shape = pattern.n_heads, pattern.n  # of rows before the first nothing is written or read
        self._sums = torch.empty(len(SUMS), *shape, dtype=pattern.dtype, device=pattern.device)
        self._sums[..., pattern.first :] = 0
        self._peaks = torch.zeros(pattern.n_heads if peaks else 0, pattern.n, dtype=torch.int32, device=pattern.device)
        self._after = self._sums.new_zeros(pattern.n)  # how far each row is from its tile's first
        self._distances = torch.arange(pattern.n, -pattern.n, -1, dtype=pattern.dtype, device=pattern.device)

    def add(self, tile: Tile, scores: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """Mass and total: the weights of a tile (head, query, key), in `room`, are mass / total (head, query).

        The scores in bits (head, query, key) are used up.
        """
        pattern, (head, n_heads, start, end, low, high) = self._pattern, tile
        kept, rest, back, norm, score, sink, prev, best, *_ = sums = self._sums[:, head : head + n_heads, start:end]
        mass = room[: scores.numel()].view(scores.shape)
        total = self._exponentiate(tile, scores, mass, kept, rest)
        torch.linalg.vector_norm(mass, dim=-1, out=norm)
        torch.sum(scores.mul_(mass), -1, out=score)
        # distances from the tile's first query: small numbers where the weight is
        back.copy_(mass @ self._distances[pattern.n - start + low : pattern.n - start + high])
        if not head:
            self._after[start:end] = -self._distances[pattern.n : pattern.n + end - start]
        if low == 0:
            sink.copy_(mass[..., 0])
        offset = start - 1 - low
        previous = mass.diagonal(offset, dim1=1, dim2=2)
        first = max(0, -offset)  # the tile's rows above it have no previous key
        prev[:, first : first + previous.shape[1]].copy_(previous)
        if len(self._peaks):
            values, keys = largest(mass.flatten(0, 1), 1)
            best.copy_(values.view(best.shape))
            self._peaks[head : head + n_heads, start:end] = keys.view(best.shape) + low
        self._matches.add(mass, tile, sums[-len(MATCHED) :].transpose(0, 1))
        return mass, total

    def _exponentiate(self, tile: Tile, scores: Tensor, mass: Tensor, kept: Tensor, rest: Tensor) -> Tensor:
        """mass = 2^scores, its sums and what goes to no key; both together.

        Scores are shifted, row by row, where that would leave the numbers' range; on an accelerator always, which is cheaper
        there than to wait for the answer.
        """
        sinks = self._pattern.sinks(tile)
        if self._pattern.normalized or scores.device.type == "cpu":
            total = self._sum(scores, sinks, mass, kept, rest)
            least, most = total.aminmax()
            if self._pattern.normalized or (float(least) > SMALL and float(most) < LARGE):
                return total
        top = scores.amax(-1, keepdim=True)
        if sinks is not None:
            top = torch.maximum(top, sinks.unsqueeze(-1))
            sinks = sinks - top.squeeze(-1)
        return self._sum(scores.sub_(top), sinks, mass, kept, rest)

    def _sum(self, scores: Tensor, sinks: Tensor | None, mass: Tensor, kept: Tensor, rest: Tensor) -> Tensor:
        torch.sum(torch.exp2(scores, out=mass), -1, out=kept)
        if self._pattern.normalized:
            rest.copy_(1.0 - kept)
        elif sinks is not None:
            rest.copy_(torch.exp2(sinks))
        else:
            return kept
        return kept + rest

    def finished(self) -> dict[str, Tensor]:
        """Each of `NAMES` (head, query), once all tiles are in; with `peaks` max_weight and max_key too."""
        first = self._pattern.first
        sums = dict(zip(SUMS, self._sums[..., first:], strict=True))
        total = sums["kept"] + sums["rest"]
        kept = sums["kept"] / total
        found = {name: sums[name] / total for name in ("sink", "prev", *MATCHED)}
        found["distance"] = sums["back"] / total + self._after[first:] * kept
        found["ess"] = (total / sums["norm"]).square_()
        found["entropy"] = ((total.log2() * kept - sums["score"] / total) * NAT).clamp_(min=0)
        found["perplexity"] = found["entropy"].exp()
        if len(self._peaks):
            found["max_weight"], found["max_key"] = sums["best"] / total, self._peaks[:, first:]
        return found


class SummarySums:
    """A head summary while the rows of one prompt and layer come in: means over queries 1.. (the first has nothing to choose
    from); of duplicate and induction over the queries that have such a position."""

    def __init__(self, n_heads: int) -> None:
        self._sums = {name: torch.zeros(n_heads, dtype=torch.float64) for name in NAMES}
        self._counts = dict.fromkeys(NAMES, 0)
        self._rows = 0

    def add(self, statistics: dict[str, Tensor], matched: dict[str, Tensor], first: int) -> None:
        """Statistics (head, query) of the queries from `first` on; matched (pos,): those that have such a position."""
        skipped = max(0, 1 - first)
        self._rows += statistics["entropy"].shape[1] - skipped
        for name in NAMES:
            chosen = statistics[name].cpu()[:, skipped:]
            if name in matched:
                chosen = chosen[:, matched[name][first + skipped :]]
            self._sums[name] += chosen.sum(-1, dtype=torch.float64)
            self._counts[name] += chosen.shape[-1]

    def columns(self) -> Columns:
        """Columns of `heads`, each (head,). NaN where there is no query to average."""
        means = {name: (self._sums[name] / self._counts[name]).to(torch.float32).numpy() for name in NAMES}
        return {"rows": np.full(len(self._sums["entropy"]), self._rows, np.int32), **means}


def row_columns(statistics: dict[str, Tensor], first: int) -> Columns:
    """Columns of `attention_rows` for one prompt and layer: statistics (head, query) flattened, of queries from `first` on."""
    n_heads, n = statistics["entropy"].shape
    flat: dict[str, Any] = {name: statistics[name].flatten().to(torch.float32).cpu().numpy() for name in (*NAMES, "max_weight")}
    return {
        "head": np.repeat(np.arange(n_heads, dtype=np.int16), n),
        "query": np.tile(np.arange(first, first + n, dtype=np.int32), n_heads),
        **flat, "max_key": statistics["max_key"].flatten().cpu().numpy().astype(np.int32),
    }  # fmt: skip


_NONE = np.zeros((0, 1), np.float32)  # no sinks


class CompiledRowStatistics(RowStatistics):
    """Fills the sums of `RowStatistics` in one pass."""

    def __init__(self, pattern: ScoreSource, matches: Matches, *, peaks: bool) -> None:
        """See `RowStatistics`."""
        super().__init__(pattern, matches, peaks=peaks)
        self._found = self._sums.numpy()  # views of it don't hand the interpreter to another thread, as torch's do

    def add(self, tile: Tile, scores: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """See `RowStatistics.add`; the mass takes the place of the scores, and `room` isn't needed."""
        from probe.kernels import loops

        pattern, (head, n_heads, start, end, low, _) = self._pattern, tile
        sinks = pattern.sinks(tile)
        loops.attention(
            scores.numpy(), _NONE if sinks is None else sinks.contiguous().numpy(), pattern.normalized,
            pattern.later(start, end), head, start, low, *self._matches.earlier, self._found, self._peaks.numpy(),
        )  # fmt: skip
        kept, rest = self._found[:2, head : head + n_heads, start:end]
        return scores, torch.from_numpy(kept + rest)


def compiled_largest(mass: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `probe.scoring.largest`: mass (row, key) -> the largest (row, k) and their keys."""
    from probe.kernels import loops

    k = min(k, mass.shape[1])
    values, keys = torch.empty(len(mass), k), torch.empty(len(mass), k, dtype=torch.int64)
    loops.largest(mass.numpy(), values.numpy(), keys.numpy())
    return values, keys


def compiled_cut(mass: Tensor, total: Tensor, low: int, lengths: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights mass (head, query, key) / total (head, query) of keys from `low` on, put into `values` as whole rows.

    lengths (head * query,). Returns the sum of each row.
    """
    from probe.kernels import loops

    kept = np.empty(total.numel(), np.float32)
    loops.cut(mass.numpy(), total.numpy(), low, lengths, values, kept)
    return kept
