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


FLOOR = -80.0  # nats: e^-80 is nothing beside 1; where exp has no normal float32 left, it takes a hundred times as long


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
        bias = (None if call.position_bias is None else of_prompt(call.position_bias, prompt, n, n), pattern.mask.additive)
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

    def at(self, rows: Tensor) -> AttentionRows:
        """Some rows (row,) of its pattern."""
        low, high, _ = self.mask.view(int(rows.min()), int(rows.max()) + 1)
        return AttentionRows(self, rows, slice(low, high), self.seen(rows)[..., low:high])


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """Queries at positions `rows` (row,), and the range of keys outside of which none of them sees any.

    seen (head or 1, row, key) bool: which keys of the range each query sees.
    """

    attention: LayerAttention
    rows: Tensor
    keys: slice
    seen: Tensor

    def products(self) -> Tensor:
        """scaling * q.k, before a cap, a bias and the mask: (head, row, key), in nats."""
        own = self.attention
        query = (own.query[:, self.rows] * own.scaling).reshape(len(own.key), -1, own.query.shape[-1])
        return (query @ own.key[:, self.keys].transpose(1, 2)).view(own.n_heads, len(self.rows), -1)

    def scores(self, products: Tensor) -> Tensor:
        """The log-weights, up to a row's constant, of such products: capped, with the bias, -inf where nothing is seen."""
        cap = self.attention.softcap
        scores = cap * torch.tanh(products / cap) if cap else products
        for bias in self.attention.bias:
            scores = scores + bias[:, self.rows, self.keys].to(scores)
        return scores + hidden(self.seen, scores.dtype)

    def weights(self, scores: Tensor) -> Tensor:
        """The weights (head, row, key) of scores; their sum is below 1 where sinks take some; 0 where nothing is seen."""
        top, sinks = largest(scores), self.attention.sinks
        if sinks is not None:
            sinks = (sinks if sinks.shape[1] == 1 else sinks[:, self.rows]).unsqueeze(-1)
            top = torch.maximum(top, sinks)
        mass = masses(scores - top).mul_(self.seen.to(scores.dtype))
        total = mass.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + (sinks - top).exp()
        return mass.div_(total.clamp_min(torch.finfo(scores.dtype).tiny))

    def read(self, weights: Tensor) -> Tensor:
        """What heads give with weights (head, row, key): (head, row, d_value)."""
        value = self.attention.value[:, self.keys]
        own = weights.reshape(len(value), -1, value.shape[1]) @ value
        return own.view(self.attention.n_heads, -1, own.shape[-1])


def hidden(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen and -inf elsewhere, as small as the mask is: to add it is many times faster than `masked_fill`."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def largest(scores: Tensor) -> Tensor:
    """Of each row of (head, row, key); a finite number where no key is seen."""
    return scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)


def masses(logs: Tensor) -> Tensor:
    """exp of logarithms whose largest in a row is 0, in their place; what is below `FLOOR` counts as that."""
    return logs.clamp_(min=FLOOR).exp_()


class HeadView(Protocol):
    """Something asked of each head, beside its summary. One a run; it never holds more than one layer of one text."""

    def read(self, attention: LayerAttention) -> Iterable[Rows]:
        """The rows of one text and layer."""

    def finished(self) -> Iterable[Rows]:
        """The rows of what was gathered over all texts, once they are read."""

    def notes(self) -> Iterable[str]:
        """What a reader of these rows must know."""
