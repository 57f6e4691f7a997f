"""What the original continuation is worth after an edit: teacher-forced, no sampling, no variance (METHODS M11)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from probe.decoding.teacher_forced import suffix_logprobs

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def rescore(
    lm: LanguageModel, control: Sequence[int], edited: Sequence[int], tail: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs (len(tail),) in nats of the same tokens after either prefix; raw: no temperature, no filters.

    What the prefixes have in common is computed once.
    """
    if not tail:
        return np.empty(0, np.float32), np.empty(0, np.float32)
    if tuple(control) == tuple(edited):  # one computation: two rows of a batch may differ in their last digits
        (kept,) = suffix_logprobs(lm, control, [tail])
        return kept, kept
    stem = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(control, edited, strict=False)))
    if stem == 0:
        return suffix_logprobs(lm, control, [tail])[0], suffix_logprobs(lm, edited, [tail])[0]
    kept, changed = suffix_logprobs(lm, control[:stem], [[*control[stem:], *tail], [*edited[stem:], *tail]])
    return kept[-len(tail) :], changed[-len(tail) :]
