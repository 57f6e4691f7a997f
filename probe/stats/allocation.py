"""Where the next draws go: many differences, whose endpoints are shared, drawn for in rounds until they are known.

Knows arrays of outcomes; draws nothing, reads no clock. Which pairs a difference has is never a matter of how they
came out: pair s is the s-th sample of both its ends, and only how many there are is decided. So `sequential`'s intervals, which
hold at all numbers of pairs at once, hold whatever the rule of allocation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from probe.stats.sequential import StoppingRule, confidence_sequence

BATCH = 64  # a round has at least so many rollouts, which fill a batch, unless a cell's pairs would more than double
SHARE = 4  # and costs at least one of so many parts of what was spent: the looks grow with the log of it
FEWEST = 4  # pairs that a difference gets at a time, or
STEP = 4  # one of so many parts of what it has


@dataclass
class Allocation:
    """The state of a drawing by rounds. `ends` (cell, 2): which boundaries each difference lies between, before and after.

    ceiling (boundary,): the most that a rollout from there can cost, in the unit of the budget. most: samples of a boundary
    at most. measures: how many differences are taken of each cell, which is drawn for until all of them are known. One that has
    stopped keeps the pairs that it had, also where more are drawn from its ends.
    """

    ends: np.ndarray
    ceiling: np.ndarray
    rule: StoppingRule
    most: int
    measures: int = 1
    drawn: np.ndarray = field(init=False)  # samples (boundary,)
    spent: np.ndarray = field(init=False)  # what they cost (boundary,)
    pairs: np.ndarray = field(init=False)  # (measure, cell)
    width: np.ndarray = field(init=False)  # half of the interval (measure, cell)
    stopped: np.ndarray = field(init=False)  # why (measure, cell), empty where it is open

    def __post_init__(self) -> None:
        self.ends = np.asarray(self.ends, np.intp).reshape(-1, 2)
        self.ceiling = np.asarray(self.ceiling, np.float64)
        self.drawn, self.spent = np.zeros(len(self.ceiling), np.int64), np.zeros(len(self.ceiling))
        shape = (self.measures, len(self.ends))
        self.pairs, self.width = np.zeros(shape, np.int64), np.ones(shape)
        self.stopped = np.full(shape, "", dtype=object)

    @property
    def open(self) -> np.ndarray:
        """Whether each cell (cell,) is drawn for."""
        return np.asarray((self.stopped == "").any(axis=0))

    def first(self, samples: int, left: float | None = None, *, least: np.ndarray | None = None) -> np.ndarray:
        """Samples (boundary,) of the first round: so many of each but at least `least`, or as many as `left` surely pays for,
        down to one; else none."""
        floor = np.ones(len(self.ceiling), np.int64) if least is None else np.maximum(1, least)
        for each in range(min(samples, self.most), 0, -1):
            target = np.maximum(each, floor)
            if left is None or float(target @ self.ceiling) <= left:
                return target
        return np.zeros(len(self.ceiling), np.int64)

    def record(self, costs: Sequence[np.ndarray]) -> None:
        """Take in what each sample (n,) that was drawn from each boundary cost."""
        self.drawn = np.array([len(x) for x in costs], np.int64)
        self.spent = np.array([float(np.sum(x)) for x in costs])

    def look(self, hits: Sequence[np.ndarray], *, measure: int = 0) -> None:
        """Take in whether each sample (n,) of each boundary hit, in order of samples."""
        cells = np.flatnonzero(self.stopped[measure] == "")
        down, up, n = (np.zeros(len(cells), np.int64) for _ in range(3))
        for k, (a, b) in enumerate(self.ends[cells]):
            n[k] = min(len(hits[a]), len(hits[b]))
            before, after = hits[a][: n[k]], hits[b][: n[k]]
            down[k], up[k] = (before & ~after).sum(), (~before & after).sum()
        found = confidence_sequence(down, up, n)
        self.settle(cells, n, found.low, found.high, measure=measure)

    def settle(self, cells: np.ndarray, pairs: np.ndarray, low: np.ndarray, high: np.ndarray, *, measure: int = 0) -> None:
        """Take in the intervals of some cells that are open by a measure, and close those of which the rule asks no more."""
        self.pairs[measure, cells], self.width[measure, cells] = pairs, (high - low) / 2
        self.stopped[measure, cells] = np.where(pairs > 0, self.rule.reasons(low, high), "")

    def next(self, left: float | None = None) -> np.ndarray | None:
        """Samples (boundary,) that there shall be after the next round; None where nothing is open or can be paid for.

        Greedy: pairs go where half the interval, taken to fall with the root of their number, narrows most for its price, the
        mean cost of what was drawn from its ends. An end that a neighbour has raised already costs nothing. A
        round never costs more than `left`, even if every rollout costs its ceiling. Cells close here: for lack of
        means ("budget"), or with all the samples that there may be ("limit").
        """
        self._close("limit", self.drawn[self.ends].min(axis=1) >= self.most)
        target = self._raised(left)
        if (target > self.drawn).any():
            return target
        self.close()
        return None

    def close(self) -> None:
        """Nothing more is drawn: what is open stays unknown, for want of samples that may be drawn, or else of means."""
        self._close("limit", self.drawn[self.ends].min(axis=1) >= self.most)
        self._close("budget", self.open)

    def _raised(self, left: float | None) -> np.ndarray:
        price = np.where(self.drawn > 0, self.spent / np.maximum(self.drawn, 1), self.ceiling)
        target, tried = self.drawn.copy(), self.open.copy()
        while tried.any() and not self._large_enough(target - self.drawn, price):
            cell, wanted = self._best(target, tried, price)
            raised = self._affordable(target, cell, wanted, left)
            if (raised == target).all():
                tried[cell] = False
            target = raised
        return target

    def _close(self, why: str, cells: np.ndarray) -> None:
        self.stopped[(self.stopped == "") & cells] = why

    def _large_enough(self, more: np.ndarray, price: np.ndarray) -> bool:
        return bool(more.sum() >= BATCH and (price * more).sum() >= self.spent.sum() / SHARE)

    def _best(self, target: np.ndarray, tried: np.ndarray, price: np.ndarray) -> tuple[int, int]:
        """The cell that narrows most for its price, and how many pairs it shall have."""
        cells = np.flatnonzero(tried)
        have = target[self.ends[cells]].min(axis=1)
        at_most = np.minimum(self.most, 2 * np.maximum(FEWEST, self.drawn[self.ends[cells]].min(axis=1)))
        wanted = np.maximum(have, np.minimum(at_most, have + np.maximum(FEWEST, have // STEP)))
        width, pairs = (np.where(self.stopped == "", x, 0)[:, cells].max(axis=0) for x in (self.width, self.pairs))
        now = width * np.sqrt(np.maximum(1, pairs) / np.maximum(1, have))
        gain = now * (1 - np.sqrt(np.maximum(1, have) / np.maximum(1, wanted)))
        missing = np.maximum(0, wanted[:, None] - target[self.ends[cells]])
        cost = (missing * price[self.ends[cells]]).sum(axis=1)
        best = int(np.argmax(gain / np.maximum(cost, 1e-9)))
        return int(cells[best]), int(wanted[best])

    def _affordable(self, target: np.ndarray, cell: int, wanted: int, left: float | None) -> np.ndarray:
        """`target` with a cell's ends raised to so many samples, or to as many as can be paid for."""
        have = int(target[self.ends[cell]].min())
        while wanted > have:
            raised = target.copy()
            raised[self.ends[cell]] = np.maximum(raised[self.ends[cell]], wanted)
            if left is None or ((raised - self.drawn) * self.ceiling).sum() <= left:
                return raised
            wanted = have + (wanted - have) // 2
        return target

    def uniform(self) -> float:
        """What the same would have cost with as many samples of every end: as many as the cell with most pairs has."""
        each, ends = self.spent / np.maximum(1, self.drawn), np.unique(self.ends)
        return float(each[ends].sum() * self.pairs.max(initial=0) + np.delete(self.spent, ends).sum())
