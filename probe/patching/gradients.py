"""Slopes of a metric at a text's activations, and what they foretell of patches (METHODS B3). Knows no pair, no table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probe.anatomy.parts import Unit, in_units, of_call, slope_in_units
from probe.anatomy.sums import apart, loudest
from probe.capturing.activations import overwritten
from probe.errors import BadModel, BadOption, NonFinite
from probe.instrument import AttentionCall, Reader, Tap, attending, tapping
from probe.interventions import Edit, applying
from probe.interventions.checking import check_cell
from probe.patching.rest import ended
from probe.sites import SITES, Cell
from probe.sites.positions import EVERYWHERE

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Where = tuple[str, int]
"""A site and its layer, -1 where it has none."""

Measure = Callable[[Tensor], Tensor]
"""Logits (row, d_vocab) of the position that is read -> the metric (row,), differentiable."""

ENDPOINT = 1e-3  # of the largest logit: how near the other text's embedding must bring the text to the other's logits


class Read(NamedTuple):
    """What a forward over a text gave: logits (d_vocab,) of the last position, activations (pos, [head,] d) by site and layer,
    and, where it was asked for, the metric's derivatives by them."""

    logits: Tensor
    values: dict[Where, Tensor]
    slopes: dict[Where, Tensor]


@torch.no_grad()
def values(lm: LanguageModel, ids: Sequence[int], wheres: Sequence[Where], *, edits: Sequence[Edit] = ()) -> Read:
    """Activations of a text, by one forward under edits. Raises `SiteAbsent` for a site that is not there, `NonFinite`."""
    watch = _Watch(lm, ids, wheres)
    with torch.inference_mode(False), torch.no_grad(), watch.active(edits):
        logits = last(lm, ids)
    return Read(_finite(logits), watch.values(), {})


def slopes(
    lm: LanguageModel, ids: Sequence[int], wheres: Sequence[Where], measure: Measure, *, edits: Sequence[Edit] = (),
    embedding: Tensor | None = None,
) -> Read:  # fmt: skip
    """Activations of a text and a metric's derivatives by them: one forward and one backward, under edits.

    A slope is the total derivative: of a change of that activation alone, with all that follows from it. The model's
    parameters get no gradients, whatever they ask for. embedding (pos, d_model): takes the place of what the tokens give.
    Raises `SiteAbsent` for a site that is not there, `BadModel` where the model gives no gradients, `NonFinite`.
    """
    watch = _Watch(lm, ids, wheres, graph=True, embedding=embedding)
    with torch.inference_mode(False), torch.enable_grad(), watch.active(edits):
        try:
            logits = last(lm, ids)
            metric = measure(logits[None])[0]
            watch.check(metric)
            found = torch.autograd.grad(metric, [watch.kept[where] for where in wheres], allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _no_gradients(lm, str(error).partition("\n")[0]) from error
    return Read(_finite(logits.detach()), watch.values(), watch.slopes(found))


def mean_slopes(
    lm: LanguageModel, ids: Sequence[int], other: Sequence[int], wheres: Sequence[Where], measure: Measure, *, steps: int,
    edits: Sequence[Edit] = (),
) -> dict[Where, Tensor]:  # fmt: skip
    """Slopes averaged over the midpoints of `steps` equal parts of the way from a text's embedding to that of another one of
    as many tokens (integrated gradients; Hanna et al. 2024, 2403.17806). Raises as `slopes` does, and `BadOption`."""
    if len(other) != len(ids):
        raise BadOption("integrated gradients go from one text to another of as many tokens", hint="leave --ig out")
    begin, end = _embedding(lm, ids), _embedding(lm, other)
    _check_end(lm, ids, other, end)
    total: dict[Where, Tensor] = {}
    for step in range(steps):
        point = begin + (step + 0.5) / steps * (end - begin)
        found = slopes(lm, ids, wheres, measure, edits=edits, embedding=point).slopes
        total = {where: slope.double() + total.get(where, 0.0) for where, slope in found.items()}
    return {where: slope / steps for where, slope in total.items()}


def foretold(read: Read, where: Where, new: Tensor, slope: Tensor | None = None) -> Tensor:
    """How much the metric changes, to first order, if one position (and head) alone takes what `new` (pos, [head,] d) has
    there: Σ_d (new − value) · slope, (pos, [head]) (Nanda 2023; Syed et al. 2023, 2310.10348)."""
    slope = read.slopes[where] if slope is None else slope
    return ((new.to(slope.device).double() - read.values[where].double()) * slope.double()).sum(-1)


@torch.no_grad()
def _embedding(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """(pos, d_model)."""
    seen: list[Tensor] = []
    with tapping(lm.model, {lm.anatomy.tap("embed"): lambda value: seen.append(value.clone())}):
        last(lm, ids)
    return seen[0].reshape(len(ids), -1)


@torch.no_grad()
def _check_end(lm: LanguageModel, ids: Sequence[int], other: Sequence[int], embedding: Tensor) -> None:
    """With the other text's embedding the model must say what it says of the other text."""
    with tapping(lm.model, {lm.anatomy.tap("embed"): lambda value: embedding.to(value).reshape(value.shape)}):
        found = last(lm, ids)
    wanted = last(lm, other)
    if not bool(apart(found, wanted).max() <= ENDPOINT * loudest(wanted)):
        raise BadModel(f"{lm.name} takes more from its tokens than their embedding", hint="leave --ig out")


def _finite(logits: Tensor) -> Tensor:
    if bool(logits.isnan().any()):
        raise NonFinite("the logits are not finite numbers", hint="try --dtype float32")
    return logits


def last(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Logits (d_vocab,) of the last position, by the model's own forward."""
    return ended(lm, torch.tensor([list(ids)], device=lm.device))[0]


def _no_gradients(lm: LanguageModel, why: str) -> BadModel:
    return BadModel(f"{lm.name} gives no gradients: {why}", hint="--method exact needs none")


class _Watch:
    """Keeps the tensors of some sites during one forward, and, if there is a graph, such that slopes can be taken by them."""

    def __init__(
        self, lm: LanguageModel, ids: Sequence[int], wheres: Sequence[Where], *, graph: bool = False,
        embedding: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.lm, self.wheres, self.embedding, self.graph = lm, wheres, embedding, graph
        self.ids = torch.tensor([list(ids)], device=lm.device)
        self.kept: dict[Where, Tensor] = {}
        self._broken: list[str] = []
        self._taps: dict[Where, Tap] = {}
        self._calls: dict[tuple[str, int], list[Where]] = {}
        for where in wheres:
            check_cell(lm, Cell(*where, None, EVERYWHERE), "patch")
            location = lm.anatomy.site(*where)
            if location.call is not None:
                self._calls.setdefault(location.call, []).append(where)
            elif location.changed is not None:
                self._taps[where] = location.changed

    @contextmanager
    def active(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Sites are kept as edits leave them."""
        model, anatomy = self.lm.model, self.lm.anatomy
        copied = overwritten(model, set(self._taps.values()), self.ids)
        with ExitStack() as hooked:
            if self.graph:
                root = anatomy.tap("embed") if anatomy.has("embed") else anatomy.tap("resid_pre", 0)
                hooked.enter_context(tapping(model, {root: self._root}))
            hooked.enter_context(applying(self.lm, edits, ids=self.ids))
            if self.graph:
                writes = {w.tap: layer.block for layer in anatomy.layers for w in layer.writes}
                hooked.enter_context(tapping(model, {tap: self._prover(block) for tap, block in writes.items()}))
            for where, tap in self._taps.items():  # one by one: several may be read at one tap
                hooked.enter_context(tapping(model, {tap: self._keeper(where, tap, copied=copied[tap])}))
            if self._calls:
                hooked.enter_context(attending(model, changer=self._call))
            yield

    def _root(self, value: Tensor) -> Tensor:
        """Where the graph begins."""
        given = value if self.embedding is None else self.embedding.to(value).reshape(value.shape)
        return given.detach().clone().requires_grad_(True).clone()

    def _prover(self, block: str) -> Reader:
        def prove(value: Tensor) -> None:
            if not value.requires_grad:
                self._broken.append(block)

        return prove

    def _keeper(self, where: Where, tap: Tap, *, copied: bool) -> Reader:
        """What only this module is given, or all that read what it returned. The stream in the middle of a block goes on
        beside the module that reads it: the tensor itself is kept there."""

        def keep(value: Tensor) -> Tensor | None:
            middle = SITES[where[0]].in_the_sum
            if copied and middle:
                raise _no_gradients(self.lm, f"{where[0]}@{where[1]} is written over")
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
            raise _no_gradients(self.lm, "its forward is computed without them")
        if self._broken:
            raise _no_gradients(self.lm, f"a part of {self._broken[0]} is computed without them")

    def values(self) -> dict[Where, Tensor]:
        """In the units of reads and edits."""
        return {
            where: self._shaped(where, in_units(self.kept[where].detach(), self._unit(where))) for where in self.wheres
        }

    def _unit(self, where: Where) -> Unit:
        return self.lm.anatomy.site(*where).unit(self.lm.model)

    def slopes(self, found: Sequence[Tensor | None]) -> dict[Where, Tensor]:
        slope_of = {}
        for where, slope in zip(self.wheres, found, strict=True):
            site, layer = where
            if slope is None:
                raise _no_gradients(self.lm, f"none comes to {site}@{layer}")
            if not bool(slope.isfinite().all()):
                raise NonFinite(f"the gradient at {site}@{layer} is not finite numbers", hint="try --dtype float32")
            slope_of[where] = self._shaped(where, slope_in_units(slope, self._unit(where)))
        return slope_of

    def _shaped(self, where: Where, tensor: Tensor) -> Tensor:
        """(pos, [head,] d), fp32 or wider; positions that the model leaves out before its end are zero."""
        wide = tensor if tensor.dtype == torch.float64 else tensor.float()
        location = self.lm.anatomy.site(*where)
        if location.call is not None:
            return wide[0].transpose(0, 1)
        flat, n = wide.reshape(-1, wide.shape[-1]), self.ids.shape[1]
        if len(flat) < n:
            flat = torch.cat([flat.new_zeros(n - len(flat), flat.shape[1]), flat])
        return location.by_head(flat)
