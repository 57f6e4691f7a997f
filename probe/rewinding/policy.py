"""How far an edit is from what the model itself would have said there (METHODS M11). Scores texts, draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.decoding.forced import forced
from probe.spans import steps

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

LEAST = 20  # own steps that a z-score needs
FAR = -3.0


def own_steps(lm: LanguageModel, drawn: Sequence[Sequence[int]], split: str) -> list[tuple[int, ...]]:
    """The first step of each continuation (ids), cut as the original was; empty ones are left out."""
    found = []
    for ids in drawn:
        pieces = lm.pieces(list(ids))
        if ids:
            found.append(tuple(ids[: steps(pieces.text, pieces.offsets, split)[0].end]))
    return found


def off_policy(
    lm: LanguageModel, before: Sequence[int], new: Sequence[int], own: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """z = (mean log-prob a token of the edit - mean over the model's own steps there) / their standard deviation.

    before: ids up to the fork; new: the edit's ids; own: the model's own steps from there, at least LEAST.
    Raw log-probs in nats, whatever the sampler's temperature. `z` is None where all own steps score alike.
    """
    scored = forced(lm, before, [new, *own])
    edit, *others = [float(one.mean(dtype=np.float64)) for one in scored]
    spread = float(np.std(others, ddof=1))
    z = (edit - float(np.mean(others))) / spread if spread > 1e-9 else None
    return {
        "edit_logprob": edit, "own_logprob": float(np.mean(others)), "own_sd": spread, "own_steps": len(others),
        "distinct_own_steps": len({tuple(o) for o in own}), "z": z, "far": z is not None and z < FAR,
    }  # fmt: skip
