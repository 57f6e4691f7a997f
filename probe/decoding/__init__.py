"""Decoding: next tokens from a cached model, with noise that has an address; nothing is recorded here."""

from probe.decoding.branching import branch
from probe.decoding.draws import Continuation
from probe.decoding.engine import decode
from probe.decoding.noise import exponential
from probe.decoding.settings import differences, processors, sampling_for
from probe.requests import Sampling

__all__ = [
    "Continuation", "Sampling", "branch", "decode", "differences", "exponential", "processors", "sampling_for",
]  # fmt: skip
