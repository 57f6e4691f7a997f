"""How each later step depends on each earlier one, without sampling: re-scored without it, or with attention to it forbidden.

`rescore` (METHODS M11): the step is taken out, what follows closes up; how much log-prob do the later steps lose?
`suppression` (M12): what follows keeps its positions and cannot look at the step; how far do its distributions move?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probe.capturing import MemorySink, read
from probe.decoding.teacher_forced import BATCH_TOKENS, Prefix
from probe.errors import BadOption
from probe.interventions import applying, parse_edits
from probe.scoring import BLOCK, kl
from probe.sites import Positions, parse_place
from probe.spans import Step
from probe.step_importance.task import Measured, StepImportance, Task

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

UNITS = {"rescore": "nats the last step loses", "suppression": "nats, mean KL of later tokens"}


def rescored(task: Task) -> Measured:
    """A row a step, and the matrix (step, step): mean log-prob a token, in nats, that step j loses when step i is gone.

    A step's importance is what the *last* step loses in all; its `control` is what all steps between lose, a token.
    Step j's entry is NaN unless j > i. The last step itself has no later one, and no row.
    """
    steps, ids = task.original.steps, task.original.ids
    first = steps[0].start
    stem = task.stem.fork()
    whole = stem.logprobs([ids[first:]])[0].astype(np.float64)
    matrix, rows = np.full((len(steps), len(steps)), np.nan), []
    for i, step in enumerate(steps[:-1]):
        tail = ids[step.end :]
        lost = whole[step.end - first :] - stem.logprobs([tail])[0].astype(np.float64)
        for j in range(i + 1, len(steps)):
            matrix[i, j] = lost[steps[j].start - step.end : steps[j].end - step.end].mean()
        between = matrix[i, i + 1 : -1]
        rows.append(StepImportance(
            "rescore", i, float(lost[steps[-1].start - step.end :].sum()), UNITS["rescore"],
            control=float(between.mean()) if len(between) else None,
        ))  # fmt: skip
        stem.extend(ids[step.start : step.end])
        task.report("rescore", i + 1, len(steps) - 1)
    return Measured(rows, matrix)


def suppressed(task: Task) -> Measured:
    """A row a step, and the matrix (step, step): mean KL(p || p without looking at i), in nats, where step j is predicted.

    All layers and heads: the step's keys and values are left out and positions stay, which is the same as -inf scores.
    With `suppress` only these heads (`pattern@5.3,7.1`), by -inf scores in one whole forward a step.
    The first token after the step is predicted at the step itself, which looks at itself; it is left out.
    A step's importance is the mean over all later tokens. Raises `BadModel` where positions cannot be skipped.
    """
    lm, steps, ids, place = task.lm, task.original.steps, task.original.ids, task.request.suppress
    first = steps[0].start
    stem = task.stem.fork()
    whole = _predictions(task, stem)
    matrix, rows = np.full((len(steps), len(steps)), np.nan), []
    for i, step in enumerate(steps[:-1]):
        tail = ids[step.end : -1]
        if tail:
            # row t predicts token step.end + 1 + t
            blind = [_cut(lm, ids, step, place)] if place else stem.after_gap(tail, step.end - step.start)
            moved = _moved(whole, step.end + 1 - first, blind)
            for j in range(i + 1, len(steps)):
                own = moved[max(0, steps[j].start - step.end - 1) : steps[j].end - step.end - 1]
                matrix[i, j] = own.mean() if len(own) else np.nan
            rows.append(StepImportance("suppression", i, float(moved.mean()), UNITS["suppression"], n=len(moved)))
        if not place:
            stem.extend(ids[step.start : step.end])
        task.report("suppression", i + 1, len(steps) - 1)
    return Measured(rows, matrix)


def _predictions(task: Task, stem: Prefix) -> Callable[[slice], Tensor]:
    """Logits (token, d_vocab), of which row t predicts the generation's token t. Of a long one they are read out again each
    time, from the state of each token: all of them would be as many numbers as the vocabulary is long, for each."""
    ids, first = task.original.ids, task.original.steps[0].start
    if len(ids) - first <= BATCH_TOKENS:
        whole = stem.teacher_forced([ids[first:]])[0]
        return lambda rows: whole[rows]
    found = read(task.lm, torch.tensor([ids]), [len(ids)], sink=MemorySink(), top=1)
    return lambda rows: found.logits(0, slice(rows.start + first - 1, rows.stop + first - 1))


def _moved(whole: Callable[[slice], Tensor], start: int, blind: Iterable[Tensor]) -> np.ndarray:
    """The divergence of rows from `start` on, as the others (token, d_vocab) come."""
    parts = []
    for logits in blind:
        for some in logits.split(BLOCK):
            parts.append(divergence(whole(slice(start, start + len(some))), some))
            start += len(some)
    return np.concatenate(parts)


def check_place(lm: LanguageModel, place: str) -> None:
    """Raises `BadOption`, `BadPlace` and its kinds, `BadEdit` where these are no heads that can be kept from looking."""
    found = parse_place(place)
    if found.site != "pattern" or found.positions != Positions():
        raise BadOption(f"'{place}' names no heads", hint="write layers and heads of 'pattern': pattern@5.3,7.1")
    parse_edits(lm, [f"{place}:1..=cut:0"])


@torch.inference_mode()
def _cut(lm: LanguageModel, ids: Sequence[int], step: Step, place: str) -> Tensor:
    """Logits (token, d_vocab) after each token behind the step but the last, where these heads do not see the step."""
    edits = parse_edits(lm, [f"{place}:{step.end}..=cut:{step.start}..{step.end - 1}"])
    with applying(lm, edits):
        return lm.model(torch.tensor([ids[:-1]], device=lm.device), return_dict=True).logits[0, step.end :]


def divergence(logits: Tensor, other: Tensor, *, rows: int = 64) -> np.ndarray:
    """KL(softmax(logits) || softmax(other)) of each row (n, d_vocab), in nats: full distributions, never truncated."""
    parts = [np.empty(0)]
    for start in range(0, len(logits), rows):
        p, q = (x[start : start + rows].float().log_softmax(-1) for x in (logits, other))
        parts.append(kl(p, q).double().cpu().numpy())
    return np.concatenate(parts)
