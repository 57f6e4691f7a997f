"""Two proportions, with pairs or without: one test each, and the interval of what that test does not reject."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from probe.stats.intervals import Z95, wilson

LEVEL = 0.05
POWER = 0.8
SIZE = 0.1  # the difference that is planned for where none is named
MOST = 10**6  # pairs up to which power is exact; beyond, the normal approximation is as good


class Difference(NamedTuple):
    """A difference with its 95 % interval and p: the interval leaves out 0 exactly where p is at most 0.05."""

    estimate: float
    low: float
    high: float
    p_value: float


def paired(control: np.ndarray, edited: np.ndarray) -> Difference:
    """P(edited) - P(control) of samples that share their noise, bool arrays (n,): McNemar's exact test and its inversion.

    Only the discordant pairs say in which direction; p is that of their being even (binomial at ½). The interval of their
    share that goes up (Clopper & Pearson 1934: what that test does not reject) is carried to the difference by the share
    of discordant pairs, whose own uncertainty (Wilson) is added in quadrature, as Zou & Donner (2008) combine intervals.
    So it leaves out 0 where the test rejects, covers at least 95 %, and keeps a width where no pair is discordant.
    """
    _, down, up, _ = cells(control, edited)
    low, high = _paired_interval(down, up, len(control))
    return Difference((up - down) / len(control), low, high, mcnemar_exact(down, up))


_of_pairs = paired  # where an argument has that name


def cells(control: np.ndarray, edited: np.ndarray) -> tuple[int, int, int, int]:
    """How many pairs have it in both, in control only, in edited only, in neither."""
    a, b = np.asarray(control, bool), np.asarray(edited, bool)
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())


def mcnemar_exact(down: int, up: int) -> float:
    """Two-sided p of the discordant pairs being even (exact binomial at ½); 1 where there are none."""
    from scipy.stats import binomtest

    return float(binomtest(up, down + up).pvalue) if down + up else 1.0


def _paired_interval(down: float, up: float, n: int) -> tuple[float, float]:
    """Of (up - down) / n; `down` and `up` pairs of n are discordant."""
    from scipy.special import betaincinv

    share = wilson(down + up, n)
    y = share.estimate
    x = (up - down) / (up + down) if up + down else 0.0
    x_low = 2 * float(betaincinv(up, down + 1, LEVEL / 2)) - 1 if up else -1.0
    x_high = 2 * float(betaincinv(up + 1, down, 1 - LEVEL / 2)) - 1 if down else 1.0
    y_low, y_high = (share.low if x_low > 0 else share.high), (share.high if x_high > 0 else share.low)
    low = x * y - math.hypot(y * (x - x_low), x_low * (y - y_low))
    high = x * y + math.hypot(y * (x_high - x), x_high * (y_high - y))
    return max(-1.0, low), min(1.0, high)


def half_width(n: int, *, p: float = 0.5, rho: float = 0.5) -> float:
    """Half the width of the paired interval that is to be expected of n pairs which hardly differ, in shares of p that
    correlate by rho."""
    discordant = 2 * p * (1 - p) * (1 - rho) * n
    low, high = _paired_interval(discordant / 2, discordant / 2, n)
    return (high - low) / 2


def mean_half_width(problems: int, n: int, *, between: float, p: float = 0.5, rho: float = 0.5) -> float | None:
    """Half the width of the 95 % interval of a difference's mean over problems, each of n pairs as in `half_width`, where the
    differences themselves vary by a standard deviation of `between`; None for fewer than two problems."""
    from scipy.special import stdtrit

    if problems < 2:
        return None
    variance = between**2 + 2 * p * (1 - p) * (1 - rho) / n
    return float(stdtrit(problems - 1, 1 - LEVEL / 2)) * math.sqrt(variance / problems)


def power(n: int, size: float, discordant: float) -> float:
    """P that n pairs tell a difference of `size` from 0 where that share of pairs is discordant: exact, by enumeration."""
    from scipy.stats import binom

    discordant = min(1.0, max(size, discordant))
    low, high = binom.interval(1 - 1e-9, n, discordant)
    m = np.arange(low, high + 1)
    most = binom.ppf(LEVEL / 2, m, 0.5) - 1  # so many on the rarer side of m are still too few
    up = (1 + size / discordant) / 2
    rejected = binom.cdf(most, m, up) + binom.sf(m - most - 1, m, up)
    return float((binom.pmf(m, n, discordant) * rejected).sum())


def pairs_to_tell(size: float, discordant: float) -> int:
    """Pairs that tell a difference of `size` from 0 with POWER, where that share of pairs is discordant (at least `size`)."""
    from scipy.special import ndtri

    discordant = min(1.0, max(size, discordant))
    z = Z95 * math.sqrt(discordant) + float(ndtri(POWER)) * math.sqrt(discordant - size * size)
    about = math.ceil((z / size) ** 2)  # Connor 1987
    n = max(1, 9 * about // 10)
    while about <= MOST and power(n, size, discordant) < POWER:
        n += max(1, n // 100)
    return n if about <= MOST else about


def size_told(n: int, discordant: float) -> float | None:
    """The smallest difference, in hundredths, that n pairs tell from 0 with POWER; None if they can tell none."""
    return next((k / 100 for k in range(1, 101) if power(n, k / 100, discordant) >= POWER), None)


def compare(control: np.ndarray, edited: np.ndarray, *, paired: bool) -> Difference:
    """P(edited) - P(control) of bool arrays: of samples that share their noise, or of independent ones."""
    if paired:
        return _of_pairs(control, edited)
    return independent(int(control.sum()), len(control), int(edited.sum()), len(edited))


def resolution(control: np.ndarray, edited: np.ndarray, *, target: float | None = None, paired: bool = True) -> str:
    """Whether a difference is told from zero; else how small it must be, or how many samples of each arm would tell.

    target: the half-width that was asked for; where the interval is as narrow, there is nothing more to draw.
    """
    n, found = len(control), compare(control, edited, paired=paired)
    if found.p_value <= LEVEL:
        return f"resolved at n = {n}"
    bound, narrow = max(-found.low, found.high), (found.high - found.low) / 2
    if bound <= SIZE if target is None else narrow <= target:
        return f"smaller than ±{math.ceil(bound * 1000) / 1000:.3f} at n = {n}"
    size = target or max(abs(found.estimate), SIZE)
    if paired:
        _, down, up, _ = cells(control, edited)
        discordant = (down + up) / n
    else:  # what pairs of independent samples would be
        p, q = float(np.mean(control)), float(np.mean(edited))
        discordant = p * (1 - q) + q * (1 - p)
    needed = max(n + 1, pairs_to_tell(size, discordant))
    short = "" if target is None else f", which is too few for ±{target:g}"
    said = f"{size:.2f}" if size >= 0.005 else f"{size:.2g}"
    samples = f"{needed} {'pairs' if paired else 'of each arm'}"
    return f"not resolved at n = {n}{short}; about {samples} tell {said} from 0 in 4 of 5 runs"


def independent(k1: int, n1: int, k2: int, n2: int) -> Difference:
    """p2 - p1 of arms without pairs: the score test of Miettinen & Nurminen (1985) and its inversion.

    At 0 it is the chi-square test of the 2 x 2 table times (N - 1) / N, which keeps its level also in small samples
    (Campbell 2007).
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    d = k2 / n2 - k1 / n1

    def score(difference: float) -> float:
        return _score(k1, n1, k2, n2, difference)

    low = -1.0 if score(-1.0) < Z95 else float(brentq(lambda x: score(x) - Z95, -1.0, d))
    high = 1.0 if score(1.0) > -Z95 else float(brentq(lambda x: score(x) + Z95, d, 1.0))
    return Difference(d, low, high, float(2 * ndtr(-abs(score(0.0)))))


def _score(k1: int, n1: int, k2: int, n2: int, difference: float) -> float:
    """How many standard errors p2 - p1 lies above `difference`, at the most likely shares that differ by so much."""
    p = _likeliest(k1, n1, k2, n2, difference)
    n, q = n1 + n2, min(1.0, max(0.0, p + difference))
    variance = (p * (1 - p) / n1 + q * (1 - q) / n2) * n / (n - 1)
    off = k2 / n2 - k1 / n1 - difference
    if variance < 1e-12:
        return 0.0 if abs(off) < 1e-9 else math.copysign(math.inf, off)
    return off / math.sqrt(variance)


def _likeliest(k1: int, n1: int, k2: int, n2: int, d: float) -> float:
    """The most likely p1 where p2 is p1 + d: a root of the cubic that the likelihood's derivative is, or a bound."""
    from scipy.special import xlog1py, xlogy

    n, k, low, high = n1 + n2, k1 + k2, max(0.0, -d), min(1.0, 1.0 - d)
    cubic = [n, d * (n + n1) - n - k, d * (d * n1 - 2 * k1 - n) + k, d * k1 * (1 - d)]
    tried = np.clip([low, high, *np.roots(cubic).real], low, high)
    q = np.clip(tried + d, 0.0, 1.0)
    likelihood = xlogy(k1, tried) + xlog1py(n1 - k1, -tried) + xlogy(k2, q) + xlog1py(n2 - k2, -q)
    return float(tried[np.argmax(likelihood)])
