"""Attempts at one problem against enumeration."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest

from probe import stats


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_pass_at_k_is_the_share_of_sets_of_k_that_hold_a_right_one(n: int) -> None:
    for correct in range(n + 1):
        attempts = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            sets = list(combinations(attempts, k))
            assert stats.pass_at_k(n, correct, k) == pytest.approx(float(Fraction(sum(map(any, sets)), len(sets))), abs=1e-14)


def test_pass_at_k_of_many_is_exact() -> None:
    """By whole numbers: 1 - C(n - c, k) / C(n, k)."""
    from math import comb

    for n, c, k in ((1000, 3, 100), (10_000, 1, 5000), (200, 150, 10)):
        exact = 1 - Fraction(comb(n - c, k), comb(n, k))
        assert stats.pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-10)


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over all that can be drawn is 1 - (1 - p)^k."""
    from math import comb

    p, n, k = 0.3, 8, 4
    mean = sum(comb(n, c) * p**c * (1 - p) ** (n - c) * stats.pass_at_k(n, c, k) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_more_attempts_than_there_are_say_nothing(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 4"):
        stats.pass_at_k(4, 2, k)


def test_the_majority_and_its_ties() -> None:
    vote = stats.majority(["b", "<none>", "a", "<none>", "b", "a", "c", "<none>"], without={"<none>"})
    assert vote == (("b", "a"), 2)
    assert vote.right("a") == vote.right("b") == 0.5 and vote.right("c") == 0.0
    assert stats.majority(["b", "a", "b"]).right("b") == 1.0
    assert stats.majority(["<none>"], without={"<none>"}) == ((), 0)
