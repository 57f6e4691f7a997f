"""Rows of weights as ragged lists: the largest few, or all up to the query. Knows arrays, not where they came from."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.capturing import statistics
from probe.capturing.patterns import MASKED, ScoreSource, Tile
from probe.capturing.sinks import Columns, Ragged
from probe.capturing.statistics import NAT
from probe.scoring import largest

PIECE = 2**22  # values handed over together: 16 MB


def top_of(pattern: ScoreSource, tile: Tile, mass: Tensor, total: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A tile's largest weights (head, query, k), best first, and their keys; fewer if there are fewer keys.

    mass (head, query, key) / total (head, query) are the weights.
    """
    values, keys = (statistics.compiled_largest if pattern.compiled else largest)(mass.flatten(0, 1), k)
    shape = (*total.shape, values.shape[-1])
    return values.view(shape) / total.unsqueeze(-1), keys.view(shape) + tile.low


def top_columns(heads: list[int], weights: Tensor, keys: Tensor, *, first: int) -> Columns:
    """Columns of `attention` from weights and keys (head, query, k) of rows from `first` on; weights of 0 are left out."""
    kept = weights > 0
    offsets = _offsets(kept.sum(-1).flatten().cpu().numpy())
    values = Ragged(_float32(weights[kept]), offsets)
    return {
        **_row_keys(heads, first, first + weights.shape[1]),
        "keys": Ragged(keys[kept].to(torch.int32).cpu().numpy(), offsets),
        "weights": values, "kept_mass": _float32(weights.sum(-1).flatten()),
    }  # fmt: skip


class TopRows:
    """The k largest weights of every row of a layer, best first: `weights` and `keys` (head, query, k), 0 past the last."""

    def __init__(self, pattern: ScoreSource, k: int) -> None:
        shape = pattern.n_heads, pattern.n - pattern.first, min(k, pattern.n)
        self._pattern = pattern
        self.weights = torch.zeros(shape, dtype=pattern.dtype, device=pattern.device)
        self.keys = torch.zeros(shape, dtype=torch.int32, device=pattern.device)

    def add(self, tile: Tile, mass: Tensor, total: Tensor) -> None:
        weights, keys = top_of(self._pattern, tile, mass, total, self.weights.shape[-1])
        rows = slice(tile.start - self._pattern.first, tile.end - self._pattern.first)
        where = slice(tile.head, tile.head + tile.n_heads), rows, slice(0, keys.shape[-1])
        self.weights[where], self.keys[where] = weights, keys.to(torch.int32)

    def kept(self, *, without: list[int]) -> tuple[list[int], Tensor, Tensor]:
        """The heads but for those whose full rows are kept, their weights and keys."""
        heads = [h for h in range(len(self.weights)) if h not in without]
        return (heads, self.weights[heads], self.keys[heads]) if without else (heads, self.weights, self.keys)


class Rows(NamedTuple):
    """Whole rows of a tile: columns of one value a row, the length of each, and their values one after another.

    A length is up to the query, or all keys.
    """

    columns: Columns
    lengths: np.ndarray
    values: np.ndarray


class Filling(NamedTuple):
    """Tensors that nobody writes into any more, and what fills rows in once the CPU has them."""

    tensors: tuple[Tensor, ...]
    fill: Callable[..., None]


def whole_weights(tile: Tile, mass: Tensor, total: Tensor, rows: Rows, *, by_loops: bool) -> Filling:
    """How the weights mass (head, query, key) / total (head, query) of a tile's heads are filled in. On a CPU it uses
    up the mass."""

    def fill(weights: Tensor, kept: Tensor) -> None:
        rows.columns["kept_mass"] = _float32(kept)
        _cut(tile, rows, 0.0, weights)

    if by_loops:
        rows.columns["kept_mass"] = statistics.compiled_cut(mass, total, tile.low, rows.lengths, rows.values)
        return Filling((), lambda: None)
    # on a device the next tile takes the mass's memory before these weights have come from there
    weights = mass.div_(total.unsqueeze(-1)) if mass.device.type == "cpu" else mass / total.unsqueeze(-1)
    return Filling((weights, weights.sum(-1).flatten()), fill)


def whole_scores(tile: Tile, scores: Tensor, rows: Rows) -> Filling:
    """How scores, given in bits (head, query, key), are filled in, in nats; -inf where a mask hides the key."""
    nats = (scores * NAT).masked_fill_(scores <= MASKED / 2, -torch.inf)
    return Filling((nats,), partial(_cut, tile, rows, -np.inf))


def _cut(tile: Tile, rows: Rows, empty: float, values: Tensor) -> None:
    """Fill in values (head, query, key); `empty` for keys that no query of the tile sees."""
    found, ends = _float32(values), rows.lengths[: tile.end - tile.start].tolist()
    missing = max(0, max(ends) - tile.high)
    if tile.low or missing:
        found = np.pad(found, ((0, 0), (0, 0), (tile.low, missing)), constant_values=empty)
    cut = [row[:end] for head in found for row, end in zip(head, ends, strict=True)]
    np.concatenate(cut, out=rows.values)


class PieceMemory:
    """Memory for pieces. What nobody looks at any more is taken again: new pages cost as much as filling them."""

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=4)

    def take(self, size: int) -> np.ndarray:
        """At least `size` float32, of any value. It is free again when the array and all views of it are gone."""
        held: Any = self._free.pop() if self._free else np.empty(0, np.float32)
        if len(held) < size:
            held = np.empty(size, np.float32)
        lent = np.frombuffer(memoryview(held).cast("B"), np.float32)  # of the array itself, views would look at `held`
        weakref.finalize(lent, self._free.append, held).atexit = False
        return lent


class RowPieces:
    """Whole rows of one prompt and layer, which lie in one memory until they are many, and then are handed over."""

    def __init__(
        self, pattern: ScoreSource, heads: list[int], hand_over: Callable[[Columns], None], *,
        name: Literal["weights", "scores"], memory: PieceMemory,
    ) -> None:  # fmt: skip
        """heads: whose rows are kept."""
        self._pattern, self._heads, self._hand_over, self._name = pattern, heads, hand_over, name
        queries, n = pattern.n - pattern.first, pattern.n
        self._left = len(heads) * (queries * (pattern.first + n + 1) // 2 if pattern.causal else queries * n)
        self._supply, self._memory, self._used = memory, np.empty(0, np.float32), 0
        self._held: list[Rows] = []

    def room(self, tile: Tile) -> Rows | None:
        """Where the next tile's rows belong, still empty; None if none of its heads is kept."""
        heads, n = [h for h in self._heads if tile.head <= h < tile.head + tile.n_heads], tile.end - tile.start
        if not heads:
            return None
        lengths = np.arange(tile.start + 1, tile.end + 1) if self._pattern.causal else np.full(n, self._pattern.n)
        size = len(heads) * int(lengths.sum())
        if self._used + size > len(self._memory):
            self._memory, self._used = self._supply.take(max(size, min(PIECE, self._left))), 0
        values = self._memory[self._used : self._used + size]
        self._used, self._left = self._used + size, self._left - size
        return Rows(_row_keys(heads, tile.start, tile.end), np.tile(lengths, len(heads)), values)

    def add(self, rows: Rows | None) -> None:
        """The next rows, filled in."""
        if rows is not None:
            if self._held and rows.values.base is not self._held[0].values.base:
                self.flush()
            self._held.append(rows)

    def flush(self) -> None:
        """Hand over what there is."""
        held, self._held = self._held, []
        if not held:
            return
        columns: Columns = {name: np.concatenate([rows.columns[name] for rows in held]) for name in held[0].columns}
        if self._name == "weights":
            columns["keys"] = None
        offsets, memory = _offsets(np.concatenate([rows.lengths for rows in held])), held[0].values.base
        assert memory is not None, "rows lie in a piece's memory"
        columns[self._name] = Ragged(memory[: offsets[-1]], offsets)
        self._hand_over(columns)


def _row_keys(heads: list[int], start: int, end: int) -> Columns:
    query = np.arange(start, end, dtype=np.int32)
    return {"head": np.repeat(np.asarray(heads, np.int16), end - start), "query": np.tile(query, len(heads))}


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _float32(values: Tensor) -> np.ndarray:
    return values.to(torch.float32).cpu().numpy()
