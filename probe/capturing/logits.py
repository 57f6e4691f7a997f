"""From a read's last hidden states to scores without holding all logits, where replaying the model's head is the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.anatomy.checking import rule_out
from probe.instrument import Tap, tapping

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.scoring import Scores

Unembed = Callable[[Tensor], Tensor]

HELD = 2**26  # logits at once: few, and a head's matrix is read for few rows; many, and they fill the memory

_norms_all: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def unembedding(model: nn.Module, anatomy: Anatomy) -> Unembed | None:
    """hidden (…, d_model) after the final norm -> logits (…, d_vocab), as the model does it; None if that isn't verified.

    Each call may overwrite the logits of the one before.
    """
    if anatomy.final_norm is None or anatomy.head is None or not anatomy.readout_exact:
        return None
    readout = anatomy.readout
    project = _Projection(model.get_submodule(anatomy.head))

    def unembed(hidden: Tensor) -> Tensor:
        logits = project(hidden)
        if readout.scale != 1.0:
            logits.mul_(readout.scale)
        if readout.cap:
            logits.div_(readout.cap).tanh_().mul_(readout.cap)
        return rule_out(anatomy, logits)

    return unembed


class _Projection:
    """The head as it is; if it is a bare matrix, into memory that is kept: new pages cost as much as scoring a block."""

    def __init__(self, head: nn.Module) -> None:
        self._head, self._memory = head, torch.empty(0)

    def __call__(self, hidden: Tensor) -> Tensor:
        head = self._head
        if not isinstance(head, nn.Linear) or not _bare(head) or head.weight.dtype != hidden.dtype:
            logits: Tensor = head(hidden)
            return logits
        rows = hidden.reshape(-1, hidden.shape[-1])
        size = len(rows) * head.out_features
        if self._memory.numel() < size or self._memory.device != hidden.device or self._memory.dtype != hidden.dtype:
            self._memory = hidden.new_empty(size)
        out = self._memory[:size].view(len(rows), head.out_features)
        torch.mm(rows, head.weight.t(), out=out)
        return out.view(*hidden.shape[:-1], head.out_features)


def _bare(head: nn.Linear) -> bool:
    """Whether calling it is multiplying by its matrix, and nothing else."""
    watched = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
    return type(head) is nn.Linear and head.bias is None and head.weight.device.type == "cpu" and not watched


def norms_all(model: nn.Module, norm: Tap, ids: Tensor, **inputs: Any) -> bool:
    """Whether the final norm sees all positions when only the last one's logits are asked for: some cut before it.

    Runs a few of ids (batch, pos) through the model, once a model.
    """
    if model not in _norms_all:
        seen: list[int] = []
        few = ids[:1, :2]
        with tapping(model, {norm: lambda hidden: seen.append(hidden.numel())}):
            model(few, **{k: v[:1, :2] if isinstance(v, Tensor) else v for k, v in inputs.items()})
            model(few, **{k: v[:1, :2] if isinstance(v, Tensor) else v for k, v in inputs.items()}, logits_to_keep=1)
        _norms_all[model] = seen[0] == seen[-1]
    return _norms_all[model]


def replays(unembed: Unembed, hidden: Tensor, logits: Tensor) -> bool:
    """Whether the replay of the last position, hidden (batch, pos, d_model), is what the model gave (batch, 1, d_vocab)."""
    from probe.anatomy.sums import apart, loudest

    own, real = unembed(hidden[:, -1]), logits[:, -1]
    tolerance = max(1e-4, 8 * torch.finfo(logits.dtype).eps)
    return own.shape == real.shape and bool(apart(own, real).max() <= tolerance * loudest(real))


def scored(
    ids: Tensor,
    lengths: Sequence[int],
    top: int,
    *,
    logits: Tensor | None,
    hidden: Tensor | None,
    unembed: Unembed | None,
    d_vocab: int,
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
            n_blocks = -(-n * d_vocab // HELD)
            out.append(score_hidden(unembed, hidden[b, :n], targets, top=top, block_rows=-(-n // n_blocks)))
    return out
