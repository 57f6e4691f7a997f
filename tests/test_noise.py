"""Noise has an address: the same wherever it is computed, and sound as a sample of Exp(1) in every direction of the address."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from probe.decoding import exponential
from probe.decoding.noise import from_bits

N_VOCAB = 49_152
ALL = torch.arange(N_VOCAB)


def test_noise_is_the_same_whatever_stands_beside_it() -> None:
    samples, steps = [7, 0, 3, 7], [5, 5, 0, 6]
    whole = exponential(11, samples, steps, ALL)
    assert whole.shape == (4, N_VOCAB)
    assert whole.dtype == torch.float32
    for row in range(4):
        assert torch.equal(exponential(11, [samples[row]], [steps[row]], ALL)[0], whole[row])
    order = [2, 0, 3, 1]
    again = exponential(11, [samples[r] for r in order], [steps[r] for r in order], ALL)
    assert torch.equal(again, whole[order])


def test_noise_of_some_tokens_is_the_noise_of_all_at_their_places() -> None:
    """Not even the last bit moves with the place in memory, where vectors and their remainders take different code."""
    whole = exponential(0, [0, 1], [3, 4], ALL)
    for first in range(40):
        some = ALL[first : 1000 + 2 * first]
        assert torch.equal(exponential(0, [0, 1], [3, 4], some), whole[:, some])
    picked = torch.randint(0, N_VOCAB, (2, 777), generator=torch.Generator().manual_seed(0))
    assert torch.equal(exponential(0, [0, 1], [3, 4], picked), whole.gather(1, picked))
    assert exponential(0, [1], [4], ALL[1234:1235]).item() == whole[1, 1234].item()
    assert torch.equal(exponential(0, [0, 1], [3, 4], picked.to(torch.int32)), whole.gather(1, picked))


def test_noise_does_not_depend_on_the_number_of_threads() -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(exponential(4, range(3), [0, 1, 2], ALL))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_noise_of_today_is_noise_of_tomorrow() -> None:
    """A resumed run goes on with the noise that it began with: these numbers may not change."""
    found = exponential(0, [0, 1], [0, 9], torch.tensor([0, 1, 49151]))
    torch.testing.assert_close(found, torch.tensor(FIXED), rtol=1e-6, atol=0)


@pytest.mark.parametrize("axis", ["seed", "sample", "step"])
def test_noise_is_exponential_and_independent_along(axis: str) -> None:
    n = 400
    tokens = torch.arange(8192)
    if axis == "seed":
        noise = torch.cat([exponential(seed, [0], [0], tokens) for seed in range(n)])
    else:
        still = [0] * n
        noise = exponential(1, range(n) if axis == "sample" else still, still if axis == "sample" else range(n), tokens)
    assert stats.kstest(noise[::7, ::5].flatten().numpy(), "expon").pvalue > 1e-3
    uniform = (-noise.double()).exp()
    centred = (uniform - 0.5) * math.sqrt(12)
    along, across = centred @ centred.T / len(tokens), centred.T[:1000] @ centred[:, :1000] / n
    for corr, size in ((along, len(tokens)), (across, n)):
        off = corr[~torch.eye(len(corr), dtype=torch.bool)] * math.sqrt(size)  # each about N(0, 1)
        assert off.abs().max() < 6
        assert off.square().mean() == pytest.approx(1, abs=0.03)
    neighbours = stats.spearmanr(noise[:-1, :50].flatten(), noise[1:, :50].flatten())
    assert neighbours.pvalue > 1e-3


def test_the_first_of_a_race_between_equals_is_uniform_and_its_time_exponential() -> None:
    """Races are won by the smallest noise of all: the bits that matter least for the mean matter most here."""
    n = 4096
    first = exponential(2, range(6000), [0] * 6000, torch.arange(n)).min(-1)
    assert stats.kstest(first.values.double().numpy() * n, "expon").pvalue > 1e-3
    assert stats.chisquare(torch.bincount(first.indices // 64, minlength=64).numpy()).pvalue > 1e-3
    assert stats.chisquare(torch.bincount(first.indices % 64, minlength=64).numpy()).pvalue > 1e-3


def test_small_noise_is_fine_grained() -> None:
    noise = torch.cat([exponential(3, range(s, s + 100), [7] * 100, ALL).flatten() for s in range(0, 1000, 100)])
    small = noise[noise < 1e-5].double() / 1e-5
    assert len(small) == pytest.approx(len(noise) * 1e-5, rel=0.2)
    assert stats.kstest(small.numpy(), "uniform").pvalue > 1e-3
    assert len(small.unique()) > 0.95 * len(small)


def test_noise_is_never_nothing_and_never_infinite() -> None:
    ends = from_bits(torch.tensor([0, 1, (1 << 31) - 129, (1 << 31) - 1], dtype=torch.int32))
    torch.testing.assert_close(ends[:2], torch.tensor([2.0**-32, 1.5 * 2.0**-31]))
    assert 16 < ends[2] <= ends[3] < 17
    noise = torch.cat([exponential(5, range(s, s + 64), [0] * 64, ALL).flatten() for s in range(0, 640, 64)])
    assert 0 < noise.min() <= noise.max() < 17


FIXED = [
    [1.8651635646820068, 0.21818052232265472, 2.486623525619507],
    [0.9641940593719482, 2.0619266033172607, 0.5380048751831055],
]
