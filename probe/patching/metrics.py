"""What is read off the logits at the one position that a sweep asks about, and what share of a change a patch carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.devices import fetched
from probe.requests.patch import METRICS
from probe.scoring import kl
from probe.targets import Contrast

SAME = 1e-5  # clean and corrupt that differ by less than this share of their size differ by rounding


class Metrics(NamedTuple):
    """All metrics of n rows of logits, each (n,) float64. `logit_diff` is NaN where there is nothing to compare with."""

    logit_diff: np.ndarray
    logprob: np.ndarray
    prob: np.ndarray
    kl: np.ndarray

    def of(self, metric: str) -> np.ndarray:
        """The one that METRICS calls so."""
        found: np.ndarray = getattr(self, metric.replace("-", "_"))
        return found


def logprobs_of(logits: Tensor) -> Tensor:
    """logits (…, d_vocab) -> log-probs, in fp32 or wider."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def read_out(logits: Tensor, target: Contrast, clean: Tensor) -> Metrics:
    """Metrics of logits (n, read, d_vocab), as `Contrast.by_continuation` takes them; `clean` (d_vocab,) are the log-probs
    after the clean text, for KL(clean || row) there."""
    return Metrics(*(values.numpy() for values in fetched(_columns(logits, target, clean))))


def measure_of(metric: str, target: Contrast, clean: Tensor) -> Callable[[Tensor], Tensor]:
    """One metric of logits (n, read, d_vocab) as a tensor (n,), for gradients."""
    column = list(METRICS).index(metric)
    return lambda logits: _columns(logits, target, clean)[column]


def continuations_of(metric: str, target: Contrast) -> tuple[int, ...]:
    """The continuations whose logits a metric depends on."""
    return tuple(dict.fromkeys(target.rows)) if metric == "logit-diff" else target.rows[:1]


def _columns(logits: Tensor, target: Contrast, clean: Tensor) -> tuple[Tensor, ...]:
    """In the order of METRICS."""
    own, logprobs = target.by_continuation(logits), target.by_continuation(logprobs_of(logits))
    logprob = target.answer.of(logprobs[target.rows[0]])
    compared = target.against is not None
    difference = target.difference(own, logprobs) if compared else torch.full_like(logprob, torch.nan)
    return difference, logprob, logprob.exp(), kl(clean, logprobs[0][:, 0]).double()


def unit_of(metric: str, target: Contrast) -> str:
    """What METRICS says of it, and of sets and whole answers how their tokens are taken together."""
    read = [target.answer] if metric != "logit-diff" or target.against is None else [target.answer, target.against]
    if metric == "kl" or all(one.is_token for one in read):
        return METRICS[metric]
    if metric == "logit-diff":
        sets = "nats, log-sum-exp of the logits of a set, answer - against"
        return sets if target.by_logits else "nats, log-prob of the whole answer - against"
    what = "whole answer" if len(target.answer.steps) > 1 else "set"
    return f"nats, log-prob of the {what}" if metric == "logprob" else f"probability of the {what}"


def defined(clean: float, corrupt: float) -> bool:
    """Whether there is a change of which a share can be taken."""
    return abs(clean - corrupt) > SAME * max(abs(clean), abs(corrupt))


def changes(patched: np.ndarray, clean: float, corrupt: float, direction: str) -> np.ndarray:
    """How far the patch moves the metric from the base towards the other run, in its own unit (n,)."""
    towards = np.sign(clean - corrupt) or 1.0
    return towards * ((patched - corrupt) if direction == "denoise" else (clean - patched))


def effects(patched: np.ndarray, clean: float, corrupt: float, direction: str) -> np.ndarray:
    """The share of the change that the patch carries (Heimersheim & Nanda 2024, 2404.15255): denoising, 0 = as corrupt and
    1 = as clean; noising, 0 = as clean and 1 = as corrupt. NaN where clean and corrupt do not differ."""
    if not defined(clean, corrupt):
        return np.full(len(patched), np.nan)
    span = clean - corrupt
    return (patched - corrupt) / span if direction == "denoise" else (clean - patched) / span
