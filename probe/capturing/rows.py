"""Rows of weights as ragged lists: the largest few, or all up to the query. Knows arrays, not where they came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.capturing.patterns import MASKED, Block, Source
from probe.capturing.sinks import Columns, Ragged
from probe.capturing.statistics import NAT
from probe.scoring import largest

PIECE = 2**20  # values handed over together, about: 4 MB


def top_of(block: Block, mass: Tensor, total: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A block's largest weights (head, query, k), best first, and their keys; fewer if there are fewer keys.

    mass (head, query, key) / total (head, query) are the weights.
    """
    values, keys = largest(mass.flatten(0, 1), k)
    shape = (*total.shape, values.shape[-1])
    return values.view(shape) / total.unsqueeze(-1), keys.view(shape) + block.low


def top_columns(heads: list[int], weights: Tensor, keys: Tensor) -> Columns:
    """Columns of `attention` from weights and keys (head, query, k) of all rows; weights of 0 are left out."""
    kept = weights > 0
    offsets = _offsets(kept.sum(-1).flatten().cpu().numpy())
    values = Ragged(_float32(weights[kept]), offsets)
    return {
        **_row_keys(heads, 0, weights.shape[1]),
        "keys": Ragged(keys[kept].to(torch.int32).cpu().numpy(), offsets),
        "weights": values, "kept_mass": _float32(weights.sum(-1).flatten()),
    }  # fmt: skip


class Rows(NamedTuple):
    """Whole rows of a block: columns of one value a row, the length of each, and their values one after another."""

    columns: Columns
    lengths: np.ndarray
    values: np.ndarray


def whole_weights(source: Source, block: Block, mass: Tensor, total: Tensor, heads: list[int]) -> Rows:
    """The weights mass (head, query, key) / total (head, query) of a block's `heads`. Uses up the mass."""
    weights = mass.div_(total.unsqueeze(-1))
    rows = _cut(source, block, weights, heads, empty=0.0)
    return rows._replace(columns={**rows.columns, "kept_mass": _float32(weights.sum(-1).flatten())})


def whole_scores(source: Source, block: Block, scores: Tensor, heads: list[int]) -> Rows:
    """Scores in bits (head, query, key) of a block's `heads` in nats, -inf where a mask hides the key."""
    return _cut(source, block, (scores * NAT).masked_fill_(scores <= MASKED / 2, -torch.inf), heads, empty=-np.inf)


def _cut(source: Source, block: Block, values: Tensor, heads: list[int], *, empty: float) -> Rows:
    """A value for every key up to its query, or for all keys; `empty` for those no query of the block sees."""
    rows = _float32(values)
    lengths = np.arange(block.start + 1, block.end + 1) if source.causal else np.full(rows.shape[1], source.n)
    missing = max(0, int(lengths.max()) - block.high)
    if block.low or missing:
        rows = np.pad(rows, ((0, 0), (0, 0), (block.low, missing)), constant_values=empty)
    ends = lengths.tolist()
    cut = [row[:end] for head in rows for row, end in zip(head, ends, strict=True)]
    return Rows(_row_keys(heads, block.start, block.end), np.tile(lengths, len(heads)), np.concatenate(cut))


class Pieces:
    """Whole rows of one prompt and layer, gathered until they are many, and then handed over."""

    def __init__(self, hand_over: Callable[[Columns], None], *, name: Literal["weights", "scores"]) -> None:
        self._hand_over, self._name = hand_over, name
        self._held: list[Rows] = []

    def add(self, rows: Rows | None) -> None:
        """The next rows of the layer, if there are any."""
        if rows is not None:
            self._held.append(rows)
            if sum(len(held.values) for held in self._held) >= PIECE:
                self.flush()

    def flush(self) -> None:
        """Hand over what there is."""
        held, self._held = self._held, []
        if not held:
            return
        columns: Columns = {name: np.concatenate([rows.columns[name] for rows in held]) for name in held[0].columns}
        values = held[0].values if len(held) == 1 else np.concatenate([rows.values for rows in held])
        if self._name == "weights":
            columns["keys"] = None
        columns[self._name] = Ragged(values, _offsets(np.concatenate([rows.lengths for rows in held])))
        self._hand_over(columns)


def _row_keys(heads: list[int], start: int, end: int) -> Columns:
    query = np.arange(start, end, dtype=np.int32)
    return {"head": np.repeat(np.asarray(heads, np.int16), end - start), "query": np.tile(query, len(heads))}


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _float32(values: Tensor) -> np.ndarray:
    return values.to(torch.float32).cpu().numpy()
