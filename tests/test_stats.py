"""Intervals, tests and distances against scipy, published numbers and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import stats
from probe.stats.distributions import counted

COUNTS = st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(lambda c: sum(c) > 0)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (0, 100), (3, 10), (10, 10), (50, 100), (1, 1)])
def test_wilson(k: int, n: int) -> None:
    own, other = stats.wilson(k, n), reference.binomtest(k, n).proportion_ci(method="wilson")
    assert own == pytest.approx((k / n, other.low, other.high), abs=1e-9)


def test_published_sizes() -> None:
    assert stats.wilson(0, 100).high == pytest.approx(0.037, abs=5e-4) and stats.wilson(0, 20).high == pytest.approx(
        0.161, abs=5e-4
    )


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 3), (0, 6), (1, 9), (12, 4)])
def test_mcnemar(b: int, c: int) -> None:
    expected = reference.binomtest(b, b + c).pvalue if b + c else 1.0
    assert stats.paired(*pairs(b, c, 40)).p_value == pytest.approx(expected)


def pairs(down: int, up: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Arms of n pairs of which `down` are in the first only, `up` in the second only."""
    i = np.arange(n)
    return i < down, (i >= down) & (i < down + up)


@pytest.mark.parametrize("n", [5, 16, 25])
def test_interval_and_p_of_pairs_are_one_rule(n: int) -> None:
    """In every table: 0 is outside where p is at most 0.05, the estimate is inside, swapped arms give the mirror image."""
    for down in range(n + 1):
        for up in range(n + 1 - down):
            found, mirrored = stats.paired(*pairs(down, up, n)), stats.paired(*pairs(down, up, n)[::-1])
            assert (found.low > 0 or found.high < 0) == (found.p_value <= 0.05)
            assert found.low < found.estimate + 1e-12 and found.estimate < found.high + 1e-12
            assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
            if down < 2:
                said = stats.resolution(*pairs(down, up, n))
                assert said.startswith("resolved") == (found.p_value <= 0.05), said
    assert not stats.resolution(*pairs(0, 4, 16)).startswith("resolved")  # McNemar p = 0.125


@pytest.mark.parametrize(("n", "p", "q", "same"), [(9, 0.4, 0.4, 0.5), (20, 0.5, 0.7, 0.5), (31, 0.1, 0.8, 0.2)])
def test_the_paired_interval_covers_and_the_test_keeps_its_level(n: int, p: float, q: float, same: float) -> None:
    """Exactly, over all tables of n pairs."""
    both = same * min(p, q) + (1 - same) * p * q
    law = reference.multinomial(n, [p - both, q - both, 1 - p - q + 2 * both])
    covered = rejected = 0.0
    for down in range(n + 1):
        for up in range(n + 1 - down):
            weight, found = law.pmf([down, up, n - down - up]), stats.paired(*pairs(down, up, n))
            covered += weight * (found.low <= q - p <= found.high)
            rejected += weight * (found.p_value <= 0.05)
    assert covered >= 0.95
    assert rejected <= 0.05 or p != q


@pytest.mark.slow
def test_power_is_what_simulation_gives_and_what_is_planned_suffices() -> None:
    random = np.random.default_rng(0)
    for n, size, discordant in ((25, 0.1, 0.1), (60, 0.2, 0.3)):
        up, down = (discordant + size) / 2, (discordant - size) / 2
        drawn_tables = random.multinomial(n, [down, up, 1 - up - down], size=2000)
        told = np.mean([reference.binomtest(int(u), int(u + d)).pvalue <= 0.05 if u + d else False for d, u, _ in drawn_tables])
        assert stats.power(n, size, discordant) == pytest.approx(told, abs=0.033)  # 3 standard errors
    # about 80 pairs tell 0.10 from 0 where nothing else is discordant; 25 don't
    assert 70 <= stats.pairs_to_tell(0.1, 0.06) <= 90 and stats.power(25, 0.1, 0.06) < 0.1
    for size, discordant in ((0.1, 0.4), (0.3, 0.5), (0.02, 0.1)):
        n = stats.pairs_to_tell(size, discordant)
        assert 0.8 <= stats.power(n, size, discordant) < 0.82
    assert stats.pairs_to_tell(1e-4, 0.1) == pytest.approx(0.1 * (1.96 + 0.8416) ** 2 / 1e-8, rel=0.01)
    assert stats.size_told(4, 0.25) is None and stats.power(64, stats.size_told(64, 0.25), 0.25) >= 0.8


@pytest.mark.parametrize(("n1", "n2"), [(10, 16), (12, 12)])
def test_interval_and_p_of_arms_are_one_rule(n1: int, n2: int) -> None:
    n = n1 + n2
    for k1 in range(n1 + 1):
        for k2 in range(n2 + 1):
            found = stats.independent(k1, n1, k2, n2)
            assert (found.low > 0 or found.high < 0) == (found.p_value <= 0.05)
            if 0 < k1 + k2 < n:
                chi = reference.chi2_contingency([[k1, n1 - k1], [k2, n2 - k2]], correction=False).statistic
                assert found.p_value == pytest.approx(reference.chi2.sf(chi * (n - 1) / n, 1))
            for bound in (found.low, found.high):
                if -1 < bound < 1:
                    assert abs(score(k1, n1, k2, n2, bound)) == pytest.approx(1.96, abs=0.01)


@pytest.mark.parametrize(("n", "p", "q"), [(40, 0.7, 0.4), (40, 0.7, 0.7)])
def test_the_interval_of_arms_covers_and_the_test_keeps_its_level(n: int, p: float, q: float) -> None:
    """Exactly, over all tables of two arms but those that are all but impossible."""
    ours, theirs = (reference.binom.pmf(range(n + 1), n, share) for share in (p, q))
    covered = rejected = 0.0
    for k1, k2 in zip(*np.nonzero(np.outer(ours, theirs) > 1e-6), strict=True):
        found = stats.independent(int(k1), n, int(k2), n)
        covered += ours[k1] * theirs[k2] * (found.low <= q - p <= found.high)
        rejected += ours[k1] * theirs[k2] * (found.p_value <= 0.05)
    assert 0.94 <= covered <= 0.97
    assert rejected <= 0.055 or p != q


def score(k1: int, n1: int, k2: int, n2: int, d: float) -> float:
    """Miettinen and Nurminen's statistic with the most likely share looked for on a grid."""
    p = np.linspace(max(0, -d), min(1, 1 - d), 20001)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [(k1, p), (n1 - k1, 1 - p), (k2, p + d), (n2 - k2, 1 - p - d)]
        likelihood = sum(np.where(k > 0, k * np.log(np.clip(x, 0, 1)), 0.0) for k, x in parts if k > 0)
    p = p[np.argmax(likelihood)]
    variance = (p * (1 - p) / n1 + (p + d) * (1 - p - d) / n2) * (n1 + n2) / (n1 + n2 - 1)
    return float((k2 / n2 - k1 / n1 - d) / np.sqrt(variance))


def drawn(random, n: int, p: float, q: float, same: float) -> tuple[np.ndarray, np.ndarray]:
    u = random.random(n)
    v = np.where(random.random(n) < same, u, random.random(n))
    return u < p, v < q


@pytest.mark.slow
@pytest.mark.parametrize(("p", "q", "same"), [(0.5, 0.5, 0.0), (0.2, 0.5, 0.5), (0.6, 0.5, 0.3)])
def test_paired_intervals_cover(p: float, q: float, same: float) -> None:
    random, hits, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        interval = stats.paired(*drawn(random, 64, p, q, same))
        hits += interval.low <= q - p <= interval.high
    assert 0.945 <= hits / trials <= 0.985


def test_a_paired_interval_never_vanishes_and_shared_noise_narrows_it() -> None:
    same = np.ones(16, bool)
    nothing = stats.paired(same, same)
    assert nothing.estimate == 0 and nothing.high > 0.1 and nothing.low < -0.1
    random = np.random.default_rng(1)
    widths = [np.subtract(*stats.paired(*drawn(random, 400, 0.5, 0.5, s))[2:0:-1]) for s in (0.0, 0.9)]
    assert widths[1] < 0.6 * widths[0]


@given(COUNTS, st.data())
@settings(max_examples=60, deadline=None)
def test_distances(a: list[int], data) -> None:
    b = data.draw(st.lists(st.integers(0, 40), min_size=len(a), max_size=len(a)).filter(lambda c: sum(c) > 0))
    p, q = np.asarray(a) / sum(a), np.asarray(b) / sum(b)
    assert stats.tv(np.asarray(a), np.asarray(b)) == pytest.approx(np.abs(p - q).sum() / 2)
    assert stats.entropy(np.asarray(a)) == pytest.approx(reference.entropy(p), abs=1e-9)
    m = (p + q) / 2
    expected = (reference.entropy(p, m) + reference.entropy(q, m)) / 2
    assert stats.jensen_shannon(np.asarray(a), np.asarray(b)) == pytest.approx(expected, abs=1e-9)
    pp, qq = (np.asarray(c) + 0.5 for c in (a, b))
    assert stats.kl_jeffreys(np.asarray(a), np.asarray(b)) == pytest.approx(reference.entropy(pp / pp.sum(), qq / qq.sum()))


def test_counts_of_draws() -> None:
    labels = np.random.default_rng(0).integers(0, 4, size=(5, 30))
    assert (counted(labels, 4) == [[(row == c).sum() for c in range(4)] for row in labels]).all()


@pytest.mark.parametrize("paired", [True, False])
def test_p_values_are_uniform_where_nothing_differs_and_small_where_something_does(paired: bool) -> None:
    random, found = np.random.default_rng(0), []
    for i in range(200):
        a, b = random.integers(0, 6, 60).astype(str), random.integers(0, 6, 60).astype(str)
        found.append(stats.shift(a, b, stats.jensen_shannon, paired=paired, seed=i, draws=400).p_value)
    assert reference.kstest(found, "uniform").pvalue > 0.01
    a, b = ["0"] * 40, ["1"] * 40
    assert stats.shift(a, b, stats.tv, paired=paired, seed=0, draws=999).p_value == pytest.approx(1e-3)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [4, 16])
def test_a_distance_less_its_floor_is_nothing_where_nothing_differs(n: int, paired: bool) -> None:
    """Also of few samples of many classes, which drawn anew from what they are would seem nearer to each other."""
    random, off = np.random.default_rng(n), []
    for _ in range(400):
        a = random.integers(0, 8, n)
        b = np.where(random.random(n) < 0.3, a, random.integers(0, 8, n)) if paired else random.integers(0, 8, n)
        found = stats.shift(list(map(str, a)), list(map(str, b)), stats.tv, paired=paired, seed=0, draws=200)
        off.append(found.value - found.null_mean)
    assert abs(np.mean(off)) < 3 * np.std(off) / np.sqrt(len(off)) < 0.03


def test_the_null_floor_is_what_chance_gives() -> None:
    random = np.random.default_rng(0)
    p = np.array([0.5, 0.3, 0.2])
    real = [stats.tv(*(np.bincount(random.choice(3, 100, p=p), minlength=3) for _ in range(2))) for _ in range(2000)]
    a, b = (random.choice(3, 100, p=p).astype(str) for _ in range(2))
    floor = stats.shift(a, b, stats.tv, paired=False, seed=0)
    assert floor.null_mean == pytest.approx(np.mean(real), abs=0.012) and floor.null_high == pytest.approx(
        np.quantile(real, 0.95), abs=0.03
    )
    same = stats.shift(a, a, stats.tv, paired=True, seed=0)
    assert (same.value, same.p_value, same.null_mean, same.null_high) == (0.0, 1.0, 0.0, 0.0)


def test_value_and_null_of_a_shift_are_over_one_alphabet() -> None:
    """Twelve outcomes that all differ: KL with a half added to each of the 24 classes, in the value as in its null."""
    a, b = [f"a{i}" for i in range(12)], [f"b{i}" for i in range(12)]
    found = stats.shift(a, b, stats.kl_jeffreys, paired=True, seed=0)
    p = np.array([1.5] * 12 + [0.5] * 12) / 24
    assert found.value == pytest.approx(reference.entropy(p, p[::-1]))
    # pairs turned round: every class is still in one arm once, so the statistic is what it was, whatever is drawn
    assert found.p_value == 1.0


def test_ranks() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 6, 30), random.integers(0, 6, 30)
    assert stats.spearman(a, b) == pytest.approx(reference.spearmanr(a, b).statistic)
    assert stats.kendall_tau(a, b) == pytest.approx(reference.kendalltau(a, b).statistic)
    assert np.isnan(stats.spearman(a, np.zeros(30)))


def test_what_is_not_resolved_says_how_much_is_needed() -> None:
    said = stats.resolution(*pairs(1, 2, 16))
    assert said == "not resolved at n = 16; about 158 pairs tell 0.10 from 0 in 4 of 5 runs"
    assert stats.power(158, 0.1, 3 / 16) >= 0.8 > stats.power(140, 0.1, 3 / 16)
    assert stats.resolution(np.zeros(40, bool), np.ones(40, bool)) == "resolved at n = 40"
    # as narrow as was asked for: no more pairs are needed, and the difference is bounded
    assert stats.resolution(*pairs(0, 0, 400), target=0.01) == "smaller than ±0.010 at n = 400"
    assert stats.resolution(*pairs(3, 3, 400)) == "smaller than ±0.018 at n = 400"
    said = stats.resolution(*pairs(60, 50, 1024), target=0.01)
    assert said.startswith("not resolved at n = 1024, which is too few for ±0.01; about 8") and " tell 0.01 " in said


def test_a_mean_by_bootstrap() -> None:
    assert stats.bootstrap_mean(np.array([0.25]), seed=0) == (0.25, 0.25, 0.25)
    mean = stats.bootstrap_mean(np.arange(100.0), seed=0)
    assert mean.estimate == 49.5 and mean.low == pytest.approx(43.9, abs=0.5) and mean.high == pytest.approx(55.1, abs=0.5)


def test_student_mean_is_scipys_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 7)
    low, high = reference.t.interval(0.95, 6, loc=values.mean(), scale=reference.sem(values))
    assert stats.student_mean(values) == pytest.approx((values.mean(), low, high))
    assert stats.student_mean([2.5])[0] == 2.5 and np.isnan(stats.student_mean([2.5])[1:]).all()
