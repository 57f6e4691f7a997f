"""Finds the fewest tensors that add up to another one; knows numbers, not modules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_TERMS = 5
MAX_SUBSETS = 60_000


class Sum(NamedTuple):
    """target = carry * base + sum of coefficients * terms, to `error` (RMS, relative, elementwise)."""

    carry: float
    terms: tuple[int, ...]
    coefficients: tuple[float, ...]
    error: float


class ChannelSum(NamedTuple):
    """target = factors[0] * base + sum of factors[1:] * terms (+ offset); factors and offset are vectors (d,)."""

    terms: tuple[int, ...]
    factors: tuple[Tensor, ...]
    offset: Tensor | None
    error: float


def tolerance(dtype: torch.dtype) -> float:
    """What rounding alone may leave: a few units in the last place, and room for a different order of summation."""
    return max(2e-5, 3 * torch.finfo(dtype).eps)


def shortest_sum(target: Tensor, base: Tensor, terms: Sequence[Tensor], *, max_terms: int = MAX_TERMS) -> Sum | None:
    """The fewest of `terms` with target = carry * base + sum c * term exactly, carry and every c away from 0.

    All of one shape (..., d). Solved on float64 copies, each element weighted by its own size, so that a few huge
    channels hide nothing.
    """
    columns = _columns(target, base, terms)
    gram = columns @ columns.T
    eps = torch.finfo(target.dtype).eps
    best: Sum | None = None
    for size in range(1, min(max_terms, len(terms)) + 1):
        found = _best_of_size(gram, columns, size, eps)
        if best is not None:  # one more term must pay: rounding errors don't halve
            if found is None or found.error > best.error / 2:
                break
            best = found
        elif found is not None and found.error <= tolerance(target.dtype):
            best = found
        if best is not None and best.error <= 4 * eps:
            break
    return None if best is None else _snapped(best, columns, eps)


def _columns(target: Tensor, base: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """Rows: base, terms, target, each divided elementwise by the size of target and base: (2 + terms, elements)."""
    stacked = torch.stack([base, *terms, target]).double().flatten(1)
    return stacked / _size(stacked[0], stacked[-1])


def _size(one: Tensor, other: Tensor) -> Tensor:
    """What rounding errors of one +- other are to be measured by, elementwise."""
    size = one.abs() + other.abs()
    return size + 0.01 * size.pow(2).mean().sqrt() + 1e-30


def _best_of_size(gram: Tensor, columns: Tensor, size: int, eps: float) -> Sum | None:
    """The best exact-looking subset of that size; its error is computed from the numbers, not from the Gram matrix."""
    subsets = list(itertools.islice(itertools.combinations(range(1, len(columns) - 1), size), MAX_SUBSETS))
    index = torch.tensor([[0, *s] for s in subsets])  # (subset, 1 + size)
    left = gram[index[:, :, None], index[:, None, :]]
    right = gram[index, -1]
    scale = left.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1e-30)  # unit columns: the ridge is relative
    left = left / scale[:, :, None] / scale[:, None, :]
    ridge = 1e-12 * torch.eye(size + 1, dtype=left.dtype)
    solution = torch.linalg.solve(left + ridge, (right / scale)[..., None])[..., 0] / scale
    residual = gram[-1, -1] - (solution * right).sum(-1)
    for i in residual.argsort()[:8].tolist():
        found = _refined(columns, index[i], eps)
        if found is not None:
            return found
    return None


def _refined(columns: Tensor, chosen: Tensor, eps: float) -> Sum | None:
    """Least squares on the numbers themselves; None where a coefficient, or what it adds, is nothing or mere rounding."""
    basis, target = columns[chosen].T, columns[-1]
    size = basis.norm(dim=0).clamp_min(1e-30)
    solution = torch.linalg.lstsq(basis / size, target[:, None], driver="gelsd").solution[:, 0] / size
    added = float((solution * size / target.norm()).abs().min())
    if added < max(1e-7, eps / 16) or abs(solution[0]) < max(1e-4, eps) or bool(solution.abs().min() < 1e-4):
        return None
    error = float((basis @ solution - target).pow(2).mean().sqrt())
    return Sum(float(solution[0]), tuple((chosen[1:] - 1).tolist()), tuple(solution[1:].tolist()), error)


def _snapped(found: Sum, columns: Tensor, eps: float) -> Sum:
    """Coefficients that were meant to be short numbers become them: all of them 1, or each as far as it is uncertain."""
    numbers = [found.carry, *found.coefficients]
    chosen, target = columns[[0, *(i + 1 for i in found.terms)]], columns[-1]

    def missed(tried: list[float]) -> float:
        return float((torch.tensor(tried, dtype=torch.float64) @ chosen - target).pow(2).mean().sqrt())

    whole = [round(number, 0) for number in numbers]
    enough = 1.5 * found.error + 1e-9
    if all(whole) and missed(whole) <= max(enough, eps):
        return Sum(whole[0], found.terms, tuple(whole[1:]), missed(whole))
    spread = found.error * torch.linalg.pinv(chosen @ chosen.T).diagonal().clamp_min(0).sqrt()
    for i, exact in enumerate(numbers):
        room = max(8 * float(spread[i]), eps / 8, 1e-6)
        for digits in range(5):
            tried = [*numbers[:i], round(exact, digits), *numbers[i + 1 :]]
            if tried[i] and abs(tried[i] - exact) <= room and missed(tried) <= enough:
                numbers = tried
                break
    return Sum(numbers[0], found.terms, tuple(numbers[1:]), missed(numbers))


def channelwise_sum(target: Tensor, base: Tensor, terms: Sequence[Tensor]) -> ChannelSum | None:
    """The fewest terms (at most 2) where each channel may have coefficients and a constant of its own.

    There must be clearly more positions than unknowns, or anything fits: None below 8 positions.
    """
    rows = torch.stack([base, *terms, target]).double().flatten(1, -2)  # (2 + terms, pos, d)
    if rows.shape[1] < 8:
        return None
    tol = tolerance(target.dtype)
    for size in (1, 2):
        for subset in itertools.combinations(range(len(terms)), size):
            for constant in (False, True):
                chosen = [rows[0], *(rows[1 + i] for i in subset)]
                basis = torch.stack([*chosen, torch.ones_like(rows[0])] if constant else chosen, dim=-1)  # (pos, d, k)
                basis, wanted = basis.transpose(0, 1), rows[-1].T[..., None]  # (d, pos, k), (d, pos, 1)
                if _channel_error(basis[:32], wanted[:32])[1] > tol:
                    continue
                factors, error = _channel_error(basis, wanted)
                if error <= tol and float(factors.abs().mean(0).min()) > 1e-3:
                    n = len(chosen)
                    return ChannelSum(subset, tuple(factors[:, :n].T), factors[:, n] if constant else None, error)
    return None


def _channel_error(basis: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """Least squares in each channel: coefficients (d, k), and the relative error over all channels."""
    factors = torch.linalg.lstsq(basis, wanted).solution
    fitted = basis @ factors
    return factors[..., 0], misfit(wanted, fitted)


def misfit(target: Tensor, parts: Tensor) -> float:
    """RMS of target - parts relative to the size of both, elementwise, as in `shortest_sum`.

    Logits of -inf in both agree; infinite where only one has them."""
    target, parts = target.double(), parts.double()
    out = target.isneginf()
    if bool((out != parts.isneginf()).any()):
        return math.inf
    if bool(out.any()):
        target, parts = target[~out], parts[~out]
    return float(((target - parts) / _size(target, parts)).pow(2).mean().sqrt())


def apart(logits: Tensor, other: Tensor) -> Tensor:
    """How far logits lie apart, elementwise, in float64: 0 where both rule a token out (-inf), NaN where either is NaN."""
    one, two = logits.double(), other.to(logits.device).double()
    return (one - two).abs_().masked_fill_(one.isneginf() & two.isneginf(), 0.0)


def loudest(logits: Tensor) -> Tensor:
    """The size of the largest logit, leaving out those that rule a token out (-inf); NaN where one is NaN."""
    return logits.double().abs().masked_fill_(logits.isneginf(), 0.0).max()
