"""Edits inside an attention call: queries, keys and values changed, edges taken out by its mask. Knows calls, not how they were
found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probe.anatomy.parts import of_call
from probe.devices import uploaded
from probe.errors import BadEdit
from probe.instrument import AttentionCall
from probe.interventions.edits import Cut
from probe.interventions.forwards import ActiveEdits, Forward, ForwardPositions, changed
from probe.sites import SITES

if TYPE_CHECKING:
    from probe.anatomy import Anatomy


class CallEditor:
    """The changer and the observer of the attention calls of one context."""

    def __init__(self, anatomy: Anatomy, active: ActiveEdits, forwards: ForwardPositions) -> None:
        self._active, self._positions = active, forwards
        self._members: dict[tuple[str, int], list[int]] = defaultdict(list)
        self._empty: dict[tuple[str, int], list[Tensor]] = defaultdict(list)  # queries that a cut left without keys
        for i, edit in enumerate(active.edits):
            call = anatomy.site(edit.cell.site, edit.cell.layer).call
            if call is not None:
                self._members[call].append(i)

    @property
    def needed(self) -> bool:
        return bool(self._members)

    def change(self, path: str, call: AttentionCall) -> AttentionCall | None:
        """The call as the edits make it, in their order."""
        where = path, call.visit
        if where not in self._members:
            return None
        self._empty.pop(where, None)
        batch, _, n, _ = call.query.shape
        forward = self._positions.part(batch, n)
        if forward.positions.shape != (batch, n):
            told = f"{batch} x {n} queries for {tuple(forward.positions.shape)} tokens"
            raise BadEdit(f"the attention of '{path}' cannot be edited: it has {told}", hint="edit z or attn_out")
        for i in self._members[where]:
            edit = self._active.edits[i]
            call = self._cut(i, edit, where, call, forward) if isinstance(edit, Cut) else self._vectors(i, call, forward)
        return call

    def observe(self, path: str, call: AttentionCall, output: Tensor) -> Tensor | None:
        """What the call gave, zero where nothing was left to see. output (batch, query, head, d_value)."""
        found = self._empty.pop((path, call.visit), [])
        for empty in found:
            output = output.masked_fill(empty[..., None].to(output.device), 0.0)
        return output if found else None

    def _vectors(self, i: int, call: AttentionCall, forward: Forward) -> AttentionCall:
        """q, k or v of a call, (batch, head, pos, d), changed."""
        edit = self._active.edits[i]
        name = SITES[edit.cell.site].field
        tensor = of_call(call, edit.cell.site).transpose(1, 2)
        positions = forward.positions if name == "query" else forward.keys(tensor.shape[1])
        hits = self._active.hits(i, positions, tensor.device)
        new: dict[str, Any] = {} if hits is None else {name: changed(edit, tensor, hits).transpose(1, 2)}
        return replace(call, **new)

    def _cut(self, i: int, edit: Cut, where: tuple[str, int], call: AttentionCall, forward: Forward) -> AttentionCall:
        assert edit.absolute is not None and edit.absolute_keys is not None, "edits have positions"
        queries = self._active.meant(i, edit.absolute, forward.positions)
        keys = self._active.meant(i, edit.absolute_keys, forward.keys(call.key.shape[2]))
        if not _meet(call, queries, keys):
            return call  # a mask where there was none could choose another kernel, which rounds otherwise
        hidden = hide(call, queries, keys, edit.cell.heads)
        self._active.met[i] = self._active.met[i] + hidden.edges
        self._empty[where].append(hidden.empty)
        return hidden.call


MASKED = ("eager", "sdpa", None)  # implementations that take a mask (batch, head, query, key)


class Hidden(NamedTuple):
    """The call with its edges out; `empty` (batch, query, head or 1): queries that see nothing; how many edges went, ()."""

    call: AttentionCall
    empty: Tensor
    edges: Tensor


def hide(call: AttentionCall, queries: Tensor, keys: Tensor, heads: Sequence[int] | None) -> Hidden:
    """Take the edges between queries (batch, query) and keys (batch, key), bool and on the CPU, out of the given heads (all).

    A row with no key left keeps its mask, because a softmax of nothing is not a number: its output is to be zeroed.
    """
    implementation, device = _implementation(call), call.query.device
    if implementation not in MASKED or not (call.mask is None or (isinstance(call.mask, Tensor) and call.mask.ndim == 4)):
        hint = "load it with the attention 'sdpa' or 'eager'"
        raise BadEdit(f"the attention '{implementation}' takes no mask from which edges could be cut", hint=hint)
    n_heads, (n, m) = call.query.shape[1], (call.query.shape[2], call.key.shape[2])
    visible = _visible(call, n, m)
    cut = uploaded(queries, device)[:, None, :, None] & uploaded(keys, device)[:, None, None, :]
    if heads is not None and len(heads) < n_heads:
        cut = cut & uploaded([head in heads for head in range(n_heads)], device)[:, None, None]
    cut = cut & visible
    left = visible ^ cut
    empty = visible.any(-1) & ~left.any(-1)
    torch.where(empty[..., None], visible, left, out=left)
    return Hidden(replace(call, mask=_mask(call, left, implementation)), empty.transpose(1, 2), cut.sum())


def _implementation(call: AttentionCall) -> str | None:
    return getattr(getattr(call.module, "config", None), "_attn_implementation", None)


def _meet(call: AttentionCall, queries: Tensor, keys: Tensor) -> bool:
    """Whether any of the queries (batch, query) may see any of the keys (batch, key), bool, in the same row: by causality,
    where there is no mask; where there is one, that is for the device to know."""
    seen = keys.cumsum(-1)[:, : queries.shape[1]] > 0 if _is_causal(call) else keys.any(-1, keepdim=True)
    return bool((queries & seen).any())


def _is_causal(call: AttentionCall) -> bool:
    """Whether the function itself hides later keys, for want of a mask."""
    return call.mask is None and bool(call.is_causal) and call.query.shape[2] > 1 and _implementation(call) != "eager"


def _visible(call: AttentionCall, n: int, m: int) -> Tensor:
    """(batch or 1, head or 1, query, key): the edges that there are."""
    mask = call.mask
    if mask is None:
        every = torch.ones(1, 1, n, m, dtype=torch.bool, device=call.query.device)
        return every.tril() if _is_causal(call) else every
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
