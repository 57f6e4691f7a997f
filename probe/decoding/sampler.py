"""From logits to a token: Hugging Face's filters in their order, then a race. Knows no model and no cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from probe.decoding.noise import BLOCK, from_spread, keys, spread
from probe.errors import NonFinite
from probe.requests import Sampling

FEW = 256  # candidates that are looked at first; most rows keep fewer
WIDER = 16  # times more, for the rows that keep more
BEST = 4  # of what was drawn


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
    own = [sampling.seed] * len(samples) if seeds is None else seeds
    key = None if sampling.temperature == 0.0 else keys(own, samples, steps, logits.device)
    found = draw(logits, ids, sampling, key).cpu()
    _check(found[BEST].tolist(), samples, steps)
    return choice(found, sampling)


def draw(logits: Tensor, ids: Tensor | None, sampling: Sampling, key: Tensor | None) -> Tensor:
    """What `choose` chooses, (5, row) float64, where the logits are: the token, its log-prob, how many were left, its noise,
    and (`BEST`) what is no finite number if a logit of the row is none. key: of each row's noise, as `noise.keys` gives it;
    None where greedy.

    On an accelerator nothing here waits for what it computes.
    """
    scores = _scores(logits, ids, sampling)
    if key is not None:
        return (_draw_filtered if sampling.filtered else _draw)(scores, sampling, key)
    tokens = scores.argmax(-1, keepdim=True)
    found = torch.zeros(5, len(scores), dtype=torch.float64, device=scores.device)
    found[0], found[2], found[BEST] = tokens[:, 0], 1.0, scores.gather(1, tokens)[:, 0]
    return found


def choice(found: Tensor, sampling: Sampling) -> Choice:
    """What was drawn, (5, row) on a CPU, as numbers."""
    tokens, logprobs, kept, noise = (found[i].tolist() for i in range(4))
    greedy = sampling.temperature == 0.0
    return Choice([int(t) for t in tokens], logprobs, [int(n) for n in kept], [None] * len(tokens) if greedy else noise)


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
        never = tuple(token for token in sampling.suppress if token < scores.shape[-1])
        scores = scores.index_fill(-1, _ids(never, scores.device), -torch.inf)
    return scores if sampling.temperature in (0.0, 1.0) else scores / sampling.temperature


def _check(best: Sequence[float], samples: Sequence[int], steps: Sequence[int]) -> None:
    for row, (value, sample, step) in enumerate(zip(best, samples, steps, strict=True)):
        check_finite(value, sample, step, row)


def check_finite(best: float, sample: int, step: int, row: int) -> None:
    """One NaN or +inf among the scores of a row, or none above -inf, makes the best of that row no finite number: raises
    `NonFinite`."""
    if not math.isfinite(best):
        error = NonFinite(f"the logits of sample {sample} at step {step} are not finite numbers", hint="try --dtype float32")
        error.row = row
        raise error


def _draw_filtered(scores: Tensor, sampling: Sampling, key: Tensor) -> Tensor:
    """argmin E / p over the few tokens left, as argmin ln E - ln p in float64."""
    found = torch.empty(5, len(scores), dtype=torch.float64, device=scores.device)
    for some in left(scores, sampling):
        noise = from_spread(key[:, some.rows], spread(some.tokens)).double()
        winner = (noise.log() - some.logprobs).argmin(-1, keepdim=True)
        logprobs = some.logprobs.gather(1, winner)[:, 0]
        won = [some.tokens.gather(1, winner)[:, 0], logprobs, some.kept, noise.gather(1, winner)[:, 0], logprobs]
        for values, own in zip(found, won, strict=True):
            values[some.rows] = own.double()
    return found


def _draw(scores: Tensor, _: Sampling, key: Tensor) -> Tensor:
    """argmax p / E over all tokens; in blocks, since memory would cost more than the arithmetic."""
    n, n_vocab = scores.shape
    bits = _vocabulary(n_vocab, scores.device)
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
    winner, logprobs = torch.cat(winners), torch.cat(won)[:, 0].double().log()
    kept = n_vocab - scores.isneginf().sum(-1)
    return torch.stack([
        winner[:, 0].double(), logprobs, kept.double(), from_spread(key, bits[winner])[:, 0].double(), logprobs,
    ])  # fmt: skip


@lru_cache(maxsize=4)
def _ids(tokens: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(tokens, dtype=torch.long, device=device)


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
    if scores.device.type != "cpu":  # to hear how many are left would be to wait for it
        values, tokens = scores.sort(dim=-1, descending=True)
        kept = _kept(values.double(), None if mass is None else mass.gather(1, tokens).double(), sampling)
        yield _left(rows, values, tokens, kept)
        return
    width = min(n_vocab, FEW if sampling.top_k is None else sampling.top_k + WIDER)
    while len(rows):
        whole = len(rows) == len(scores)
        values, tokens = (scores if whole else scores[rows]).topk(width, dim=-1)
        probs = None if mass is None else mass[rows[:, None], tokens].double()
        kept = _kept(values.double(), probs, sampling)
        enough = (kept < width) | (width == n_vocab)  # the last one looked at is out: so are all after it
        if bool(enough.any()):
            n = int(kept[enough].max())
            yield _left(rows[enough], values[enough, :n], tokens[enough, :n], kept[enough])
        rows, width = rows[~enough], min(n_vocab, width * WIDER)


def _left(rows: Tensor, values: Tensor, tokens: Tensor, kept: Tensor) -> Left:
    out = torch.arange(values.shape[-1], device=values.device) >= kept[:, None]
    return Left(rows, tokens, values.double().masked_fill(out, -torch.inf).log_softmax(-1), kept)


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
