"""Rows of one layer's attention scores, in tiles: from an attention call or from given weights. Knows no statistics.

Scores are in bits (base-2 logarithms, so that weights are 2^score up to a row's sum), masked ones are `MASKED`. They are
float32 whatever the model's dtype (float64 stays), like the softmax of transformers' own attention functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from probe import kernels
from probe.capturing.masks import Masks, of_prompt
from probe.instrument import AttentionCall

BITS = 1.4426950408889634  # bits in a nat
MASKED = -1e30  # finite, because 0 * -inf is not 0
ROWS, ELEMENTS = 512, 2**19  # a tile's rows when there are many keys, and its weights when there are few: fits a cache
LARGEST = 2**22  # weights of a tile: of more than 8,192 keys it has fewer rows
TOGETHER = 6  # heads of a tile that share their keys, at most


class Tile(NamedTuple):
    """Heads [head, head + n_heads) of queries [start, end) looking at keys [low, high)."""

    head: int
    n_heads: int
    start: int
    end: int
    low: int
    high: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(head, query, key)."""
        return self.n_heads, self.end - self.start, self.high - self.low


class ScoreSource(Protocol):
    """What gives scores: those of queries [first, n) of one prompt in one layer."""

    n: int
    first: int
    n_heads: int
    groups: int
    normalized: bool  # the weights are 2^score as they are
    dtype: torch.dtype  # of the scores
    device: torch.device
    causal: bool
    compiled: bool  # its rows go through compiled loops

    def keys(self, start: int, end: int) -> tuple[int, int]:
        """[low, high) of the keys that any of these queries may see."""

    def scores(self, tile: Tile, out: Tensor) -> Tensor:
        """Scores (head, query, key) in bits, written into `out`, which has room for them."""

    def later(self, start: int, end: int) -> bool:
        """Whether keys after their query, in rows [start, end), have scores that are left for compiled loops to hide."""

    def sinks(self, tile: Tile) -> Tensor | None:
        """Scores (head, query or 1) in bits of the extra column that takes weight and is no key."""


def tiles(pattern: ScoreSource, *, single: bool = False) -> Iterator[Tile]:
    """The tiles of a layer, by head, long rows first. `single`: one head at a time unless all its queries fit, in order."""
    n, queries, group = pattern.n, pattern.n - pattern.first, pattern.groups
    heads = 1 if single else max(size for size in range(1, TOGETHER + 1) if group % size == 0)
    rows = min(queries, max(32, min(ROWS, LARGEST // n) // heads // 32 * 32))
    if queries <= rows:
        heads = max(1, ELEMENTS // (queries * n) // group) * group
    for head in range(0, pattern.n_heads, heads):
        starts = range(pattern.first, n, rows)
        for start in starts if single else reversed(starts):  # the last one, which all wait for, is a short one
            end = min(n, start + rows)
            yield Tile(head, min(heads, pattern.n_heads - head), start, end, *pattern.keys(start, end))


class CalledPattern:
    """The scores of one prompt of an attention call, recomputed from its queries and keys."""

    normalized = False

    def __init__(self, call: AttentionCall, prompt: int, n: int, masks: Masks, *, first: int = 0) -> None:
        """n: tokens of the prompt without padding, up to the last of this call. masks: those of this forward. first: the
        position of its first query; its keys end where its queries do."""
        self.n, self.first, self.n_heads = n, first, call.query.shape[1]
        self._origin = n - call.key.shape[2] if first else 0  # of the first key: a window's cache has lost earlier ones
        self.groups = self.n_heads // call.key.shape[1]
        self.dtype = torch.float64 if call.query.dtype == torch.float64 else torch.float32
        self.device = call.query.device
        self.compiled = self.dtype == torch.float32 and kernels.worth(n, self.device)
        query = call.query[prompt, :, : n - first].to(self.dtype)
        self._key = call.key[prompt, :, : n - self._origin].to(self.dtype).contiguous().transpose(1, 2)
        self._cap = call.softcap
        self._query = query * (call.scaling / self._cap if self._cap else call.scaling * BITS)
        causal = call.is_causal and call.query.shape[2] > 1
        self.mask = masks.of(
            call.mask, prompt, n, causal=causal, window=call.sliding_window, device=self.device, first=first,
            origin=self._origin,
        )  # fmt: skip
        self.causal = self.mask.causal
        shape = n - first, n - self._origin
        self.bias = None if call.position_bias is None else of_prompt(call.position_bias, prompt, *shape)
        self._sinks = None if call.sinks is None else _column(call.sinks.to(self.dtype), prompt, self.n_heads) * BITS

    def keys(self, start: int, end: int) -> tuple[int, int]:
        """See `ScoreSource`."""
        return self.mask.view(start, end)[:2]

    def scores(self, tile: Tile, out: Tensor) -> Tensor:
        """See `ScoreSource`."""
        head, n_heads, start, end, low, high = tile
        query = self._query[head : head + n_heads, start - self.first : end - self.first]
        shared, last = head // self.groups, (head + n_heads - 1) // self.groups + 1
        key = self._key[shared:last, :, low - self._origin : high - self._origin]
        if len(key) == 1:
            key = key.expand(n_heads, -1, -1)
        else:  # heads that share keys as rows of one matrix
            query = query.reshape(len(key), -1, query.shape[-1])
        scores = out[: math.prod(tile.shape)].view(tile.shape)
        torch.bmm(query, key, out=scores.view(len(query), -1, high - low))
        if self._cap:
            scores.tanh_().mul_(self._cap * BITS)
        self._add_masks(scores, tile)
        return scores

    def _add_masks(self, scores: Tensor, tile: Tile) -> None:
        head, n_heads, start, end, low, high = tile
        for bias in (self.bias, self.mask.additive):
            if bias is not None:
                here = self.mask.part(bias[head : head + n_heads] if bias.shape[0] > 1 else bias, start, end, low, high)
                scores.add_(here.to(scores.dtype) * BITS).clamp_(min=MASKED)
        hidden = None if self.later(start, end) else self.mask.hidden(start, end)
        if hidden is not None:
            own = hidden[head : head + n_heads] if hidden.ndim == 3 and hidden.shape[0] > 1 else hidden
            scores[..., high - low - own.shape[-1] :].masked_fill_(own.to(scores.device), MASKED)

    def later(self, start: int, end: int) -> bool:
        """See `ScoreSource`."""
        return self.compiled and self.mask.view(start, end).kind == "causal"

    def values(self, call: AttentionCall, prompt: int, low: int, high: int) -> Tensor:
        """The call's values (kv head, key, d_value) at keys [low, high)."""
        return call.value[prompt, :, low - self._origin : high - self._origin]

    @property
    def sink_scores(self) -> Tensor | None:
        """Scores (head, query or 1) in nats of what takes weight and is no key."""
        return None if self._sinks is None else self._sinks / BITS

    def sinks(self, tile: Tile) -> Tensor | None:
        """See `ScoreSource`."""
        if self._sinks is None:
            return None
        here = self._sinks[tile.head : tile.head + tile.n_heads]
        return here if here.shape[1] == 1 else here[:, tile.start - self.first : tile.end - self.first]


class GivenPattern:
    """The scores of weights (head, query, key) that the model itself returned: their logarithms."""

    normalized, groups, first = True, 1, 0

    def __init__(self, weights: Tensor, *, causal: bool) -> None:
        self._weights, self.n_heads, self.n, self.causal = weights, weights.shape[0], weights.shape[1], causal
        self.dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
        self.device = weights.device
        self.compiled = self.dtype == torch.float32 and kernels.worth(self.n, self.device)

    def keys(self, start: int, end: int) -> tuple[int, int]:
        """See `ScoreSource`."""
        return 0, end if self.causal else self.n

    def scores(self, tile: Tile, out: Tensor) -> Tensor:
        """See `ScoreSource`."""
        head, n_heads, start, end, low, high = tile
        weights = self._weights[head : head + n_heads, start:end, low:high].to(out.dtype)
        scores = out[: weights.numel()].view(weights.shape)
        return torch.log2(weights, out=scores).clamp_(min=MASKED)

    def later(self, start: int, end: int) -> bool:
        """See `ScoreSource`."""
        return False

    def sinks(self, tile: Tile) -> Tensor | None:
        """See `ScoreSource`."""
        return None


def _column(sinks: Tensor, prompt: int, n_heads: int) -> Tensor:
    """(head,) or (batch or 1, head, query or 1, 1) -> (head, query or 1)."""
    if sinks.ndim == 4:
        return sinks[prompt if sinks.shape[0] > 1 else 0, :, :, 0]
    return sinks.reshape(n_heads, 1)
