"""Rows of weights as ragged lists: the largest few, or all up to the query. Knows arrays, not where they came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from probe.capturing.patterns import MASKED, Block
from probe.capturing.sinks import Columns, Ragged
from probe.capturing.statistics import NAT
from probe.scoring import largest

PIECE = 2**22  # weights handed over together: 16 MB


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


class Pieces:
    """Whole rows of one prompt and layer, gathered in one piece of memory until they fill it, and then handed over."""

    def __init__(
        self, hand_over: Callable[[Columns], None], *, name: Literal["weights", "scores"], n: int | None
    ) -> None:
        """A row has a value for every key up to its query, or for n keys if n is given."""
        self._hand_over, self._name, self._n = hand_over, name, n
        self._empty = 0.0 if name == "weights" else -np.inf  # of keys that no query of a block sees
        self._values = np.empty(0, np.float32)
        self._begin()

    def _begin(self) -> None:
        self._used = 0
        self._lengths: list[np.ndarray] = []
        self._keys: list[Columns] = []

    def add(self, block: Block, values: Tensor, heads: list[int], **columns: np.ndarray) -> None:
        """values (head, query, key) of a block's `heads`; columns: what else is said of each row."""
        rows = _float32(values)
        low, high = block.low, block.high
        queries = np.arange(block.start + 1, block.end + 1)
        lengths = queries if self._n is None else np.full(len(queries), self._n)
        missing = max(0, int(lengths.max()) - high)
        if low or missing:
            rows = np.pad(rows, ((0, 0), (0, 0), (low, missing)), constant_values=self._empty)
        size = int(lengths.sum()) * len(heads)
        if self._used + size > len(self._values):
            self.flush()
            self._values = np.empty(max(PIECE, size), np.float32)
        ends = lengths.tolist()
        cut = [row[:end] for head in rows for row, end in zip(head, ends, strict=True)]
        np.concatenate(cut, out=self._values[self._used : self._used + size])
        self._used += size
        self._lengths.append(np.tile(lengths, len(heads)))
        self._keys.append({**_row_keys(heads, block.start, block.end), **columns})

    def flush(self) -> None:
        """Hand over what there is."""
        if self._keys:
            columns = {name: np.concatenate([keys[name] for keys in self._keys]) for name in self._keys[0]}
            values = Ragged(self._values[: self._used], _offsets(np.concatenate(self._lengths)))
            self._hand_over({**columns, **({"keys": None} if self._name == "weights" else {}), self._name: values})
        self._values = np.empty(0, np.float32)  # the sink's now
        self._begin()


def kept_masses(weights: Tensor) -> np.ndarray:
    """(head, query, key) -> what each row holds, (head * query,)."""
    return _float32(weights.sum(-1).flatten())


def nats(scores: Tensor) -> Tensor:
    """Scores in bits -> in nats; -inf where a mask hides the key."""
    return (scores * NAT).masked_fill_(scores <= MASKED / 2, -torch.inf)


def _row_keys(heads: list[int], start: int, end: int) -> Columns:
    query = np.arange(start, end, dtype=np.int32)
    return {"head": np.repeat(np.asarray(heads, np.int16), end - start), "query": np.tile(query, len(heads))}


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _float32(values: Tensor) -> np.ndarray:
    return values.to(torch.float32).cpu().numpy()
