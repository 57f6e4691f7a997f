"""A head as a fast-weight memory: what is written and read by the sum rule and by the delta rule. Tensors in, tensors out.

Heads that share keys share the memory: head h reads that of kv head h // (heads / kv heads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from probe.scoring import rank_of

Visible = Callable[[Tensor], Tensor]
"""Positions (row,) of queries -> the keys that they see, (head or 1, row, key) bool."""

CHUNK = 64  # tokens whose products with each other are held at once


def checkpoints(n: int) -> list[int]:
    """Numbers of stored pairs at which something is said: 1, 2, 4, … and n."""
    return [*(1 << k for k in range((n - 1).bit_length())), n] if n else []


def sum_rule(query: Tensor, key: Tensor, value: Tensor, visible: Visible | None = None) -> Tensor:
    """Reads of the memory that adds each pair: Σ_j (φ(q_i)·φ(k_j)) v_j / Σ_j φ(q_i)·φ(k_j) over j ≤ i, or the visible j
    (Katharopoulos et al. 2020, eq. 8-12).

    query (head, pos, feature) and key (kv head, pos, feature) are features, value (kv head, pos, d_value).
    Returns (head, pos, d_value), 0 where a query meets no feature of any key.
    """
    query, counted = _grouped(query, len(key)), _counted(value)
    out = query.new_empty(*query.shape[:-1], counted.shape[-1])
    stored = query.new_zeros(len(key), key.shape[-1], counted.shape[-1])
    for start, end in _chunks(key.shape[1]):
        q, k, v = query[:, :, start:end], key[:, start:end], counted[:, start:end]
        if visible is None:
            out[:, :, start:end] = _reads(q, k, v, stored)
            stored = torch.baddbmm(stored, k.mT, v)
        else:
            seen = visible(torch.arange(start, end, device=key.device)).expand(query.shape[0] * query.shape[1], -1, -1)
            low, high = _range(seen)
            weights = q.flatten(1, 2) @ key[:, low:high].mT
            weights = weights.masked_fill_(~seen[..., low:high].reshape(weights.shape), 0.0)
            out[:, :, start:end] = (weights @ counted[:, low:high]).unflatten(1, q.shape[1:3])
    return _ratio(out).flatten(0, 1)


def _reads(q: Tensor, k: Tensor, v: Tensor, stored: Tensor) -> Tensor:
    """Reads by q (kv head, heads of it, pos, feature) of what is stored (kv head, feature, d) and of the pairs k, v (kv head,
    pos, …) written since, each up to its own position; in the shape of q."""
    rows = q.flatten(1, 2)
    since = (rows @ k.mT).unflatten(1, q.shape[1:3]).tril_().flatten(1, 2)
    return torch.baddbmm(since @ v, rows, stored).unflatten(1, q.shape[1:3])


class DeltaWrites(NamedTuple):
    """What the delta rule did: its reads (head, pos, d_value), and what each token added to the memory, with its key as the
    direction: updates (kv head, pos, d_value), so that the memory after n tokens is Σ_{j<n} update_j ⊗ key_j."""

    reads: Tensor
    updates: Tensor


def delta_rule(query: Tensor, key: Tensor, value: Tensor) -> DeltaWrites:
    """The memory that corrects itself: W_i = W_{i-1} + (v_i - W_{i-1} φ(k_i)) φ(k_i)ᵀ, read as W_i φ(q_i) (Schlag et al. 2021,
    eq. 14-19, with a write strength of 1 and features of length 1, so that the last pair is read back as it was written).

    query (head, pos, feature) and key (kv head, pos, feature) are of length 1, value (kv head, pos, d_value). In chunks, with a
    triangular system for the tokens of one (the UT transform: Yang et al. 2024, 2406.06484).
    """
    query = _grouped(query, len(key))
    reads, updates = query.new_empty(*query.shape[:-1], value.shape[-1]), torch.empty_like(value)
    stored = query.new_zeros(len(key), key.shape[-1], value.shape[-1])
    for start, end in _chunks(key.shape[1]):
        q, k = query[:, :, start:end], key[:, start:end]
        unknown = torch.baddbmm(value[:, start:end], k, stored, alpha=-1)
        new = torch.linalg.solve_triangular((k @ k.mT).tril_(-1), unknown, upper=False, unitriangular=True)
        reads[:, :, start:end], updates[:, start:end] = _reads(q, k, new, stored), new
        stored = torch.baddbmm(stored, k.mT, new)
    return DeltaWrites(reads.flatten(0, 1), updates)


class ReadAgreement(NamedTuple):
    """How well reads are a head's real output, each (head, step): the queries in a step, their pooled relative error
    √(Σ|read - z|²/Σ|z|²) and mean cosine. `pairs` (step,): the most that the queries of a step have stored."""

    pairs: Tensor
    rows: Tensor
    error: Tensor
    cosine: Tensor


def agreement(reads: Tensor, real: Tensor, pairs: Tensor) -> ReadAgreement:
    """Compare reads with real outputs, both (head, pos, d_value), by the number of pairs (head or 1, pos) that a query sees.

    The steps are (n/2, n] for the n of `checkpoints`. A step without queries, or without any output, is NaN.
    """
    ends = torch.tensor(checkpoints(int(pairs.max())), device=pairs.device)
    step = torch.bucketize(pairs.expand(len(reads), -1).clamp(min=1), ends)  # (head, pos)
    off, size, own = (torch.linalg.vector_norm(x, dim=-1) for x in (reads - real, real, reads))
    cosine = (reads * real).sum(dim=-1) / (own * size).clamp(min=torch.finfo(own.dtype).tiny)
    summed = torch.zeros(4, len(reads), len(ends), dtype=torch.float64, device=reads.device)
    for total, one in zip(summed, (torch.ones_like(off), off**2, size**2, cosine), strict=True):
        total.scatter_add_(1, step, one.double())
    rows, off, size, cosine = summed
    return ReadAgreement(ends, rows.long(), (off / size).sqrt(), cosine / rows)


class Retrieval(NamedTuple):
    """What comes back when each of n stored keys is read, by kv head, each (kv head,).

    error: √(Σ|read - v|²/Σ|v|²) over the keys. right: the share of reads to which no stored value is nearer than the key's
    own. interference: the mean share of a read's weight that falls on other pairs; NaN where weights are no shares.
    """

    error: Tensor
    right: Tensor
    interference: Tensor


def retrieve_sum(query: Tensor, key: Tensor, value: Tensor, n: int) -> Retrieval:
    """Read the first n keys back by the sum rule. query and key (kv head, pos, feature): both are features of the keys."""
    query, key, value = query[:, :n], key[:, :n], value[:, :n]
    read = query @ (key.mT @ _counted(value))
    own = (query * key).sum(dim=-1) / read[..., -1].clamp(min=torch.finfo(read.dtype).tiny)
    return _retrieval(_ratio(read), value, (1 - own).mean(dim=-1))


def retrieve_delta(key: Tensor, updates: Tensor, value: Tensor, n: int) -> Retrieval:
    """Read the first n keys back from what `delta_rule` wrote: all of the error is interference by later writes."""
    key = key[:, :n]
    read = key @ (key.mT @ updates[:, :n])
    return _retrieval(read, value[:, :n], value.new_full((len(value),), torch.nan))


def retrieve_softmax(key: Tensor, value: Tensor, n: int, *, scaling: float) -> Retrieval:
    """Read the first n keys back by the head's own kernel exp(scaling · k·k), each key in the place of a query."""
    key, value = key[:, :n], value[:, :n]
    weights = ((scaling * key) @ key.mT).softmax(dim=-1)
    return _retrieval(weights @ value, value, 1 - weights.diagonal(dim1=-2, dim2=-1).mean(dim=-1))


def _retrieval(read: Tensor, value: Tensor, interference: Tensor) -> Retrieval:
    off, size = (read - value).square().sum(dim=-1), value.square().sum(dim=-1)
    # |read - v|² - |read|² for every stored v; equal values are equally near, whatever the last digit says
    with_size = torch.cat([-2 * read, torch.ones_like(read[..., :1])], dim=-1)
    nearest = (with_size @ torch.cat([value, size[..., None]], dim=-1).mT).amin(dim=-1)
    own = size - 2 * (read * value).sum(dim=-1)
    slack = 1e-4 * (size + read.square().sum(dim=-1))
    error = (off.sum(dim=-1) / size.sum(dim=-1)).sqrt()
    return Retrieval(error, (own <= nearest + slack).to(value.dtype).mean(dim=-1), interference)


def effective_rank(key: Tensor) -> Tensor:
    """exp of the entropy of the singular values, as shares of their sum, of keys (kv head, pos, d) as rows (Roy & Vetterli
    2007): between 1 and min(pos, d). Keys are not centred: a memory does not either."""
    gram = key.mT @ key if key.shape[1] > key.shape[2] else key @ key.mT
    return rank_of(torch.linalg.eigvalsh(gram.double()).clamp(min=0).sqrt())


def _grouped(query: Tensor, n_kv: int) -> Tensor:
    """(head, pos, feature) -> (kv head, heads of it, pos, feature)."""
    return query.unflatten(0, (n_kv, -1))


def _counted(value: Tensor) -> Tensor:
    """Values with a last entry of 1, whose sum is that of the weights."""
    return torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)


def _ratio(summed: Tensor) -> Tensor:
    return summed[..., :-1] / summed[..., -1:].clamp(min=torch.finfo(summed.dtype).tiny)


def _chunks(n: int) -> Iterator[tuple[int, int]]:
    return ((start, min(n, start + CHUNK)) for start in range(0, n, CHUNK))


def _range(seen: Tensor) -> tuple[int, int]:
    """[low, high) of the keys that any row of (head, query, key) sees."""
    keys = seen.any(dim=0).any(dim=0).nonzero()
    return (int(keys[0]), int(keys[-1]) + 1) if len(keys) else (0, 1)
