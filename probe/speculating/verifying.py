"""Exact rejection sampling of a block of drafted tokens, over rows at once. Distributions in, tokens out; knows no model.

Leviathan et al. 2023 (2211.17192, algorithm 1) and Chen et al. 2023 (2302.01318): a token x drawn from q is kept with
probability min(1, p(x) / q(x)), the first that isn't is replaced by a draw from norm(max(p - q, 0)), and after a block that is
kept whole one more token comes from p. What is left has the distribution p, whatever q is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probe.decoding.noise import exponential, stream, uniform

# a draft and a bonus run the race of plain decoding: at a step one of them decides, and never both
DRAW, ACCEPT, CORRECT = 0, 1, 2


class Settled(NamedTuple):
    """What became of a block: how many were kept (row,), the token after them (row,), and what decided (row, block)."""

    accepted: Tensor
    token: Tensor
    chances: Tensor
    uniforms: Tensor


def draw(probs: Tensor, seed: int, purpose: int, samples: Sequence[int], steps: Sequence[int]) -> Tensor:
    """One token (row,) from probs (row, d_vocab): the winner of the race at (sample, step) of that purpose's noise."""
    tokens = (probs > 0).any(0).nonzero()[:, 0]  # few, where there are filters: noise is made for these alone
    race = probs[:, tokens] / exponential(stream(seed, purpose), samples, steps, tokens)
    return tokens[race.argmax(-1)]


def uniforms(seed: int, samples: Sequence[int], steps: Sequence[int]) -> Tensor:
    """The numbers (row,) that decide whether a drafted token is kept."""
    return uniform(stream(seed, ACCEPT), samples, steps)


def chances(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
    """min(1, p(x) / q(x)) (row, block) of tokens (row, block) drawn from q (row, block, d_vocab)."""
    at = tokens[..., None]
    return (p.gather(-1, at) / q.gather(-1, at))[..., 0].clamp(max=1.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(p - q, 0)) (row, d_vocab): what a correction is drawn from; p where nothing of it exceeds q."""
    more = (p - q).clamp(min=0.0)
    total = more.sum(-1, keepdim=True)
    return torch.where(total > 0, more / total, p)


def bonus(p: Tensor) -> Tensor:
    """What the token after a whole block (row, block + 1, d_vocab) is drawn from: (row, d_vocab)."""
    return p[:, -1]


def settle(
    p: Tensor, q: Tensor, tokens: Tensor, *, seed: int, samples: Sequence[int], steps: Sequence[int]
) -> Settled:  # fmt: skip
    """Accept or correct a block of tokens (row, block) drawn from q (row, block, d_vocab).

    p (row, block + 1, d_vocab) is the target's distribution at each of them and after them; `steps` is that of each row's first
    token. Distributions are after temperature and filters, both alike.
    """
    n, block = tokens.shape
    each = torch.arange(block).repeat(n, 1) + torch.tensor(list(steps), dtype=torch.long)[:, None]
    where = [sample for sample in samples for _ in range(block)]
    numbers = uniforms(seed, where, each.flatten().tolist()).reshape(n, block).to(p.device)
    chance = chances(p[:, :block], q, tokens)
    accepted = (numbers <= chance).long().cumprod(-1).sum(-1)
    token = accepted.new_empty(n)
    for whole in (True, False):
        rows = ((accepted == block) == whole).nonzero()[:, 0]
        if not len(rows):
            continue
        at = accepted[rows]
        probs = bonus(p[rows]) if whole else residual(p[rows, at], q[rows, at])
        chosen = [(samples[r], steps[r] + k) for r, k in zip(rows.tolist(), at.tolist(), strict=True)]
        token[rows] = draw(probs, seed, DRAW if whole else CORRECT, *zip(*chosen, strict=True))
    return Settled(accepted, token, chance, numbers)


def expected_tokens(alpha: float, block: float) -> float:
    """Tokens a target pass gives on average, (1 - alpha^(block + 1)) / (1 - alpha): Leviathan et al., equation 1."""
    return block + 1 if alpha >= 1.0 else (1 - alpha ** (block + 1)) / (1 - alpha)
