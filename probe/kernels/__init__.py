"""Loops over rows of numbers, compiled by numba: in one pass what takes torch ten. For long texts on a CPU.

To load them takes half a second, to compile them, once on a machine, three. So everything they do is there in torch's
operations too: for GPUs, float64, short texts, and a Python that numba doesn't know yet.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec

import torch

LONG = 512  # tokens of a text from which they are worth loading


def worth(n: int, device: torch.device) -> bool:
    """Whether rows of a text of n tokens should go through `kernels.loops`, which may only be imported then."""
    return n >= LONG and device.type == "cpu" and _installed()


@lru_cache(maxsize=1)
def _installed() -> bool:
    """Whether numba is there. If not, says once what it would gain."""
    if find_spec("numba") is not None:
        return True
    warnings.warn(
        f"with numba, texts of {LONG} tokens and more are read faster, by a tenth to a quarter of a plain forward: "
        "pip install 'mechprobe[fast]'",
        stacklevel=2,
    )
    return False
