"""What the model would answer if it had to after each step (METHODS M4): read greedily, and exactly over candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probe import answers
from probe.decoding import Sampling, decode
from probe.decoding.forced import Prefix, logprobs
from probe.influence.rows import Row
from probe.language_model.following import ids_after
from probe.rewinding.trajectory import Trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Progress = Callable[[str, int, int], None]
LONGEST = 24  # tokens of a forced answer
STOPS = ("\n", ". ", ".\n")


def early_answers(
    lm: LanguageModel, original: Trajectory, *, stub: str, how: str, reference: str, candidates: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[list[Row], dict[str, Any]]:  # fmt: skip
    """A row a step: how much it raises P(reference) among the candidates, under a stub that asks for the answer.

    After each k steps the stub is appended; the answer is decoded greedily, and every candidate's log-prob is exact:
    s_k(a) = Σ log p(a_t | steps, stub, a_<t), normalised over the candidates: nothing is sampled. Candidates are those
    given, else every answer that was read at some k, and the reference.

    The summary holds the answers, the commitment step (the first k from which every answer is the reference; None if
    never), and Lanham et al.'s area over the curve (2307.13702) in both weightings: every boundary alike, and by the
    share of generated tokens that lie between boundaries.
    """
    steps, ids = original.steps, original.ids
    end = len(ids) - (ids[-1] in lm.eos_ids)
    edges = [steps[0].start, *(min(step.end, end) for step in steps)]
    prefixes = [[*ids[:edge], *ids_after(lm, ids[:edge], stub)] for edge in edges]
    greedy = decode(lm, prefixes, max_new=LONGEST, sampling=Sampling(stop=STOPS))
    found = []
    for one in greedy:
        said = lm.pieces(one.ids).text if one.ids else ""
        found.append(answers.extract(stub + said, how))
    matches = np.asarray([one.key == reference for one in found])
    texts = dict.fromkeys([*candidates] or [*(one.text for one in found if one.text)])
    written = {answers.canonical(text): text for text in texts}
    written.setdefault(reference, reference)
    chances = _chances(lm, prefixes, list(written.values()), progress) if len(written) > 1 else None
    column = list(written).index(reference)
    unit = "P(answer) among candidates, after - before"
    rows = [
        Row("early-answer", i, float(chances[i + 1, column] - chances[i, column]), unit, n=len(written))
        for i in range(len(steps))
        if chances is not None
    ]
    widths = np.diff([edges[0], *edges])
    return rows, {
        "answers": [one.key for one in found], "matches": matches.tolist(), "candidates": list(written),
        "chances": None if chances is None else chances.round(6).tolist(), "stub": stub,
        "commitment_step": _commitment(matches), "area_over_curve": float(1 - matches.mean()),
        "area_over_curve_by_tokens": float(1 - (matches * widths).sum() / widths.sum()) if widths.sum() else None,
    }  # fmt: skip


def _chances(
    lm: LanguageModel, prefixes: Sequence[Sequence[int]], candidates: Sequence[str], progress: Progress | None
) -> np.ndarray:
    """(boundary, candidate): probabilities over the candidates, each boundary's sum 1."""
    scores = np.empty((len(prefixes), len(candidates)))
    for k, prefix in enumerate(prefixes):
        spelled = [ids_after(lm, prefix, " " + text) for text in candidates]
        for c, logits in enumerate(Prefix(lm, prefix).follow(spelled)):
            scores[k, c] = logprobs(logits, spelled[c]).sum(dtype=np.float64)
        if progress:
            progress("early answers", k + 1, len(prefixes))
    scores -= scores.max(axis=1, keepdims=True)
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def _commitment(matches: np.ndarray) -> int | None:
    """The first boundary from which every answer is the reference."""
    wrong = np.flatnonzero(~matches)
    first = int(wrong[-1]) + 1 if len(wrong) else 0
    return first if first < len(matches) else None
