"""Rows of weights as ragged lists: the largest few, or all up to the query. Knows arrays, not where they came from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from probe.capturing.patterns import MASKED, Block
from probe.capturing.sinks import Columns, Ragged
from probe.capturing.statistics import NAT
from probe.scoring import largest


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


def full_columns(block: Block, mass: Tensor, total: Tensor, heads: list[int], *, n: int | None) -> Columns:
    """Columns of `attention` for some heads of a block: a weight for every key up to the query (of n keys, if given).

    mass (head, query, key) / total (head, query) are the weights; mass is used up.
    """
    mass.div_(total.unsqueeze(-1))
    own = mass if len(heads) == block.n_heads else mass[[head - block.head for head in heads]]
    return {
        **_row_keys(heads, block.start, block.end), "keys": None,
        "weights": _cut(_float32(own), block, 0.0, n=n), "kept_mass": _float32(own.sum(-1).flatten()),
    }  # fmt: skip


def score_columns(block: Block, scores: Tensor, heads: list[int], *, n: int | None) -> Columns:
    """Columns of `scores` for some heads of a block, in nats; -inf where a mask hides the key."""
    own = scores[[head - block.head for head in heads]]
    nats = (own * NAT).masked_fill_(own <= MASKED / 2, -torch.inf)
    return {**_row_keys(heads, block.start, block.end), "scores": _cut(_float32(nats), block, -np.inf, n=n)}


def joined(pieces: list[Columns]) -> Columns:
    """Several pieces as one, in their order."""
    if len(pieces) == 1:
        return pieces[0]
    out: Columns = {}
    for name, first in pieces[0].items():
        parts = [piece[name] for piece in pieces]
        if first is None:
            out[name] = None
        elif isinstance(first, Ragged):
            lengths = np.concatenate([np.diff(part.offsets) for part in parts])
            out[name] = Ragged(np.concatenate([part.values for part in parts]), _offsets(lengths))
        else:
            out[name] = np.concatenate(parts)
    return out


def _cut(rows: np.ndarray, block: Block, empty: float, *, n: int | None) -> Ragged:
    """(head, query, key) -> lists that start at key 0 and end at the query, or after n keys if n is given."""
    n_heads, n_rows, _ = rows.shape
    lengths = np.arange(block.start + 1, block.end + 1) if n is None else np.full(n_rows, n)
    missing = max(0, int(lengths.max()) - block.high)
    if block.low or missing:
        rows = np.pad(rows, ((0, 0), (0, 0), (block.low, missing)), constant_values=empty)
    values = np.concatenate([row[:length] for head in rows for row, length in zip(head, lengths, strict=True)])
    return Ragged(values, _offsets(np.tile(lengths, n_heads)))


def _row_keys(heads: list[int], start: int, end: int) -> Columns:
    query = np.arange(start, end, dtype=np.int32)
    return {"head": np.repeat(np.asarray(heads, np.int16), end - start), "query": np.tile(query, len(heads))}


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _float32(values: Tensor) -> np.ndarray:
    return values.to(torch.float32).cpu().numpy()
