"""Exponential noise as a pure function of its address (seed, sample, step, token id); integers only until the logarithm.

A token is the winner of a race: argmin_v E_v / p_v with E_v ~ Exp(1) has the law p (equal to Gumbel-max; Maddison et al. 2014,
1411.0030). Since the noise of a token does not depend on what else is computed, two arms that share (seed, sample) share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # odd: v -> v * GOLDEN visits every 64-bit state once (Steele et al. 2014, SplitMix)
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def exponential(seed: int, samples: Sequence[int], steps: Sequence[int], tokens: Tensor) -> Tensor:
    """Exp(1) noise (row, n) for token ids (n,) or (row, n); row r is the race of sample `samples[r]` at step `steps[r]`."""
    keys = [_signed(_mix(_mix(_mix(seed) ^ sample) ^ step)) for sample, step in zip(samples, steps, strict=True)]
    key = torch.tensor(keys, dtype=torch.int64, device=tokens.device)[:, None]
    bits = _mixed(key + tokens.to(torch.int64) * _signed(_GOLDEN))
    uniform = ((bits >> 11) & ((1 << 53) - 1)).to(torch.float64).add_(0.5).mul_(2.0**-53)  # in (0, 1), never an end
    return uniform.log_().neg_()


def _mix(x: int) -> int:
    """SplitMix64's finaliser, after one step of its counter."""
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)


def _mixed(x: Tensor) -> Tensor:
    """The same for int64 tensors: products wrap modulo 2^64, and shifts are made logical by masking the sign's copies."""
    x = x + _signed(_GOLDEN)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(_FIRST)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(_SECOND)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _signed(x: int) -> int:
    """A 64-bit pattern as the int64 that torch holds."""
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x
