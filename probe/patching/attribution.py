"""What a patch does, estimated from the metric's gradient at the text that is patched (METHODS B3)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probe.anatomy.sums import apart, loudest
from probe.errors import BadModel, BadOption
from probe.fitting import fitting
from probe.instrument import tapping
from probe.interventions import Edit
from probe.patching.cells import LayerCells
from probe.patching.exact import Baselines, CellMetrics, PreparedPair, Report, exact, floor_layers, prepare_pair, slowly
from probe.patching.metrics import Metrics, continuations_of, logprobs_of, measure_of
from probe.patching.pairs import Pair
from probe.patching.paths import PathGroup
from probe.patching.planning import Patching
from probe.patching.reading import ALONE, SiteLayer, Tails, TextValues, Watch, finite, last, no_gradients, values

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Measure = Callable[[Tensor], Tensor]
"""Logits (row, read, d_vocab) of what is read, one continuation after the other -> the metric (row,), differentiable."""

ENDPOINT = 1e-3  # of the largest logit: how near the other text's embedding must bring the text to the other's logits


def slopes(
    lm: LanguageModel, ids: Sequence[int], wheres: Sequence[SiteLayer], measure: Measure, *, edits: Sequence[Edit] = (),
    tails: Tails = ALONE, read: Sequence[int] = (0,), embeddings: Mapping[int, Tensor] | None = None,
) -> TextValues:  # fmt: skip
    """Activations of a text and a metric's derivatives by them: one forward and one backward of each continuation, under edits.

    A slope is the total derivative: of a change of that activation alone, with all that follows from it, in all continuations.
    The model's parameters get no gradients, whatever they ask for. read: the continuations (of `tails`) that the metric
    depends on. embeddings (pos, d_model) by continuation: take the place of what the tokens give.
    Raises `SiteAbsent` for a site that is not there, `BadModel` where the model gives no gradients, `NonFinite`.
    """
    watches = [
        Watch(lm, ids, wheres if i in read else (), tail=tail, graph=i in read, embedding=(embeddings or {}).get(i))
        for i, tail in enumerate(tails)
    ]
    followed = [watches[i] for i in read]
    if lm.gradients_lost_in is not None:
        raise no_gradients(lm, f"they are lost in {lm.gradients_lost_in}, which is quantised")
    what = f"a text of {len(ids):,} tokens with its gradients"
    with fitting(what, hint="shorter texts, --dtype bfloat16, or --method exact"), torch.inference_mode(False):
        try:
            logits = torch.cat([_logits(watch, edits) for watch in watches])
            with torch.enable_grad():
                metric = measure(logits[None])[0]
            for watch in followed:
                watch.check(metric)
            kept = [watch.kept[where] for watch in followed for where in wheres]
            found = torch.autograd.grad(metric, kept, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise no_gradients(lm, str(error).partition("\n")[0]) from error
    n = len(wheres)
    each = [watch.slopes(found[i * n : (i + 1) * n]) for i, watch in enumerate(followed)]
    total = {where: torch.stack([one[where] for one in each]).sum(0) for where in wheres}
    return TextValues(finite(logits.detach()), followed[0].values(), total)


def _logits(watch: Watch, edits: Sequence[Edit]) -> Tensor:
    """(read, d_vocab), with a graph where slopes are wanted."""
    with torch.set_grad_enabled(watch.graph), watch.active(edits):
        return watch.read()


def mean_slopes(
    lm: LanguageModel, ids: Sequence[int], other: Sequence[int], wheres: Sequence[SiteLayer], measure: Measure, *, steps: int,
    edits: Sequence[Edit] = (), tails: Tails = ALONE, read: Sequence[int] = (0,),
) -> dict[SiteLayer, Tensor]:  # fmt: skip
    """Slopes averaged over the midpoints of `steps` equal parts of the way from a text's embedding to that of another one of
    as many tokens (integrated gradients; Hanna et al. 2024, 2403.17806). Raises as `slopes` does, and `BadOption`."""
    if len(other) != len(ids):
        raise BadOption("integrated gradients go from one text to another of as many tokens", hint="leave --ig out")
    ends: dict[int, tuple[Tensor, Tensor]] = {}
    for i in read:
        one, another = [*ids, *tails[i]], [*other, *tails[i]]
        ends[i] = _embedding(lm, one), _embedding(lm, another)
        _check_end(lm, one, another, ends[i][1])
    total: dict[SiteLayer, Tensor] = {}
    for step in range(steps):
        points = {i: begin + (step + 0.5) / steps * (end - begin) for i, (begin, end) in ends.items()}
        found = slopes(lm, ids, wheres, measure, edits=edits, tails=tails, read=read, embeddings=points).slopes
        total = {where: slope.double() + total.get(where, 0.0) for where, slope in found.items()}
    return {where: slope / steps for where, slope in total.items()}


def products(read: TextValues, where: SiteLayer, new: Tensor, slope: Tensor | None = None) -> Tensor:
    """How much the metric changes, to first order, if one entry of one position alone takes what `new` (pos, [head,] d) has
    there: (new − value) · slope, of new's shape, float64 (Nanda 2023; Syed et al. 2023, 2310.10348)."""
    slope = read.slopes[where] if slope is None else slope
    return (new.to(slope.device).double() - read.values[where].double()) * slope.double()


@torch.no_grad()
def _embedding(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """(pos, d_model)."""
    seen: list[Tensor] = []
    with tapping(lm.model, {lm.anatomy.tap("embed"): lambda value: seen.append(value.clone())}):
        last(lm, ids)
    return seen[0].reshape(len(ids), -1)


@torch.no_grad()
def _check_end(lm: LanguageModel, ids: Sequence[int], other: Sequence[int], embedding: Tensor) -> None:
    """With the other text's embedding the model must say what it says of the other text."""
    with tapping(lm.model, {lm.anatomy.tap("embed"): lambda value: embedding.to(value).reshape(value.shape)}):
        found = last(lm, ids)
    wanted = last(lm, other)
    if not bool(apart(found, wanted).max() <= ENDPOINT * loudest(wanted)):
        raise BadModel(f"{lm.name} takes more from its tokens than their embedding", hint="leave --ig out")


class Attribution:
    """Two forwards and one backward for all cells of all sites (METHODS B3), for each continuation; `ig` forwards and backwards
    more, on the way from one text's embedding to the other's, for integrated gradients. `sampled` cells are run too, to
    compare."""

    warning = ""

    def __init__(self, lm: LanguageModel, pair: Pair, patching: Patching, wheres: Sequence[SiteLayer]) -> None:
        self._lm, self._pair, self._patching, request = lm, pair, patching, patching.request
        base, source, edits = pair.base(request.towards), pair.source(request.towards), patching.edits
        floors = [("resid_pre", layer) for layer in floor_layers(lm)] if request.runs_cells else []
        tails, read = pair.target.tails, continuations_of(request.metric, pair.target)
        self._source = values(lm, source, list(dict.fromkeys([*wheres, *floors])), edits=edits, tails=tails)
        clean = self._source.logits
        if request.towards == "noise" and request.metric == "kl":  # whose slope asks for the clean run before it is run
            clean = values(lm, base, (), edits=edits, tails=tails).logits
        measure = measure_of(request.metric, pair.target, logprobs_of(clean[0]))
        self._base = slopes(lm, base, wheres, measure, edits=edits, tails=tails, read=read)
        self._slopes: Mapping[SiteLayer, Tensor] = self._base.slopes
        if request.ig:
            self._slopes = mean_slopes(
                lm, base, source, wheres, measure, steps=request.ig, edits=edits, tails=tails, read=read
            )  # fmt: skip
        self.baselines = Baselines.of(pair, request.towards, self._base.logits, self._source.logits)

    def values(self, where: SiteLayer) -> tuple[Tensor, Tensor]:
        """(pos, [head,] d) of the text that is patched, and of the one that patches come from."""
        return self._base.values[where], self._source.values[where]

    def by_unit(self, where: SiteLayer, new: Tensor) -> Tensor:
        """How much the metric is to change by each entry of each position, to first order, (pos, d) float64."""
        return products(self._base, where, new, self._slopes[where])

    def estimates(self, part: LayerCells, new: Tensor) -> np.ndarray:
        """The metric of each cell patched, to first order (n,)."""
        where, request = (part.site, part.layer), self._patching.request
        change = self.by_unit(where, new).cpu()
        cells = torch.stack([one.of(change).sum() for one in part.locations])
        found: np.ndarray = self.baselines.start.of(request.metric) + cells.numpy()
        return found

    def measure(
        self, part: LayerCells | PathGroup, old: Tensor, new: Tensor, report: Report, *, sampled: Collection[int]
    ) -> list[tuple[str, LayerCells, CellMetrics]]:
        """The metric as it is estimated for each cell; `sampled` are numbers of cells that are run too."""
        assert isinstance(part, LayerCells)
        readout = Metrics(*(np.full(len(part), np.nan) for _ in Metrics._fields))
        readout.of(self._patching.request.metric)[:] = self.estimates(part, new)
        tried = np.full(len(part), np.nan)
        if sampled:
            some = sorted(sampled)
            few = replace(part, locations=tuple(part.locations[i] for i in some), pos=(), step=(), control=())
            tried[some] = self._run(few, old, new).readout.of(self._patching.request.metric)
        report(len(part))
        return [("", part, CellMetrics(readout, ~np.isnan(tried), tried))]

    def _run(self, part: LayerCells, old: Tensor, new: Tensor, report: Report = lambda done: None) -> CellMetrics:
        """All of these cells, exactly."""
        paired, budget = self._patching.request.source == "clean", self._patching.budget
        return exact(self.prepared, part, old, new, budget=budget, paired=paired, report=report)

    @cached_property
    def prepared(self) -> PreparedPair:
        """Both texts, ready for cells that are run."""
        request, edits = self._patching.request, self._patching.edits
        return prepare_pair(self._lm, self._pair, request.towards, edits, source=self._source)


class EstimatedAndExact(Attribution):
    """The same estimates of neurons, and every cell is run besides."""

    def __init__(self, lm: LanguageModel, pair: Pair, patching: Patching, wheres: Sequence[SiteLayer]) -> None:
        super().__init__(lm, pair, patching, wheres)
        self.warning = slowly(self.prepared)

    def measure(
        self, part: LayerCells | PathGroup, old: Tensor, new: Tensor, report: Report, *, sampled: Collection[int]
    ) -> list[tuple[str, LayerCells, CellMetrics]]:
        """Metrics with each cell patched, and what was estimated of them. Nothing is sampled: all is exact."""
        assert isinstance(part, LayerCells)
        estimated = None if part.locations[0].unit is None else self.estimates(part, new)
        return [("", part, self._run(part, old, new, report)._replace(estimated=estimated))]


def sample(patching: Patching) -> dict[tuple[int, int], set[int]]:
    """The cells that attribution runs too, drawn among those that the difference between the texts can reach, or, where neurons
    were chosen, those that were drawn beside: numbers of cells by pair and site of a layer."""
    request = patching.request
    parts = [
        (number, i, part)
        for number, own in enumerate(patching.parts if request.sampled else ())
        for i, part in enumerate(own)
        if isinstance(part, LayerCells)
    ]
    if patching.neurons:
        return {(number, i): {cell for cell, one in enumerate(part.control) if one} for number, i, part in parts}
    firsts = [pair.reached(request.towards) for pair in patching.pairs]
    reached = [
        (number, i, cell)
        for number, i, part in parts
        for cell, one in enumerate(part.locations)
        if one.positions[-1] >= firsts[number]
    ]
    found: dict[tuple[int, int], set[int]] = {}
    for k in np.random.default_rng(request.seed).permutation(len(reached))[: request.sampled]:
        number, i, cell = reached[k]
        found.setdefault((number, i), set()).add(cell)
    return found
