"""From a read's last hidden states to scores without holding all logits, and from each layer's to what it would answer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from probe.anatomy.checking import rule_out
from probe.capturing.sinks import Columns, Sink
from probe.devices import fetched
from probe.errors import SiteAbsent
from probe.instrument import Tap, tapping

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.scoring import Scores

Unembed = Callable[[Tensor], Tensor]

NO_SETS: Mapping[str, Sequence[int]] = MappingProxyType({})
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
    plain = type(head) is nn.Linear and type(head.weight) is nn.Parameter
    return plain and head.bias is None and head.weight.device.type == "cpu" and not watched


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
    targets: Sequence[Tensor], top: int, *, logits: Tensor | None, hidden: Tensor | None, unembed: Unembed | None, d_vocab: int
) -> list[Scores]:
    """Scores of each prompt, row t of the token after position t; where its target is -1, log-prob and rank mean nothing.

    targets (pos,) of each prompt. From logits (batch, pos, d_vocab), or from hidden (batch, pos, d_model) in blocks.
    """
    from probe.scoring import score_hidden, score_rows

    out = []
    for b, following in enumerate(targets):
        n, own = len(following), following.clamp(min=0)
        if logits is not None:
            out.append(score_rows(logits[b, :n], own, top=top))
        else:
            assert hidden is not None and unembed is not None
            n_blocks = -(-n * d_vocab // HELD)
            out.append(score_hidden(unembed, hidden[b, :n], own, top=top, block_rows=-(-n // n_blocks)))
    return out


ELEMENTS = 2**23  # logits held at a time on a CPU, of positions of all layers; of the last one twice as many


def guesses(
    model: nn.Module, anatomy: Anatomy, unembed: Unembed | None, resid: Sequence[Tensor], targets: Sequence[Tensor], *,
    top: int, sink: Sink, sets: Sequence[Mapping[str, Sequence[int]]] = (),
) -> None:  # fmt: skip
    """Hand `sink.lens` the guesses of every layer from its resid_post (batch, pos, d_model), in order of layers.

    targets (pos,) of each prompt are the tokens that follow; -1 where none does, with rank and log-prob of no meaning.
    sets: of each prompt, as in `row_guesses`; left out where one has not the columns of the others.
    Raises `SiteAbsent` where the replay of norm and head was not verified.
    """
    alike = bool(sets) and all(own.keys() == sets[0].keys() for own in sets)
    tables: list[list[Columns]] = [[] for _ in resid]
    lengths = [len(own) for own in targets]
    for b, n in enumerate(lengths):
        streams, asked = [stream[b, :n] for stream in resid], sets[b] if alike else NO_SETS
        own = row_guesses(model, anatomy, unembed, streams, targets[b], top=top, sets=asked)
        for layer, columns in enumerate(own):
            tables[layer].append(columns)
    for layer, pieces in enumerate(tables):
        sink.lens(layer, {name: _stacked([p[name] for p in pieces], lengths, resid[0].shape[1]) for name in pieces[0]})


def row_guesses(
    model: nn.Module, anatomy: Anatomy, unembed: Unembed | None, resid: Sequence[Tensor], targets: Tensor, *, top: int,
    sets: Mapping[str, Sequence[int]] = NO_SETS,
) -> list[Columns]:  # fmt: skip
    """Columns of `lens` from `top_ids` on, one a layer, from its resid_post (row, d_model); the last layer is the truth.

    targets (row,) are token ids, -1 where there is none: then rank and log-prob mean nothing. sets: a column's name -> the
    tokens of which any will do.
    Raises `SiteAbsent` where the replay of norm and head was not verified.
    """
    from probe.scoring import check_rows

    if unembed is None or anatomy.final_norm is None:
        raise SiteAbsent("no layer's guess can be read", hint="the model's final norm and head could not be verified")
    norm, device = model.get_submodule(anatomy.final_norm.path), resid[-1].device
    rows = max(1, (ELEMENTS if device.type == "cpu" else HELD) // anatomy.d_vocab)
    width = max(1, rows // len(resid))  # positions at a time, each of all layers if these are not too many
    found: list[Columns] = []
    for start in range(0, len(targets), width):
        streams = [stream[start : start + width].to(device) for stream in resid]
        asked = targets[start : start + width].to(device)
        found.append(_guesses(lambda hidden: unembed(norm(hidden)), streams, asked, top=top, sets=sets, depth=rows))
    all_rows = [torch.cat([one[name] for one in found], dim=1) for name in found[0]]
    columns = dict(zip(found[0], fetched(all_rows), strict=True))
    check_rows(columns["entropy"].sum(0))
    return [{name: values[layer] for name, values in columns.items()} for layer in range(len(resid))]


def _guesses(
    readout: Unembed, resid: Sequence[Tensor], targets: Tensor, *, top: int, sets: Mapping[str, Sequence[int]], depth: int
) -> Columns:
    """Columns (layer, row, …) of some rows, where the streams are: the layers' rows lie in one matrix, so that the head's is
    read once for all. depth: of so many layers at most; the last come first, for they hold the truth."""
    from probe.scoring import Distribution, distribution, divergence, score_there, set_logprobs

    n, final, found = len(targets), list[Distribution](), list[Columns]()
    for end in range(len(resid), 0, -depth):
        some = resid[max(0, end - depth) : end]
        logits = readout(torch.cat(list(some)))  # (layer * row, d_vocab)
        final = final or [distribution(logits[-n:])]
        scores = score_there(logits, targets.clamp(min=0).repeat(len(some)), top=top)
        flat = {
            "top_ids": scores.top_ids, "top_logprobs": scores.top_logprobs, "target_id": targets.repeat(len(some)),
            "target_rank": scores.rank, "target_logprob": scores.logprob, "entropy": scores.entropy,
            "kl_to_final": torch.cat([divergence(final[0], own) for own in logits.split(n)]),
            **{name: set_logprobs(logits, own) for name, own in sets.items()},
        }  # fmt: skip
        found.append({name: values.unflatten(0, (len(some), n)) for name, values in flat.items()})
    return {name: torch.cat([one[name] for one in reversed(found)]) for name in found[0]}


def _stacked(pieces: list[Tensor], lengths: Sequence[int], width: int) -> np.ndarray:
    """Rows of all prompts, one after the other -> (batch, width, …), padded with 0."""
    rows = torch.cat([torch.as_tensor(piece).cpu() for piece in pieces])
    out = rows.new_zeros(len(lengths), width, *rows.shape[1:])
    for b, own in enumerate(rows.split(list(lengths))):
        out[b, : len(own)] = own
    return out.numpy()
