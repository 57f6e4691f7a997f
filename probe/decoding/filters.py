"""Which tokens top-k, top-p and min-p leave: as Hugging Face's processors in their order, without sorting everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from probe.decoding.sampler import Sampling

FEW = 256  # candidates that are looked at first; most rows keep fewer
WIDER = 16  # times more, for the rows that keep more


class Left(NamedTuple):
    """The best tokens of some rows, best first; the first `kept` of each are left, the log-prob of the others is -inf."""

    rows: Tensor  # (row,), of the scores that were filtered
    tokens: Tensor  # (row, n)
    logprobs: Tensor  # (row, n), float64, of the law over what is left
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
