"""Where two texts part that end in the same tokens: the first place at which the model would go on otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from probe.decoding.teacher_forced import Prefix
from probe.patching.metrics import Target

if TYPE_CHECKING:
    from torch import Tensor

    from probe.language_model import LanguageModel

PARTED = 0.1  # total variation from which two next-token distributions are said to part
_ROWS = 128  # tokens of the tail that are read at once


class Parting(NamedTuple):
    """The place: so many tokens of the tail come before it; the total variation there of the next token's distributions;
    and the tokens that the one text and the other make more probable by most."""

    after: int
    variation: float
    target: Target


@torch.inference_mode()
def parting(lm: LanguageModel, clean: Sequence[int], corrupt: Sequence[int], tail: Sequence[int]) -> Parting:
    """The first place after the prefixes at which the total variation is PARTED or more, if there is none the largest."""
    stems, best = (Prefix(lm, clean), Prefix(lm, corrupt)), None
    for start in range(0, max(1, len(tail)), _ROWS):
        some = list(tail[start : start + _ROWS])
        if start + len(some) == len(tail):  # what follows the last token is predicted too: any token stands for it
            first, second = (stem.teacher_forced([[*some, clean[0]]])[0] for stem in stems)
        else:
            first, second = (stem.extend(some) for stem in stems)
        p, q = first.double().softmax(-1), second.double().softmax(-1)
        apart = (p - q).abs().sum(-1) / 2
        row = int(apart.argmax()) if not bool((apart >= PARTED).any()) else int((apart >= PARTED).nonzero()[0])
        if best is None or apart[row] > best.variation:
            best = Parting(start + row, float(apart[row]), _most_changed(p[row] - q[row]))
        if best.variation >= PARTED:
            break
    assert best is not None, "there is one place at least"
    return best


@torch.inference_mode()
def parted_at(lm: LanguageModel, clean: Sequence[int], corrupt: Sequence[int], tail: Sequence[int]) -> Parting:
    """The same at the end of the tail."""
    p, q = (
        Prefix(lm, [*ids, *tail]).teacher_forced([[clean[0]]])[0][0].double().softmax(-1) for ids in (clean, corrupt)
    )
    return Parting(len(tail), float((p - q).abs().sum() / 2), _most_changed(p - q))


def _most_changed(change: Tensor) -> Target:
    """change (d_vocab,) of probabilities."""
    return Target(int(change.argmax()), int(change.argmin()))
