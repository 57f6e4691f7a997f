"""How many continuations of each arm were cut off, and whether arms differ in that by more than chance: a difference in what
came out may then be one in how much room there was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from probe import stats
from probe.answers import TRUNCATED
from probe.rewinding.effects import labels

CERTAIN = 0.05
HINT = "what differs between them may be that: raise --max-new"


def cut_off(branches: pa.Table, arm: str, n: int | None = None) -> np.ndarray:
    """Whether each sample (n,) of an arm ran out of tokens."""
    return np.asarray([outcome == TRUNCATED for outcome in labels(branches, arm, n)], dtype=bool)


def between(branches: pa.Table, n: int) -> list[str]:
    """A warning where control and edited differ by McNemar's exact test."""
    control, edited = (cut_off(branches, arm, n) for arm in ("control", "edited"))
    p = stats.paired(control, edited).p_value
    if p > CERTAIN:
        return []
    shares = f"{control.mean():.2f} of control and {edited.mean():.2f} of edited were cut off"
    return [f"{shares} (McNemar p = {p:.3g}); {HINT}"]


def across(branches: pa.Table, arms: Sequence[str], n: int) -> tuple[list[float], list[str]]:
    """The share that was cut off in each arm, and a warning where they differ by Cochran's Q."""
    table = np.stack([cut_off(branches, arm, n) for arm in arms], axis=1)
    shares, p = table.mean(axis=0), stats.cochran(table, seed=0)
    if p > CERTAIN:
        return shares.tolist(), []
    said = f"from {shares.min():.2f} to {shares.max():.2f} of the draws of a boundary were cut off"
    return shares.tolist(), [f"{said} (Cochran's Q, p = {p:.3g}); {HINT}"]
