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
from probe.instrument import tapping
from probe.interventions import Edit
from probe.patching.cells import LayerCells
from probe.patching.exact import Baselines, CellMetrics, PreparedPair, Report, exact, prepare_pair
from probe.patching.metrics import Metrics, logprobs_of, measure_of, read_out
from probe.patching.pairs import Pair
from probe.patching.planning import PatchPlan
from probe.patching.reading import SiteLayer, TextValues, Watch, finite, last, last_logits, no_gradients, values
from probe.patching.sources import Values

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Measure = Callable[[Tensor], Tensor]
"""Logits (row, d_vocab) of the position that is read -> the metric (row,), differentiable."""

ENDPOINT = 1e-3  # of the largest logit: how near the other text's embedding must bring the text to the other's logits


def slopes(
    lm: LanguageModel, ids: Sequence[int], wheres: Sequence[SiteLayer], measure: Measure, *, edits: Sequence[Edit] = (),
    embedding: Tensor | None = None,
) -> TextValues:  # fmt: skip
    """Activations of a text and a metric's derivatives by them: one forward and one backward, under edits.

    A slope is the total derivative: of a change of that activation alone, with all that follows from it. The model's
    parameters get no gradients, whatever they ask for. embedding (pos, d_model): takes the place of what the tokens give.
    Raises `SiteAbsent` for a site that is not there, `BadModel` where the model gives no gradients, `NonFinite`.
    """
    watch = Watch(lm, ids, wheres, graph=True, embedding=embedding)
    with torch.inference_mode(False), torch.enable_grad(), watch.active(edits):
        try:
            logits = last(lm, ids)
            metric = measure(logits[None])[0]
            watch.check(metric)
            found = torch.autograd.grad(metric, [watch.kept[where] for where in wheres], allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise no_gradients(lm, str(error).partition("\n")[0]) from error
    return TextValues(finite(logits.detach()), watch.values(), watch.slopes(found))


def mean_slopes(
    lm: LanguageModel, ids: Sequence[int], other: Sequence[int], wheres: Sequence[SiteLayer], measure: Measure, *, steps: int,
    edits: Sequence[Edit] = (),
) -> dict[SiteLayer, Tensor]:  # fmt: skip
    """Slopes averaged over the midpoints of `steps` equal parts of the way from a text's embedding to that of another one of
    as many tokens (integrated gradients; Hanna et al. 2024, 2403.17806). Raises as `slopes` does, and `BadOption`."""
    if len(other) != len(ids):
        raise BadOption("integrated gradients go from one text to another of as many tokens", hint="leave --ig out")
    begin, end = _embedding(lm, ids), _embedding(lm, other)
    _check_end(lm, ids, other, end)
    total: dict[SiteLayer, Tensor] = {}
    for step in range(steps):
        point = begin + (step + 0.5) / steps * (end - begin)
        found = slopes(lm, ids, wheres, measure, edits=edits, embedding=point).slopes
        total = {where: slope.double() + total.get(where, 0.0) for where, slope in found.items()}
    return {where: slope / steps for where, slope in total.items()}


def estimated(read: TextValues, where: SiteLayer, new: Tensor, slope: Tensor | None = None) -> Tensor:
    """How much the metric changes, to first order, if one position (and head) alone takes what `new` (pos, [head,] d) has
    there: Σ_d (new − value) · slope, (pos, [head]) (Nanda 2023; Syed et al. 2023, 2310.10348)."""
    slope = read.slopes[where] if slope is None else slope
    return ((new.to(slope.device).double() - read.values[where].double()) * slope.double()).sum(-1)


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
    """Two forwards and one backward for all cells of all sites (METHODS B3); `steps` forwards and backwards more, on the way
    from one text's embedding to the other's, for integrated gradients. `sampled` cells are run too, to compare."""

    warning = ""

    def __init__(self, lm: LanguageModel, pair: Pair, plan: PatchPlan, parts: Sequence[LayerCells]) -> None:
        self._lm, self._pair, self._plan = lm, pair, plan
        base, source, edits = pair.base(plan.direction), pair.source(plan.direction), plan.edits
        wheres = list(dict.fromkeys((part.site, part.layer) for part in parts))
        self._other = values(lm, source, wheres if plan.source == "clean" else (), edits=edits)
        clean = self._other.logits
        if plan.direction == "noise" and plan.metric == "kl":  # whose slope asks for the clean run before it is run
            clean = last_logits(lm, base, edits)
        measure = measure_of(plan.metric, pair.target, logprobs_of(clean))
        self._base = slopes(lm, base, wheres, measure, edits=edits)
        self._slopes: Mapping[SiteLayer, Tensor] = self._base.slopes
        if plan.ig:
            self._slopes = mean_slopes(lm, base, source, wheres, measure, steps=plan.ig, edits=edits)
        ends = [self._other.logits, self._base.logits]
        ends = ends if plan.direction == "denoise" else ends[::-1]
        logprobs = logprobs_of(ends[0])
        self.view = Baselines(pair, plan.direction, logprobs, read_out(torch.stack(ends), pair.target, logprobs))

    def base(self, site: str, layers: Sequence[int]) -> Values:
        """(pos, [head,] d) of the text that is patched, by layer."""
        return {layer: self._base.values[site, layer] for layer in layers}

    def other(self, site: str, layers: Sequence[int]) -> Values:
        """The same of the text that patches come from."""
        return {layer: self._other.values[site, layer] for layer in layers}

    def cells(
        self, part: LayerCells, old: Tensor, new: Tensor, report: Report, *, sampled: Collection[int]
    ) -> CellMetrics:
        """The metric as it is estimated for each cell; `sampled` are numbers of cells that are run too."""
        change = estimated(self._base, (part.site, part.layer), new, self._slopes[part.site, part.layer]).cpu()
        cells = [
            change[list(swap.positions)].sum() if swap.head is None else change[list(swap.positions), swap.head].sum()
            for swap in part.locations
        ]
        nothing = [np.full(len(part.locations), np.nan) for _ in Metrics._fields]
        readout, metric = Metrics(*nothing), self._plan.metric
        readout.of(metric)[:] = self.view.start.of(metric) + torch.stack(cells).numpy()
        tried = np.full(len(part.locations), np.nan)
        if sampled:
            some = sorted(sampled)
            few = replace(part, locations=tuple(part.locations[i] for i in some), pos=(), step=())
            paired, budget = self._plan.source == "clean", self._plan.memory
            tried[some] = exact(self.prepared, few, old, new, budget=budget, paired=paired).readout.of(metric)
        report(len(part.locations))
        return CellMetrics(readout, ~np.isnan(tried), tried)

    @cached_property
    def prepared(self) -> PreparedPair:
        """Both texts, ready for cells that are run."""
        return prepare_pair(self._lm, self._pair, self._plan.direction, self._plan.edits)


def sample(
    parts: Sequence[Sequence[LayerCells]], pairs: Sequence[Pair], n: int, *, seed: int
) -> dict[tuple[int, int], set[int]]:
    """n cells drawn among those that the difference between the texts can reach: numbers of cells by pair and slice."""
    reached = [
        (number, i, cell)
        for number, (pair, own) in enumerate(zip(pairs, parts, strict=True))
        for i, part in enumerate(own)
        for cell, swap in enumerate(part.locations)
        if swap.positions[-1] >= pair.first
    ]
    chosen = np.random.default_rng(seed).permutation(len(reached))[:n]
    found: dict[tuple[int, int], set[int]] = {}
    for k in chosen:
        number, i, cell = reached[k]
        found.setdefault((number, i), set()).add(cell)
    return found
