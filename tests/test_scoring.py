"""Scores of logits against float64: drawn at random, huge, tied, partly -inf, and not numbers at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from probe.errors import NonFinite
from probe.scoring import Scores, distribution, divergence, kl, largest, score_hidden, score_rows

V = 3001  # no multiple of anything that the arithmetic is blocked by


pytestmark = pytest.mark.usefixtures("both_ways")


def exact(logits: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
    """The same numbers in float64, straight from their definitions."""
    x = logits.double().numpy()
    shifted = x - x.max(-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    p = np.exp(logp)
    finite = np.where(p > 0, logp, 0.0)
    entropy = -(p * finite).sum(-1)
    rows, target = np.arange(len(x)), targets.numpy()
    own = x[rows, target][:, None]
    lower = np.arange(x.shape[1]) < target[:, None]
    return {
        "logprob": logp[rows, target], "entropy": entropy, "varentropy": (p * (finite + entropy[:, None]) ** 2).sum(-1),
        "rank": (x > own).sum(-1) + ((x == own) & lower).sum(-1), "logp": logp,
    }  # fmt: skip


def check(logits: Tensor, targets: Tensor, *, top: int = 5, atol: float = 1e-5) -> Scores:
    found, expected = score_rows(logits, targets, top=top), exact(logits.float(), targets)
    for name in ("logprob", "entropy", "varentropy"):
        np.testing.assert_allclose(getattr(found, name), expected[name], atol=atol, rtol=1e-6, err_msg=name)
    assert found.rank.tolist() == expected["rank"].tolist()
    ids = found.top_ids.numpy()
    # which ids stand for a tie is free; their log-probs are not, nor is one named twice
    best = -np.sort(-expected["logp"], axis=-1)[:, :top]
    np.testing.assert_allclose(found.top_logprobs, best, atol=atol, rtol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected["logp"], ids, -1), best, atol=atol, rtol=1e-6)
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    return found


def drawn(rows: int, spread: float, *, seed: int = 0, vocabulary: int = V) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    return logits, torch.randint(vocabulary, (rows,), generator=generator)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 4.0, 30.0])
def test_random_logits_of_any_spread(spread: float) -> None:
    check(*drawn(150, spread))


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 64, 49152])
def test_any_size_of_vocabulary(vocabulary: int) -> None:
    check(*drawn(9, 3.0, vocabulary=vocabulary), top=min(5, vocabulary))


@pytest.mark.parametrize("shift", [-1e4, 1e4, 3e6])
def test_a_shift_of_all_logits_changes_nothing(shift: float) -> None:
    """Logits so far from 0 are coarse, and those coarse ones are what is compared."""
    logits, targets = drawn(20, 4.0)
    check(logits + shift, targets)


def test_huge_logits_neither_overflow_nor_lose_the_rest() -> None:
    logits, targets = drawn(8, 1.0)
    largest = torch.finfo(torch.float32).max
    logits[0] *= 1e30
    logits[1, 17], targets[1] = largest, 17
    logits[2, 17], logits[2, 18], targets[2] = largest, -largest, 17
    logits[3, 17] = logits[3, 18] = 1e20
    targets[3] = 18
    logits[4] = -largest
    logits[5] = torch.where(torch.arange(V) % 2 == 0, largest, -largest)
    targets[5] = 2
    found = check(logits, targets)
    assert found.entropy[3].item() == pytest.approx(math.log(2)) and found.logprob[3].item() == pytest.approx(-math.log(2))
    assert found.entropy[4].item() == pytest.approx(math.log(V))


def test_masked_logits_have_no_probability_and_cost_nothing() -> None:
    logits, targets = drawn(6, 2.0)
    logits[:, 100:] = -torch.inf
    targets[:5] %= 100
    targets[5] = 200
    found = check(logits, targets)
    assert found.logprob[5].item() == -math.inf and found.rank[5].item() == 100 + 100
    one = torch.full((1, V), -torch.inf)
    one[0, 5] = -3.0
    found = check(one, torch.tensor([5]))
    assert (found.logprob.item(), found.entropy.item(), found.varentropy.item(), found.rank.item()) == (0.0, 0.0, 0.0, 0)
    assert found.top_ids[0, 0] == 5 and found.top_logprobs[0, 1:].tolist() == [-math.inf] * 4


def test_among_ties_the_lower_id_comes_first() -> None:
    """As argmax has it: the token of rank 0 is the greedy one, and the best alternatives stand in the same order."""
    logits = torch.zeros(4, V)
    logits[:, [7, 70, 700]] = 2.5
    found = check(logits, torch.tensor([7, 700, 3, 71]), top=3)
    assert found.rank.tolist() == [0, 2, 3 + 3, 3 + 71 - 2]
    assert found.top_ids.tolist() == [[7, 70, 700]] * 4


def test_coarse_logits_with_ties_everywhere() -> None:
    """bfloat16 models: dozens of tokens share a logit."""
    logits, targets = drawn(40, 4.0)
    check(logits.bfloat16(), targets)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("row", [0, 63, 64, 129])
def test_what_is_not_a_number_is_an_error_that_names_its_row(bad: float, row: int) -> None:
    logits, targets = drawn(130, 1.0)
    logits[row, (row * 37) % V] = bad
    with pytest.raises(NonFinite, match=rf"position {row}\b"):
        score_rows(logits, targets, top=5)
    logits[row] = -torch.inf
    with pytest.raises(NonFinite, match=rf"position {row}\b"):
        score_rows(logits, targets, top=5)


def test_nan_beside_inf_and_as_the_target() -> None:
    logits, targets = drawn(3, 1.0)
    logits[1, 5], logits[1, 6], targets[1] = math.nan, math.inf, 5
    with pytest.raises(NonFinite, match=r"position 1\b"):
        score_rows(logits, targets, top=1)


def test_log_probs_add_up_from_any_blocks() -> None:
    logits, targets = drawn(131, 3.0)
    whole = score_rows(logits, targets, top=4, block_rows=1000)
    for rows in (1, 7, 64):
        cut = score_rows(logits, targets, top=4, block_rows=rows)
        assert torch.equal(cut.rank, whole.rank) and torch.equal(cut.top_ids, whole.top_ids)
        for name in ("logprob", "entropy", "varentropy", "top_logprobs"):
            torch.testing.assert_close(getattr(cut, name), getattr(whole, name), atol=1e-6, rtol=1e-6)


def test_a_readout_sees_blocks_of_rows_and_its_input_is_not_changed() -> None:
    logits, targets = drawn(100, 2.0, vocabulary=300)
    before, sizes = logits.clone(), []

    def readout(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return rows

    found = score_hidden(readout, logits, targets, top=3, block_rows=32)
    assert sizes == [32, 32, 32, 4] and torch.equal(logits, before)
    assert all(torch.equal(a, b) for a, b in zip(found, score_rows(logits, targets, top=3), strict=True))


def test_no_alternatives_and_no_rows() -> None:
    logits, targets = drawn(4, 1.0)
    assert score_rows(logits, targets, top=0).top_ids.shape == (4, 0)
    assert score_rows(logits[:, :2], targets % 2, top=5).top_ids.shape == (4, 2)


def test_divergences_of_near_and_far_and_masked_distributions() -> None:
    logits, _ = drawn(50, 4.0, vocabulary=49152)
    other, _ = drawn(50, 6.0, seed=1, vocabulary=49152)
    logits[40:, 100:] = -torch.inf
    for q in (logits + 1e-3 * other, other, logits * 1.01):
        q = torch.where(logits == -torch.inf, -torch.inf, q)
        true, near = logits.double().log_softmax(-1), q.double().log_softmax(-1)
        expected = (true.exp() * (true - near).nan_to_num(nan=0.0)).sum(-1)
        reference = distribution(logits)
        torch.testing.assert_close(divergence(reference, q).double(), expected, atol=1e-6, rtol=2e-6)
        assert (divergence(reference, logits) == 0).all()


@pytest.mark.parametrize("n", [1, 3, 20, 100, 257, 480, 1104, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_largest_of_each_row_are_those_of_topk(n: int, dtype: torch.dtype) -> None:
    values = torch.randn(7, n, generator=torch.Generator().manual_seed(n)).to(dtype)
    values[0] = values[0, 0]
    if n > 3:
        values[1, 3], values[2, 1], values[2, 2] = math.nan, math.inf, -math.inf
    for k in (1, 8, 20):
        best, places = largest(values, k)
        torch.testing.assert_close(best, values.topk(min(k, n), dim=-1).values, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(values.gather(1, places), best, rtol=0, atol=0, equal_nan=True)
        assert all(len(set(row.tolist())) == len(row) for row in places)


def test_kl_of_log_probs_is_the_sum_that_scipy_makes() -> None:
    """With what one of them rules out, in a batch, and as a function that has a gradient."""
    from scipy.stats import entropy

    random = torch.Generator().manual_seed(3)
    p, q = (torch.randn(4, 50, generator=random, dtype=torch.float64).softmax(-1) for _ in range(2))
    p[:, :5] = 0.0
    q[1, 3] = 0.0  # p has nothing there either
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    wanted = torch.tensor(entropy(p.numpy(), q.numpy(), axis=-1))
    torch.testing.assert_close(kl(p.log(), q.log()), wanted, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(kl(p[0].log(), q.log())[2], torch.tensor(entropy(p[0].numpy(), q[2].numpy())))
    assert (kl(p.log(), p.log()) == 0.0).all()
    assert kl(q[:1].log(), p[:1].log()).isinf().all()
    logits = torch.randn(50, generator=random, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kl(p[0].log(), logits.log_softmax(-1)), logits)
    torch.testing.assert_close(slope, logits.detach().softmax(-1) - p[0])
