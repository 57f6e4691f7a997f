"""One forward over a text in which some sites are kept, for gradients too. Knows no pair, no table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from probe.anatomy.parts import of_call
from probe.anatomy.units import Unit, in_units, slope_in_units
from probe.capturing.activations import overwritten
from probe.errors import BadModel, NonFinite
from probe.instrument import AttentionCall, Reader, Tap, attending, tapping
from probe.interventions import Edit, applying
from probe.interventions.checking import check_cell
from probe.language_model.stepping import uncached_kwargs
from probe.sites import SITES, Cell
from probe.sites.positions import EVERYWHERE

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Key = TypeVar("Key")

SiteLayer = tuple[str, int]
"""A site and its layer, -1 where it has none."""

Tails = Sequence[Sequence[int]]
"""What is given after a text, for each of its continuations."""

ALONE: Tails = ((),)


class TextValues(NamedTuple):
    """What forwards over a text gave: logits (read, d_vocab) of its last position and of what was given after it, one
    continuation after the other; activations (pos, [head,] d) of the text by site and layer, and, where it was asked for, the
    metric's derivatives by them."""

    logits: Tensor
    values: dict[SiteLayer, Tensor]
    slopes: dict[SiteLayer, Tensor]


@torch.no_grad()
def values(
    lm: LanguageModel, ids: Sequence[int], wheres: Sequence[SiteLayer], *, edits: Sequence[Edit] = (), tails: Tails = ALONE
) -> TextValues:
    """Activations of a text, by one forward under edits, and one more for each further continuation.

    Raises `SiteAbsent` for a site that is not there, `NonFinite`.
    """
    watches = [Watch(lm, ids, () if i else wheres, tail=tail) for i, tail in enumerate(tails)]
    logits = []
    for watch in watches:
        with torch.inference_mode(False), torch.no_grad(), watch.active(edits):
            logits.append(watch.read())
    return TextValues(finite(torch.cat(logits)), watches[0].values(), {})


def ended(lm: LanguageModel, ids: Tensor, *, read: int = 1) -> Tensor:
    """The last logits (row, read, d_vocab) of ids (row, pos)."""
    logits: Tensor = lm.model(ids, **uncached_kwargs(lm, read=read)).logits
    return logits[:, -read:]


def keeper(kept: dict[Key, Tensor], key: Key) -> Reader:
    """Puts a copy of what it reads where the key is."""

    def keep(value: Tensor) -> None:
        kept[key] = value.clone()

    return keep


def finite(logits: Tensor) -> Tensor:
    if bool(logits.isnan().any()):
        raise NonFinite("the logits are not finite numbers", hint="try --dtype float32")
    return logits


def last(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Logits (d_vocab,) of the last position, by the model's own forward."""
    return ended(lm, torch.tensor([list(ids)], device=lm.device))[0, -1]


def no_gradients(lm: LanguageModel, why: str) -> BadModel:
    return BadModel(f"{lm.name} gives no gradients: {why}", hint="--method exact needs none")


class Watch:
    """Keeps the tensors of some sites during one forward, and, if there is a graph, such that slopes can be taken by them.

    tail: what is given after the text; edits, and the values that are kept, are of the text's own positions.
    """

    def __init__(
        self, lm: LanguageModel, ids: Sequence[int], wheres: Sequence[SiteLayer], *, tail: Sequence[int] = (),
        graph: bool = False, embedding: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.lm, self.wheres, self.embedding, self.graph = lm, wheres, embedding, graph
        self.ids = torch.tensor([[*ids, *tail]], device=lm.device)
        self.n_text = len(ids)
        self.kept: dict[SiteLayer, Tensor] = {}
        self._broken: list[str] = []
        self._taps: dict[SiteLayer, Tap] = {}
        self._calls: dict[tuple[str, int], list[SiteLayer]] = {}
        for where in wheres:
            check_cell(lm, Cell(*where, None, EVERYWHERE), "patch")
            location = lm.anatomy.site(*where)
            if location.call is not None:
                self._calls.setdefault(location.call, []).append(where)
            elif location.changed is not None:
                self._taps[where] = location.changed

    @contextmanager
    def active(self, edits: Sequence[Edit]) -> Iterator[tuple[Edit, ...]]:
        """Sites are kept as edits leave them; gives the edits as they are on this text."""
        model, anatomy = self.lm.model, self.lm.anatomy
        copied = overwritten(model, set(self._taps.values()), self.ids)
        with ExitStack() as hooked:
            if self.graph:
                root = anatomy.tap("embed") if anatomy.has("embed") else anatomy.tap("resid_pre", 0)
                hooked.enter_context(tapping(model, {root: self._root}))
            text, longest = self.ids[0, : self.n_text], self.ids.shape[1]
            applied = hooked.enter_context(applying(self.lm, edits, ids=text, longest=longest))
            if self.graph:
                writes = {w.tap: layer.block for layer in anatomy.layers for w in layer.writes}
                hooked.enter_context(tapping(model, {tap: self._prover(block) for tap, block in writes.items()}))
            for where, tap in self._taps.items():  # one by one: several may be read at one tap
                hooked.enter_context(tapping(model, {tap: self._keeper(where, tap, copied=copied[tap])}))
            if self._calls:
                hooked.enter_context(attending(model, changer=self._call))
            yield tuple(applied.edits)

    def read(self) -> Tensor:
        """Logits (read, d_vocab) after the text and after each token of its tail; while it is active."""
        return ended(self.lm, self.ids, read=1 + self.ids.shape[1] - self.n_text)[0]

    def _root(self, value: Tensor) -> Tensor:
        """Where the graph begins."""
        given = value if self.embedding is None else self.embedding.to(value).reshape(value.shape)
        return given.detach().clone().requires_grad_(True).clone()

    def _prover(self, block: str) -> Reader:
        def prove(value: Tensor) -> None:
            if not value.requires_grad:
                self._broken.append(block)

        return prove

    def _keeper(self, where: SiteLayer, tap: Tap, *, copied: bool) -> Reader:
        """What only this module is given, or all that read what it returned. The stream in the middle of a block goes on
        beside the module that reads it: the tensor itself is kept there."""

        def keep(value: Tensor) -> Tensor | None:
            middle = SITES[where[0]].in_the_sum
            if copied and middle:
                raise no_gradients(self.lm, f"{where[0]}@{where[1]} is written over")
            new = value if middle else value.clone() if copied else value.view_as(value)
            self.kept[where] = new
            return None if middle else new.clone() if copied else new

        return keep

    def _call(self, path: str, call: AttentionCall) -> AttentionCall | None:
        new: dict[str, Any] = {}
        for where in self._calls.get((path, call.visit), ()):
            tensor = of_call(call, where[0])
            new[SITES[where[0]].field] = self.kept[where] = tensor.view_as(tensor)
        return replace(call, **new) if new else None

    def check(self, metric: Tensor) -> None:
        """Raises `BadModel` where the graph from the embedding to the metric has a gap."""
        if not metric.requires_grad:
            raise no_gradients(self.lm, "its forward is computed without them")
        if self._broken:
            raise no_gradients(self.lm, f"a part of {self._broken[0]} is computed without them")

    def values(self) -> dict[SiteLayer, Tensor]:
        """In the units of reads and edits."""
        return {where: self._shaped(where, in_units(self.kept[where].detach(), self._unit(where))) for where in self.wheres}

    def _unit(self, where: SiteLayer) -> Unit:
        return self.lm.anatomy.site(*where).unit(self.lm.model)

    def slopes(self, found: Sequence[Tensor | None]) -> dict[SiteLayer, Tensor]:
        slope_of = {}
        for where, slope in zip(self.wheres, found, strict=True):
            site, layer = where
            if slope is None:
                raise no_gradients(self.lm, f"none comes to {site}@{layer}")
            if not bool(slope.isfinite().all()):
                raise NonFinite(f"the gradient at {site}@{layer} is not finite numbers", hint="try --dtype float32")
            slope_of[where] = self._shaped(where, slope_in_units(slope, self._unit(where)))
        return slope_of

    def _shaped(self, where: SiteLayer, tensor: Tensor) -> Tensor:
        """(pos, [head,] d) of the text, fp32 or wider; positions that the model leaves out before its end are zero."""
        wide = tensor if tensor.dtype == torch.float64 else tensor.float()
        location = self.lm.anatomy.site(*where)
        if location.call is not None:
            return wide[0].transpose(0, 1)[: self.n_text]
        n = self.ids.shape[1]
        flat = wide.reshape(-1, wide.shape[-1])
        if location.entries is not None:
            flat = location.positions_first(wide).reshape(n, -1)
        if len(flat) < n:
            flat = torch.cat([flat.new_zeros(n - len(flat), flat.shape[1]), flat])
        return location.by_head(flat[: self.n_text])
