"""QK and OV circuits and how they compose, as sums over small matrices (Elhage et al. 2021). Knows no models."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from probe.scoring import rank_of

NOTHING = 1e-12  # of the factors' sizes: what is left of a product that is 0


class Sign(NamedTuple):
    """score: sum of eigenvalues / sum of their sizes, -1 to 1. z: their sum in units of its sd under random rotations."""

    score: float
    z: float
    p_value: float


def sign(left: Tensor, middle: Tensor, right: Tensor) -> Sign:
    """Of the matrix right @ left, seen through `middle`: left (r, d), middle (d, d), right (d, r); the eigenvalues that are
    not 0 of X right left Y with middle = Y X are those of left @ middle @ right.

    With both sides of right @ left rotated at random, its trace has mean 0 and variance |right left|^2 |middle|^2 / d^2."""
    small = left @ middle @ right
    if float(small.norm()) <= NOTHING * float(left.norm() * middle.norm() * right.norm()):
        return Sign(0.0, 0.0, 1.0)  # its eigenvalues would be those of rounding
    values = torch.linalg.eigvals(small)
    total, size = float(values.real.sum()), float(values.abs().sum())
    sd = float(product_norm(right, left) * middle.norm()) / left.shape[-1]
    z = total / sd if sd else 0.0
    return Sign(total / size, z, float(2 * stats.norm.sf(abs(z))))


def factor(tall: Tensor) -> Tensor:
    """R (…, min(d, r), r) of tall (…, d, r) = QR: |tall X| = |R X| for every X."""
    return torch.linalg.qr(tall, mode="r")[1]


def product_norm(tall: Tensor, wide: Tensor) -> Tensor:
    """|tall wide|, Frobenius, of (…, d, r) and (…, r, d), without the d x d matrix."""
    return (factor(tall) @ factor(wide.mT).mT).flatten(-2).norm(dim=-1)


def product_rank(tall: Tensor, wide: Tensor) -> Tensor:
    """Effective rank of tall wide: exp of the entropy of its singular values' shares."""
    return rank_of(torch.linalg.svdvals(factor(tall) @ factor(wide.mT).mT))


def readers(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> dict[str, Tensor]:
    """What reads the stream through Q, K and V: for each head a matrix (r, d) of the norms that W_QK^T, W_QK and W_OV have
    from the right. query, key, value (head, r, d), out (head, d, r)."""
    return {"Q": factor(key.mT) @ query, "K": factor(query.mT) @ key, "V": factor(out) @ value}


def writers(value: Tensor, out: Tensor) -> Tensor:
    """What a head writes: (head, d, r) of the norms that W_OV has from the left."""
    return out @ factor(value.mT).mT


class Composed(NamedTuple):
    """For each reader and writer: score, its square in units of its sd under random rotations, and the p-value."""

    score: np.ndarray
    z: np.ndarray
    p_value: np.ndarray


def compose(read: Tensor, write: Tensor) -> Composed:
    """read (n, r, d), write (m, d, r') -> n x m scores |A B| / (|A| |B|).

    With either side rotated at random (Haar), the squared score has mean 1/d and variance
    2 |P0|^2 |M0|^2 / ((d - 1) (d + 2) tr(P)^2 tr(M)^2), P = A^T A and M = B B^T, each less its mean eigenvalue. A beta
    distribution of this mean and variance gives the p-value; of two matrices of rank one it is the exact one."""
    n, m, d = len(read), len(write), read.shape[-1]
    product = read.flatten(0, 1) @ write.transpose(0, 1).flatten(1)
    squared = product.unflatten(0, (n, -1)).unflatten(2, (m, -1)).pow(2).sum((1, 3)).double().numpy()
    a, b = _moments(read @ read.mT, d), _moments(write.mT @ write, d)
    share = squared / np.maximum(a.trace[:, None] * b.trace[None], 1e-300)
    mean, variance = 1 / d, 2 * a.spread[:, None] * b.spread[None] / ((d - 1) * (d + 2))
    z = (share - mean) / np.sqrt(np.maximum(variance, 1e-300))
    weight = np.maximum(mean * (1 - mean) / np.maximum(variance, 1e-300) - 1, 1e-9)
    p = stats.beta.sf(np.minimum(share, 1.0), mean * weight, (1 - mean) * weight)
    empty = a.trace[:, None] * b.trace[None] == 0
    return Composed(np.sqrt(share), np.where(empty, 0.0, z), np.where(empty, 1.0, p))


class _Moments(NamedTuple):
    trace: np.ndarray
    spread: np.ndarray  # |P - tr(P)/d|^2 / tr(P)^2


def _moments(gram: Tensor, d: int) -> _Moments:
    gram = gram.double()
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    spread = gram.pow(2).sum((-2, -1)) / trace.pow(2).clamp_min(1e-300) - 1 / d
    return _Moments(trace.numpy(), spread.clamp_min(0).numpy())
