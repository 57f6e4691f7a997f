"""What the model would answer if it had to after each step (METHODS M4): read greedily, and exactly over candidates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from probe import answers
from probe.decoding import Sampling, branch
from probe.decoding.teacher_forced import Prefix, token_logprobs
from probe.errors import BadOption
from probe.language_model.following import ids_after
from probe.step_importance.boundaries import edges
from probe.step_importance.task import Measured, StepImportance, Task

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

LONGEST = 24  # tokens of a teacher-forced answer
STOPS = ("\n", ". ", ".\n")
LEADS, ENDS = (" ", ""), (".", "\n", "}")
ROWS = 64


def early_answer(task: Task) -> Measured:
    """A row a step: how much it raises P(reference) among the candidates, under a stub that asks for the answer.

    After each k steps the stub is appended; the answer is decoded greedily, and every candidate's log-prob is exact:
    s_k(a) = Σ log p(a_t | steps, stub, a_<t), normalised over the candidates: nothing is sampled. Candidates are those
    given, else every answer that was read at some k, and the reference. An answer counts with its end (the best of a full
    stop, a line's end, a closing brace and an end token), or "1" would be as probable as all answers that begin with it;
    and as the model would rather write it there: after a space or not, in any of the wordings that were read.

    The summary holds the answers, the commitment step (the first k from which every answer is the reference; None if
    never), and Lanham et al.'s area over the curve (2307.13702) in both weightings: every boundary alike, and by the
    share of generated tokens that lie between boundaries.
    """
    lm, stub, how, reference = task.lm, task.request.stub, task.request.answer, task.reference
    if task.request.labelled or task.request.rule.patterns:
        raise BadOption("early answers are answers, and no outcomes of another kind", hint="leave early-answer out")
    if reference in (answers.NONE, answers.TRUNCATED):
        raise BadOption("the generation gives no answer to look for", hint="name it with --expect, or --answer RULE")
    steps, ids, places = task.original.steps, task.original.ids, edges(lm, task.original)
    prefixes = [[*ids[:edge], *ids_after(lm, ids[:edge], stub)] for edge in places]
    greedy = branch(lm, prefixes, [0], max_new=LONGEST, sampling=Sampling(stop=STOPS), stem=task.stem)
    found = []
    for (one,) in greedy:
        completion = lm.pieces(one.ids).text if one.ids else ""
        found.append(answers.extract(stub + completion, how))
    matches = np.asarray([one.key == reference for one in found])
    texts = dict.fromkeys([*task.request.candidates] or [*(one.text for one in found if one.text)])
    written: dict[str, list[str]] = {}
    for text in texts:
        written.setdefault(answers.key(text, how), []).append(text)
    written.setdefault(reference, [reference])
    chances = _chances(task, places, prefixes, list(written.values())) if len(written) > 1 else None
    column = list(written).index(reference)
    unit = "P(answer) among candidates, after - before"
    rows = [
        StepImportance("early-answer", i, float(chances[i + 1, column] - chances[i, column]), unit, n=len(written))
        for i in range(len(steps))
        if chances is not None
    ]
    widths = np.diff([places[0], *places])
    return Measured(rows, summary={
        "answers": [one.key for one in found], "matches": matches.tolist(), "candidates": list(written),
        "chances": None if chances is None else chances.round(6).tolist(), "stub": stub,
        "commitment_step": _commitment(matches), "area_over_curve": float(1 - matches.mean()),
        "area_over_curve_by_tokens": float(1 - (matches * widths).sum() / widths.sum()) if widths.sum() else None,
    }, tables={"early_answers": {
        "prompt_id": task.original.prompt_id, "boundary": list(range(len(places))), "pos": places,
        "answer": [one.key for one in found], "match": matches.tolist(),
        "chance": None if chances is None else chances[:, column].tolist(),
    }})  # fmt: skip


def _chances(
    task: Task, edges: Sequence[int], prefixes: Sequence[Sequence[int]], candidates: Sequence[Sequence[str]]
) -> np.ndarray:
    """(boundary, candidate): probabilities over the candidates (each its wordings), each boundary's sum 1.

    A prefix is the text up to its edge and a stub; the text is read once.
    """
    scores, stem = np.empty((len(prefixes), len(candidates))), task.stem.fork()
    for k, (edge, prefix) in enumerate(zip(edges, prefixes, strict=True)):
        if stem.known is None:
            known = Prefix(task.lm, prefix)
        else:
            stem.extend(prefix[len(stem.ids) : edge])
            known = stem.fork()
            known.extend(prefix[edge:])
        scores[k] = _best(known, [_spelled(task.lm, prefix, own, candidates) for own in candidates])
        task.report("early answers", k + 1, len(prefixes))
    scores -= scores.max(axis=1, keepdims=True)
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def _spelled(
    lm: LanguageModel, prefix: Sequence[int], texts: Sequence[str], candidates: Sequence[Sequence[str]]
) -> list[tuple[int, ...]]:
    """Ids of every way to write one of the texts after the prefix, with an end.

    What another candidate goes on with is no end: the full stop of "1." where "1.5" is another.
    """
    everything = [text for own in candidates for text in own]
    found = []
    for text, lead in product(texts, LEADS):
        ends = [mark for mark in ENDS if not any(other.startswith(text + mark) for other in everything)]
        with suppress(BadOption):  # this tokenizer cannot write it so
            ids = ids_after(lm, prefix, lead + text)
            found += [(*ids, token) for token in sorted(lm.eos_ids)]
            found += [(*ids, *ids_after(lm, [*prefix, *ids], mark)) for mark in ends]
    return found or [tuple(ids_after(lm, prefix, LEADS[0] + texts[0]))]  # says what cannot be written


def _best(known: Prefix, spelled: Sequence[Sequence[tuple[int, ...]]]) -> np.ndarray:
    """(candidate,): the largest log-prob among the ids that a candidate can be; what they have in common is run once."""
    stems = sorted({ids[:-1] for own in spelled for ids in own}, key=len)
    logits: dict[tuple[int, ...], Tensor] = {}
    for start in range(0, len(stems), ROWS):
        some = stems[start : start + ROWS]
        logits |= dict(zip(some, known.teacher_forced([[*ids, 0] for ids in some]), strict=True))
    return np.asarray([max(token_logprobs(logits[ids[:-1]], ids).sum(dtype=np.float64) for ids in own) for own in spelled])


def _commitment(matches: np.ndarray) -> int | None:
    """The first boundary from which every answer is the reference."""
    wrong = np.flatnonzero(~matches)
    first = int(wrong[-1]) + 1 if len(wrong) else 0
    return first if first < len(matches) else None
