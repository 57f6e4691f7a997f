"""What a text scores: log-prob, entropy, rank, alternatives, from logits in blocks of rows. No model inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from probe.errors import NonFinite

BLOCK = 64  # rows at once: a block of a 50k vocabulary in fp32 is 13 MB


class Scores(NamedTuple):
    """Row t tells of the distribution at t and of the token drawn from it. Nats; rank 0 is the top token. CPU tensors."""

    logprob: Tensor  # (T,)
    entropy: Tensor  # (T,)
    varentropy: Tensor  # (T,) nats^2
    rank: Tensor  # (T,) int
    top_ids: Tensor  # (T, top) int, best first
    top_logprobs: Tensor  # (T, top)


def score_rows(logits: Tensor, targets: Tensor, *, top: int, block_rows: int = BLOCK) -> Scores:
    """Scores of logits (T, d_vocab) against targets (T,), computed in fp32 a block at a time. -inf logits are legal.

    Raises `NonFinite` naming the first row that holds NaN or +inf, or no finite logit.
    """
    return score_hidden(lambda rows: rows, logits, targets, top=top, block_rows=block_rows)


def score_hidden(
    readout: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *, top: int, block_rows: int = BLOCK
) -> Scores:
    """Scores of `readout(hidden)`: hidden (T, width) -> logits (rows, d_vocab) one block at a time, so all never exist."""
    blocks = []
    space: list[Tensor] = []
    for start in range(0, hidden.shape[0], block_rows):
        rows = slice(start, start + block_rows)
        logits = readout(hidden[rows])
        if not space or space[0].shape[0] != logits.shape[0]:
            space = [torch.empty_like(logits, dtype=torch.float32) for _ in range(2)]
        blocks.append(_score(logits.float(), targets[rows].to(logits.device)[:, None], top, start, space))
    return Scores(*(torch.cat(parts).cpu() for parts in zip(*blocks, strict=True)))


def _score(logits: Tensor, targets: Tensor, top: int, start: int, space: list[Tensor]) -> Scores:
    """One block (rows, d_vocab), in two buffers of its size: new memory for every pass would cost more than the arithmetic.

    With s = logit - peak and Z = sum e^s: entropy = ln Z - E[s], varentropy = E[s^2] - E[s]^2.
    """
    values, ids = logits.topk(max(1, min(top, logits.shape[-1])), dim=-1)
    peak, target = values[:, :1], logits.gather(1, targets)
    if not bool(peak.isfinite().all()):
        where = int((~peak[:, 0].isfinite()).nonzero()[0]) + start
        raise NonFinite(f"the logits at position {where} are not finite numbers", hint="try --dtype float32")
    shifted, work = space
    rank = torch.gt(logits, target, out=work).sum(-1).to(torch.int32)
    tied = torch.eq(logits, target, out=work).sum(-1) > 1
    if bool(tied.any()):
        rank[tied] += _lower_ties(logits[tied], target[tied], targets[tied])
    torch.sub(logits, peak, out=shifted).clamp_(min=-1e4)  # 0 * -inf is not 0
    p = torch.exp(shifted, out=work)
    total = p.sum(-1)
    mean = torch.linalg.vecdot(p, shifted) / total
    second = torch.linalg.vecdot(p.mul_(shifted), shifted) / total
    logz = total.log()
    logprob = (target - peak)[:, 0] - logz
    return Scores(
        logprob, logz - mean, (second - mean * mean).clamp_(min=0.0), rank,
        ids[:, :top], (values - peak - logz[:, None])[:, :top],
    )  # fmt: skip


def _lower_ties(logits: Tensor, target: Tensor, targets: Tensor) -> Tensor:
    """How many lower ids have exactly the target's logit: they come first, as in argmax. (rows,) int32"""
    lower = torch.arange(logits.shape[-1], device=logits.device) < targets
    return ((logits == target) & lower).sum(-1, dtype=torch.int32)
