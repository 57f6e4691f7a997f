"""Edits inside an attention call: queries, keys and values changed, edges cut. Knows calls, not how they were found."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from probe.anatomy.parts import of_call
from probe.errors import BadEdit
from probe.instrument import AttentionCall
from probe.interventions.edges import hide
from probe.interventions.edits import Cut
from probe.interventions.forwards import Forward, Whereabouts
from probe.interventions.marks import Marks, changed
from probe.sites import SITES

if TYPE_CHECKING:
    from probe.anatomy import Anatomy


class CallEditor:
    """The changer and the observer of the attention calls of one context."""

    def __init__(self, anatomy: Anatomy, marks: Marks, whereabouts: Whereabouts) -> None:
        self._marks, self._whereabouts = marks, whereabouts
        self._members: dict[tuple[str, int], list[int]] = defaultdict(list)
        self._empty: dict[tuple[str, int], list[Tensor]] = defaultdict(list)  # queries that a cut left without keys
        for i, edit in enumerate(marks.edits):
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
        forward = self._whereabouts.part(batch, n)
        if forward.positions.shape != (batch, n):
            told = f"{batch} x {n} queries for {tuple(forward.positions.shape)} tokens"
            raise BadEdit(f"the attention of '{path}' cannot be edited: it has {told}", hint="edit z or attn_out")
        for i in self._members[where]:
            edit = self._marks.edits[i]
            call = (
                self._cut(i, edit, where, call, forward) if isinstance(edit, Cut) else self._vectors(i, call, forward)
            )
        return call

    def observe(self, path: str, call: AttentionCall, output: Tensor) -> Tensor | None:
        """What the call gave, zero where nothing was left to see. output (batch, query, head, d_value)."""
        found = self._empty.pop((path, call.visit), [])
        for empty in found:
            output = output.masked_fill(empty[..., None].to(output.device), 0.0)
        return output if found else None

    def _vectors(self, i: int, call: AttentionCall, forward: Forward) -> AttentionCall:
        """q, k or v of a call, (batch, head, pos, d), changed."""
        edit = self._marks.edits[i]
        name = SITES[edit.cell.site].field
        tensor = of_call(call, edit.cell.site).transpose(1, 2)
        positions = forward.positions if name == "query" else forward.keys(tensor.shape[1])
        hits = self._marks.hits(i, positions.to(tensor.device))
        new: dict[str, Any] = {} if hits is None else {name: changed(edit, tensor, hits).transpose(1, 2)}
        return replace(call, **new)

    def _cut(self, i: int, edit: Cut, where: tuple[str, int], call: AttentionCall, forward: Forward) -> AttentionCall:
        assert edit.spots is not None and edit.key_spots is not None, "edits are settled"
        device = call.query.device
        queries = self._marks.meant(i, edit.spots, forward.positions.to(device))
        keys = self._marks.meant(i, edit.key_spots, forward.keys(call.key.shape[2]).to(device))
        if not bool(queries.any()) or not bool(keys.any()):
            return call
        hidden = hide(call, queries, keys, edit.cell.heads)
        if not hidden.edges:
            return call  # another mask could choose another kernel, which rounds otherwise
        self._marks.met[i] += hidden.edges
        if bool(hidden.empty.any()):
            self._empty[where].append(hidden.empty)
        return hidden.call
