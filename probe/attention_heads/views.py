"""What an attention call had, one text and layer at a time, as it is handed to each view of its heads. Knows no table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from probe.capturing.masks import Mask, of_prompt, seen_by

if TYPE_CHECKING:
    from probe.capturing.patterns import CalledPattern
    from probe.instrument import AttentionCall
    from probe.texts import TokenSequence

Rows = tuple[str, dict[str, Any]]
"""A table and its columns, but for `prompt_id`, `branch` and `layer`, which whoever writes it adds where they are missing."""


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """One text's attention in one layer. The tensors are parts of the forward's own: not to be kept, not to be written into.

    query (head, pos, d_head), key (kv head, pos, d_head), value (kv head, pos, d_value), after rotation and norms; kv head i
    is that of heads [i * groups, (i + 1) * groups). output (pos, head, d_value): what each head gave, before W_O. bias
    (head or 1, pos, pos): what is added to scores, beside the mask. sinks (head, pos or 1): scores, in nats, of what takes
    weight and is no key.
    """

    sequence: TokenSequence
    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scaling: float
    softcap: float | None
    bias: tuple[Tensor, ...]
    sinks: Tensor | None
    mask: Mask

    @classmethod
    def of(
        cls, sequence: TokenSequence, prompt: int, layer: int, call: AttentionCall, output: Tensor, pattern: CalledPattern
    ) -> LayerAttention:
        """What a `CallReader` is given of one row of the batch, without its padding; half precision becomes float32."""
        n, kind = pattern.n, pattern.dtype
        bias = (None if call.position_bias is None else of_prompt(call.position_bias, prompt, n), pattern.mask.additive)
        query, key, value = (x[prompt, :, :n].to(kind) for x in (call.query, call.key, call.value))
        return cls(
            sequence, layer, query, key, value, output[prompt, :n].to(kind), call.scaling, call.softcap,
            tuple(one for one in bias if one is not None), pattern.sink_scores, pattern.mask,
        )  # fmt: skip

    @property
    def n(self) -> int:
        """Positions."""
        return self.query.shape[1]

    @property
    def n_heads(self) -> int:
        return self.query.shape[0]

    @property
    def groups(self) -> int:
        """Heads that share a key and value."""
        return self.n_heads // self.key.shape[0]

    def per_head(self, x: Tensor) -> Tensor:
        """(kv head, …) -> (head, …)."""
        return x.repeat_interleave(self.groups, dim=0) if self.groups > 1 else x

    def seen(self, rows: Tensor) -> Tensor:
        """The keys that queries see: rows (row,) -> (head or 1, row, key) bool."""
        return seen_by(self.mask, rows).to(self.query.device)

    def products(self, rows: Tensor) -> Tensor:
        """scaling * q.k, before a cap, a bias and the mask: (head, row, key), in nats."""
        query = (self.query[:, rows] * self.scaling).reshape(len(self.key), -1, self.query.shape[-1])
        return (query @ self.key.transpose(1, 2)).view(self.n_heads, len(rows), self.n)

    def scores(self, products: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
        """The log-weights, up to a row's constant, of such products: capped, with the bias, -inf where nothing is seen."""
        scores = self.softcap * torch.tanh(products / self.softcap) if self.softcap else products
        for bias in self.bias:
            scores = scores + bias[:, rows].to(scores)
        return scores.masked_fill(~seen, -torch.inf)

    def weights(self, scores: Tensor, rows: Tensor) -> Tensor:
        """The weights (head, row, key) of scores; their sum is below 1 where sinks take some; 0 where nothing is seen."""
        top = scores.amax(-1, keepdim=True)
        if self.sinks is not None:
            sinks = (self.sinks if self.sinks.shape[1] == 1 else self.sinks[:, rows]).unsqueeze(-1)
            top = torch.maximum(top, sinks)
        mass = (scores - top.clamp_min(torch.finfo(scores.dtype).min)).exp()
        total = mass.sum(-1, keepdim=True)
        if self.sinks is not None:
            total = total + (sinks - top).exp()
        return mass / total.clamp_min(torch.finfo(scores.dtype).tiny)

    def read(self, weights: Tensor) -> Tensor:
        """What heads give with weights (head, row, key): (head, row, d_value)."""
        own = weights.reshape(len(self.value), -1, self.n) @ self.value
        return own.view(self.n_heads, -1, own.shape[-1])


class HeadView(Protocol):
    """Something asked of each head, beside its summary. One a run; it never holds more than one layer of one text."""

    def read(self, attention: LayerAttention) -> Iterable[Rows]:
        """The rows of one text and layer."""

    def finished(self) -> Iterable[Rows]:
        """The rows of what was gathered over all texts, once they are read."""

    def notes(self) -> Iterable[str]:
        """What a reader of these rows must know."""
