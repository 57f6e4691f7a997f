"""Intervals over problems: they cover where problems differ, the naive ones do not; regressions against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats as reference

from probe import stats
from probe.stats import clusters

Law = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
TRIALS = 1500


def steps_of(random: np.random.Generator, problems: int) -> np.ndarray:
    """The problem of each step: from 2 to 30 steps, most problems with few."""
    return np.repeat(np.arange(problems), 2 + random.binomial(28, random.beta(0.6, 1.2, problems)))


def normal(random: np.random.Generator, problems: int) -> tuple[np.ndarray, np.ndarray]:
    own = steps_of(random, problems)
    return random.normal(0.1, 0.1, problems)[own] + random.normal(0, 0.2, len(own)), own


def shares(random: np.random.Generator, problems: int) -> tuple[np.ndarray, np.ndarray]:
    """What `importance` gives: differences of two shares of 16 samples; a third of the problems is at the ceiling."""
    own = steps_of(random, problems)
    moved = np.where(random.random(problems) < 1 / 3, 0.0, random.uniform(-0.2, 0.5, problems))[own]
    before, after = (random.binomial(16, p) / 16 for p in (0.5 - moved / 2, 0.5 + moved / 2))
    return np.where(moved == 0, 0.0, after - before), own


def naive(values: np.ndarray, own: np.ndarray) -> tuple[float, float]:
    """As if steps were independent of each other."""
    half = reference.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def covered(law: Law, truth: float, problems: int) -> tuple[float, float]:
    """How often the interval over problems, and the naive one, hold the truth."""
    random, hits = np.random.default_rng(problems), np.zeros(2)
    for trial in range(TRIALS):
        values, own = law(random, problems)
        found = stats.cluster_mean(values, own, seed=trial, draws=1000)
        bounds = (found.low, found.high), naive(values, own)
        hits += [low <= truth <= high for low, high in bounds]
    return tuple(hits / TRIALS)


CASES = [(normal, 5), (normal, 8), (normal, 12), (normal, 40), (shares, 12), (shares, 40)]


@pytest.mark.slow
@pytest.mark.parametrize(("law", "problems"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_intervals_over_problems_cover_and_naive_ones_do_not(law: Law, problems: int) -> None:
    over_problems, over_steps = covered(law, 0.1, problems)
    assert 0.93 <= over_problems <= 0.97
    assert over_steps < 0.85


def test_five_problems_that_are_not_normal_are_not_covered_which_is_why_they_are_not_trusted() -> None:
    assert 0.85 <= covered(shares, 0.1, 5)[0] < 0.93


def test_plain_percentiles_do_not_cover_over_twelve_problems() -> None:
    """Why they are expanded."""
    random, hits = np.random.default_rng(0), 0
    for trial in range(TRIALS):
        means, _ = stats.cluster_means(*normal(random, 12))
        plain = np.quantile(np.random.default_rng(trial).choice(means, (1000, 12)).mean(axis=1), [0.025, 0.975])
        hits += plain[0] <= 0.1 <= plain[1]
    assert hits / TRIALS < 0.93


def test_few_clusters_give_the_t_interval_and_say_so() -> None:
    values, own = np.array([1.0, 3.0, 2.0, 6.0, 4.0, 4.0]), np.array([0, 0, 1, 2, 2, 2])
    found = stats.cluster_mean(values, own, seed=0)
    means = [2.0, 2.0, 14 / 3]
    assert found.estimate == pytest.approx(np.mean(means)) and (found.clusters, found.n) == (3, 6)
    expected = reference.t.interval(0.95, 2, np.mean(means), reference.sem(means))
    assert (found.low, found.high) == pytest.approx(expected)
    assert not found.trusted and found.method == "t over 3 clusters, jackknife"
    for few, many in ((7, 8), (2, 40)):
        assert not stats.cluster_mean(np.arange(float(few)), np.arange(few), seed=0).trusted
        assert stats.cluster_mean(np.arange(float(many)), np.arange(many), seed=0).trusted


def test_nothing_is_known_of_others_from_one_problem_or_from_problems_that_do_not_differ() -> None:
    for values, own, clusters_ in (
        (np.arange(5.0), np.zeros(5), 1), (np.full(30, 0.25), np.arange(30), 30), (np.full(4, 0.25), np.arange(4), 4),
        (np.array([]), np.array([]), 0), (np.full(3, math.nan), np.arange(3), 0),
    ):  # fmt: skip
        found = stats.cluster_mean(values, own, seed=0)
        assert math.isnan(found.low) and math.isnan(found.high) and not found.method and not found.trusted
        assert found.clusters == clusters_ and math.isnan(found.estimate) == (clusters_ == 0)


def test_what_was_not_measured_counts_for_nothing() -> None:
    values, own = np.array([1.0, math.nan, 3.0, math.nan]), np.array([0, 0, 1, 2])
    found = stats.cluster_mean(values, own, seed=0)
    assert (found.estimate, found.clusters, found.n) == (2.0, 2, 2)


@pytest.mark.parametrize("problems", [5, 20])
def test_names_and_order_of_problems_change_nothing(problems: int) -> None:
    random = np.random.default_rng(3)
    values, own = normal(random, problems)
    x = np.column_stack([np.ones(len(own)), random.normal(size=(len(own), 2))])
    names = random.permutation(problems)[own]
    order = np.argsort(names, kind="stable")  # problems in another order, steps in theirs
    mean, fit = partial(stats.cluster_mean, seed=1), partial(stats.cluster_regression, seed=1)
    assert mean(values, own) == mean(values[order], names[order])
    assert fit(values, x, own) == fit(values[order], x[order], names[order])


def test_a_regression_against_numpy_and_the_jackknife_by_hand() -> None:
    random = np.random.default_rng(4)
    values, own = normal(random, 6)
    x = np.column_stack([np.ones(len(own)), random.normal(2, 3, len(own)), random.random(len(own)) * 1e-3])

    def by_hand(chosen: np.ndarray, columns: list[int]) -> tuple[np.ndarray, float]:
        root = np.sqrt(1 / np.bincount(own)[own])[chosen]
        a, b = x[chosen][:, columns] * root[:, None], values[chosen] * root
        solution = np.linalg.lstsq(a, b, rcond=None)[0]
        return solution, ((b - a @ solution) ** 2).sum()

    found = stats.cluster_regression(values, x, own, seed=0)
    everything = np.ones(len(own), bool)
    expected, left = by_hand(everything, [0, 1, 2])
    assert [c.estimate for c in found.coefficients] == pytest.approx(expected.tolist())
    out = np.stack([by_hand(own != problem, [0, 1, 2])[0] for problem in range(6)])
    half = reference.t.ppf(0.975, 5) * np.sqrt(5 / 6 * ((out - out.mean(axis=0)) ** 2).sum(axis=0))
    assert [c.high - c.estimate for c in found.coefficients] == pytest.approx(half.tolist())
    for column, rest in ((1, [0, 2]), (2, [0, 1])):
        assert found.partial_r2[column] == pytest.approx(1 - left / by_hand(everything, rest)[1])
    assert found.r2 == pytest.approx(1 - left / by_hand(everything, [0])[1])


def problem_with_covariates(random: np.random.Generator, problems: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, x and problems: an entropy that falls within a problem and differs between them, a position, a share of the problem;
    a problem has its own level and its own slope in position."""
    own = steps_of(random, problems)
    counts = np.bincount(own)
    position = np.concatenate([np.linspace(0, 1, n) for n in counts])
    entropy = random.gamma(2, 0.3, problems)[own] * (1 - position * random.random(len(own)))
    x = np.column_stack([np.ones(len(own)), entropy, position, random.beta(0.5, 2, problems)[own]])
    level, slope = random.normal(0, 0.15, (2, problems))
    noise = random.normal(0, 0.2, len(own)) * (0.5 + entropy)
    return x @ TRUE + level[own] + slope[own] * position + noise, x, own


TRUE = np.array([0.1, 0.3, 0.2, 0.15])


@pytest.mark.slow
@pytest.mark.parametrize("problems", [12, 40])
def test_coefficients_are_covered_over_problems_and_not_over_steps(problems: int) -> None:
    random, hits, by_steps, trials = np.random.default_rng(problems), np.zeros(4), np.zeros(4), 700
    for trial in range(trials):
        y, x, own = problem_with_covariates(random, problems)
        found = stats.cluster_regression(y, x, own, seed=trial, draws=1000).coefficients
        hits += [c.low <= t <= c.high for c, t in zip(found, TRUE, strict=True)]
        inverse = np.linalg.inv(x.T @ x)
        left = y - x @ (inverse @ x.T @ y)
        half = 1.96 * np.sqrt(np.diag(inverse) * (left @ left) / (len(y) - 4))
        by_steps += np.abs(inverse @ x.T @ y - TRUE) <= half
    assert (hits / trials >= 0.93).all() and (hits / trials <= (0.98 if problems == 12 else 0.97)).all()
    assert (by_steps / trials)[[0, 3]].max() < 0.75  # the level, and what a problem's steps have in common


def test_columns_that_tell_nothing_new_are_left_out_and_the_rest_is_as_without_them() -> None:
    random = np.random.default_rng(5)
    y, x, own = problem_with_covariates(random, 20)
    more = np.column_stack([x[:, :2], np.zeros(len(y)), x[:, 0] * 3, x[:, 2:], x[:, 1] + x[:, 2]])
    plain, found = (stats.cluster_regression(y, design, own, seed=0) for design in (x, more))
    for column in (2, 3, 6):
        assert math.isnan(found.coefficients[column].estimate) and math.isnan(found.partial_r2[column])
        assert not found.coefficients[column].method
    for a, b in zip(plain.coefficients, [found.coefficients[i] for i in (0, 1, 4, 5)], strict=True):
        assert b[:3] == pytest.approx(a[:3])
    assert found.r2 == pytest.approx(plain.r2)


def test_a_column_of_one_problem_has_a_coefficient_and_no_interval() -> None:
    """A third of the draws have no such problem: what they would say is another question."""
    random = np.random.default_rng(6)
    y, x, own = problem_with_covariates(random, 12)
    alone = (own == 3) & (x[:, 2] > 0.5)
    found = stats.cluster_regression(y, np.column_stack([x, alone]), own, seed=0)
    assert not math.isnan(found.coefficients[4].estimate) and math.isnan(found.coefficients[4].low)
    assert all(c.trusted for c in found.coefficients[:4])
    too_few = stats.cluster_regression(y[:3], x[:3], own[:3], seed=0)
    assert all(math.isnan(c.estimate) for c in too_few.coefficients) and math.isnan(too_few.r2)


def test_false_discoveries_over_all_steps_of_all_problems() -> None:
    """Steps share the draws of a boundary with their neighbours, problems nothing; every fifth problem has one step that
    matters. Of what is found at q = 0.05 at most 5 % is false, and a rule of single p-values has far more."""
    random, false, at_once, power = np.random.default_rng(7), [], [], []
    for _ in range(300):
        truth = np.zeros((40, 10), bool)
        truth[::5, 4] = True
        level = np.cumsum(np.concatenate([np.zeros((40, 1)), truth * 4.0], axis=1), axis=1)
        boundary = level + random.normal(0, math.sqrt(0.5), level.shape)
        p = 2 * reference.norm.sf(np.abs(np.diff(boundary, axis=1))).ravel()
        q, real = stats.q_values(p), truth.ravel()
        false.append((q <= 0.05)[~real].sum() / max(1, (q <= 0.05).sum()))
        at_once.append((p <= 0.05)[~real].sum() / max(1, (p <= 0.05).sum()))
        power.append((q <= 0.05)[real].mean())
    assert np.mean(false) <= 0.05 + 3 * np.std(false) / math.sqrt(300)
    assert np.mean(false) >= 0.02 and np.mean(at_once) > 0.5 and np.mean(power) > 0.5


def test_q_values_are_those_of_the_definition_and_leave_out_what_was_not_tested() -> None:
    p = np.array([0.01, math.nan, 0.04, 0.03, 0.8])
    found = stats.q_values(p)
    tested = np.sort(p[~np.isnan(p)])
    by_hand = {value: min(other * 4 / rank for rank, other in enumerate(tested, 1) if other >= value) for value in tested}
    assert math.isnan(found[1]) and [found[i] for i in (0, 2, 3, 4)] == pytest.approx([by_hand[p[i]] for i in (0, 2, 3, 4)])
    assert np.isnan(stats.q_values(np.full(3, math.nan))).all() and len(stats.q_values(np.array([]))) == 0


def test_shares_of_all_that_clusters_hold_are_covered_over_texts_and_not_over_tokens() -> None:
    """Topics: a text's tokens go to an expert more, or less, than those of another; texts differ in length."""
    random, hits, trials = np.random.default_rng(4), np.zeros(2), 400
    for trial in range(trials):
        sizes = random.integers(5, 60, 30)
        counts = random.binomial(sizes, random.beta(2, 6, 30))
        (found,) = stats.cluster_shares(counts[:, None], sizes, seed=trial, draws=500)
        over_tokens = stats.wilson(int(counts.sum()), int(sizes.sum()))
        hits += [found.low <= 0.25 <= found.high, over_tokens.low <= 0.25 <= over_tokens.high]
        assert found.estimate == counts.sum() / sizes.sum() and (found.clusters, found.n) == (30, sizes.sum())
    assert hits[0] / trials > 0.91 and hits[1] / trials < 0.75
    none, one = stats.cluster_shares(np.array([[0, 3], [0, 0]]), np.array([4, 0]), seed=0)
    assert (none.estimate, one.estimate) == (0.0, 0.75) and math.isnan(one.low) and one.clusters == 1


def test_draws_are_held_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values, own = normal(np.random.default_rng(8), 30)
    most = 0
    plain = clusters.counted

    def counted(labels: np.ndarray, classes: int) -> np.ndarray:
        nonlocal most
        most = max(most, labels.size)
        return plain(labels, classes)

    monkeypatch.setattr(clusters, "counted", counted)
    monkeypatch.setattr("probe.stats.distributions.HELD", 3000)
    stats.cluster_mean(values, own, seed=0)
    assert 0 < most <= 3000
