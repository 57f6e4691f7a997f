"""Several attempts at one problem: the chance that some of them are right, and what most of them say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np


class Vote(NamedTuple):
    """What most attempts say: the classes that have most votes, in order of their first one, and how many each has."""

    winners: tuple[str, ...]
    votes: int

    def right(self, expected: str) -> float:
        """The chance that it is right where a tie is broken at random."""
        return 1 / len(self.winners) if expected in self.winners else 0.0


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that at least one of k attempts is right, by n of which so many were: unbiased for k up to n.

    1 - C(n - correct, k) / C(n, k), as a product (Chen et al. 2021, arXiv 2107.03374, section 2.1).
    """
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}: it is between 1 and {n}")
    if n - correct < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - correct + 1, n + 1)))


def majority(outcomes: Sequence[str], *, without: Collection[str] = ()) -> Vote:
    """The vote of attempts (Wang et al. 2022, arXiv 2203.11171, unweighted); those of the classes `without` do not vote."""
    counts = Counter(one for one in outcomes if one not in without)
    most = max(counts.values(), default=0)
    return Vote(tuple(one for one, count in counts.items() if count == most), most)
