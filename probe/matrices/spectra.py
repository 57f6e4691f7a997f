"""Sizes, norms and singular values of one matrix. Knows no models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from probe.scoring import rank_of

ROWS = 4096  # of a matrix that are multiplied at once
RELATIVE = 1e-7  # of the largest: what the square root of a float64 eigenvalue tells apart from 0


class Spectrum(NamedTuple):
    """Singular values (rank,), the largest first, and what is made of them.

    stable_rank: |W|_F^2 / |W|_2^2. effective_rank: exp of the entropy of s / sum(s) (Roy & Vetterli 2007). condition: the
    largest by the smallest; infinite where the smallest is no more than rounding.
    """

    values: Tensor
    stable_rank: float
    effective_rank: float
    condition: float


def singular_values(matrix: Tensor, less: Tensor | None = None) -> Tensor:
    """matrix (m, n), less another if there is one -> its min(m, n) singular values, float64, the largest first: roots of the
    eigenvalues of the smaller Gram matrix, summed in float64 by blocks of rows. Those below 1e-7 of the largest are rounding,
    and 0 here."""
    tall = matrix.shape[0] >= matrix.shape[1]
    gram = torch.zeros(min(matrix.shape), min(matrix.shape), dtype=torch.float64)
    for rows in _blocks(matrix if tall else matrix.T, less if less is None or tall else less.T):
        gram.addmm_(rows.T, rows)
    values = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0).sqrt()
    return torch.where(values > RELATIVE * values[0], values, 0.0)


def spectrum(values: Tensor) -> Spectrum:
    """What the singular values say; of a matrix of zeros the ranks are 0 and the condition is infinite."""
    largest = float(values[0])
    if not largest:
        return Spectrum(values, 0.0, 0.0, float("inf"))
    smallest = float(values[-1])
    condition = largest / smallest if smallest else float("inf")
    return Spectrum(values, float(values.pow(2).sum()) / largest**2, float(rank_of(values)), condition)


def _blocks(matrix: Tensor, less: Tensor | None = None) -> Iterator[Tensor]:
    """Rows of a matrix, less those of another, float64 on the CPU."""
    for i in range(0, len(matrix), ROWS):
        rows = matrix[i : i + ROWS].detach().cpu().double()
        yield rows if less is None else rows - less[i : i + ROWS].detach().cpu().double()


class EntryChange(NamedTuple):
    """Of a difference of two matrices: its Frobenius norm, and the share of entries that differ."""

    frobenius: float
    changed: float


def change(matrix: Tensor, less: Tensor) -> EntryChange:
    """matrix - less, both (m, n), by blocks of rows."""
    squares = changed = 0.0
    for rows in _blocks(matrix, less):
        squares += float(rows.square().sum())
        changed += int(rows.count_nonzero())
    return EntryChange(squares**0.5, changed / matrix.numel())


class EntryStatistics(NamedTuple):
    """What is told of the entries of a matrix, one by one."""

    mean: float
    sd: float
    max_abs: float
    zeros: float  # share
    frobenius: float


def entries(matrix: Tensor) -> EntryStatistics:
    """matrix (m, n), read by blocks of rows, summed in float64. The sd is that of a population."""
    total = squares = zeros = 0.0
    largest = 0.0
    for rows in _blocks(matrix):
        flat = rows.flatten()
        total += float(flat.sum())
        squares += float(flat @ flat)
        zeros += len(flat) - int(flat.count_nonzero())
        largest = max(largest, *(abs(float(end)) for end in flat.aminmax()))
    n = matrix.numel()
    mean = total / n
    return EntryStatistics(mean, max(squares / n - mean**2, 0.0) ** 0.5, largest, zeros / n, squares**0.5)
