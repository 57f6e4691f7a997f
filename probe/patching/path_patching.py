"""Path patching (Goldowsky-Dill et al. 2023, 2304.05969; METHODS B4): what a sender sends a receiver along direct paths only.

A first forward gives the sender its new value and holds every other write to the stream at what it was: the change reaches
later parts by the residual stream alone. What the receiver makes of that is put into a second forward, where all runs free.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probe.anatomy.parts import of_call
from probe.anatomy.units import in_units
from probe.fitting import halving
from probe.instrument import AttentionCall, Reader, Tap, attending, tapping
from probe.interventions import Patch, applying
from probe.interventions.edits import AbsolutePositions
from probe.patching.cells import CellPositions, LayerCells, batch_patch
from probe.patching.exact import CellMetrics, Report, prepare_pair
from probe.patching.metrics import Metrics
from probe.patching.pairs import Pair
from probe.patching.partial_forward import CELL, HINT, RecordedText
from probe.patching.paths import Endpoint, PathGroup, reaches
from probe.patching.planning import Patching, rows_at_once
from probe.patching.reading import SiteLayer, ended
from probe.sites import SITES, Cell, Positions

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


class Paths:
    """The paths of one text, whose `raw` tensors are every write to the stream.

    A direct path stays at its position: what is given after the text gets nothing but by what receivers make of it.
    """

    def __init__(self, text: RecordedText) -> None:
        self.text, self.lm = text, text.lm

    def send(self, pairs: Sequence[tuple[Endpoint, Endpoint]], new: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """(numbers of some pairs, logits (pair, read, d_vocab)), until all have been sent; their senders, all of one site and
        layer, are the rows of one forward. new (pos, [head,] d): what senders take."""
        senders = list(dict.fromkeys(sender for sender, _ in pairs))
        arrived = self._first(senders, new, {(receiver.site, receiver.layer) for _, receiver in pairs})
        yield from self._second(pairs, [(senders.index(sender), i) for i, (sender, _) in enumerate(pairs)], arrived)

    def _second(
        self, pairs: Sequence[tuple[Endpoint, Endpoint]], wanted: Sequence[tuple[int, int]], arrived: dict[SiteLayer, Tensor]
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
        """Logits (row, read, d_vocab) with the receiver's values (row, pos, [head,] d) in the text."""
        where = list(receiver.positions)
        values = found[:, where] if receiver.head is None else found[:, where][:, :, [receiver.head]]
        heads = None if receiver.head is None else (receiver.head,)
        cell = Cell(receiver.site, receiver.layer, heads, Positions(tuple(map(str, where))))
        edit = Patch(cell, values, absolute=AbsolutePositions(tuple(where)))
        return self.text.patched(len(found), edit, start=where[0])

    @torch.no_grad()
    def _first(self, senders: Sequence[Endpoint], new: Tensor, wheres: set[SiteLayer]) -> dict[SiteLayer, Tensor]:
        """What receivers get (row, pos, [head,] d), a row for each sender, all of one site and layer."""
        site, layer = senders[0].site, senders[0].layer
        own = SITES[site].part
        writes = self.lm.anatomy.layers[layer].writes if own else ()
        free = {write.tap for write in writes if write.kind == own}
        edit = batch_patch(site, layer, [CellPositions(end.positions, end.head) for end in senders], new)
        seen: dict[SiteLayer, Tensor] = {}
        with ExitStack() as hooked:
            hooked.enter_context(applying(self.lm, [*self.text.edits, edit], start=0))
            self._record(hooked, seen, {where for where in wheres if where[0] != "logits"}, len(senders))
            held = {tap: _holder(value) for tap, value in self.text.raw.items() if tap not in free}
            hooked.enter_context(tapping(self.lm.model, held))
            logits = ended(self.lm, self.text.ids.expand(len(senders), -1), read=self.text.reads)
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
            flat = location.positions_first(value).reshape(rows, len(self.text), -1)
            seen[where] = location.by_head(in_units(flat, unit))

        return record


def _holder(value: Tensor) -> Reader:
    """In place of what a part would write, what it wrote in the text; the same in each row."""

    def hold(now: Tensor) -> Tensor:
        rows = now.numel() // value.numel()
        return value.repeat(rows, *[1] * (value.ndim - 1)).reshape(now.shape)

    return hold


def written(lm: LanguageModel) -> set[Tap]:
    """Every write to the stream."""
    return {write.tap for layer in lm.anatomy.layers for write in layer.writes}


class PathPatching:
    """What senders send along the paths of one pair."""

    warning = ""

    def __init__(self, lm: LanguageModel, pair: Pair, patching: Patching, wheres: Sequence[SiteLayer]) -> None:
        towards = patching.request.towards
        self.prepared = prepare_pair(lm, pair, towards, patching.edits, wheres=wheres, raw=written(lm))
        self.baselines, n, reads = self.prepared.baselines, self.prepared.longest, sum(pair.target.reads)
        self._rows = rows_at_once(lm, new=n, n=n, budget=patching.budget, reads=reads)
        self._paths = [Paths(base) for base in self.prepared.bases]

    def values(self, where: SiteLayer) -> tuple[Tensor, Tensor]:
        """(pos, [head,] d) of the text that is patched, and of the one that patches come from."""
        return self.prepared.base.values[where], self.prepared.source.values[where]

    def measure(
        self, part: LayerCells | PathGroup, old: Tensor, new: Tensor, report: Report, *, sampled: Collection[int]
    ) -> list[tuple[str, LayerCells, CellMetrics]]:
        """(receiver as text, senders, metrics) for each receiver. new (pos, [head,] d): what senders take.

        A path whose receiver can't see its sender is the base: it is not run.
        """
        assert isinstance(part, PathGroup)
        lm, last = self.prepared.base.lm, self.prepared.base.n_text - 1
        run = [i for i, (sender, receiver) in enumerate(part.paths) if reaches(lm, sender, receiver, last=last)]
        columns = [np.repeat(column, len(part)) for column in self.baselines.start]
        done = len(part) - len(run)
        report(done)
        sent: dict[Endpoint, list[int]] = {}
        for i in run:
            sent.setdefault(part.paths[i][0], []).append(i)
        senders = list(sent.items())
        for first in range(0, len(senders), self._rows):
            together = senders[first : first + self._rows]
            for _, measured in halving(together, partial(self._sent, part, new), what=CELL, hint=HINT):
                for cells, metrics in measured:
                    for column, values in zip(columns, metrics, strict=True):
                        column[cells] = values
                    done += len(cells)
                report(done)
        by_receiver: dict[Endpoint, list[int]] = {}
        for i, (_, receiver) in enumerate(part.paths):
            by_receiver.setdefault(receiver, []).append(i)
        found = []
        for receiver, some in by_receiver.items():
            own = CellMetrics(Metrics(*(column[some] for column in columns)), np.isin(some, run))
            found.append((self._named(receiver), _senders(part, some), own))
        return found

    def _sent(
        self, part: PathGroup, new: Tensor, senders: Sequence[tuple[Endpoint, Sequence[int]]]
    ) -> list[tuple[list[int], Metrics]]:
        """(numbers of some paths, their metrics), until all paths of these senders (with their numbers) have been sent."""
        numbers = [i for _, own in senders for i in own]
        each = [paths.send([part.paths[i] for i in numbers], new) for paths in self._paths]
        return [
            ([numbers[i] for i in one[0][0]], self.prepared.metrics(torch.cat([logits for _, logits in one], dim=1)))
            for one in zip(*each, strict=True)  # the same paths in each continuation
        ]

    def _named(self, receiver: Endpoint) -> str:
        """As it would be written; positions only where they are not all."""
        if receiver.site == "logits" or len(receiver.positions) == self.prepared.base.n_text:
            return str(receiver)
        return f"{receiver}:{','.join(map(str, receiver.positions))}"


def _senders(group: PathGroup, some: Sequence[int]) -> LayerCells:
    """The senders of some paths as cells."""
    senders = [group.paths[i][0] for i in some]
    return LayerCells(
        group.site, group.layer, tuple(CellPositions(end.positions, end.head) for end in senders),
        tuple(end.positions[0] if len(end.positions) == 1 else -1 for end in senders), (-1,) * len(senders),
    )  # fmt: skip
