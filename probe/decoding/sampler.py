"""From logits to a token: Hugging Face's filters in their order, then a race. Knows no model and no cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from probe.decoding.filters import left
from probe.decoding.noise import BLOCK, exponential, from_spread, keys, spread
from probe.errors import BadOption, NonFinite


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
    suppress: tuple[int, ...] = ()  # ids that are never drawn

    def __post_init__(self) -> None:
        object.__setattr__(self, "suppress", tuple(self.suppress))
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

    @property
    def filtered(self) -> bool:
        """Whether some tokens can't be drawn."""
        return self.top_k is not None or bool(self.min_p) or (self.top_p is not None and self.top_p < 1.0)

    def processors(self) -> LogitsProcessorList:
        """Hugging Face's processors in its order: penalty, suppressed tokens, temperature, top-k, top-p, min-p.

        They say what `choose` draws from, stage by stage; it does not sort all tokens for that.
        """
        found = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            found.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.suppress:
            found.append(SuppressTokensLogitsProcessor(list(self.suppress)))
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
    logits: Tensor, ids: Tensor | None, sampling: Sampling, *, samples: Sequence[int], steps: Sequence[int]
) -> Choice:  # fmt: skip
    """One token for each row of logits (row, d_vocab); `ids` (row, pos) is the text so far, needed by the penalty only.

    Raises `NonFinite` for logits that hold NaN or +inf, or nothing else than -inf.
    """
    scores = _scores(logits, ids, sampling)
    if sampling.temperature == 0.0:
        tokens = scores.argmax(-1, keepdim=True)
        _check(scores.gather(1, tokens)[:, 0].tolist(), samples, steps)
        n = len(samples)
        return Choice(tokens[:, 0].tolist(), [0.0] * n, [1] * n, [None] * n)
    found = (_draw_filtered if sampling.filtered else _draw)(scores, sampling, samples, steps)
    _check(found.logprobs, samples, steps)
    return found


def law(
    logits: Tensor, ids: Tensor | None, sampling: Sampling, *, samples: Sequence[int], steps: Sequence[int]
) -> Tensor:  # fmt: skip
    """What `choose` draws from, (row, d_vocab), float64: all of it on one token where greedy. Raises as it does."""
    scores = _scores(logits, ids, sampling)
    _check(scores.amax(-1).tolist(), samples, steps)
    found = torch.zeros(scores.shape, dtype=torch.float64, device=scores.device)
    if sampling.temperature == 0.0:
        return found.scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
    if not sampling.filtered:
        return torch.softmax(scores.double(), dim=-1, out=found)
    for some in left(scores, sampling):
        found[some.rows[:, None], some.tokens] = some.logprobs.exp()
    return found


def _scores(logits: Tensor, ids: Tensor | None, sampling: Sampling) -> Tensor:
    """After the penalty, the suppressed tokens and the temperature, float32."""
    scores = logits.to(torch.float32)
    if sampling.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores)
    if sampling.suppress:
        never = torch.tensor(sampling.suppress, device=scores.device)
        scores = scores.index_fill(-1, never[never < scores.shape[-1]], -torch.inf)
    return scores if sampling.temperature in (0.0, 1.0) else scores / sampling.temperature


def _check(best: Sequence[float], samples: Sequence[int], steps: Sequence[int]) -> None:
    """One NaN or +inf among the scores of a row, or none above -inf, makes the best of that row no finite number."""
    for value, sample, step in zip(best, samples, steps, strict=True):
        if not math.isfinite(value):
            raise NonFinite(
                f"the logits of sample {sample} at step {step} are not finite numbers", hint="try --dtype float32"
            )


def _draw_filtered(scores: Tensor, sampling: Sampling, samples: Sequence[int], steps: Sequence[int]) -> Choice:
    """argmin E / p over the few tokens left, as argmin ln E - ln p in float64."""
    n = len(samples)
    choice = Choice([0] * n, [0.0] * n, [0] * n, [0.0] * n)
    for some in left(scores, sampling):
        rows = some.rows.tolist()
        noise = exponential(sampling.seed, [samples[r] for r in rows], [steps[r] for r in rows], some.tokens).double()
        winner = (noise.log() - some.logprobs).argmin(-1, keepdim=True)
        columns = [some.tokens.gather(1, winner), some.logprobs.gather(1, winner), some.kept, noise.gather(1, winner)]
        for row, *values in zip(rows, *(column.flatten().tolist() for column in columns), strict=True):
            for place, value in zip(choice, values, strict=True):
                place[row] = value
    return choice


def _draw(scores: Tensor, sampling: Sampling, samples: Sequence[int], steps: Sequence[int]) -> Choice:
    """argmax p / E over all tokens; in blocks, since memory would cost more than the arithmetic."""
    n, n_vocab = scores.shape
    key, bits = keys(sampling.seed, samples, steps, scores.device), _vocabulary(n_vocab, scores.device)
    high, wide = _block(n, n_vocab, scores.device)
    race = torch.empty((min(n, high), n_vocab), device=scores.device)
    winners, won = [], []
    for row in range(0, n, high):
        rows = slice(row, row + high)
        probs = scores[rows].softmax(-1)
        own = race[: len(probs)]
        for first in range(0, n_vocab, wide):
            columns = slice(first, first + wide)
            torch.div(probs[:, columns], from_spread(key[:, rows], bits[columns]), out=own[:, columns])
        winners.append(own.argmax(-1, keepdim=True))
        won.append(probs.gather(1, winners[-1]))
    winner = torch.cat(winners)
    whole = bool((scores.amin(-1) > -torch.inf).all())
    return Choice(
        winner[:, 0].tolist(), torch.cat(won)[:, 0].double().log().tolist(),
        [n_vocab] * n if whole else (scores > -torch.inf).sum(-1).tolist(),
        from_spread(key, bits[winner])[:, 0].tolist(),
    )  # fmt: skip


@lru_cache(maxsize=4)
def _vocabulary(n_vocab: int, device: torch.device) -> Tensor:
    """The spread ids of all tokens."""
    return spread(torch.arange(n_vocab, device=device))


def _block(n: int, n_vocab: int, device: torch.device) -> tuple[int, int]:
    """(rows, columns) that are raced at once."""
    if device.type != "cpu":
        return n, n_vocab
    if n_vocab <= BLOCK:
        return BLOCK // n_vocab, n_vocab
    return 1, math.ceil(n_vocab / math.ceil(n_vocab / BLOCK))
