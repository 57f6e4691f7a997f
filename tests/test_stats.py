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
    assert [stats.independent_needed(w) for w in (0.1, 0.2, 0.05)] == [193, 49, 769]
    assert [stats.pairs_needed(0.1, rho=r) for r in (0.3, 0.5, 0.8, 0.95)] == [135, 97, 39, 10]
    # Newcombe 1998, table II: 56/70 - 48/80 = 0.2, [0.0524, 0.3339]
    assert stats.newcombe(48, 80, 56, 70) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 3), (0, 6), (1, 9), (12, 4)])
def test_mcnemar(b: int, c: int) -> None:
    expected = reference.binomtest(b, b + c).pvalue if b + c else 1.0
    assert stats.mcnemar_exact(b, c) == pytest.approx(expected)


def drawn(random, n: int, p: float, q: float, same: float) -> tuple[np.ndarray, np.ndarray]:
    u = random.random(n)
    v = np.where(random.random(n) < same, u, random.random(n))
    return u < p, v < q


@pytest.mark.parametrize(("p", "q", "same"), [(0.5, 0.5, 0.0), (0.2, 0.5, 0.5), (0.6, 0.5, 0.3)])
def test_paired_intervals_cover(p: float, q: float, same: float) -> None:
    random, hits, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        interval = stats.paired_difference(*drawn(random, 64, p, q, same))
        hits += interval.low <= q - p <= interval.high
    assert 0.93 <= hits / trials <= 0.97


def test_a_paired_interval_never_vanishes_and_shared_noise_narrows_it() -> None:
    same = np.ones(16, bool)
    nothing = stats.paired_difference(same, same)
    assert nothing.estimate == 0 and nothing.high > 0.1 and nothing.low < -0.1
    random = np.random.default_rng(1)
    widths = [np.subtract(*stats.paired_difference(*drawn(random, 400, 0.5, 0.5, s))[2:0:-1]) for s in (0.0, 0.9)]
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
    assert stats.kl_jeffreys(np.asarray(a), np.asarray(b)) == pytest.approx(
        reference.entropy(pp / pp.sum(), qq / qq.sum())
    )


def test_counts_of_draws() -> None:
    labels = np.random.default_rng(0).integers(0, 4, size=(5, 30))
    assert (counted(labels, 4) == [[(row == c).sum() for c in range(4)] for row in labels]).all()


@pytest.mark.parametrize("paired", [True, False])
def test_p_values_are_uniform_where_nothing_differs_and_small_where_something_does(paired: bool) -> None:
    random, found = np.random.default_rng(0), []
    for i in range(200):
        a, b = random.integers(0, 6, 60), random.integers(0, 6, 60)
        found.append(stats.permutation_test(a, b, stats.jensen_shannon, paired=paired, seed=i, draws=400))
    assert reference.kstest(found, "uniform").pvalue > 0.01
    a, b = np.zeros(40, int), np.ones(40, int)
    assert stats.permutation_test(a, b, stats.tv, paired=paired, seed=0, draws=999) == pytest.approx(1e-3)


def test_the_null_floor_is_what_chance_gives() -> None:
    random = np.random.default_rng(0)
    p = np.array([0.5, 0.3, 0.2])
    real = [stats.tv(*(np.bincount(random.choice(3, 100, p=p), minlength=3) for _ in range(2))) for _ in range(2000)]
    floor = stats.null_floor(random.choice(3, 100, p=p), random.choice(3, 100, p=p), stats.tv, paired=False, seed=0)
    assert floor.mean == pytest.approx(np.mean(real), abs=0.012) and floor.high == pytest.approx(
        np.quantile(real, 0.95), abs=0.03
    )
    same = random.choice(3, 100, p=p)
    assert stats.null_floor(same, same, stats.tv, paired=True, seed=0) == (0.0, 0.0)


def test_false_discoveries_and_ranks() -> None:
    random = np.random.default_rng(0)
    p = random.random(50) ** 2
    np.testing.assert_allclose(stats.benjamini_hochberg(p), reference.false_discovery_control(p))
    a, b = random.integers(0, 6, 30), random.integers(0, 6, 30)
    assert stats.spearman(a, b) == pytest.approx(reference.spearmanr(a, b).statistic)
    assert stats.kendall_tau(a, b) == pytest.approx(reference.kendalltau(a, b).statistic)
    assert np.isnan(stats.spearman(a, np.zeros(30)))


def test_what_is_not_resolved_says_how_much_is_needed() -> None:
    random = np.random.default_rng(0)
    said = stats.resolution(*drawn(random, 16, 0.5, 0.5, 0.2))
    assert said.startswith("not resolved at n = 16; about ") and "pairs needed" in said
    assert stats.resolution(np.zeros(40, bool), np.ones(40, bool)) == "resolved at n = 40"
    mean = stats.bootstrap_mean(np.arange(100.0), seed=0)
    assert (
        mean.estimate == 49.5 and mean.low == pytest.approx(43.9, abs=0.5) and mean.high == pytest.approx(55.1, abs=0.5)
    )
