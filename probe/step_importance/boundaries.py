"""One sweep over the boundaries between steps: each is drawn from once, and serves the step before and the step after.

`resampling` (METHODS M1) compares what comes out with the step kept and with it drawn anew. `counterfactual` (M2) keeps of
the second only the draws whose own step says something else. Reads what was drawn, draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from probe import stats
from probe.rewinding.drawing import Samples
from probe.rewinding.effects import labels
from probe.rewinding.results import sampled_ids
from probe.rewinding.rollouts import Arm
from probe.rewinding.teacher_forced import own_steps
from probe.step_importance import similarity
from probe.step_importance.task import Measured, StepImportance, Task
from probe.texts import Trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DISTANCES = (("tv", "total variation", stats.tv), ("kl", "nats, KL Jeffreys", stats.kl_jeffreys))
LEAST = 10  # draws that must say something else: with fewer nothing is concluded


def boundary(i: int) -> str:
    """Name of the arm that continues after i steps."""
    return f"boundary-{i}"


def arms(lm: LanguageModel, original: Trajectory) -> list[Arm]:
    """n + 1 arms for n steps; the last has all of them, without the end token: nothing is continued after the end."""
    found = edges(lm, original)
    return [Arm(boundary(i), i, original.ids[:edge], edge, original.n_prompt, of=len(found)) for i, edge in enumerate(found)]


def edges(lm: LanguageModel, original: Trajectory) -> list[int]:
    """Positions (n + 1,) after 0 to n steps; the last one is before the end token."""
    steps, ids = original.steps, original.ids
    end = len(ids) - (ids[-1] in lm.eos_ids)
    return [steps[0].start, *(min(step.end, end) for step in steps)]


def resampling(task: Task) -> Measured:
    """Rows of `resampling_rows` from what was drawn at every boundary."""
    drawn, samples = task.read("branches"), task.samples("resampling")
    return Measured(resampling_rows(drawn, task.reference, samples=samples, seed=task.seed, paired=task.paired))


def resampling_rows(
    branches: pa.Table, reference: str, *, samples: Sequence[Samples], seed: int, paired: bool = True
) -> list[StepImportance]:
    """Three rows a step: what keeping it, instead of drawing it anew, does to the outcome.

    `resampling`: the difference in P(reference), of pairs where both share their noise. `resampling_tv`, `resampling_kl`:
    total variation, and KL with ½ added to each count, of all outcomes; their `control` is the mean where nothing differs,
    their p a permutation's. samples: of each step; where it depended on them how many there are, the interval of the
    difference is a confidence sequence, and the distances have no p.
    """
    rows = []
    for i, (n, stopped) in enumerate(samples):
        without, kept = (labels(branches, boundary(k), n) for k in (i, i + 1))
        arms = [np.asarray([c == reference for c in arm]) for arm in (without, kept)]
        difference = stats.compare(*arms, paired=paired) if stopped is None else stats.anytime(*arms)
        row = StepImportance("resampling", i, None, "P(answer) with the step - without", n=n, stopped=stopped)
        rows.append(_with(row, difference))
        for name, unit, statistic in DISTANCES:
            shift = stats.shift(without, kept, statistic, paired=paired, seed=seed)
            rows.append(StepImportance(
                f"resampling_{name}", i, shift.value, unit, p_value=shift.p_value if stopped is None else None,
                control=shift.null_mean, floor=shift.null_mean, n=n, stopped=stopped,
            ))  # fmt: skip
    return rows


def counterfactual(task: Task) -> Measured:
    """Rows of `counterfactual_rows` from what was drawn at every boundary, and how the draws were told apart."""
    samples = task.samples("counterfactual")
    found = told_apart(task, [n for n, _ in samples])
    rows = counterfactual_rows(task.read("branches"), task.reference, found.different, samples=samples, seed=task.seed)
    layer = task.lm.anatomy.n_layers // 2
    return Measured(rows, summary={
        "threshold": found.threshold,
        "embedder": task.request.embedder or f"resid_post@{layer}, mean-pooled, centred",
        "different": [float(d.mean()) for d in found.different],
        "overdetermined": [1 - len(set(per)) / len(per) for per in found.texts],
    })  # fmt: skip


class ToldApart(NamedTuple):
    """The first step of each draw from before each step, which of them say something else (step, n), and from which cosine."""

    texts: list[list[str]]
    different: list[np.ndarray]
    threshold: float


def told_apart(task: Task, samples: Sequence[int]) -> ToldApart:
    """Which of so many draws from before each step say something else than the step.

    In rounds by the first round's centre and threshold: what a draw counts as then does not change with more of them.
    """
    lm, steps, embedder, pilot = task.lm, task.original.steps, task.request.embedder, task.pilot
    branches, tokens = task.read("branches"), task.read("tokens")
    ids = [task.original.ids[s.start : s.end] for s in steps]
    drawn = []
    for i, n in enumerate(samples):
        own = sampled_ids(branches, tokens, boundary(i))[:n]
        drawn.append([own_steps(lm, [one], task.request.split)[0] if one else () for one in own])
    texts = [[lm.pieces(d).text if d else "" for d in per] for per in drawn]
    if embedder is None:
        per_step = [[d or ids[i] for d in per] for i, per in enumerate(drawn)]
        centre = [*ids, *(d for per in per_step for d in per[:pilot])]
        vectors = similarity.embeddings(lm, [*ids, *(d for per in per_step for d in per)], centre=centre, pooled=task.pooled)
    else:
        vectors = similarity.external(embedder, [*(s.text for s in steps), *(t for per in texts for t in per)])
    rest = np.split(vectors[len(steps) :], np.cumsum(samples)[:-1])
    different, threshold = similarity.say_otherwise([s.text for s in steps], texts, rest, vectors[: len(steps)], pilot)
    return ToldApart(texts, different, threshold)


def counterfactual_rows(
    branches: pa.Table, reference: str, different: Sequence[np.ndarray], *, samples: Sequence[Samples], seed: int = 0
) -> list[StepImportance]:
    """Five rows a step: the outcome where another step was drawn in its place, against the outcome with the step kept.

    different[i] (n,): whether draw s from before step i says something else than step i.
    `counterfactual`: P(reference) with the step - with another. `counterfactual_kl`: KL(with another || with the step) of
    all outcomes (Bogdan et al. 2025), `_tv`: their total variation; `…_pooled`: against the draws with the step and those
    that say the same taken together, as those authors' code has it.
    Two controls: `control` is the same against the draws that say the same (content matters only where the estimate
    exceeds it), `floor` its mean where nothing differs. Fewer than LEAST draws of either kind: not measured. samples: see
    `resampling_rows`.
    """
    rows = []
    for i, (n, stopped) in enumerate(samples):
        without, kept = (labels(branches, boundary(k), n) for k in (i, i + 1))
        other, same = ([c for c, d in zip(without, different[i], strict=True) if d == kind] for kind in (True, False))
        row = StepImportance("counterfactual", i, None, "P(answer) with the step - with another", n=len(other), stopped=stopped)
        if len(other) >= LEAST:
            row = _with(row, apart(other, kept, reference, looks=stopped is not None))
        if len(same) >= LEAST:
            row.control = apart(same, kept, reference).estimate
        rows.append(row)
        for name, unit, statistic in DISTANCES:
            alike = stats.shift(same, kept, statistic, paired=False, seed=seed).value if len(same) >= LEAST else None
            for suffix, against in (("", kept), ("_pooled", [*kept, *same])):
                row = StepImportance(
                    f"counterfactual_{name}{suffix}", i, None, unit, control=alike, n=len(other), stopped=stopped
                )
                if len(other) >= LEAST:
                    shift = stats.shift(other, against, statistic, paired=False, seed=seed)
                    p_value = shift.p_value if stopped is None else None
                    row = replace(row, estimate=shift.value, p_value=p_value, floor=shift.null_mean)
                rows.append(row)
    return rows


def _with(row: StepImportance, found: stats.Difference) -> StepImportance:
    """The row with the difference as its estimate."""
    return replace(row, estimate=found.estimate, ci_low=found.low, ci_high=found.high, p_value=found.p_value)


def apart(other: Sequence[str], kept: Sequence[str], reference: str, *, looks: bool = False) -> stats.Difference:
    """P(reference) in `kept` - in `other`; looks: how many there are depended on them."""
    counts = other.count(reference), len(other), kept.count(reference), len(kept)
    return stats.anytime_independent(*counts) if looks else stats.independent(*counts)
