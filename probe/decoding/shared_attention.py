"""Attention of each row to a prefix that it shares with others and to what is its own, in one softmax. Knows no rooms' rules.

The scores of all rows of a prefix are one product of matrices; they and the scores of a row's own tokens go through one softmax
(Juravsky et al. 2024, "Hydragen", 2402.05099). So a prefix takes the memory of one row and is read once a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from probe.decoding.caches import FilledLayer
from probe.decoding.rooms import Room, filled


class SharedPrefix(NamedTuple):
    """A prefix of some rows: its cache, and its keys and values (kv head, pos, d) of each layer."""

    cache: Any
    length: int
    layers: list[tuple[Tensor, Tensor]]


class Layout(NamedTuple):
    """Which rows belong to which group, for one step: `order` has them side by side, `back` is its inverse."""

    order: Tensor
    back: Tensor
    spans: list[tuple[int, int, SharedPrefix]]  # rows of the order
    longest: int
    hidden: list[Tensor]  # (row, 1, 1, column) of each cohort: a column of its room that is not the row's own
    widest: int


class SharedLayer(FilledLayer):
    """What the model is given as a layer: it holds nothing itself and hands each cohort its rows."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(keys[:0, :, :0], values[:0, :, :0])
        self.number = 0  # which it is of those that hold anything
        self.layout: Layout | None = None
        self.spans: list[tuple[int, int, Room]] = []
        self.seen: Tensor | None = None  # the keys of the step under way
        self.own: list[tuple[int, int, Tensor, Tensor]] = []  # rows of each cohort, its keys and values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one more token of every row. What comes back only names it: `sharing` knows what there is to see."""
        self.seen = key_states
        self.own = [
            (start, end, *filled(cohort.cache)[self.number].update(key_states[start:end], value_states[start:end]))
            for start, end, cohort in self.spans
        ]
        return key_states, value_states


def attend(query: Tensor, scaling: float, layer: SharedLayer, layout: Layout) -> Tensor:
    """Output (row, 1, head, d_value) of one query a row: softmax over its prefix and its own tokens."""
    rows, heads, _, d = query.shape
    kv_heads, n = layer.keys.shape[1], layout.longest
    query = query.reshape(rows, kv_heads, -1, d) * scaling
    repeats = query.shape[2]
    scores = query.new_full((rows, kv_heads, repeats, n + layout.widest), -torch.inf)
    scores[..., :n] = _to_prefixes(query, layer.number, layout)
    for (start, end, keys, _), hidden in zip(layer.own, layout.hidden, strict=True):
        near = query[start:end] @ keys.transpose(-1, -2)
        scores[start:end, ..., n : n + keys.shape[2]] = near.masked_fill_(hidden, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    output = _from_prefixes(weights[..., :n], layer.number, layout)
    for start, end, _, values in layer.own:
        output[start:end] += weights[start:end, ..., n : n + values.shape[2]] @ values
    return output.reshape(rows, 1, heads, -1)


def _to_prefixes(query: Tensor, number: int, layout: Layout) -> Tensor:
    """Scores (row, kv head, query of it, pos) of each row and its prefix; -inf after the end of it."""
    rows, kv_heads, repeats, _ = query.shape
    together = _by_head(query[layout.order])
    found = query.new_full((kv_heads, rows * repeats, layout.longest), -torch.inf)
    for start, end, group in layout.spans:
        keys, _ = group.layers[number]
        some = slice(start * repeats, end * repeats)
        found[:, some, : group.length] = together[:, some] @ keys.transpose(-1, -2)
    return _by_row(found, rows)[layout.back]


def _from_prefixes(weights: Tensor, number: int, layout: Layout) -> Tensor:
    """What the weights (row, kv head, query of it, pos) take from the values of each row's prefix."""
    rows, _, repeats, _ = weights.shape
    together, parts = _by_head(weights[layout.order]), []
    for start, end, group in layout.spans:
        _, values = group.layers[number]
        parts.append(together[:, start * repeats : end * repeats, : group.length] @ values)
    return _by_row(torch.cat(parts, dim=1), rows)[layout.back]


def _by_head(rows: Tensor) -> Tensor:
    """(row, kv head, query of it, n) -> (kv head, row and query, n)."""
    return rows.transpose(0, 1).flatten(1, 2)


def _by_row(heads: Tensor, rows: int) -> Tensor:
    """And back."""
    return heads.unflatten(1, (rows, -1)).transpose(0, 1)
