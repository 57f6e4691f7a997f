"""Receiver heads (METHODS M13): heads that keep looking back at a few steps, and how much each step is looked at.

Bogdan et al. 2025 (2506.19143). A pattern is averaged to step x step while it is read; T^2 weights are never held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probe import stats
from probe.capturing import AttentionSpec, MemorySink, read
from probe.errors import BadOption, RunError
from probe.step_importance.task import Heads, Measured, StepImportance, Task
from probe.store import Run
from probe.texts import Trajectory

if TYPE_CHECKING:
    from probe.capturing.sinks import Columns
    from probe.language_model import LanguageModel

GAP, HEADS = 4, 20
FEW = 4  # at most one head in so many is a receiver head: all heads of a small model are none
LEAST = 12  # scores of a head below which their kurtosis says nothing: that of two is always -2
SHUFFLES = 100


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
    """Step-averaged attention (layer-head, step, step), which layer and head each is, and how many keys a step has."""

    matrix: np.ndarray
    keys: np.ndarray
    names: list[tuple[int, int]]


def looks(lm: LanguageModel, original: Trajectory) -> Looks:
    """Mean weight over a step's query rows and an earlier step's keys: a sum over keys would rank steps by their length."""
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
    width = np.bincount(owner[owner >= 0], minlength=n)
    return Looks(
        np.concatenate([sink.sums[layer] / (width[:, None] * width) for layer in layers]),
        width,
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


def shuffled(matrix: np.ndarray, random: np.random.Generator, gap: int = GAP) -> np.ndarray:
    """Every row's weights on the steps that lie at least `gap` before it, in another order; the rest as it was."""
    mixed = matrix.copy()
    for row in range(gap, matrix.shape[-1]):
        earlier = slice(0, row - gap + 1)
        mixed[:, row, earlier] = random.permuted(matrix[:, row, earlier], axis=-1)
    return mixed


def received(task: Task) -> Measured:
    """A row a step: the mean vertical score over the receiver heads. `control`: over all heads alike.

    heads: those chosen on another text; without, the HEADS heads (at most one in FEW) of largest kurtosis on this one,
    which flatters them.
    The summary holds what can make such a score a mirage: the share of mass within one step of the diagonal, the rank
    correlation of the scores for other gaps and without the first step (a sink), that of the kurtoses of two halves of
    the steps, and what the kurtosis is where each row's weights are shuffled among the steps that it can count for.
    Raises `BadOption` for fewer than GAP + LEAST steps.
    """
    heads, found = task.heads, looks(task.lm, task.original)
    n = found.matrix.shape[-1]
    if n < GAP + LEAST:
        raise BadOption(f"receiver heads need at least {GAP + LEAST} steps, and there are {n}", hint="cut finer: --split line")
    scores = vertical(found.matrix)
    spread = kurtosis(scores)
    best = np.argsort(-spread)[: min(HEADS, max(1, len(spread) // FEW))] if heads is None else _places(found, heads)
    mean, everyone = scores[best].mean(axis=0), scores.mean(axis=0)
    text = "this text" if heads is None else heads.text
    rows = [
        StepImportance(
            "receiver", i, float(mean[i]), f"mean weight of later steps, {len(best)} receiver heads chosen on {text}",
            control=float(everyone[i]), n=len(best))
        for i in range(n)
        if not np.isnan(mean[i])
    ]  # fmt: skip
    return Measured(rows, summary={
        "heads": [{"layer": found.names[h][0], "head": found.names[h][1], "kurtosis": float(spread[h])} for h in best],
        "chosen_on": text, **_controls(found, scores, best, seed=task.seed, chosen_here=heads is None),
    })  # fmt: skip


def _controls(found: Looks, scores: np.ndarray, best: np.ndarray, *, seed: int, chosen_here: bool) -> dict[str, Any]:
    n, mean = scores.shape[-1], scores[best].mean(axis=0)
    mass = found.matrix[best] * found.keys
    within = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= 1
    gaps = {}
    for gap in (1, 2, 8, 16):
        other = vertical(found.matrix[best].mean(axis=0), gap)
        both = ~np.isnan(other) & ~np.isnan(mean)
        gaps[gap] = stats.spearman(other[both], mean[both]) if both.sum() > 2 else None
    random = np.random.default_rng(seed)
    null = [kurtosis(vertical(shuffled(found.matrix, random))) for _ in range(SHUFFLES)]
    drawn = [float((np.sort(k)[-len(best) :] if chosen_here else k[best]).mean()) for k in null]
    unsunk = scores[np.argsort(-kurtosis(scores[:, 1:]))[: len(best)] if chosen_here else best].mean(axis=0)
    seen = ~np.isnan(mean[1:])
    halves = [kurtosis(scores[:, half::2]) for half in (0, 1)]
    return {
        "recency_share": float((mass * within).sum() / mass.sum()), "gaps": gaps,
        "without_first_step": stats.spearman(mean[1:][seen], unsunk[1:][seen]), "split_half": stats.spearman(*halves),
        "kurtosis_shuffled": float(np.mean(drawn)), "kurtosis_shuffled_high": float(np.quantile(drawn, 0.95)),
    }  # fmt: skip


def heads_of(run: Run, source: Run) -> Heads:
    """The heads that an importance run chose. Raises `RunError` if it chose none on a text of its own."""
    chosen = run.summary.get("receiver") or {}
    if not chosen.get("heads") or chosen.get("chosen_on") != "this text":
        raise RunError("that run chose no receiver heads", hint="make one: probe importance RUN --method receiver")
    if (run.manifest.get("parent") or {}).get("run") == source.run_id:
        raise RunError("that run chose its heads on this same text", hint="name a run over another text")
    return Heads(tuple((h["layer"], h["head"]) for h in chosen["heads"]), run.path.name if run.path else run.run_id)


def _places(found: Looks, heads: Heads) -> np.ndarray:
    where = {name: i for i, name in enumerate(found.names)}
    missing = [f"{layer}.{head}" for layer, head in heads.places if (layer, head) not in where]
    if missing:
        raise BadOption(f"there is no head {missing[0]}", hint="choose the heads with a run of the same model")
    return np.asarray([where[place] for place in heads.places])
