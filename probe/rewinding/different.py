"""A step of the model's own that differs from the one it wrote: drawn until one does. An edit that is on-policy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from probe.decoding import decode
from probe.errors import BadOption
from probe.rewinding.policy import own_steps
from probe.rewinding.rollouts import Drawing
from probe.rewinding.targets import Target
from probe.rewinding.wording import numbers_in
from probe.texts import Trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

ALIKE = 0.8  # share of common words from which two steps say the same
ROUND, MOST = 8, 64
APART = 1 << 20  # its noise is not that of any continuation


def alike(a: str, b: str, *, share: float = ALIKE) -> bool:
    """Whether two steps say the same, by words alone: the same numbers, and at least `share` of all words in common."""
    if numbers_in(a) != numbers_in(b):
        return False
    x, y = (set(re.findall(r"[^\W\d_]+", text.lower())) for text in (a, b))
    return len(x & y) >= share * len(x | y)


def different_step(
    lm: LanguageModel, original: Trajectory, target: Target, drawing: Drawing, split: str
) -> tuple[int, ...]:
    """Ids of the first drawn step that is not `alike` the original's. Raises `BadOption` if MOST draws all are."""
    before, old = original.ids[: target.start], original.ids[target.start : target.end]
    text = lm.pieces(old).text
    longest = min(drawing.max_new, max(48, 3 * len(old)))
    for first in range(0, MOST, ROUND):
        samples = range(APART + first, APART + first + ROUND)
        found = decode(lm, [before] * ROUND, max_new=longest, sampling=drawing.sampling, samples=samples)
        for ids in own_steps(lm, [one.ids for one in found], split):
            kept = ids[:-1] if ids[-1] in lm.eos_ids else ids
            if kept and not alike(lm.pieces(kept).text, text):
                return kept
    raise BadOption(f"{MOST} draws of this step all say the same", hint="raise --temperature, or --replace TEXT")
