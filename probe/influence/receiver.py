"""Receiver heads (METHODS M13): heads that keep looking back at a few steps, and how much each step is looked at.

Bogdan et al. 2025 (2506.19143). A pattern is averaged to step x step while it is read; T^2 weights are never held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probe.capturing import AttentionSpec, MemorySink, read
from probe.errors import BadOption
from probe.influence.rows import Row
from probe.rewinding.trajectory import Trajectory

if TYPE_CHECKING:
    from probe.capturing.sinks import Columns
    from probe.language_model import LanguageModel

GAP, HEADS = 4, 20


class StepSink(MemorySink):
    """Keeps Σ over query rows of the mass on each step's keys: (layer) -> (head, step, step), and drops the weights."""

    def __init__(self, owner: np.ndarray, n_steps: int, n_heads: dict[int, int]) -> None:
        super().__init__()
        self._owner, self._n = owner, n_steps
        self.sums = {layer: np.zeros((heads, n_steps, n_steps)) for layer, heads in n_heads.items()}

    def attention(self, prompt: int, layer: int, columns: Columns) -> None:
        """Add whole rows of one prompt: the weights of a query's keys go to the steps that own them."""
        weights, head, query = columns["weights"], np.asarray(columns["head"]), np.asarray(columns["query"])
        offsets = np.asarray(weights.offsets, np.int64)
        widths = np.diff(offsets)
        row = np.repeat(np.arange(len(widths)), widths)
        key = np.arange(offsets[0], offsets[-1]) - np.repeat(offsets[:-1], widths)
        step, target = self._owner[key], self._owner[query][row]
        inside = (step >= 0) & (target >= 0)
        flat = (head[row] * self._n + target) * self._n + step
        sums = np.bincount(
            flat[inside], weights=weights.values[offsets[0] : offsets[-1]][inside], minlength=self.sums[layer].size
        )
        self.sums[layer] += sums.reshape(self.sums[layer].shape)


@dataclass
class Looks:
    """Step-averaged attention (layer-head, step, step), and which layer and head each is."""

    matrix: np.ndarray
    names: list[tuple[int, int]]


def looks(lm: LanguageModel, original: Trajectory) -> Looks:
    """Mean over a step's query rows of the mass on each earlier step's keys."""
    n, anatomy = len(original.steps), lm.anatomy
    owner = np.full(len(original.ids), -1, np.int64)
    for i, step in enumerate(original.steps):
        owner[step.start : step.end] = i
    layers = [layer for layer in range(anatomy.n_layers) if anatomy.has("pattern", layer)]
    if not layers:
        raise BadOption(f"'{lm.name}' has no attention that can be read", hint="use another method")
    sink = StepSink(owner, n, {layer: anatomy.n_heads("pattern", layer) for layer in layers})
    ids = torch.tensor([original.ids], device=lm.device)
    read(lm, ids, [len(original.ids)], cells=(), attention=AttentionSpec("full"), top=0, lens=False, sink=sink)
    queries = np.bincount(owner[owner >= 0], minlength=n)[None, :, None]
    return Looks(
        np.concatenate([sink.sums[layer] / queries for layer in layers]),
        [(layer, head) for layer in layers for head in range(len(sink.sums[layer]))],
    )


def vertical(matrix: np.ndarray, gap: int = GAP) -> np.ndarray:
    """(…, step): how much a step is looked at by the steps at least `gap` after it, on average; NaN where none is."""
    n = matrix.shape[-1]
    later = np.subtract.outer(np.arange(n), np.arange(n)) >= gap
    count = later.sum(axis=0)
    return np.where(count > 0, (matrix * later).sum(axis=-2) / np.maximum(count, 1), np.nan)


def kurtosis(values: np.ndarray) -> np.ndarray:
    """Fisher kurtosis (biased) over the last axis, NaN left out: a head that looks at a few steps has a large one."""
    values = values - np.nanmean(values, axis=-1, keepdims=True)
    second, fourth = (np.nanmean(values**k, axis=-1) for k in (2, 4))
    return np.divide(fourth, second**2, out=np.zeros_like(fourth), where=second > 0) - 3


def received(lm: LanguageModel, original: Trajectory, *, seed: int = 0) -> tuple[list[Row], dict[str, Any]]:
    """A row a step: the mean vertical score over the HEADS heads of largest kurtosis. `control`: over all heads alike.

    The summary holds what can make such a score a mirage: the share of mass within one step of the diagonal, the rank
    correlation of the scores for other gaps and without the first step (a sink), that of the kurtoses of two halves of
    the steps, and where the kurtosis lies among those with the steps' columns shuffled. Needs more than GAP + 1 steps.
    """
    from probe import stats

    found = looks(lm, original)
    n = found.matrix.shape[-1]
    if n < GAP + 2:
        raise BadOption(
            f"receiver heads need at least {GAP + 2} steps, and there are {n}", hint="cut finer: --split line"
        )
    scores = vertical(found.matrix)
    spread = kurtosis(scores)
    best = np.argsort(-spread)[:HEADS]
    mean, everyone = scores[best].mean(axis=0), scores.mean(axis=0)
    rows = [
        Row(
            "receiver",
            i,
            float(mean[i]),
            "mass a later step gives, receiver heads",
            control=float(everyone[i]),
            n=len(best),
        )
        for i in range(n)
        if not np.isnan(mean[i])
    ]
    within = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= 1
    gaps = {}
    for gap in (1, 2, 8, 16):
        other = vertical(found.matrix[best].mean(axis=0), gap)
        both = ~np.isnan(other) & ~np.isnan(mean)
        gaps[gap] = stats.spearman(other[both], mean[both]) if both.sum() > 2 else None
    random = np.random.default_rng(seed)
    shuffled = [
        float(np.sort(kurtosis(vertical(found.matrix[:, :, random.permutation(n)])))[-HEADS:].mean())
        for _ in range(100)
    ]
    unsunk = scores[np.argsort(-kurtosis(scores[:, 1:]))[:HEADS]].mean(axis=0)
    seen = ~np.isnan(mean[1:])
    halves = [kurtosis(scores[:, half::2]) for half in (0, 1)]
    return rows, {
        "heads": [{"layer": found.names[h][0], "head": found.names[h][1], "kurtosis": float(spread[h])} for h in best],
        "recency_share": float((found.matrix[best] * within).sum() / found.matrix[best].sum()),
        "gaps": gaps, "without_first_step": stats.spearman(mean[1:][seen], unsunk[1:][seen]),
        "split_half": stats.spearman(*halves), "kurtosis_shuffled": float(np.mean(shuffled)),
    }  # fmt: skip
