"""The exact sweep: every cell patched and the model run on from there, many cells side by side; and the floor under it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.errors import NonFinite
from probe.interventions import Edit, Patch
from probe.interventions.edits import AbsolutePositions
from probe.patching.cells import LayerCells, Location, batch_patch
from probe.patching.metrics import Metrics, logprobs_of, read_out
from probe.patching.pairs import Pair
from probe.patching.partial_forward import RecordedText, choose_shortcut
from probe.patching.planning import PatchPlan, rows_at_once
from probe.patching.reading import last_logits
from probe.patching.sources import Values, activations, generator
from probe.sites import SITES, Cell, Positions

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


@dataclass(frozen=True)
class Baselines:
    """One pair as the model sees it: `clean`, the log-probs (d_vocab,) of the clean run; `ends`, the metrics of the clean
    and of the corrupt run (2,)."""

    pair: Pair
    direction: str
    clean: Tensor
    ends: Metrics

    @property
    def start(self) -> Metrics:
        """The metrics of the base, unpatched (1,)."""
        row = 1 if self.direction == "denoise" else 0
        return Metrics(*(column[row : row + 1] for column in self.ends))


@dataclass(frozen=True)
class PreparedPair(Baselines):
    """With the base text, ready to be patched."""

    base: RecordedText


class CellMetrics(NamedTuple):
    """Metrics of the cells of a slice, in its order, which of them took a pass (n,) bool, and, where the metrics are estimated,
    what those that were run gave (n,), NaN for the others."""

    readout: Metrics
    passed: np.ndarray
    exact: np.ndarray | None = None


def prepare_pair(lm: LanguageModel, pair: Pair, direction: str, edits: Sequence[Edit] = ()) -> PreparedPair:
    """Run both texts of a pair, under `edits`. Raises `NonFinite` for logits that are no numbers."""
    base = RecordedText(lm, pair.base(direction), edits)
    other = last_logits(lm, pair.source(direction), edits)
    clean, corrupt = (other, base.logits) if direction == "denoise" else (base.logits, other)
    for name, logits in (("clean", clean), ("corrupt", corrupt)):
        if bool(logits.isnan().any()):
            raise NonFinite(f"the logits of the {name} text are not finite numbers", hint="try --dtype float32")
    logprobs = logprobs_of(clean)
    ends = read_out(torch.stack([clean, corrupt]), pair.target, logprobs)
    choose_shortcut(base)
    return PreparedPair(pair, direction, logprobs, ends, base)


def exact(
    view: PreparedPair, part: LayerCells, old: Tensor, new: Tensor, *, budget: int, paired: bool = True,
    report: Callable[[int], None] = lambda done: None,
) -> CellMetrics:  # fmt: skip
    """Metrics with each cell of the slice patched. old, new (pos, [head,] d): what the base has there, what it is to take.

    Cells where both are equal are the base. paired: `new` are the other text's own values, so that positions before the
    first difference are equal by causality, whatever rounding says. report: told how many cells are done.
    """
    needed = [i for i, swap in enumerate(part.locations) if _matters(view, part, swap, old, new, paired=paired)]
    columns = [np.repeat(column, len(part.locations)) for column in view.start]
    done = len(part.locations) - len(needed)
    report(done)
    for members in _batches(view, part, needed, budget):
        rows = [part.locations[i] for i in members]
        edit = batch_patch(part.site, part.layer, rows, new)
        logits = patched_logits(view, edit, part, len(rows), min(row.positions[0] for row in rows))
        for column, found in zip(columns, read_out(logits, view.pair.target, view.clean), strict=True):
            column[members] = found
        done += len(members)
        report(done)
    return CellMetrics(Metrics(*columns), np.isin(np.arange(len(part.locations)), needed))


def patched_logits(view: PreparedPair, edit: Edit, part: LayerCells, rows: int, start: int) -> Tensor:
    """Logits (row, d_vocab) of the base with an edit of the slice's site, none before position `start`."""
    if view.base.shortcut is None:
        return view.base.full_forward(rows, [edit])
    return view.base.partial_forward(rows, [edit], layer=entry(view.base.lm, part.site, part.layer), start=start)


def entry(lm: LanguageModel, site: str, layer: int) -> int:
    """The first block that has to run when a site is changed; as many as there are if none."""
    return int(max(0, min(SITES[site].moment(layer), lm.anatomy.n_layers)))


def _matters(view: PreparedPair, part: LayerCells, swap: Location, old: Tensor, new: Tensor, *, paired: bool) -> bool:
    """Whether the patch changes anything that is read."""
    lm, last = view.base.lm, len(view.base) - 1
    if lm.anatomy.causal and paired and swap.positions[-1] < view.pair.first:
        return False
    if lm.anatomy.causal and entry(lm, part.site, part.layer) == lm.anatomy.n_layers and swap.positions[-1] < last:
        return False  # no block follows that could carry it to the last position
    where = list(swap.positions)
    a, b = (values[where] if swap.head is None else values[where, swap.head] for values in (old, new))
    return not torch.equal(a, b)


def _batches(view: PreparedPair, part: LayerCells, needed: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cells that run together: neighbours, so that few positions are computed that only the first of them needs."""
    n, lm = len(view.base), view.base.lm
    ordered = sorted(needed, key=lambda i: part.locations[i].positions[0])
    at = 0
    while at < len(ordered):
        first = part.locations[ordered[at]].positions[0]
        first = first if view.base.shortcut and view.base.shortcut.known else 0
        size = rows_at_once(lm, new=n - first, n=n, budget=budget)
        yield ordered[at : at + size]
        at += size


Report = Callable[[int], None]
"""Told how many cells of a slice are done."""


class Exact:
    """Every cell's forward is run, as far as the patch reaches."""

    def __init__(self, lm: LanguageModel, pair: Pair, plan: PatchPlan) -> None:
        self._lm, self._pair, self._plan = lm, pair, plan
        self.view = self.prepared = prepare_pair(lm, pair, plan.direction, plan.edits)
        why = self.view.base.why_not if self.view.base.shortcut is None else ""
        self.warning = f"every cell took a whole forward: {why}" if why else ""

    def base(self, site: str, layers: Sequence[int]) -> Values:
        """(pos, [head,] d) of the text that is patched, by layer."""
        return activations(self._lm, self._pair.base(self._plan.direction), site, layers, self._plan.edits)

    def other(self, site: str, layers: Sequence[int]) -> Values:
        """The same of the text that patches come from."""
        return activations(self._lm, self._pair.source(self._plan.direction), site, layers, self._plan.edits)

    def cells(
        self, part: LayerCells, old: Tensor, new: Tensor, report: Report, *, sampled: Collection[int]
    ) -> CellMetrics:
        """Metrics with each cell patched. Nothing is sampled: all is exact."""
        plan = self._plan
        return exact(self.view, part, old, new, budget=plan.memory, paired=plan.source == "clean", report=report)


LAYERS = 5  # evenly from the first to the last
DRAWS = 4  # random patches of a layer
SHARE = 0.95  # of all of them move the metric by less than the floor


def floor(prepare_pair: PreparedPair, *, metric: str, address: str, edits: tuple[Edit, ...] = ()) -> float:
    """The change of the metric that 95 % of random patches stay under; NaN where no block's input can be patched.

    A random patch adds to the base's `resid_pre` of one layer, at every aligned position, a vector of random direction
    that is as long as the other text's value differs from it. Given the other text's own values in place of these, the
    same patch moves the metric by nearly all that clean and corrupt differ by.
    """
    lm, pair = prepare_pair.base.lm, prepare_pair.pair
    there = [layer for layer in range(lm.anatomy.n_layers) if lm.anatomy.has("resid_pre", layer)]
    layers = sorted({there[i * len(there) // LAYERS] for i in range(LAYERS)}) if there else []
    origins = pair.origins(prepare_pair.direction)
    where = sorted(p for p in origins if p >= pair.first or not lm.anatomy.causal)
    if not layers or not where:
        return float("nan")
    old, new = (
        activations(lm, ids, "resid_pre", layers, edits)
        for ids in (pair.base(prepare_pair.direction), pair.source(prepare_pair.direction))
    )
    start, moved = float(prepare_pair.start.of(metric)[0]), []
    for layer in layers:
        own = old[layer][where]
        length = (new[layer][[origins[p] for p in where]] - own).norm(dim=-1, keepdim=True)
        values = own + length * _directions(own, f"{address} floor {layer}")
        logits = _patched(prepare_pair, layer, where, values)
        moved.append(read_out(logits, pair.target, prepare_pair.clean).of(metric) - start)
    return float(np.quantile(np.abs(np.concatenate(moved)), SHARE))


def _directions(like: Tensor, address: str) -> Tensor:
    """Random unit vectors (DRAWS, pos, d_model)."""
    drawn = torch.randn((DRAWS, *like.shape), generator=generator(address)).to(like)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def _patched(prepare_pair: PreparedPair, layer: int, where: list[int], values: Tensor) -> Tensor:
    """Logits (DRAWS, d_vocab) of the base with values (DRAWS, pos, d_model) in its stream."""
    cell = Cell("resid_pre", layer, None, Positions(tuple(map(str, where))))
    edit = Patch(cell, values, absolute=AbsolutePositions(tuple(where)))
    if prepare_pair.base.shortcut is None:
        return prepare_pair.base.full_forward(DRAWS, [edit])
    return prepare_pair.base.partial_forward(DRAWS, [edit], layer=layer, start=where[0])
