"""Both ends of the stream as tables over the vocabulary, and single tokens seen through a head. Never holds V x V."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probe.anatomy import Tap
from probe.anatomy.inside import is_linear
from probe.anatomy.mixing import values_at
from probe.anatomy.tape import probe_tokens
from probe.attributing.linear import call, freeze
from probe.errors import SiteAbsent
from probe.matrices.heads import HeadMaps

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

BLOCK = 4096  # tokens at once
HINT = "--what matrices,norms,composition needs neither end"


class Vocabulary:
    """What a token puts into the stream, and what the logits read of it, a row a token; positions are left out."""

    def __init__(self, lm: LanguageModel) -> None:
        """Raises `SiteAbsent` where the stream does not begin with rows of a table, or the head is not one matrix."""
        self._lm, model, anatomy = lm, lm.model, lm.anatomy
        table, tap = model.get_input_embeddings(), anatomy.embed
        if tap is None or getattr(table, "weight", None) is None or table.weight.shape[1] != anatomy.d_model:
            raise SiteAbsent("the stream does not begin with the rows of an embedding", hint=HINT)
        self._table = table.weight.detach()
        self.factor = self._factor(tap)
        if anatomy.head is None or not is_linear(head := model.get_submodule(anatomy.head)):
            raise SiteAbsent("the logits are not read by one matrix", hint=HINT)
        self._head = head.weight.detach()
        x = torch.randn(2, anatomy.d_model, generator=torch.Generator().manual_seed(0)).double()
        zero = call(head, torch.zeros(1, anatomy.d_model))
        if self._head.shape[1] != anatomy.d_model or not torch.allclose(
            call(head, x) - zero, x @ self._head.double().cpu().T, atol=1e-2 * float(self._head.norm()) / len(self._head) ** 0.5
        ):
            raise SiteAbsent("the logits are not read by one matrix", hint=HINT)
        self._gain, self._centre = torch.ones(anatomy.d_model).double(), 0.0
        if anatomy.final_norm is not None:
            last = values_at(model, probe_tokens(model), [anatomy.layers[-1].taps["resid_post"]])
            found = freeze(model.get_submodule(anatomy.final_norm.path), next(iter(last.values()))[0].double().cpu(), lm.dtype)
            if found is None:
                raise SiteAbsent("the final norm is no scaling of its input", hint=HINT)
            self._gain, self._centre = found.gain, found.centre

    def __len__(self) -> int:
        return min(len(self._table), len(self._head))

    def _factor(self, tap: Tap) -> float:
        """By what the model multiplies an embedding. From the differences of tokens at one position, so that positions that
        are added do not count."""
        ids = probe_tokens(self._lm.model)[0, :4]
        streams = torch.cat([values_at(self._lm.model, one.view(1, 1), [tap])[tap].flatten(0, 1) for one in ids]).double().cpu()
        rows = self._table[ids].double().cpu()
        stream, row = streams[1:] - streams[:1], rows[1:] - rows[:1]
        number = float((stream * row).sum() / row.pow(2).sum())
        room = 1e-4 if self._lm.dtype == torch.float32 else 5e-2
        if float((stream - number * row).norm()) > room * float(stream.norm()):
            raise SiteAbsent("what a token puts into the stream is no multiple of its embedding", hint=HINT)
        return number

    def embedded(self, rows: slice | list[int]) -> Tensor:
        """What tokens put into the stream (n, d), float64."""
        return self._table[rows].double().cpu() * self.factor

    def unembedded(self, rows: slice) -> Tensor:
        """What their logits are of the stream before the final norm (n, d), at a scale of 1 of that norm."""
        found = self._head[rows].double().cpu() * self._gain * self._lm.anatomy.readout.scale
        return found - self._centre * found.mean(-1, keepdim=True)

    def blocks(self) -> list[slice]:
        """The whole vocabulary, piece by piece."""
        return [slice(i, min(i + BLOCK, len(self))) for i in range(0, len(self), BLOCK)]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Sums over the vocabulary: e e^T, for QK, and e u^T, for OV; both (d, d)."""
        d = self._table.shape[1]
        same, across = torch.zeros(d, d).double(), torch.zeros(d, d).double()
        for rows in self.blocks():
            e = self.embedded(rows)
            same.addmm_(e.T, e)
            across.addmm_(e.T, self.unembedded(rows))
        return same, across


class Followed(NamedTuple):
    """A token in a head's circuits; ids and numbers are the strongest first."""

    attends: tuple[list[int], list[float]]
    own_score: float
    raises: tuple[list[int], list[float]]
    lowers: tuple[list[int], list[float]]
    own_logit: float


def follow(lm: LanguageModel, words: Vocabulary, maps: HeadMaps, tokens: list[int], top: int) -> list[list[Followed]]:
    """For each head and token: keys of the whole vocabulary that it attends to, and the tokens that attending to it raises and
    lowers. The stream of a token is its embedding; the input norm is the model's own, with its real scale there."""
    norm = None if maps.norm_path is None else lm.model.get_submodule(maps.norm_path)

    def read(e: Tensor) -> Tensor:
        return e if norm is None else call(norm, e)

    x = read(words.embedded(tokens))
    query = torch.einsum("nd,hed->hne", x, maps.query) + maps.query_bias[:, None]
    key, bias = maps.per_head("key"), maps.per_head("key_bias")
    looked = torch.einsum("hne,hed->hnd", query, key)
    constant = torch.einsum("hne,he->hn", query, bias)
    value = torch.einsum("nd,hed->hne", x, maps.per_head("value")) + maps.per_head("value_bias")[:, None]
    wrote = torch.einsum("hne,hde->hnd", value, maps.out)
    scores, logits = [], []
    for rows in words.blocks():
        score = maps.scaling * (torch.einsum("hnd,vd->hnv", looked, read(words.embedded(rows))) + constant[..., None])
        scores.append((score if maps.softcap is None else maps.softcap * torch.tanh(score / maps.softcap)).float())
        logits.append(torch.einsum("hnd,vd->hnv", wrote, words.unembedded(rows)).float())
    score, logit = torch.cat(scores, -1), torch.cat(logits, -1)
    if "QK" in maps.absent:
        score = torch.full_like(score, torch.nan)
    if "OV" in maps.absent:
        logit = torch.full_like(logit, torch.nan)
    k = min(top, len(words))

    def strongest(row: Tensor) -> tuple[list[int], list[float]]:
        if bool(row.isnan().any()):
            return [], []
        found: Any = row.topk(k)
        return found.indices.tolist(), found.values.tolist()

    return [
        [
            Followed(
                strongest(score[h, i]), float(score[h, i, token]), strongest(logit[h, i]),
                _negated(strongest(-logit[h, i])), float(logit[h, i, token]),
            )
            for i, token in enumerate(tokens)
        ]
        for h in range(len(score))
    ]  # fmt: skip


def _negated(found: tuple[list[int], list[float]]) -> tuple[list[int], list[float]]:
    return found[0], [-value for value in found[1]]
