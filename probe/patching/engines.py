"""Two ways to what a cell's patch does: by running it, or foretold from one gradient. Each for one pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probe.patching.gradients import Where, foretold, mean_slopes, slopes, values
from probe.patching.grid import Slice
from probe.patching.metrics import Readout, logprobs_of, measure_of, read_out
from probe.patching.pairs import Pair
from probe.patching.preparing import Plan
from probe.patching.rest import last_logits
from probe.patching.sources import Values, activations
from probe.patching.sweep import Measured, Scene, View, exact, scene

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Report = Callable[[int], None]
"""Told how many cells of a slice are done."""


class Exact:
    """Every cell's forward is run, as far as the patch reaches."""

    def __init__(self, lm: LanguageModel, pair: Pair, plan: Plan) -> None:
        self._lm, self._pair, self._plan = lm, pair, plan
        self.view = self.scene = scene(lm, pair, plan.direction, plan.edits)
        why = self.view.base.why_not if self.view.base.way is None else ""
        self.warning = f"every cell took a whole forward: {why}" if why else ""

    def base(self, site: str, layers: Sequence[int]) -> Values:
        """(pos, [head,] d) of the text that is patched, by layer."""
        return activations(self._lm, self._pair.base(self._plan.direction), site, layers, self._plan.edits)

    def other(self, site: str, layers: Sequence[int]) -> Values:
        """The same of the text that patches come from."""
        return activations(self._lm, self._pair.source(self._plan.direction), site, layers, self._plan.edits)

    def cells(self, part: Slice, old: Tensor, new: Tensor, report: Report, *, sampled: Collection[int]) -> Measured:
        """Metrics with each cell patched. Nothing is sampled: all is exact."""
        plan = self._plan
        return exact(self.view, part, old, new, budget=plan.memory, paired=plan.source == "clean", report=report)


class Attribution:
    """Two forwards and one backward for all cells of all sites (METHODS B3); `steps` forwards and backwards more, on the way
    from one text's embedding to the other's, for integrated gradients. `sampled` cells are run too, to compare."""

    warning = ""

    def __init__(self, lm: LanguageModel, pair: Pair, plan: Plan, parts: Sequence[Slice]) -> None:
        self._lm, self._pair, self._plan = lm, pair, plan
        base, source, edits = pair.base(plan.direction), pair.source(plan.direction), plan.edits
        wheres = list(dict.fromkeys((part.site, part.layer) for part in parts))
        self._other = values(lm, source, wheres if plan.source == "clean" else (), edits=edits)
        clean = self._other.logits
        if plan.direction == "noise" and plan.metric == "kl":  # whose slope asks for the clean run before it is run
            clean = last_logits(lm, base, edits)
        measure = measure_of(plan.metric, pair.target, logprobs_of(clean))
        self._base = slopes(lm, base, wheres, measure, edits=edits)
        self._slopes: Mapping[Where, Tensor] = self._base.slopes
        if plan.ig:
            self._slopes = mean_slopes(lm, base, source, wheres, measure, steps=plan.ig, edits=edits)
        ends = [self._other.logits, self._base.logits]
        ends = ends if plan.direction == "denoise" else ends[::-1]
        logprobs = logprobs_of(ends[0])
        self.view = View(pair, plan.direction, logprobs, read_out(torch.stack(ends), pair.target, logprobs))

    def base(self, site: str, layers: Sequence[int]) -> Values:
        """(pos, [head,] d) of the text that is patched, by layer."""
        return {layer: self._base.values[site, layer] for layer in layers}

    def other(self, site: str, layers: Sequence[int]) -> Values:
        """The same of the text that patches come from."""
        return {layer: self._other.values[site, layer] for layer in layers}

    def cells(self, part: Slice, old: Tensor, new: Tensor, report: Report, *, sampled: Collection[int]) -> Measured:
        """The metric as it is foretold for each cell; `sampled` are numbers of cells that are run too."""
        change = foretold(self._base, (part.site, part.layer), new, self._slopes[part.site, part.layer]).cpu()
        cells = [
            change[list(swap.positions)].sum() if swap.head is None else change[list(swap.positions), swap.head].sum()
            for swap in part.swaps
        ]
        nothing = [np.full(len(part.swaps), np.nan) for _ in Readout._fields]
        readout, metric = Readout(*nothing), self._plan.metric
        readout.of(metric)[:] = self.view.start.of(metric) + torch.stack(cells).numpy()
        tried = np.full(len(part.swaps), np.nan)
        if sampled:
            some = sorted(sampled)
            few = replace(part, swaps=tuple(part.swaps[i] for i in some), pos=(), step=())
            paired, budget = self._plan.source == "clean", self._plan.memory
            tried[some] = exact(self.scene, few, old, new, budget=budget, paired=paired).readout.of(metric)
        report(len(part.swaps))
        return Measured(readout, ~np.isnan(tried), tried)

    @cached_property
    def scene(self) -> Scene:
        """Both texts, ready for cells that are run."""
        return scene(self._lm, self._pair, self._plan.direction, self._plan.edits)


def sample(
    parts: Sequence[Sequence[Slice]], pairs: Sequence[Pair], n: int, *, seed: int
) -> dict[tuple[int, int], set[int]]:
    """n cells drawn among those that the difference between the texts can reach: numbers of cells by pair and slice."""
    reached = [
        (number, i, cell)
        for number, (pair, own) in enumerate(zip(pairs, parts, strict=True))
        for i, part in enumerate(own)
        for cell, swap in enumerate(part.swaps)
        if swap.positions[-1] >= pair.first
    ]
    chosen = np.random.default_rng(seed).permutation(len(reached))[:n]
    found: dict[tuple[int, int], set[int]] = {}
    for k in chosen:
        number, i, cell = reached[k]
        found.setdefault((number, i), set()).add(cell)
    return found
