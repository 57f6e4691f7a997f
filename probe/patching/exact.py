"""The exact sweep: every cell patched and the model run on from there, many cells side by side; and the floor under it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.errors import NonFinite
from probe.fitting import halving
from probe.instrument import Tap
from probe.interventions import Edit, Patch
from probe.interventions.edits import AbsolutePositions
from probe.patching.cells import CellPositions, LayerCells, batch_patch
from probe.patching.metrics import Metrics, logprobs_of, read_out
from probe.patching.pairs import Pair
from probe.patching.partial_forward import CELL, HINT, RecordedText, choose_shortcut, entry
from probe.patching.paths import PathGroup
from probe.patching.planning import Patching, rows_at_once
from probe.patching.reading import SiteLayer, TextValues, values
from probe.patching.sources import generator
from probe.sites import Cell, Positions

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Report = Callable[[int], None]
"""Told how many cells of a site of a layer are done."""

LAYERS = 5  # of the floor, evenly from the first to the last
DRAWS = 4  # random patches of a layer
SHARE = 0.95  # of all of them move the metric by less than the floor


@dataclass(frozen=True)
class Baselines:
    """One pair as the model sees it: `clean`, the log-probs (d_vocab,) after the clean text; `ends`, the metrics of the clean
    and of the corrupt run (2,)."""

    pair: Pair
    direction: str
    clean: Tensor
    ends: Metrics

    @classmethod
    def of(cls, pair: Pair, direction: str, base: Tensor, source: Tensor) -> Baselines:
        """Of the logits (read, d_vocab) of the text that is patched and of the other one."""
        both = torch.stack([source, base] if direction == "denoise" else [base, source])
        clean = logprobs_of(both[0, 0])
        return cls(pair, direction, clean, read_out(both, pair.target, clean))

    @property
    def start(self) -> Metrics:
        """The metrics of the base, unpatched (1,)."""
        row = 1 if self.direction == "denoise" else 0
        return Metrics(*(column[row : row + 1] for column in self.ends))


@dataclass(frozen=True)
class PreparedPair:
    """Both texts of a pair, each read once for each continuation: the base ready to be patched, and the source."""

    baselines: Baselines
    bases: tuple[RecordedText, ...]
    source: TextValues

    @property
    def base(self) -> RecordedText:
        """The text that is patched, in its first continuation."""
        return self.bases[0]

    @property
    def longest(self) -> int:
        """The tokens of a whole forward."""
        return max(map(len, self.bases))

    def patched(self, rows: int, edit: Edit, *, start: int) -> Tensor:
        """Logits (row, read, d_vocab) of the patched base, one continuation after the other; see `RecordedText.patched`."""
        return torch.cat([base.patched(rows, edit, start=start) for base in self.bases], dim=1)

    def metrics(self, logits: Tensor) -> Metrics:
        """Of logits (row, read, d_vocab) of the patched base."""
        return read_out(logits, self.baselines.pair.target, self.baselines.clean)


class CellMetrics(NamedTuple):
    """Metrics of some cells, and which of them took a pass (n,) bool. Where the metrics are estimated, `exact` is what those
    that were run gave (n,), NaN for the others; where they are not, `estimated` may be what a gradient promised (n,)."""

    readout: Metrics
    passed: np.ndarray
    exact: np.ndarray | None = None
    estimated: np.ndarray | None = None


def prepare_pair(
    lm: LanguageModel, pair: Pair, direction: str, edits: Sequence[Edit] = (), *, wheres: Sequence[SiteLayer] = (),
    raw: Collection[Tap] = (), source: TextValues | None = None,
) -> PreparedPair:  # fmt: skip
    """Read both texts of a pair under `edits`, with the sites that are asked for and those that the floor needs; the source
    is not read if it has been. Raises `NonFinite` for logits that are no numbers."""
    every = list(dict.fromkeys([*wheres, *(("resid_pre", layer) for layer in floor_layers(lm))]))
    bases = tuple(
        RecordedText(lm, pair.base(direction), edits, tail=tail, wheres=() if i else every, raw=raw)
        for i, tail in enumerate(pair.target.tails)
    )
    logits = torch.cat([base.logits for base in bases])
    if bool(logits.isnan().any()):
        name = "corrupt" if direction == "denoise" else "clean"
        raise NonFinite(f"the logits of the {name} text are not finite numbers", hint="try --dtype float32")
    source = source or values(lm, pair.source(direction), every, edits=edits, tails=pair.target.tails)
    for base in bases:
        choose_shortcut(base)
    return PreparedPair(Baselines.of(pair, direction, logits, source.logits), bases, source)


def slowly(prepared: PreparedPair) -> str:
    """What is to be said where no forward can be entered in the middle."""
    why = prepared.base.why_not if prepared.base.shortcut is None else ""
    return f"every cell took a whole forward: {why}" if why else ""


def exact(
    prepared: PreparedPair, part: LayerCells, old: Tensor, new: Tensor, *, budget: int, paired: bool = True,
    report: Callable[[int], None] = lambda done: None,
) -> CellMetrics:  # fmt: skip
    """Metrics with each cell patched. old, new (pos, [head,] d): what the base has there, and what it is to take.

    Cells where both are equal are the base. paired: `new` are the other text's own values, so that positions before the
    first difference are equal by causality, whatever rounding says. report: told how many cells are done.
    """
    ours = old.cpu(), new.cpu()  # compared cell by cell, and each answer of a device would be waited for
    needed = [i for i, one in enumerate(part.locations) if _matters(prepared, part, one, *ours, paired=paired)]
    columns = [np.repeat(column, len(part.locations)) for column in prepared.baselines.start]
    done = len(part.locations) - len(needed)
    report(done)
    same = _unchanged(prepared, paired=paired)
    for members, start in _batches(prepared, part, needed, budget, same):
        for some, metrics in halving(members, partial(_patched, prepared, part, new, start), what=CELL, hint=HINT):
            for column, found in zip(columns, metrics, strict=True):
                column[some] = found
            done += len(some)
            report(done)
    return CellMetrics(Metrics(*columns), np.isin(np.arange(len(part.locations)), needed))


def _patched(prepared: PreparedPair, part: LayerCells, new: Tensor, start: int, members: list[int]) -> Metrics:
    """Metrics of cells, each patched in a row of its own."""
    edit = batch_patch(part.site, part.layer, [part.locations[i] for i in members], new)
    return prepared.metrics(prepared.patched(len(members), edit, start=start))


def _unchanged(prepared: PreparedPair, *, paired: bool) -> int:
    """How many positions of the base take what they have, whatever is patched."""
    pair, direction = prepared.baselines.pair, prepared.baselines.direction
    return pair.reached(direction) if paired and prepared.base.lm.anatomy.causal else 0


def _matters(
    prepared: PreparedPair, part: LayerCells, one: CellPositions, old: Tensor, new: Tensor, *, paired: bool
) -> bool:  # fmt: skip
    """Whether the patch changes anything that is read."""
    lm, last = prepared.base.lm, prepared.base.n_text - 1
    if one.positions[-1] < _unchanged(prepared, paired=paired):
        return False
    if lm.anatomy.causal and entry(lm, part.site, part.layer) == lm.anatomy.n_layers and one.positions[-1] < last:
        return False  # no block follows that could carry it to a position that is read
    return not torch.equal(one.of(old), one.of(new))


def _batches(
    prepared: PreparedPair, part: LayerCells, needed: Sequence[int], budget: int, same: int
) -> Iterator[tuple[list[int], int]]:  # fmt: skip
    """Cells that run together, and from which position on: neighbours, so that few positions are computed that only the first
    of them needs. The first `same` positions stay as they are."""
    base, n, reads = prepared.base, prepared.longest, prepared.baselines.pair.target.reads
    starts = {i: next(p for p in part.locations[i].positions if p >= same) for i in needed}
    ordered = sorted(needed, key=lambda i: starts[i])
    at = 0
    while at < len(ordered):
        start = starts[ordered[at]]
        new = n - start if base.shortcut and base.shortcut.known else n
        size = rows_at_once(base.lm, new=new, n=n, budget=budget, reads=sum(reads))
        yield ordered[at : at + size], start
        at += size


class Exact:
    """Every cell's forward is run, as far as the patch reaches."""

    def __init__(self, lm: LanguageModel, pair: Pair, patching: Patching, wheres: Sequence[SiteLayer]) -> None:
        self._patching = patching
        self.prepared = prepare_pair(lm, pair, patching.request.towards, patching.edits, wheres=wheres)
        self.baselines = self.prepared.baselines
        self.warning = slowly(self.prepared)

    def values(self, where: SiteLayer) -> tuple[Tensor, Tensor]:
        """(pos, [head,] d) of the text that is patched, and of the one that patches come from."""
        return self.prepared.base.values[where], self.prepared.source.values[where]

    def measure(
        self, part: LayerCells | PathGroup, old: Tensor, new: Tensor, report: Report, *, sampled: Collection[int]
    ) -> list[tuple[str, LayerCells, CellMetrics]]:
        """Metrics with each cell patched. Nothing is sampled: all is exact."""
        assert isinstance(part, LayerCells)
        paired = self._patching.request.source == "clean"
        found = exact(self.prepared, part, old, new, budget=self._patching.budget, paired=paired, report=report)
        return [("", part, found)]


def floor_layers(lm: LanguageModel) -> list[int]:
    """The layers whose block's input is patched for the floor."""
    there = [layer for layer in range(lm.anatomy.n_layers) if lm.anatomy.has("resid_pre", layer)]
    return sorted({there[i * len(there) // LAYERS] for i in range(LAYERS)}) if there else []


def floor(prepared: PreparedPair, *, metric: str, address: str) -> float:
    """The change of the metric that 95 % of random patches stay under; NaN where no block's input can be patched.

    A random patch adds to the base's `resid_pre` of one layer, at every aligned position, a vector of random direction
    that is as long as the other text's value differs from it. Given the other text's own values in place of these, the
    same patch moves the metric by nearly all that clean and corrupt differ by.
    """
    lm, pair = prepared.base.lm, prepared.baselines.pair
    origins = pair.origins(prepared.baselines.direction)
    reached = pair.reached(prepared.baselines.direction) if lm.anatomy.causal else 0
    where = sorted(p for p in origins if p >= reached)
    layers = floor_layers(lm)
    if not layers or not where:
        return float("nan")
    start, moved = float(prepared.baselines.start.of(metric)[0]), []
    positions, absolute = Positions(tuple(map(str, where))), AbsolutePositions(tuple(where))
    for layer in layers:
        old, new = (values["resid_pre", layer] for values in (prepared.base.values, prepared.source.values))
        own = old[where]
        length = (new[[origins[p] for p in where]] - own).norm(dim=-1, keepdim=True)
        drawn = torch.randn((DRAWS, *own.shape), generator=generator(f"{address} floor {layer}")).to(own)
        moves = own + length * drawn / drawn.norm(dim=-1, keepdim=True)
        cell = Cell("resid_pre", layer, None, positions)

        def patched(some: list[int], cell: Cell = cell, moves: Tensor = moves) -> np.ndarray:
            edit = Patch(cell, moves[some], absolute=absolute)
            return prepared.metrics(prepared.patched(len(some), edit, start=where[0])).of(metric)

        moved += [found - start for _, found in halving(list(range(DRAWS)), patched, what=CELL, hint=HINT)]
    return float(np.quantile(np.abs(np.concatenate(moved)), SHARE))
