"""What each layer would answer: its stream through the model's own final norm and head (logit lens, nostalgebraist 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from probe.capturing.sinks import Columns, Sink
from probe.errors import SiteAbsent

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.capturing.logits import Unembed

ELEMENTS = 2**23  # logits held at a time of one layer; of the last one twice as many


def guesses(
    model: nn.Module, anatomy: Anatomy, unembed: Unembed | None, resid: Sequence[Tensor], ids: Tensor,
    lengths: Sequence[int], *, top: int, sink: Sink,
) -> None:  # fmt: skip
    """Hand `sink.lens` the guesses of every layer from its resid_post (batch, pos, d_model), in order of layers.

    `target_id` is the token that follows; a prompt's last position has none: -1, with rank and log-prob of no meaning.
    Raises `SiteAbsent` where the replay of norm and head was not verified.
    """
    tables: list[list[Columns]] = [[] for _ in resid]
    for b, n in enumerate(lengths):
        targets = torch.cat([ids[b, 1:n], ids.new_tensor([-1])])
        own = row_guesses(model, anatomy, unembed, [stream[b, :n] for stream in resid], targets, top=top)
        for layer, columns in enumerate(own):
            tables[layer].append(columns)
    for layer, pieces in enumerate(tables):
        sink.lens(layer, {name: _stacked([p[name] for p in pieces], lengths, ids.shape[1]) for name in pieces[0]})


def row_guesses(
    model: nn.Module, anatomy: Anatomy, unembed: Unembed | None, resid: Sequence[Tensor], targets: Tensor, *, top: int
) -> list[Columns]:
    """Columns of `lens` from `top_ids` on, one a layer, from its resid_post (row, d_model); the last layer is the truth.

    targets (row,) are token ids, -1 where there is none: then rank and log-prob mean nothing.
    Raises `SiteAbsent` where the replay of norm and head was not verified.
    """
    from probe.scoring import distribution, divergence, score_rows

    if unembed is None or anatomy.final_norm is None:
        raise SiteAbsent("no layer's guess can be read", hint="the model's final norm and head could not be verified")
    norm = model.get_submodule(anatomy.final_norm.path)
    step = max(1, ELEMENTS // anatomy.d_vocab)
    tables: list[list[Columns]] = [[] for _ in resid]
    for start in range(0, len(targets), step):
        where = slice(start, start + step)
        asked = targets[where]
        final = distribution(unembed(norm(resid[-1][where])))
        for layer, stream in enumerate(resid):
            logits = unembed(norm(stream[where]))
            scores = score_rows(logits, asked.clamp(min=0), top=top)
            tables[layer].append({
                "top_ids": scores.top_ids, "top_logprobs": scores.top_logprobs, "target_id": asked,
                "target_rank": scores.rank, "target_logprob": scores.logprob, "entropy": scores.entropy,
                "kl_to_final": divergence(final, logits),
            })  # fmt: skip
    return [
        {name: torch.cat([torch.as_tensor(p[name]).cpu() for p in pieces]) for name in pieces[0]} for pieces in tables
    ]


def _stacked(pieces: list[Tensor], lengths: Sequence[int], width: int) -> np.ndarray:
    """Rows of all prompts, one after the other -> (batch, width, …), padded with 0."""
    rows = torch.cat([torch.as_tensor(piece).cpu() for piece in pieces])
    out = rows.new_zeros(len(lengths), width, *rows.shape[1:])
    for b, own in enumerate(rows.split(list(lengths))):
        out[b, : len(own)] = own
    return out.numpy()
