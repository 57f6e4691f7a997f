"""From logits to a token: Hugging Face's own processors in their order, then a race. Knows no model and no cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from probe.decoding.noise import exponential
from probe.errors import BadOption, NonFinite

FEW = 1024  # up to this many candidates a row, noise is drawn for those only


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Temperature 0 is greedy; nothing is filtered unless it is asked for."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        legal = (
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0.0 < self.top_p <= 1.0, "more than 0, at most 1"),
            ("min_p", self.min_p is None or 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < float("inf"), "more than 0; 1 is none"),
            ("stop", not isinstance(self.stop, str) and all(self.stop), "texts that are not empty"),
            ("seed", self.seed >= 0, "0 or more"),
        )
        for name, fine, what in legal:
            if not fine:
                raise BadOption(f"{name} is {getattr(self, name)!r}", hint=f"it is {what}")
        if self.temperature == 0.0 and any(x is not None for x in (self.top_k, self.top_p, self.min_p)):
            raise BadOption(
                "filters do nothing to greedy decoding", hint="add --temperature 1, or drop --top-k, --top-p, --min-p"
            )

    def processors(self) -> LogitsProcessorList:
        """Hugging Face's processors in the order of its `generate`: penalty, temperature, top-k, top-p, min-p."""
        found = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            found.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature not in (0.0, 1.0):
            found.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k is not None:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1.0:
            found.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            found.append(MinPLogitsWarper(self.min_p))
        return found


class Choice(NamedTuple):
    """What was chosen in each row: the token, its log-prob after the filters, how many were left, its noise (None: greedy)."""

    tokens: list[int]
    logprobs: list[float]
    kept: list[int]
    noise: list[float] | list[None]


def choose(
    logits: Tensor, ids: Tensor | None, sampling: Sampling, processors: LogitsProcessorList,
    *, samples: Sequence[int], steps: Sequence[int],
) -> Choice:  # fmt: skip
    """One token for each row of logits (row, d_vocab); `ids` (row, pos) is the text so far, needed by the penalty only.

    Raises `NonFinite` for logits that hold NaN or +inf, or nothing else than -inf.
    """
    scores = processors(ids, logits.to(torch.float32)) if processors else logits  # type: ignore[arg-type]
    best, top = scores.max(dim=-1)
    if not bool(best.isfinite().all()):
        row = int((~best.isfinite()).nonzero()[0])
        raise NonFinite(
            f"the logits of sample {samples[row]} at step {steps[row]} are not finite numbers",
            hint="try --dtype float32",
        )
    if sampling.temperature == 0.0:
        n = len(samples)
        return Choice(top.tolist(), [0.0] * n, [1] * n, [None] * n)
    return _race(scores.to(torch.float32), sampling.seed, samples, steps)


def _race(scores: Tensor, seed: int, samples: Sequence[int], steps: Sequence[int]) -> Choice:
    """argmin E / p over the tokens left, as argmin ln E - ln p in float64."""
    left = scores.isfinite()
    kept = left.sum(-1)
    most = int(kept.max())
    logprobs = scores.double().log_softmax(-1) if most > FEW else None
    if logprobs is None:
        values, tokens = scores.topk(most, dim=-1)
        logprobs = values.double().log_softmax(-1)
    else:
        tokens = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
    noise = exponential(seed, samples, steps, tokens if most <= FEW else tokens[0])
    winner = (noise.log() - logprobs).argmin(-1, keepdim=True)
    return Choice(
        tokens.gather(1, winner)[:, 0].tolist(), logprobs.gather(1, winner)[:, 0].tolist(),
        kept.tolist(), noise.gather(1, winner)[:, 0].tolist(),
    )  # fmt: skip
