"""Path patching (Goldowsky-Dill et al. 2023, 2304.05969; METHODS B4): what a sender sends a receiver along direct paths only.

A first forward gives the sender its new value and holds every other write to the stream at what it was: the change reaches
later parts by the residual stream alone. What the receiver makes of that is put into a second forward, where all runs free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from probe.anatomy.parts import in_units, of_call
from probe.instrument import AttentionCall, Reader, Tap, attending, tapping
from probe.interventions import Patch, applying
from probe.interventions.edits import AbsolutePositions
from probe.patching.cells import LayerCells, Location, batch_patch
from probe.patching.exact import CellMetrics, PreparedPair
from probe.patching.metrics import Metrics, read_out
from probe.patching.partial_forward import RecordedText
from probe.patching.paths import Endpoint, PathGroup, reaches
from probe.patching.planning import PatchPlan, rows_at_once
from probe.patching.reading import SiteLayer, ended, keeper
from probe.sites import SITES, Cell, Positions


class Paths:
    """The paths of one text. `rows_at_once`: of a forward of the whole text."""

    def __init__(self, text: RecordedText, *, rows_at_once: int) -> None:
        self.text, self.lm, self.rows_at_once = text, text.lm, rows_at_once
        self._held: dict[Tap, Tensor] = self._written()

    def send(
        self, pairs: Sequence[tuple[Endpoint, Endpoint]], source: Callable[[str, int], Tensor]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """(numbers of some pairs, logits (pair, d_vocab) after the last token), until all have been sent.

        source(site, layer) -> (pos, [head,] d): what senders take.
        """
        grouped: dict[SiteLayer, dict[Endpoint, list[int]]] = {}
        for i, (sender, _) in enumerate(pairs):
            grouped.setdefault((sender.site, sender.layer), {}).setdefault(sender, []).append(i)
        for where, members in grouped.items():
            senders = list(members)
            for first in range(0, len(senders), self.rows_at_once):
                some = senders[first : first + self.rows_at_once]
                receivers = {pairs[i][1] for sender in some for i in members[sender]}
                arrived = self._first(some, source(*where), {(r.site, r.layer) for r in receivers})
                yield from self._second(pairs, [(row, i) for row, s in enumerate(some) for i in members[s]], arrived)

    def _second(
        self,
        pairs: Sequence[tuple[Endpoint, Endpoint]],
        wanted: Sequence[tuple[int, int]],
        arrived: dict[SiteLayer, Tensor],
    ) -> Iterator[tuple[list[int], Tensor]]:
        """The forwards in which receivers have what arrived. wanted: (row of the first forward, number of the pair)."""
        by_receiver: dict[Endpoint, list[tuple[int, int]]] = {}
        for row, i in wanted:
            by_receiver.setdefault(pairs[i][1], []).append((row, i))
        for receiver, members in by_receiver.items():
            rows, numbers = [row for row, _ in members], [i for _, i in members]
            found = arrived[receiver.site, receiver.layer][rows]
            if receiver.site == "logits":
                yield numbers, found
                continue
            yield numbers, self._patched(receiver, found)

    def _patched(self, receiver: Endpoint, found: Tensor) -> Tensor:
        """Logits (row, d_vocab) with the receiver's values (row, pos, [head,] d) in the text."""
        where = list(receiver.positions)
        values = found[:, where] if receiver.head is None else found[:, where][:, :, [receiver.head]]
        heads = None if receiver.head is None else (receiver.head,)
        cell = Cell(receiver.site, receiver.layer, heads, Positions(tuple(map(str, where))))
        edit = Patch(cell, values, absolute=AbsolutePositions(tuple(where)))
        if self.text.shortcut is None:
            return self.text.full_forward(len(found), [edit])
        layer = int(SITES[receiver.site].moment(receiver.layer))
        return self.text.partial_forward(len(found), [edit], layer=layer, start=where[0])

    @torch.no_grad()
    def _first(self, senders: Sequence[Endpoint], new: Tensor, wheres: set[SiteLayer]) -> dict[SiteLayer, Tensor]:
        """What receivers get (row, pos, [head,] d), a row for each sender, all of one site and layer."""
        site, layer = senders[0].site, senders[0].layer
        own = SITES[site].part
        writes = self.lm.anatomy.layers[layer].writes if own else ()
        free = {write.tap for write in writes if write.kind == own}
        edit = batch_patch(site, layer, [Location(end.positions, end.head) for end in senders], new)
        seen: dict[SiteLayer, Tensor] = {}
        with ExitStack() as hooked:
            hooked.enter_context(applying(self.lm, [*self.text.edits, edit], start=0))
            self._record(hooked, seen, {where for where in wheres if where[0] != "logits"}, len(senders))
            held = {tap: _holder(value) for tap, value in self._held.items() if tap not in free}
            hooked.enter_context(tapping(self.lm.model, held))
            logits = ended(self.lm, self.text.ids.expand(len(senders), -1))
        return {**seen, ("logits", -1): logits}

    def _record(self, hooked: ExitStack, seen: dict[SiteLayer, Tensor], wheres: set[SiteLayer], rows: int) -> None:
        """Copies of what some sites are, before it is held."""
        calls: dict[tuple[str, int], list[SiteLayer]] = {}
        for where in wheres:
            location = self.lm.anatomy.site(*where)
            if location.call is not None:
                calls.setdefault(location.call, []).append(where)
            elif location.changed is not None:
                hooked.enter_context(tapping(self.lm.model, {location.changed: self._recorder(seen, where, rows)}))

        def call(path: str, made: AttentionCall) -> None:
            for where in calls.get((path, made.visit), ()):
                seen[where] = of_call(made, where[0]).transpose(1, 2).clone()

        if calls:
            hooked.enter_context(attending(self.lm.model, changer=call))

    def _recorder(self, seen: dict[SiteLayer, Tensor], where: SiteLayer, rows: int) -> Reader:
        location = self.lm.anatomy.site(*where)
        unit = location.unit(self.lm.model)

        def record(value: Tensor) -> None:
            seen[where] = location.by_head(in_units(value.reshape(rows, len(self.text), -1), unit))

        return record

    @torch.no_grad()
    def _written(self) -> dict[Tap, Tensor]:
        """Every write to the stream, as the text has it."""
        seen: dict[Tap, Tensor] = {}
        taps = {write.tap for layer in self.lm.anatomy.layers for write in layer.writes}
        with applying(self.lm, self.text.edits, start=0), tapping(self.lm.model, {t: keeper(seen, t) for t in taps}):
            ended(self.lm, self.text.ids)
        return seen


def _holder(value: Tensor) -> Reader:
    """In place of what a part would write, what it wrote in the text; the same in each row."""

    def hold(now: Tensor) -> Tensor:
        rows = now.numel() // value.numel()
        return value.repeat(rows, *[1] * (value.ndim - 1)).reshape(now.shape)

    return hold


class Sender:
    """Sends along the paths of one pair."""

    def __init__(self, view: PreparedPair, plan: PatchPlan) -> None:
        n = len(view.base)
        self._view = view
        self._paths = Paths(view.base, rows_at_once=rows_at_once(view.base.lm, new=n, n=n, budget=plan.memory))

    def measure(
        self, send: PathGroup, new: Tensor, report: Callable[[int], None]
    ) -> list[tuple[str, LayerCells, CellMetrics]]:
        """(receiver as text, senders, metrics) for each receiver. new (pos, [head,] d): what senders take.

        A path whose receiver can't see its sender is the base: it is not run.
        """
        lm, last = self._view.base.lm, len(self._view.base) - 1
        run = [i for i, (sender, receiver) in enumerate(send.paths) if reaches(lm, sender, receiver, last=last)]
        columns = [np.repeat(column, len(send.paths)) for column in self._view.start]
        done = len(send.paths) - len(run)
        report(done)
        for numbers, logits in self._paths.send([send.paths[i] for i in run], lambda site, layer: new):
            readout, cells = read_out(logits, self._view.pair.target, self._view.clean), [run[i] for i in numbers]
            for column, values in zip(columns, readout, strict=True):
                column[cells] = values
            done += len(cells)
            report(done)
        by_receiver: dict[Endpoint, list[int]] = {}
        for i, (_, receiver) in enumerate(send.paths):
            by_receiver.setdefault(receiver, []).append(i)
        found = []
        for receiver, some in by_receiver.items():
            measured = CellMetrics(Metrics(*(column[some] for column in columns)), np.isin(some, run))
            found.append((self._named(receiver), _slice(send, some), measured))
        return found

    def _named(self, receiver: Endpoint) -> str:
        """As it would be written; positions only where they are not all."""
        if receiver.site == "logits" or len(receiver.positions) == len(self._view.base):
            return str(receiver)
        return f"{receiver}:{','.join(map(str, receiver.positions))}"


def _slice(send: PathGroup, some: Sequence[int]) -> LayerCells:
    """The senders of some paths as cells."""
    senders = [send.paths[i][0] for i in some]
    return LayerCells(
        send.site, send.layer, tuple(Location(end.positions, end.head) for end in senders),
        tuple(end.positions[0] if len(end.positions) == 1 else -1 for end in senders), (-1,) * len(senders),
    )  # fmt: skip
