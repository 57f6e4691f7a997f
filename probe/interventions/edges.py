"""Edges taken out of an attention call: its mask with more −inf, and zero for queries that are left with no key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from probe.errors import BadEdit
from probe.instrument import AttentionCall

MASKED = ("eager", "sdpa", None)  # implementations that take a mask (batch, head, query, key)


class Hidden(NamedTuple):
    """The call with its edges out; `empty` (batch, query, head or 1): queries that see nothing; how many edges went."""

    call: AttentionCall
    empty: Tensor
    edges: int


def hide(call: AttentionCall, queries: Tensor, keys: Tensor, heads: Sequence[int] | None) -> Hidden:
    """Take the edges between queries (batch, query) and keys (batch, key), bool, out of the given heads (all).

    A row with no key left keeps its mask, because a softmax of nothing is not a number: its output is to be zeroed.
    """
    implementation = getattr(getattr(call.module, "config", None), "_attn_implementation", None)
    if implementation not in MASKED or not (
        call.mask is None or (isinstance(call.mask, Tensor) and call.mask.ndim == 4)
    ):
        hint = "load it with the attention 'sdpa' or 'eager'"
        raise BadEdit(f"the attention '{implementation}' takes no mask from which edges could be cut", hint=hint)
    n_heads, (n, m) = call.query.shape[1], (call.query.shape[2], call.key.shape[2])
    visible = _visible(call, n, m, implementation)
    cut = queries[:, None, :, None] & keys[:, None, None, :]
    if heads is not None and len(heads) < n_heads:
        chosen = torch.zeros(n_heads, dtype=torch.bool, device=cut.device)
        chosen[list(heads)] = True
        cut = cut & chosen[:, None, None]
    cut = cut & visible
    left = visible & ~cut
    empty = visible.any(-1) & ~left.any(-1)
    left = torch.where(empty[..., None], visible, left)
    return Hidden(replace(call, mask=_mask(call, left, implementation)), empty.transpose(1, 2), int(cut.sum()))


def _visible(call: AttentionCall, n: int, m: int, implementation: str | None) -> Tensor:
    """(batch or 1, head or 1, query, key): the edges that there are."""
    mask = call.mask
    if mask is None:
        every = torch.ones(1, 1, n, m, dtype=torch.bool, device=call.query.device)
        return every.tril() if call.is_causal and n > 1 and implementation != "eager" else every
    mask = mask[..., :m]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _mask(call: AttentionCall, left: Tensor, implementation: str | None) -> Tensor:
    """A mask of the kind that the function is used to, with nothing visible but `left`."""
    if call.mask is None and implementation != "eager":
        return left
    if call.mask is not None and call.mask.dtype == torch.bool:
        return left
    given = call.mask[..., : call.key.shape[2]] if call.mask is not None else call.query.new_zeros(())
    return torch.where(left, given, torch.finfo(call.query.dtype).min).to(call.query.dtype)
