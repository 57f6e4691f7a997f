"""The few texts in which some places are largest and smallest, and a random few: kept while others pass. Knows no model."""

from __future__ import annotations

from bisect import insort
from typing import NamedTuple

import numpy as np

KINDS = ("top", "bottom", "random")


class RankedWindow(NamedTuple):
    """One window of a text: where it stands in its list (smallest first, then by the order of the texts), and its value.

    at: the token's place in the window.
    """

    order: float
    prompt_id: int
    window: int
    at: int
    value: float


COLUMNS = ("in_place", "kind", *RankedWindow._fields)


class Extremes:
    """Of each place and kind the first `most` candidates, ordered."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.lists: dict[tuple[int, int], list[RankedWindow]] = {}

    def offer(self, place: int, kind: int, candidate: RankedWindow) -> bool:
        """Whether it is among the first now."""
        own = self.lists.setdefault((place, kind), [])
        if len(own) == self.most and candidate >= own[-1]:
            return False
        insort(own, candidate)
        del own[self.most :]
        return True

    def bar(self, place: int, kind: int) -> float:
        """What a candidate's order must not be above to be taken."""
        own = self.lists.get((place, kind), [])
        return own[-1].order if len(own) == self.most else np.inf

    def arrays(self) -> dict[str, np.ndarray]:
        """All candidates, as columns."""
        rows = [(place, kind, *map(float, one)) for (place, kind), own in self.lists.items() for one in own]
        columns = np.asarray(rows, np.float64).reshape(-1, 2 + len(RankedWindow._fields))  # whole numbers up to 2^53 are exact
        return dict(zip(COLUMNS, columns.T, strict=True))

    def merge(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Take in what another's `arrays` gave; those of them that were taken."""
        taken = []
        rows = np.stack([arrays[name] for name in COLUMNS], axis=-1)
        for place, kind, order, prompt_id, window, at, value in rows.tolist():
            one = RankedWindow(order, int(prompt_id), int(window), int(at), value)
            taken.append(self.offer(int(place), int(kind), one))
        kept = np.asarray(taken, bool)
        return {name: values[kept] for name, values in arrays.items()}
