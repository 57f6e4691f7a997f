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
    from probe.scoring import distribution, divergence, score_rows

    if unembed is None or anatomy.final_norm is None:
        raise SiteAbsent("no layer's guess can be read", hint="the model's final norm and head could not be verified")
    norm = model.get_submodule(anatomy.final_norm.path)
    step = max(1, ELEMENTS // anatomy.d_vocab)
    tables: list[list[Columns]] = [[] for _ in resid]
    for b, n in enumerate(lengths):
        targets = ids[b, :n].roll(-1)
        for start in range(0, n, step):
            where = slice(start, min(n, start + step))
            final = distribution(unembed(norm(resid[-1][b, where])))
            for layer, stream in enumerate(resid):
                logits = unembed(norm(stream[b, where]))
                scores = score_rows(logits, targets[where], top=top)
                known = torch.arange(where.start, where.stop, device=ids.device) < n - 1
                tables[layer].append({
                    "top_ids": scores.top_ids, "top_logprobs": scores.top_logprobs,
                    "target_id": targets[where].where(known, -1), "target_rank": scores.rank,
                    "target_logprob": scores.logprob, "entropy": scores.entropy, "kl_to_final": divergence(final, logits),
                })  # fmt: skip
    for layer, pieces in enumerate(tables):
        sink.lens(layer, {name: _stacked([p[name] for p in pieces], lengths, ids.shape[1]) for name in pieces[0]})


def _stacked(pieces: list[Tensor], lengths: Sequence[int], width: int) -> np.ndarray:
    """Rows of all prompts, one after the other -> (batch, width, …), padded with 0."""
    rows = torch.cat([torch.as_tensor(piece).cpu() for piece in pieces])
    out = rows.new_zeros(len(lengths), width, *rows.shape[1:])
    for b, own in enumerate(rows.split(list(lengths))):
        out[b, : len(own)] = own
    return out.numpy()
