"""One token from logits: Hugging Face's own processors say what is left, softmax says how often, noise says which."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from probe.decoding import Sampling, exponential, processors
from probe.decoding.sampler import FEW, choose, left
from probe.errors import BadOption, NonFinite

GRID = list(itertools.product((0.3, 1.0, 1.7), (None, 1, 5, 40), (None, 0.1, 0.9, 0.999, 1.0), (None, 0.05, 0.5), (1.0, 1.3)))


def logits_of(n_rows: int, n_vocab: int, *, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(n_rows, n_vocab, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.slow
@pytest.mark.parametrize("n_vocab", [12, 700, 3000])
def test_what_is_left_and_its_law_are_hugging_faces(n_vocab: int) -> None:
    logits = logits_of(4, n_vocab, scale=2.0)
    logits[1, 3:9] = -torch.inf
    logits[2] /= 50  # nearly flat: top-p keeps most of a large vocabulary
    ids = torch.randint(0, n_vocab, (4, 20), generator=torch.Generator().manual_seed(1))
    for temperature, top_k, top_p, min_p, penalty in GRID:
        sampling = Sampling(temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=5)
        expected = processors(sampling)(ids, logits.double()).log_softmax(-1)
        found = choose(logits, ids, sampling, samples=range(4), steps=[0] * 4)
        # thousands of fp32 probabilities, added in the processor's own order, end on either side of top-p
        around = [top_p] if top_p in (None, 1.0) else [top_p - 1e-5, top_p + 1e-5]
        counts = [processors(replace(sampling, top_p=p))(ids, logits.double()).isfinite().sum(-1) for p in around]
        assert (torch.tensor(found.kept) >= counts[0]).all() and (torch.tensor(found.kept) <= counts[-1]).all(), sampling
        own = expected.gather(1, torch.tensor(found.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(found.logprobs, own, atol=1.5e-5, err_msg=str(sampling))
        # the race itself, without any shortcut
        noise = exponential(5, range(4), [0] * 4, torch.arange(n_vocab)).double()
        assert found.tokens == (noise.log() - expected).argmin(-1).tolist(), sampling
        assert found.noise == [noise[row, token].item() for row, token in enumerate(found.tokens)]


def test_the_set_that_is_left_is_hugging_faces_token_by_token() -> None:
    logits = logits_of(5, 3000)
    for top_k, top_p, min_p in itertools.product((None, 7, 300), (None, 0.5, 0.95), (None, 0.01)):
        sampling = Sampling(1.0, top_k=top_k, top_p=top_p, min_p=min_p)
        if not sampling.filtered:
            continue
        expected = processors(sampling)(None, logits.clone()).double().log_softmax(-1)
        seen = []
        for some in left(logits, sampling):
            for row, tokens, logprobs, kept in zip(*(column.tolist() for column in some), strict=True):
                seen.append(row)
                assert set(tokens[:kept]) == set(expected[row].isfinite().nonzero()[:, 0].tolist())
                np.testing.assert_allclose(logprobs[:kept], expected[row, tokens[:kept]], atol=1e-5)
                assert all(x == -np.inf for x in logprobs[kept:])
        assert sorted(seen) == list(range(5))


def test_ties_at_the_kth_token_are_all_kept() -> None:
    """Half-precision logits tie all the time."""
    logits = torch.zeros(2, 2 * FEW)
    logits[0, :3] = 1.0
    found = choose(logits, None, Sampling(1.0, top_k=2), samples=[0, 1], steps=[0, 0])
    assert found.kept == [3, 2 * FEW]


def test_a_filter_changes_nothing_for_tokens_that_it_leaves() -> None:
    """Noise belongs to a token, not to its rank: where the winner of the open race is left, it wins again."""
    logits = logits_of(200, 60)
    same = {"samples": range(200), "steps": [0] * 200}
    plain = choose(logits, None, Sampling(1.0), **same)
    for filters in ({"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1}):
        sampling = Sampling(1.0, **filters)
        still = processors(sampling)(None, logits.clone()).isfinite()
        filtered = choose(logits, None, sampling, **same)
        for row, token in enumerate(plain.tokens):
            if still[row, token]:
                assert filtered.tokens[row] == token


@pytest.mark.parametrize("filters", [{}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}], ids=str)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_draws_have_the_law(filters: dict[str, float], temperature: float) -> None:
    n, logits = 20_000, logits_of(1, 12, seed=3, scale=1.5)
    sampling = Sampling(temperature, seed=1, **filters)
    law = processors(sampling)(None, logits.clone())[0].double().softmax(-1).numpy()
    for along in ("samples", "steps"):
        where = {"samples": [0] * n, "steps": [0] * n} | {along: range(n)}
        drawn = np.bincount(choose(logits.expand(n, -1), None, sampling, **where).tokens, minlength=12)
        assert (drawn[law == 0] == 0).all()
        assert stats.chisquare(drawn[law > 0], law[law > 0] * n).pvalue > 1e-3


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 3}], ids=str)
def test_a_row_is_chosen_alike_alone_and_in_any_order(filters: dict[str, float]) -> None:
    for n_vocab in (12, 5000, 40_000):
        logits, sampling = logits_of(9, n_vocab), Sampling(1.0, seed=2, **filters)
        whole = choose(logits, None, sampling, samples=range(9), steps=range(9))
        backwards = choose(logits.flip(0), None, sampling, samples=range(8, -1, -1), steps=range(8, -1, -1))
        for row in range(9):
            alone = choose(logits[row : row + 1], None, sampling, samples=[row], steps=[row])
            assert [x[0] for x in alone] == [x[row] for x in whole] == [x[8 - row] for x in backwards]


def test_choices_do_not_depend_on_the_number_of_threads() -> None:
    threads, found, logits = torch.get_num_threads(), [], logits_of(5, 49_152)
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            for sampling in (Sampling(1.0), Sampling(0.6, top_p=0.95)):
                found.append(choose(logits, None, sampling, samples=range(5), steps=[3] * 5))
    finally:
        torch.set_num_threads(threads)
    assert found[:2] == found[2:]


def test_close_laws_draw_the_same_token() -> None:
    """Common random numbers: two laws 0.03 apart in total variation agree far more often than independent draws."""
    logits = logits_of(1, 50, scale=2.0).expand(4000, -1)
    near = logits + 0.06 * torch.sign(logits_of(1, 50, seed=9))
    distance = (logits[0].softmax(-1) - near[0].softmax(-1)).abs().sum() / 2
    assert 0.01 < distance < 0.05
    same = {"samples": range(4000), "steps": [0] * 4000}
    pairs = zip(*(choose(x, None, Sampling(1.0), **same).tokens for x in (logits, near)), strict=True)
    assert np.mean([a == b for a, b in pairs]) > 1 - 2 * distance


def test_greedy_is_the_largest_and_has_no_noise() -> None:
    logits = logits_of(6, 300)
    found = choose(logits, None, Sampling(), samples=range(6), steps=[0] * 6)
    assert found.tokens == logits.argmax(-1).tolist()
    assert found == (found.tokens, [0.0] * 6, [1] * 6, [None] * 6)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, top_k=5), Sampling(1.0, top_p=0.9)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_logits_that_are_not_numbers_are_an_error(sampling: Sampling, bad: float | None) -> None:
    logits = logits_of(3, 40)
    if bad is None:
        logits[1] = -torch.inf
    else:
        logits[1, 7] = bad
    with pytest.raises(NonFinite, match="sample 11 at step 4"):
        choose(logits, None, sampling, samples=[10, 11, 12], steps=[4, 4, 4])


def test_half_precision_logits_are_chosen_from_in_float32() -> None:
    logits = logits_of(3, 100).to(torch.bfloat16)
    for sampling in (Sampling(), Sampling(0.7), Sampling(0.7, top_k=10)):
        half, full = (choose(x, None, sampling, samples=range(3), steps=[0] * 3) for x in (logits, logits.float()))
        assert half == full


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"temperature": -1.0}, "temperature"), ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"), ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p"), ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"stop": "text"}, "stop"), ({"stop": ("",)}, "stop"), ({"seed": -1}, "seed"), ({"top_k": 4}, "greedy"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(given: dict, word: str) -> None:
    with pytest.raises(BadOption, match=word):
        Sampling(**given)
