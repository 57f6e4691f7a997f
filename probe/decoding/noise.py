"""Exponential noise as a pure function of its address (seed, sample, step, token id); integers until the last line.

A token is the winner of a race: argmin_v E_v / p_v with E_v ~ Exp(1) is distributed as p (equal to Gumbel-max; Maddison et
al. 2014, 1411.0030). Since the noise of a token does not depend on what else is computed, two arms that share (seed, sample)
share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from probe.devices import uploaded

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # odd: a counter by it visits every 64-bit state once (Steele et al. 2014, SplitMix)
# two multiplications and three shifts that flip every output bit with every input bit (Wellons 2018, "lowbias32")
_FIRST, _SECOND, _SHIFTS = 0x7FEB352D, 0x846CA68B - (1 << 32), (16, 15, 16)
BLOCK = 1 << 15  # elements: one thread takes that many at once in torch, and they stay in its cache


def exponential(seed: int | Sequence[int], samples: Sequence[int], steps: Sequence[int], tokens: Tensor) -> Tensor:
    """Exp(1) noise (row, n), float32, for token ids (n,) or (row, n); row r is the race of `samples[r]` at `steps[r]`, of the
    seed or of its own one.

    Between 2^-32 and 16.7, never 0 or infinite, and finest where it is small: there the races are won.
    """
    return from_spread(keys(seed, samples, steps, tokens.device), spread(tokens))


def uniform(seed: int, samples: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Uniform numbers (row,), float64, at these addresses: never 0 and never 1."""
    return -torch.expm1(-exponential(seed, samples, steps, torch.zeros(1, dtype=torch.long))[:, 0].double())


def stream(seed: int, purpose: int) -> int:
    """The seed of noise for another purpose, independent of what `seed` itself gives at any address; purpose 0 is its own."""
    return _mix(_mix(~seed & _MASK) ^ purpose) if purpose else seed


def keys(seed: int | Sequence[int], samples: Sequence[int], steps: Sequence[int], device: torch.device) -> Tensor:
    """The 64 bits of each race, as int32 (2, row, 1)."""
    seeds = [seed] * len(samples) if isinstance(seed, int) else seed
    whole = [_mix(_of_sample(own, sample) ^ step) for own, sample, step in zip(seeds, samples, steps, strict=True)]
    halves = [[_signed(key >> 32) for key in whole], [_signed(key) for key in whole]]
    return uploaded(halves, device, torch.int32)[..., None]


def spread(tokens: Tensor) -> Tensor:
    """Token ids -> int32 with every bit in play, one to one; the same for every race."""
    x = tokens.to(torch.int32)
    for shift, factor in zip(_SHIFTS, (_FIRST, _SECOND, 1), strict=True):
        x = x ^ ((x >> shift) & ((1 << (32 - shift)) - 1))  # a logical shift: torch's copies the sign
        x = x * factor
    return x


def from_spread(key: Tensor, bits: Tensor) -> Tensor:
    """The noise (row, n) of keys (2, row, 1) and spread token ids (n,) or (row, n), in few passes over memory."""
    x = (bits ^ key[0]).mul_(_FIRST)
    moved = x >> _SHIFTS[1]
    x.bitwise_xor_(moved).add_(key[1]).mul_(_SECOND)
    torch.bitwise_right_shift(x, _SHIFTS[2], out=moved)
    return from_bits(x.bitwise_xor_(moved).bitwise_and_(0x7FFFFFFF))


def from_bits(x: Tensor) -> Tensor:
    """31 even bits (int32, not negative) -> Exp(1): a uniform number w, never 0 and never 1, then -ln(1 - w)."""
    minus_w = x.to(torch.float32).add_(0.5).mul_(-(2.0**-31)).clamp_(min=2.0**-24 - 1)
    return minus_w.log1p_().neg_()


@lru_cache(maxsize=4096)
def _of_sample(seed: int, sample: int) -> int:
    return _mix(_mix(seed) ^ sample)


def _mix(x: int) -> int:
    """SplitMix64's finaliser, after one step of its counter."""
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """The low 32 bits as the int32 that torch holds."""
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >> 31 else x
