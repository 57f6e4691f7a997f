"""From a read's last hidden states to scores without holding all logits, where replaying the model's head is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.scoring import Scores

Unembed = Callable[[Tensor], Tensor]


def unembedding(model: nn.Module, anatomy: Anatomy) -> Unembed | None:
    """hidden (…, d_model) after the final norm -> logits (…, d_vocab), as the model does it; None if that isn't verified."""
    if anatomy.final_norm is None or anatomy.head is None or not anatomy.readout_exact:
        return None
    head, readout = model.get_submodule(anatomy.head), anatomy.readout

    def unembed(hidden: Tensor) -> Tensor:
        logits = head(hidden)
        if readout.scale != 1.0:
            logits = logits * readout.scale
        return torch.tanh(logits / readout.cap) * readout.cap if readout.cap else logits

    return unembed


def replays(unembed: Unembed, hidden: Tensor, logits: Tensor) -> bool:
    """Whether the replay of the last position, hidden (batch, pos, d_model), is what the model gave (batch, 1, d_vocab)."""
    own = unembed(hidden[:, -1]).to(torch.float32)
    real = logits[:, -1].to(torch.float32)
    tolerance = max(1e-4, 8 * torch.finfo(logits.dtype).eps)
    return own.shape == real.shape and bool((own - real).abs().max() <= tolerance * real.abs().max())


def scored(
    ids: Tensor,
    lengths: Sequence[int],
    top: int,
    *,
    logits: Tensor | None,
    hidden: Tensor | None,
    unembed: Unembed | None,
) -> list[Scores]:
    """Scores of each prompt, row t of the token after position t; the last row's is of the first token, to be ignored.

    ids (batch, pos). From logits (batch, pos, d_vocab), or from hidden (batch, pos, d_model) in blocks.
    """
    from probe.scoring import score_hidden, score_rows

    out = []
    for b, n in enumerate(lengths):
        targets = ids[b, :n].roll(-1)
        if logits is not None:
            out.append(score_rows(logits[b, :n], targets, top=top))
        else:
            assert hidden is not None and unembed is not None
            out.append(score_hidden(unembed, hidden[b, :n], targets, top=top))
    return out
