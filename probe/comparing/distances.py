"""How far two next-token distributions lie apart, row by row, in float64 and in pieces. Knows logits, no model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 2**19  # logits compared at once: their float64 copies stay small
FAR = 50.0  # nats: beyond, a token's share of the Jensen-Shannon divergence is its whole probability times ln 2
LEAST = 1e-300  # probabilities below are 0, or their quotient with another may overflow


class Distances(NamedTuple):
    """One value a row, float64 on the CPU. Nats, `tv` from 0 to 1; exactly 0 where the two rows of logits are equal."""

    kl_ab: Tensor
    kl_ba: Tensor
    js: Tensor
    tv: Tensor


def distances(a: Tensor, b: Tensor) -> Distances:
    """KL(a || b), KL(b || a), Jensen-Shannon and total variation of the softmax of logits a and b, (rows, d_vocab).

    KL is infinite where one gives no probability (logit -inf) to what the other can say.
    """
    step = max(1, PIECE // a.shape[-1])
    parts = [
        _distances(a[at : at + step].double(), b[at : at + step].to(a.device).double()) for at in range(0, len(a), step)
    ]
    return Distances(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def left_out(logits: Tensor, shared: int) -> float:
    """The largest probability, over the rows, of ids from `shared` on."""
    if logits.shape[-1] <= shared:
        return 0.0
    wide = logits.double()
    return float((wide[:, shared:].logsumexp(-1) - wide.logsumexp(-1)).exp().max())


def _distances(a: Tensor, b: Tensor) -> Distances:
    """All from ln p - ln q, so that two distributions that are close lose no digits."""
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    apart = (log_p - log_q).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)  # NaN: both rule the token out
    near = apart.clamp(-FAR, FAR)
    # ln(m / p) with m = (p + q) / 2 is ln((1 + q / p) / 2)
    js = -(p * torch.log1p(torch.expm1(-near) / 2) + q * torch.log1p(torch.expm1(near) / 2)).sum(-1) / 2
    return Distances(_kl(p, q, apart), _kl(q, p, -apart), js.clamp_(min=0.0) + 0.0, (p - q).abs().sum(-1) / 2)


def _kl(p: Tensor, q: Tensor, apart: Tensor) -> Tensor:
    """Sum of p (d - 1 + e^-d) with d = ln p - ln q: as the sums of p and q are 1, this is KL, and no term is negative."""
    terms = p * (apart + torch.expm1(-apart))
    return torch.where(p > LEAST, terms, q).sum(-1).clamp_(min=0.0) + 0.0  # not -0
