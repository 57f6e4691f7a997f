"""What a model gives to texts it did not draw (METHODS M11): an edit beside its own words there, and what followed the step.

Teacher-forced: scores texts, draws nothing, has no variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.decoding.teacher_forced import Prefix, suffix_logprobs
from probe.spans import of_other_texts, steps

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

LEAST = 20  # own continuations that a z-score needs
FAR = -3.0


def own_steps(lm: LanguageModel, drawn: Sequence[Sequence[int]], split: str) -> list[tuple[int, ...]]:
    """The first step of each continuation (ids), cut as the original was; empty ones are left out."""
    how = of_other_texts(split)
    found = []
    for ids in drawn:
        pieces = lm.pieces(list(ids))
        if ids:
            found.append(tuple(ids[: steps(pieces.text, pieces.offsets, how)[0].end]))
    return found


def off_policy(
    stem: Prefix, before: Sequence[int], new: Sequence[int], drawn: Sequence[Sequence[int]]
) -> dict[str, Any] | None:
    """z = (mean log-prob a token of the edit - mean over the model's own words there) / their standard deviation.

    stem: a beginning of `before`, read already. before: ids up to the fork; new: the edit's ids; drawn: the model's own
    continuations from there. Own words are the first `tokens` of each, as many as the edit has: the mean of few tokens
    scatters more than that of many. Where fewer than LEAST continuations are as long, only as much of the edit is compared
    as LEAST of them have.
    Raw log-probs in nats, whatever the sampler's temperature. `lower`: the share of own words that are no more probable
    than the edit. `z` is None where all own words score alike; None in all for fewer than LEAST continuations.
    """
    lengths = sorted(map(len, drawn), reverse=True)
    if len(lengths) < LEAST or not lengths[LEAST - 1]:
        return None
    n = min(len(new), lengths[LEAST - 1])
    own = [tuple(ids[:n]) for ids in drawn if len(ids) >= n]
    edit, *others = [float(one.mean(dtype=np.float64)) for one in after(stem, before, [new[:n], *own])]
    spread = float(np.std(others, ddof=1))
    z = (edit - float(np.mean(others))) / spread if spread > 1e-9 else None
    return {
        "edit_logprob": edit, "own_logprob": float(np.mean(others)), "own_sd": spread, "own_steps": len(others),
        "distinct_own_steps": len(set(own)), "tokens": n, "lower": float(np.mean(np.asarray(others) <= edit)),
        "z": z, "far": z is not None and z < FAR,
    }  # fmt: skip


def rescore(stem: Prefix, control: Sequence[int], edited: Sequence[int], tail: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs (len(tail),) in nats of the same tokens after either prefix; raw: no temperature, no filters.

    stem: a beginning of the control, read already; if it is one of the edited prefix too, both go on from there together.
    """
    if not tail:
        return np.empty(0, np.float32), np.empty(0, np.float32)
    if tuple(control) == tuple(edited):  # one computation: two rows of a batch may differ in their last digits
        (kept,) = after(stem, control, [tail])
        return kept, kept
    n = len(stem.ids)
    if list(edited[:n]) != stem.ids:
        return after(stem, control, [tail])[0], suffix_logprobs(stem.lm, edited, [tail])[0]
    kept, changed = stem.logprobs([[*control[n:], *tail], [*edited[n:], *tail]])
    return kept[-len(tail) :], changed[-len(tail) :]


def after(stem: Prefix, prefix: Sequence[int], suffixes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Log-probs of each suffix after a prefix that begins with the stem."""
    between = list(prefix[len(stem.ids) :])
    assert list(prefix) == [*stem.ids, *between], "the prefix begins with the stem"
    found = stem.logprobs([[*between, *suffix] for suffix in suffixes])
    return [one[len(between) :] for one in found]
