"""From logits to a token: Hugging Face's filters in their order, then a race. Knows no model and no cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from probe.decoding.noise import BLOCK, exponential, from_spread, keys, spread
from probe.errors import NonFinite
from probe.requests import Sampling

FEW = 256  # candidates that are looked at first; most rows keep fewer
WIDER = 16  # times more, for the rows that keep more


class Choice(NamedTuple):
    """What was chosen in each row: the token, its log-prob after the filters, how many were left, its noise (None: greedy)."""

    tokens: list[int]
    logprobs: list[float]
    kept: list[int]
    noise: list[float] | list[None]


def choose(
    logits: Tensor, ids: Tensor | None, sampling: Sampling, *, samples: Sequence[int], steps: Sequence[int],
    seeds: Sequence[int] | None = None,
) -> Choice:  # fmt: skip
    """One token for each row of logits (row, d_vocab); `ids` (row, pos) is the text so far, needed by the penalty only.

    seeds: of each row's noise, where it is not the sampling's.

    Raises `NonFinite` for logits that hold NaN or +inf, or nothing else than -inf.
    """
    scores = _scores(logits, ids, sampling)
    if sampling.temperature == 0.0:
        tokens = scores.argmax(-1, keepdim=True)
        _check(scores.gather(1, tokens)[:, 0].tolist(), samples, steps)
        n = len(samples)
        return Choice(tokens[:, 0].tolist(), [0.0] * n, [1] * n, [None] * n)
    own = [sampling.seed] * len(samples) if seeds is None else seeds
    found = (_draw_filtered if sampling.filtered else _draw)(scores, sampling, own, samples, steps)
    _check(found.logprobs, samples, steps)
    return found


def distribution(
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
    for row, (value, sample, step) in enumerate(zip(best, samples, steps, strict=True)):
        if not math.isfinite(value):
            error = NonFinite(
                f"the logits of sample {sample} at step {step} are not finite numbers", hint="try --dtype float32"
            )
            error.row = row
            raise error


def _draw_filtered(
    scores: Tensor, sampling: Sampling, seeds: Sequence[int], samples: Sequence[int], steps: Sequence[int]
) -> Choice:
    """argmin E / p over the few tokens left, as argmin ln E - ln p in float64."""
    n = len(samples)
    choice = Choice([0] * n, [0.0] * n, [0] * n, [0.0] * n)
    for some in left(scores, sampling):
        rows = some.rows.tolist()
        own_seeds, own_samples, own_steps = ([addresses[r] for r in rows] for addresses in (seeds, samples, steps))
        noise = exponential(own_seeds, own_samples, own_steps, some.tokens).double()
        winner = (noise.log() - some.logprobs).argmin(-1, keepdim=True)
        columns = [some.tokens.gather(1, winner), some.logprobs.gather(1, winner), some.kept, noise.gather(1, winner)]
        for row, *values in zip(rows, *(column.flatten().tolist() for column in columns), strict=True):
            for place, value in zip(choice, values, strict=True):
                place[row] = value
    return choice


def _draw(scores: Tensor, sampling: Sampling, seeds: Sequence[int], samples: Sequence[int], steps: Sequence[int]) -> Choice:
    """argmax p / E over all tokens; in blocks, since memory would cost more than the arithmetic."""
    n, n_vocab = scores.shape
    key, bits = keys(seeds, samples, steps, scores.device), _vocabulary(n_vocab, scores.device)
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


class Left(NamedTuple):
    """The best tokens of some rows, best first; the first `kept` of each are left, the log-prob of the others is -inf."""

    rows: Tensor  # (row,), of the scores that were filtered
    tokens: Tensor  # (row, n)
    logprobs: Tensor  # (row, n), float64, of the distribution over what is left
    kept: Tensor  # (row,)


def left(scores: Tensor, sampling: Sampling) -> Iterator[Left]:
    """Filter scores (row, d_vocab), float32 and divided by the temperature; every row is in one of what comes back.

    Tokens that tie with the k-th are kept, as in Hugging Face's; of tokens that tie where top-p ends, any may be.
    """
    n_vocab, rows = scores.shape[-1], torch.arange(len(scores), device=scores.device)
    # only top-p alone needs the mass of what it doesn't look at
    mass = scores.softmax(-1) if sampling.top_p is not None and sampling.top_k is None else None
    width = min(n_vocab, FEW if sampling.top_k is None else sampling.top_k + WIDER)
    while len(rows):
        whole = len(rows) == len(scores)
        values, tokens = (scores if whole else scores[rows]).topk(width, dim=-1)
        probs = None if mass is None else mass[rows[:, None], tokens].double()
        kept = _kept(values.double(), probs, sampling)
        enough = (kept < width) | (width == n_vocab)  # the last one looked at is out: so are all after it
        if bool(enough.any()):
            n = int(kept[enough].max())
            places = torch.arange(n, device=scores.device)
            out = places >= kept[enough, None]
            logprobs = values[enough, :n].double().masked_fill(out, -torch.inf).log_softmax(-1)
            yield Left(rows[enough], tokens[enough, :n], logprobs, kept[enough])
        rows, width = rows[~enough], min(n_vocab, width * WIDER)


def _kept(values: Tensor, probs: Tensor | None, sampling: Sampling) -> Tensor:
    """How many of values (row, n), best first, are left (row,); `probs`: theirs among all tokens, if none is out."""
    kept = (values > -torch.inf).sum(-1)
    if sampling.top_k is not None:
        k = min(sampling.top_k, values.shape[-1])
        kept = torch.minimum(kept, (values >= values[:, k - 1 : k]).sum(-1))
    if sampling.top_p is not None and sampling.top_p < 1.0:
        if probs is None:
            out = torch.arange(values.shape[-1], device=values.device) >= kept[:, None]
            probs = values.masked_fill(out, -torch.inf).softmax(-1)
        better = probs.cumsum(-1) - probs  # mass of the tokens before each
        kept = torch.minimum(kept, (better < sampling.top_p).sum(-1))
    if sampling.min_p:
        kept = torch.minimum(kept, ((values - values[:, :1]).exp() >= sampling.min_p).sum(-1))
    return kept.clamp(min=1)  # the best always, be it NaN
