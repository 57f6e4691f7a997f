"""Differences that are looked at while they are drawn: intervals that hold at every look, and when a difference is known.

After each look more is drawn, or not: an interval that was made for one sample size then misses more often than it says (an
exact 95 % interval of no difference, looked at as pairs double from 16 to 1024, leaves out 0 in 1 of 6 or 7 runs). Here is
a *confidence sequence* instead: with probability 1 - LEVEL it holds at all sample sizes at once, so whoever stops, by whatever
rule, is as sure.

It is by betting (Waudby-Smith & Ramdas 2020, 2010.09686): of pairs that share noise the difference d is -1, 0 or 1, and
who bets the share t of their money on the mean being above m, or below, has a fair game if it is m. A mixture over all t,
uniform as in Cover's universal portfolio, is a martingale too, so by Ville's inequality it ever reaches 1 / LEVEL with
probability at most LEVEL; the interval is every m for which it has not. It depends on how many pairs went down, up and
neither, so not on the order of samples, and needs no plan of looks: cells that share an endpoint are looked at when a
neighbour drew for them too, which no plan that spends its level over looks can know. Against the interval of one look
(`arms.paired`) it is 1.4 to 1.7 times as wide; seven looks by Bonferroni are 1.4 times, and each waits until as many again
are drawn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from probe.stats.arms import LEVEL, Difference, cells
from probe.stats.intervals import Interval

NODES = 32  # of the mixture: any weights that add up to 1 are fair; more of them change no digit that is shown
GRID = 129  # shares among which the least is looked for
EDGE = 1e-12  # a mean of exactly -1 or 1 leaves no bet

_nodes, _weights = np.polynomial.legendre.leggauss(NODES)
STAKES, WEIGHTS = (1 + _nodes) / 2, _weights / 2  # between 0 and all of what may be staked


class Differences(NamedTuple):
    """Many differences, each array (cell,): estimates, bounds that hold at every look, and p, which does too."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray


def log_wealth(mean: np.ndarray, down: np.ndarray, up: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Log of what a mixture of bets against `mean` (cell,), begun with 1, holds after n pairs of which some went down or up.

    The expectation of its exponential is 1 where `mean`, strictly between -1 and 1, is the mean: half is staked on more,
    half on less. It is convex in `mean` and at most 0 at the mean of what was seen.
    """
    from scipy.special import logsumexp, xlog1py

    mean, down, up, n = (np.asarray(x, np.float64)[..., None] for x in (mean, down, up, n))
    sides = []
    for toward, gained, lost in ((mean, up, down), (-mean, down, up)):
        ratio = (1 - toward) / (1 + toward)  # what a whole stake wins
        flat = n - gained - lost
        sides.append(xlog1py(gained, STAKES * ratio) + xlog1py(flat, STAKES * (ratio - 1) / 2) + xlog1py(lost, -STAKES))
    both = np.broadcast_arrays(*sides)
    return np.asarray(logsumexp(np.concatenate(both, axis=-1), b=np.tile(WEIGHTS / 2, 2), axis=-1))


def confidence_sequence(down: np.ndarray, up: np.ndarray, n: np.ndarray, *, level: float = LEVEL) -> Differences:
    """The mean difference (up - down) / n of pairs by their counts (cell,); n = 0 gives all of [-1, 1].

    `low` and `high` hold with probability 1 - level at all n at once; p is below any a with probability at most a, ever.
    """
    from scipy.optimize.elementwise import find_root

    down, up, n = (np.atleast_1d(np.asarray(x, np.float64)) for x in (down, up, n))
    estimate = np.where(n > 0, (up - down) / np.maximum(n, 1), 0.0)

    def above(mean: np.ndarray, *counts: np.ndarray) -> np.ndarray:
        return log_wealth(mean, *counts) + math.log(level)

    def bound(edge: float) -> np.ndarray:
        """The edge where even it is not refused."""
        edges = np.full(len(n), edge * (1 - EDGE))
        refused = above(edges, down, up, n) > 0
        found = find_root(above, (np.clip(estimate, -1 + EDGE, 1 - EDGE), edges), args=(down, up, n))
        return np.where(refused, found.x, edge)

    p_value = np.minimum(1.0, np.exp(-log_wealth(np.zeros(len(n)), down, up, n)))
    return Differences(np.where(n > 0, estimate, np.nan), bound(-1.0), bound(1.0), p_value)


def anytime(control: np.ndarray, edited: np.ndarray) -> Difference:
    """P(edited) - P(control) of samples in the order in which they were drawn, bool arrays (n,), at whatever n one stopped.

    Samples of equal number may share their noise, and then it is narrower; it holds also where they do not.
    """
    _, down, up, _ = cells(control, edited)
    found = confidence_sequence(np.array([down]), np.array([up]), np.array([len(control)]))
    return Difference(*(float(x[0]) for x in found))


def anytime_share(k: int, n: int) -> Interval:
    """A proportion k / n at whatever n one stopped: the mean of -1 and 1, moved."""
    found = confidence_sequence(np.array([n - k]), np.array([k]), np.array([n]))
    return Interval(*((1 + float(x[0])) / 2 for x in found[:3]))


def anytime_mean(values: np.ndarray, *, bound: float) -> Interval:
    """The mean of values (n,) between -bound and bound, such as differences in length, at whatever n one stopped."""
    from scipy.optimize.elementwise import find_root
    from scipy.special import logsumexp

    scaled = np.asarray(values, np.float64) / bound
    centre = float(np.clip(scaled.mean(), -1 + EDGE, 1 - EDGE))

    def above(mean: np.ndarray) -> np.ndarray:
        sides = []
        for sign in (1, -1):
            toward = sign * np.asarray(mean)[..., None, None]
            gain = (sign * scaled[:, None] - toward) / (1 + toward)
            sides.append(np.log1p(STAKES * gain).sum(axis=-2))
        return np.asarray(logsumexp(np.concatenate(sides, axis=-1), b=np.tile(WEIGHTS / 2, 2), axis=-1)) + math.log(LEVEL)

    edges = np.array([-1.0, 1.0]) * (1 - EDGE)
    found = find_root(above, (np.full(2, centre), edges)).x
    low, high = np.where(above(edges) > 0, found, np.sign(edges)) * bound
    return Interval(float(np.mean(values)), float(low), float(high))


def anytime_independent(k1: int, n1: int, k2: int, n2: int) -> Difference:
    """p2 - p1 of arms of other sizes, k of n each, at whatever sizes one stopped.

    A share is the mean of -1 and 1, moved; what is held against two shares is the product of what is held against each, and
    against a difference the least of that over all shares that differ by so much. Exact where the arms are independent; of
    one size, `anytime` is narrower.
    """
    from scipy.optimize.elementwise import find_root

    first, second = (k1 / n1 if n1 else 0.5), (k2 / n2 if n2 else 0.5)

    def least(difference: np.ndarray) -> np.ndarray:
        difference = np.asarray(difference, np.float64)[..., None]
        begin, end = (
            np.clip(x, np.maximum(0, -difference), np.minimum(1, 1 - difference)) for x in (first, second - difference)
        )
        share = begin + (end - begin) * np.linspace(0, 1, GRID)  # beyond either end both lose
        share_2 = np.clip(share + difference, 0, 1)
        one = log_wealth((2 * share - 1) * (1 - EDGE), *(np.array(x) for x in (n1 - k1, k1, n1)))
        other = log_wealth((2 * share_2 - 1) * (1 - EDGE), *(np.array(x) for x in (n2 - k2, k2, n2)))
        return np.asarray((one + other).min(axis=-1)) + math.log(LEVEL)

    edges = np.array([-1.0, 1.0])
    estimate = second - first
    found = find_root(least, (np.full(2, estimate), edges)).x
    low, high = np.where(least(edges) > 0, found, edges)
    p_value = min(1.0, LEVEL * math.exp(-float(least(np.zeros(1))[0])))
    return Difference(estimate if n1 and n2 else math.nan, float(low), float(high), p_value)


def anytime_half_width(n: int, *, p: float = 0.5, rho: float = 0.5) -> float:
    """Half the width of the interval after n pairs that hardly differ, in shares of p that correlate by rho."""
    discordant = 2 * p * (1 - p) * (1 - rho) * n
    found = confidence_sequence(np.array([discordant / 2]), np.array([discordant / 2]), np.array([n]))
    return float((found.high - found.low)[0]) / 2


class StoppingRule(NamedTuple):
    """When a difference needs no more draws, by its interval: it leaves out 0 (`differs`); it lies inside ± `smaller`; half of
    it is at most `known`. None asks for nothing of the kind."""

    differs: bool = False
    smaller: float | None = None
    known: float | None = None

    def reasons(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Why each (cell,) stops, in words; empty where it goes on."""
        found = np.full(np.shape(low), "", dtype=object)
        if self.known is not None:
            found[(high - low) / 2 <= self.known] = f"known to ±{self.known:g}"
        if self.smaller is not None:
            found[np.maximum(-low, high) <= self.smaller] = f"smaller than ±{self.smaller:g}"
        if self.differs:
            found[(low > 0) | (high < 0)] = "differs from 0"
        return found
