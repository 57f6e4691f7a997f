"""Intervals that hold at every look, and rounds of drawing: exactly by enumeration, else by simulation."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats as reference
from scipy.integrate import quad

from probe.stats import paired
from probe.stats.allocation import Allocation
from probe.stats.sequential import (
    StoppingRule,
    anytime,
    anytime_half_width,
    anytime_independent,
    anytime_mean,
    anytime_share,
    confidence_sequence,
    log_wealth,
)


@pytest.mark.parametrize(("down", "up"), [(0.1, 0.3), (0.5, 0.5), (0.05, 0.0), (0.0, 0.9), (0.02, 0.02)])
@pytest.mark.parametrize("n", [1, 6, 15])
def test_the_game_is_fair_at_the_mean(down: float, up: float, n: int) -> None:
    """The expectation over all tables of n pairs is 1; who bets for long against another mean wins in expectation."""
    law = reference.multinomial(n, [down, up, 1 - down - up])
    d, u = np.array([(d, u) for d in range(n + 1) for u in range(n + 1 - d)]).T
    weight = law.pmf(np.stack([d, u, n - d - u], axis=1))

    def expected(mean: float) -> float:
        return float(weight @ np.exp(log_wealth(np.full(len(d), mean), d, u, np.full(len(d), n))))

    assert expected(up - down) == pytest.approx(1, abs=1e-9)
    assert n < 15 or expected(up - down - 0.4) > 1.1


@pytest.mark.parametrize(("down", "up", "n"), [(0, 0, 16), (3, 9, 20), (7, 0, 7), (40, 31, 200)])
def test_the_interval_is_every_mean_that_the_mixture_has_not_refused(down: int, up: int, n: int) -> None:
    """By integrating over all stakes, pair by pair, and looking for the ends on a grid."""

    def wealth(mean: float) -> float:
        def of(stake: float) -> float:  # positive: on more
            t = stake / (1 + mean) if stake > 0 else stake / (1 - mean)
            return (1 + t * (1 - mean)) ** up * (1 - t * mean) ** (n - up - down) * (1 + t * (-1 - mean)) ** down

        with np.errstate(over="ignore"):
            return (quad(of, 0, 1, limit=200)[0] + quad(of, -1, 0, limit=200)[0]) / 2

    found = confidence_sequence(np.array([down]), np.array([up]), np.array([n]))
    grid = np.linspace(-0.999, 0.999, 1999)
    inside = grid[[wealth(m) < 20 for m in grid]]
    low, high = float(found.low[0]), float(found.high[0])
    assert low == pytest.approx(inside.min(), abs=0.0011) or (low == -1 and inside.min() == grid[0])
    assert high == pytest.approx(inside.max(), abs=0.0011) or (high == 1 and inside.max() == grid[-1])
    assert found.p_value[0] == pytest.approx(min(1, 1 / wealth(0)), rel=1e-4)


@pytest.mark.parametrize("n", [5, 16, 25])
def test_interval_and_p_are_one_rule_and_mirror(n: int) -> None:
    down, up = np.array([(d, u) for d in range(n + 1) for u in range(n + 1 - d)]).T
    found, mirrored = (confidence_sequence(*pair, np.full(len(up), n)) for pair in ((down, up), (up, down)))
    assert np.array_equal((found.low > 0) | (found.high < 0), found.p_value <= 0.05)
    assert np.allclose(found.low, -mirrored.high, atol=1e-9) and np.allclose(found.p_value, mirrored.p_value)
    assert (found.low <= found.estimate).all() and (found.estimate <= found.high).all()
    nothing = confidence_sequence(np.array([0]), np.array([0]), np.array([0]))
    assert (nothing.low[0], nothing.high[0], nothing.p_value[0]) == (-1, 1, 1) and math.isnan(nothing.estimate[0])
    a, b = np.arange(n) < 3, np.arange(n) > 1
    assert anytime(a, b) == pytest.approx([x[(down == 2) & (up == n - 3)][0] for x in found])


@pytest.mark.slow
def test_looking_after_every_pair_keeps_the_level_where_one_interval_looked_at_again_does_not() -> None:
    random = np.random.default_rng(0)
    for up, down in ((0.15, 0.15), (0.5, 0.5), (0.4, 0.05), (0.02, 0.02)):
        kind = random.choice([1, -1, 0], p=[up, down, 1 - up - down], size=(1500, 400))
        ups, downs = (kind == 1).cumsum(axis=1), (kind == -1).cumsum(axis=1)
        n = np.broadcast_to(np.arange(1, 401), kind.shape)
        some = slice(0, None, 5)  # a look after every fifth
        ever = (
            log_wealth(np.full(ups[:, some].shape, up - down), downs[:, some], ups[:, some], n[:, some]) > math.log(20)
        ).any(1)
        assert ever.mean() <= 0.05, (up, down)
        if up == down == 0.15:
            looks = [15, 31, 63, 127, 255, 399]
            p = reference.binom.cdf(np.minimum(ups, downs)[:, looks], (ups + downs)[:, looks], 0.5) * 2
            assert (p <= 0.05).any(1).mean() > 0.1  # exact McNemar, looked at six times


@pytest.mark.slow
def test_intervals_of_arms_of_other_sizes_hold_at_every_look_too() -> None:
    random = np.random.default_rng(1)
    for p, q in ((0.5, 0.5), (0.1, 0.3)):
        missed = told = 0
        for _ in range(60):
            a, b = random.random(300) < p, random.random(100) < q
            looks = [anytime_independent(int(a[: 3 * n].sum()), 3 * n, int(b[:n].sum()), n) for n in (10, 40, 100)]
            missed += any(not x.low <= q - p <= x.high for x in looks)
            told += any(x.p_value <= 0.05 for x in looks)
            assert all((x.low > 0 or x.high < 0) == (x.p_value <= 0.05) for x in looks)
        assert missed / 60 <= 0.05 and (told / 60 <= 0.05 or p != q)
    assert anytime_independent(0, 0, 4, 10).low < 0 < anytime_independent(0, 0, 4, 10).high
    assert anytime_independent(0, 40, 40, 40)[:3] == pytest.approx((1.0, 0.83, 1.0), abs=0.02)


@pytest.mark.slow
def test_means_of_any_bounded_values_hold_too() -> None:
    """Of -1, 0 and 1 it is the same interval; of a share it is moved; of lengths it holds at every look."""
    pairs = np.repeat([-1, 0, 1], [4, 20, 9])
    whole = confidence_sequence(np.array([4]), np.array([9]), np.array([33]))
    assert anytime_mean(7.0 * pairs, bound=7.0) == pytest.approx([7 * float(x[0]) for x in whole[:3]])
    assert anytime_share(0, 12)[:2] == (0, 0) and anytime_share(12, 12)[::2] == (1, 1) and 0.2 < anytime_share(0, 12).high < 0.4
    assert anytime_mean(np.full(5, 3.0), bound=3.0).high == 3.0
    random, missed = np.random.default_rng(2), 0
    for _ in range(80):
        lengths = np.minimum(100, random.geometric(0.05, 200)) - np.minimum(100, random.geometric(0.04, 200))
        true = (1 - 0.95**100) / 0.05 - (1 - 0.96**100) / 0.04
        found = [anytime_mean(lengths[:n], bound=100) for n in (10, 50, 200)]
        missed += any(not x.low <= true <= x.high for x in found)
    assert missed / 80 <= 0.05 and found[-1].high - found[-1].low < 25


def test_the_price_of_looking_at_any_time() -> None:
    """Wider than the interval of one look, and by how much it is said to be."""
    for n in (16, 64, 256, 1024):
        for discordant in (0.0, 0.1, 0.25, 0.5):
            k = round(discordant * n / 2)
            i = np.arange(n)
            one = paired(i < k, (i >= k) & (i < 2 * k))
            ever = anytime(i < k, (i >= k) & (i < 2 * k))
            assert 1.35 < (ever.high - ever.low) / (one.high - one.low) < 1.75
    assert anytime_half_width(64) == pytest.approx(0.202, abs=5e-4) and anytime_half_width(256, rho=0.9) < 0.1


def test_why_a_cell_stops() -> None:
    low, high = np.array([-0.3, -0.04, 0.01, -0.05]), np.array([0.1, 0.05, 0.2, 0.14])
    assert list(StoppingRule(differs=True, smaller=0.1).reasons(low, high)) == [
        "", "smaller than ±0.1", "differs from 0", "",
    ]  # fmt: skip
    known = "known to ±0.1"
    assert list(StoppingRule(known=0.1).reasons(low, high)) == ["", known, known, known]
    assert list(StoppingRule().reasons(low, high)) == [""] * 4


class World(NamedTuple):
    """Outcomes and costs of every sample of every boundary of some problems, whose true differences are known."""

    hits: list[np.ndarray]
    costs: list[np.ndarray]
    ends: np.ndarray
    differences: np.ndarray
    ceiling: np.ndarray


def world(random: np.random.Generator, problems: int, steps: int, *, same: float, n: int = 512) -> World:
    """Each problem's samples share noise across its boundaries, in a share `same` of them; half the steps do nothing."""
    hits, costs, ends, differences, ceiling = [], [], [], [], []
    for _ in range(problems):
        share, noise = random.uniform(0.2, 0.8), random.random(n)
        for k in range(steps + 1):
            if k:
                moved = random.random() < 0.5
                new = float(np.clip(share + random.normal(0, 0.25), 0.02, 0.98)) if moved else share
                differences.append(new - share)
                ends.append((len(hits) - 1, len(hits)))
                share = new
            mean = 20 + 20 * (steps - k)
            hits.append(np.where(random.random(n) < same, noise, random.random(n)) < share)
            costs.append(np.minimum(3 * mean, random.geometric(1 / mean, n)).astype(float))
            ceiling.append(3.0 * mean)
    return World(hits, costs, np.array(ends), np.array(differences), np.array(ceiling))


def drawn(here: World, rule: StoppingRule, *, samples: int = 16, most: int = 512, budget: float | None = None) -> Allocation:
    found = Allocation(here.ends, here.ceiling, rule, most)
    target: np.ndarray | None = found.first(samples, budget)
    while target is not None:
        assert (target >= found.drawn).all() and (target <= most).all()
        hits, costs = ([x[:n] for x, n in zip(own, target, strict=True)] for own in (here.hits, here.costs))
        found.record(costs)
        found.look(hits)
        left = None if budget is None else budget - found.spent.sum()
        assert left is None or left >= 0, "more was spent than there was"
        target = found.next(left)
    return found


def intervals(here: World, found: Allocation) -> tuple[np.ndarray, np.ndarray]:
    """Of every cell, from the pairs that it had when it stopped."""
    first = [[here.hits[end][:n] for end in ends] for ends, n in zip(here.ends, found.pairs[0], strict=True)]
    counts = ([(a & ~b).sum() for a, b in first], [(~a & b).sum() for a, b in first], found.pairs[0])
    return confidence_sequence(*map(np.array, counts))[1:3]


@pytest.mark.slow
@pytest.mark.parametrize(("same", "saves"), [(0.3, 0.3), (0.8, 0.4)])
def test_intervals_cover_where_drawing_stopped_and_less_is_drawn_than_everywhere_alike(same: float, saves: float) -> None:
    """The cell stops by what it shows, so that this is where a plain interval fails."""
    random = np.random.default_rng(7)
    covered, null, spent, uniform = [], [], 0.0, 0.0
    for _ in range(7):
        here = world(random, 12, 6, same=same)
        found = drawn(here, StoppingRule(differs=True, smaller=0.2))
        spent, uniform = spent + found.spent.sum(), uniform + found.uniform()
        low, high = intervals(here, found)
        covered += list((low <= here.differences) & (here.differences <= high))
        null += list(found.stopped[0][here.differences == 0] == "differs from 0")
        said = found.rule.reasons(low, high)
        assert (found.stopped[0] == np.where(said == "", "limit", said)).all()
    assert len(null) > 200 and np.mean(covered) >= 0.95 and np.mean(null) <= 0.05
    assert 1 - spent / uniform > saves


@pytest.mark.slow
def test_a_budget_is_never_overspent_and_goes_where_it_narrows() -> None:
    random = np.random.default_rng(3)
    here = world(random, 6, 5, same=0.5)
    rule = StoppingRule(differs=True, smaller=0.1)
    small, large = (drawn(here, rule, budget=budget) for budget in (60_000, 200_000))
    for found, budget in ((small, 60_000), (large, 200_000)):
        assert budget - here.ceiling.max() * 2 < found.spent.sum() <= budget and not found.open.any()
        assert (found.stopped == "budget").any()
    known = [(found.stopped != "budget").sum() for found in (small, large)]
    assert known[1] > known[0] and np.median(large.width / small.width) < 0.8
    # of as many tokens as everywhere alike, more is known of what can be known
    each = int(60_000 // sum(x.mean() for x in here.costs))
    alike = Allocation(here.ends, here.ceiling, rule, 512)
    alike.record([x[:each] for x in here.costs])
    alike.look([x[:each] for x in here.hits])
    assert known[0] >= (~alike.open).sum() and small.width.sum() < alike.width.sum()
    assert drawn(here, rule, budget=60_000).drawn.tolist() == small.drawn.tolist()
    assert (Allocation(here.ends, here.ceiling, rule, 512).first(16, here.ceiling.sum() - 1) == 0).all()


def test_rounds_share_endpoints_fill_batches_and_end() -> None:
    """A wide cell raises both its ends; its neighbours, which then cost half, follow first; a closed one gets nothing."""
    found = Allocation(np.array([(0, 1), (1, 2), (3, 4)]), np.full(5, 10.0), StoppingRule(differs=True, smaller=0.2), 64)
    zero, one, half = np.zeros(16, bool), np.ones(16, bool), np.arange(16) % 2 == 0
    ten = [np.full(16, 10.0)] * 5
    found.record(ten)
    found.look([half, ~half, half, zero, one])
    assert list(found.stopped[0]) == ["", "", "differs from 0"] and found.uniform() == 16 * 50
    target = found.next()
    assert target is not None and target.tolist() == [32, 32, 32, 16, 16]  # doubled, for want of a batch
    found.record([np.full(n, 10.0) for n in target])
    found.look([np.resize(x, n) for x, n in zip([half, half, half, zero, one], target, strict=True)])
    assert found.pairs[0, 2] == 16
    found.stopped[0] = ["differs from 0", "", "differs from 0"]
    last = found.next(25.0)
    assert last is not None and (last - found.drawn).tolist() in (
        [0, 1, 1, 0, 0],
        [0, 2, 0, 0, 0],
        [0, 0, 2, 0, 0],
        [0, 0, 1, 0, 0],
    )
    assert found.next(5.0) is None and found.stopped[0, 1] == "budget"
    # few cells fill no batch: none has more than twice the pairs that it had
    one_cell = Allocation(np.array([(0, 1)]), np.full(2, 8.0), StoppingRule(differs=True), 1024)
    sizes, target = [], one_cell.first(8)
    while target is not None and len(sizes) < 5:
        sizes.append(int(target[0]))
        one_cell.record([np.full(n, 8.0) for n in target])
        one_cell.look([np.zeros(n, bool) for n in target])
        target = one_cell.next()
    assert sizes[:4] == [8, 16, 32, 64] and 64 < sizes[4] <= 128
    # prefixes that are over cost nothing, and are no endless loop
    over = Allocation(np.array([(0, 1)]), np.full(2, 8.0), StoppingRule(differs=True), 40)
    target = over.first(16)
    while target is not None:
        over.record([np.zeros(n) for n in target])
        over.look([np.zeros(n, bool) for n in target])
        target = over.next(100.0)
    assert list(over.stopped[0]) == ["limit"] and over.drawn.tolist() == [40, 40]
