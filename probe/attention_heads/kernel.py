"""A head as a kernel smoother: how much of its log-weights is similarity, how much popularity, and which Gaussian fits it.

Softmax attention is the Nadaraya-Watson estimate with the kernel exp(s q.k) (Tsai et al. 2019, 1908.11775), s the call's
scaling, 1/sqrt(d_head) in most models. Exactly, s q.k = -s|q-k|^2/2 + s|k|^2/2 + s|q|^2/2: a Gaussian similarity of bandwidth
s^-1/2, a popularity of each key, and a term of the query that leaves the softmax. All after rotation and norms; of capped
scores before the cap; position biases and the mask are no part of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.attention_heads.views import FLOOR, AttentionRows, LayerAttention, Rows, hidden, largest, masses

ELEMENTS = 2**20  # (head, row, key) held at once
STEPS, CLOSE = 24, 1e-4  # of Newton's method: how many at most, and what share of itself the last one changes
SHARPEST = 64.0  # the largest inverse square bandwidth, in units of the head's own


class KernelSplit(NamedTuple):
    """Terms whose sum is s q.k, in nats: similarity (head, row, key), popularity (head, 1, key), of_query (head, row, 1)."""

    similarity: Tensor
    popularity: Tensor
    of_query: Tensor


def split(some: AttentionRows, products: Tensor) -> KernelSplit:
    """The exact split of the products s q.k (head, row, key) of some queries: similarity is never above 0."""
    own = some.attention
    popularity = own.per_head(own.scaling / 2 * own.key[:, some.keys].square().sum(-1)).unsqueeze(1)
    of_query = own.scaling / 2 * own.query[:, some.rows].square().sum(-1, keepdim=True)
    return KernelSplit(products - popularity - of_query, popularity, of_query)


class KernelView:
    """The table `head_kernels`: a row a head, over some rows of its pattern."""

    def __init__(self, rows: int) -> None:
        """rows: positions of a text, evenly spaced, at which heads are looked at; the first has no choice and is left out."""
        self._rows = rows

    def read(self, attention: LayerAttention) -> Iterator[Rows]:
        """See `HeadView`."""
        n = attention.n
        chosen = torch.from_numpy(np.unique(np.linspace(1, n - 1, min(self._rows, n - 1)).round().astype(np.int64)))
        found: dict[str, list[Tensor]] = defaultdict(list)
        size = max(1, ELEMENTS // (attention.n_heads * n))
        for rows in chosen.to(attention.query.device).split(size) if n > 1 else ():
            for name, values in row_statistics(attention.at(rows)).items():
                found[name].append(values)
        if found:
            rows_of = {name: torch.cat(parts, -1).double().cpu() for name, parts in found.items()}
            yield "head_kernels", {"head": np.arange(attention.n_heads, dtype=np.int16), **summary(rows_of, attention.scaling)}

    def finished(self) -> Iterable[Rows]:
        """See `HeadView`."""
        return ()

    def notes(self) -> Iterable[str]:
        """See `HeadView`."""
        return ()


def row_statistics(some: AttentionRows) -> dict[str, Tensor]:
    """What is known of each of some rows, (head, row) each.

    variance, similarity, popularity: variances over the keys that the row sees, all alike. precision: 1 / bandwidth^2 of the
    Gaussian nearest to the weights, in units of s. kl, spread: KL(weights || that Gaussian) and KL(weights || uniform), nats.
    keys: effective keys exp(entropy). error, norm: squared, of the output without popularity, and of the real output.
    """
    products = some.products()
    parts, visible = split(some, products), some.seen.to(products.dtype)
    count = visible.sum(-1, keepdim=True).clamp_min(1)
    popularity = parts.popularity - (visible * parts.popularity).sum(-1, keepdim=True) / count
    scores = some.scores(products)
    logs = (scores - largest(scores)).clamp_(min=FLOOR)
    weights = logs.exp().mul_(visible)  # of the keys alone: what sinks take is left out
    total = weights.sum(-1, keepdim=True).clamp_min(1)
    weights.div_(total)
    negentropy = (weights * logs).sum(-1) - total.squeeze(-1).log()
    precision, cross = nearest_gaussian(parts.similarity, some.seen, weights)
    even = some.weights(some.scores(products - popularity))
    real = some.attention.output[some.rows].transpose(0, 1)
    return {
        **_variances(products, parts.popularity.expand_as(products), visible, count),
        "precision": precision, "kl": (negentropy - cross).clamp_min(0),
        "spread": (negentropy + count.squeeze(-1).log()).clamp_min(0), "keys": (-negentropy).exp(),
        "error": (some.read(even) - real).square().sum(-1), "norm": real.square().sum(-1),
    }  # fmt: skip


def _variances(products: Tensor, popularity: Tensor, visible: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Variances over a row's keys; that of the products is those of both parts and twice their covariance."""

    def centred(x: Tensor) -> Tensor:
        return (x - (x * visible).sum(-1, keepdim=True) / count) * visible

    whole, part = centred(products), centred(popularity)
    found = {"variance": whole, "popularity": part, "similarity": whole - part}
    return {name: x.square().sum(-1) / count.squeeze(-1) for name, x in found.items()}


def nearest_gaussian(similarity: Tensor, seen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The precision t >= 0 at which the weights exp(t * similarity) of the keys seen are nearest to `weights` in KL, and
    sum(weights * log of those) there; both (head, row). t is 1 for the head's own bandwidth, 0 where no Gaussian helps.

    KL is convex in t, and least where both give the same mean similarity.
    """
    visible = seen.to(similarity.dtype)
    count = visible.sum(-1, keepdim=True).clamp_min(1)
    x = (similarity - largest(similarity + hidden(seen, similarity.dtype))) * visible  # the nearest key is 0
    wanted = (weights * x).sum(-1, keepdim=True)
    helps = x.sum(-1, keepdim=True) / count < wanted
    t, log_total = torch.zeros_like(wanted), count.log().expand_as(wanted).clone()
    unseen = (FLOOR * (1 - visible)).expand_as(x)
    t[helps], log_total[helps] = _matched(*(one[helps.squeeze(-1)] for one in (x, unseen, wanted)))
    return t.squeeze(-1), (t * wanted - log_total).squeeze(-1)


def _matched(x: Tensor, unseen: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The t > 0 at which exp(t x + unseen) (row, key) has the mean x that is `wanted` (row, 1), and the log of its sum there.

    Newton's method, kept within bounds by bisection, on those rows that it has not ended for.
    """
    tiny = torch.finfo(x.dtype).tiny
    found, log_total = torch.ones_like(wanted), torch.zeros_like(wanted)
    left, t = torch.arange(len(x), device=x.device), torch.ones_like(wanted)
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, SHARPEST)
    for _ in range(STEPS):
        mass = masses(torch.addcmul(unseen, x, t))
        total = mass.sum(-1, keepdim=True)
        moved = mass.mul_(x)
        mean = moved.sum(-1, keepdim=True) / total
        variance = moved.mul_(x).sum(-1, keepdim=True) / total - mean.square()
        low, high = torch.where(mean < wanted, t, low), torch.where(mean < wanted, high, t)
        # of log(-mean), which is nearly straight where most mass is on one key
        step = t + ((-wanted).clamp_min(tiny) / (-mean).clamp_min(tiny)).log() * mean / variance.clamp_min(tiny)
        step = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
        change = step - t
        found[left], log_total[left] = step, total.log() + change * mean + change.square() * variance / 2
        moves = (change.abs() > CLOSE * t).flatten().nonzero().flatten()
        if not len(moves):
            break
        left, x, unseen, wanted, low, high, t = (one[moves] for one in (left, x, unseen, wanted, low, high, step))
    return found.squeeze(-1), log_total.squeeze(-1)


def summary(rows: dict[str, Tensor], scaling: float) -> dict[str, np.ndarray]:
    """Columns of `head_kernels`, (head,) each, from statistics of rows (head, row); NaN where a head has nothing to divide by.

    Shares are of variances summed over the rows, so that they add up to 1. The bandwidth is the median over rows; infinite
    ones (weights that do not fall with the distance) count, and a median that is infinite is NaN.
    """
    sums = {name: values.sum(-1) for name, values in rows.items()}
    similarity, popularity = sums["similarity"] / sums["variance"], sums["popularity"] / sums["variance"]
    bandwidth = (scaling * rows["precision"].quantile(0.5, dim=-1, interpolation="lower")) ** -0.5
    n_rows = rows["keys"].shape[-1]
    found = {
        "similarity": similarity, "popularity": popularity, "covariance": 1 - similarity - popularity,
        "bandwidth": bandwidth.masked_fill(~bandwidth.isfinite(), torch.nan),
        "bandwidth_ratio": (bandwidth * scaling**0.5).masked_fill(~bandwidth.isfinite(), torch.nan),
        "gaussian_r2": 1 - sums["kl"] / sums["spread"], "flat": (rows["precision"] == 0).double().mean(-1),
        "effective_keys": rows["keys"].mean(-1), "output_error": (sums["error"] / sums["norm"]).sqrt(),
    }  # fmt: skip
    columns: dict[str, np.ndarray] = {name: values.float().numpy() for name, values in found.items()}
    return {"rows": np.full(len(similarity), n_rows, np.int32), **columns}
