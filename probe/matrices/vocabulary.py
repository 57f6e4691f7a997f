"""Both ends of the stream as tables over the vocabulary, and which tokens lie along a direction. Never holds V x V."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from probe.anatomy import Tap
from probe.anatomy.inside import is_linear
from probe.anatomy.mixing import values_at
from probe.anatomy.tape import probe_tokens
from probe.attributing.linear import call, freeze
from probe.errors import SiteAbsent
from probe.matrices.calls import StreamNorm

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

BLOCK = 4096  # tokens at once
HINT = "--what matrices,norms,composition needs neither end"


class TokenDirections(NamedTuple):
    """A row a token, float32: unit (n, d) and by how much a direction meets it: direction . unit * size."""

    unit: Tensor
    size: Tensor


def _unit(rows: Tensor, length: Tensor) -> Tensor:
    return (rows / length.clamp_min(1e-300)[:, None]).float()


class Ranked(NamedTuple):
    """Of each direction (n, …): the tokens that lie most along it and against it, ids and numbers (n, top), strongest first;
    the largest cosine with any token, by size, with its sign (n,)."""

    up_ids: Tensor
    up: Tensor
    down_ids: Tensor
    down: Tensor
    cosine: Tensor


def rank_tokens(directions: Tensor, tokens: Iterable[TokenDirections], top: int) -> Ranked:
    """directions (n, d), float64, against blocks of tokens in their order. Holds n x block numbers."""
    length = directions.norm(dim=-1)
    unit = _unit(directions, length)
    start, cosine = 0, torch.zeros(len(unit))
    ups, downs = Best.none(cosine.shape), Best.none(cosine.shape)
    for block in tokens:
        cosines = unit @ block.unit.T
        low, high = cosines.aminmax(dim=-1)
        for end in (high, low):
            cosine = torch.where(end.abs() > cosine.abs(), end, cosine)
        scores = cosines.mul_(block.size)
        ups, downs = strongest(ups, scores, start, top, largest=True), strongest(downs, scores, start, top, largest=False)
        start += len(block.unit)
    size = length[:, None]
    return Ranked(ups.ids, ups.values * size, downs.ids, downs.values * size, cosine)


class Best(NamedTuple):
    """Numbers (…, top) and the ids of their tokens, the strongest first."""

    values: Tensor
    ids: Tensor

    @classmethod
    def none(cls, shape: Sequence[int]) -> Best:
        return cls(torch.zeros(*shape, 0), torch.zeros(*shape, 0, dtype=torch.int64))


def strongest(best: Best, scores: Tensor, start: int, top: int, *, largest: bool) -> Best:
    """The best of those so far and of the next block: scores (…, v) of the tokens from `start` on."""
    found = scores.topk(min(top, scores.shape[-1]), dim=-1, largest=largest)
    values, ids = torch.cat([best.values, found.values], -1), torch.cat([best.ids, found.indices + start], -1)
    kept = values.topk(min(top, values.shape[-1]), dim=-1, largest=largest)
    return Best(kept.values, ids.gather(-1, kept.indices))


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
        self._gain, self.centre = torch.ones(anatomy.d_model).double(), 0.0
        if anatomy.final_norm is not None:
            last = values_at(model, probe_tokens(model), [anatomy.layers[-1].taps["resid_post"]])
            found = freeze(model.get_submodule(anatomy.final_norm.path), next(iter(last.values()))[0].double().cpu(), lm.dtype)
            if found is None:
                raise SiteAbsent("the final norm is no scaling of its input", hint=HINT)
            self._gain, self.centre = found.gain, found.centre

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
        return found - self.centre * found.mean(-1, keepdim=True)

    def reading(self, rows: slice, norm: StreamNorm) -> TokenDirections:
        """Tokens' embeddings as a layer reads them through its norm, whose gain stands in the direction that they meet."""
        found = self.embedded(rows)
        plain = found - norm.norm.centre * found.mean(-1, keepdim=True)
        length = plain.norm(dim=-1)
        if norm.path is None:
            return TokenDirections(_unit(plain, length), length.float())
        read = call(self._lm.model.get_submodule(norm.path), found) - norm.norm.bias
        gained = (plain * norm.norm.gain).norm(dim=-1)
        return TokenDirections(_unit(plain, length), (length * read.norm(dim=-1) / gained.clamp_min(1e-300)).float())

    def writing(self, rows: slice) -> TokenDirections:
        """Tokens' unembeddings through the final norm's gain."""
        found = self.unembedded(rows)
        length = found.norm(dim=-1)
        return TokenDirections(_unit(found, length), length.float())

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
