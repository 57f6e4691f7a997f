"""Edits of a mixture's choice: an expert that is never chosen, always chosen, or weighs more or less."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from probe.anatomy.mixing import values_at
from probe.anatomy.tape import probe_tokens
from probe.devices import uploaded
from probe.errors import BadEdit, SiteAbsent
from probe.instrument import ChangedChoice, Tap, choosing, tapping
from probe.interventions.edits import Edit
from probe.interventions.forwards import ActiveEdits, ForwardPositions

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.anatomy.parts import Experts


@dataclass(frozen=True, eq=False)
class ExpertEdit(Edit):
    """A change of what some experts of a layer's `router` do: those that its cell names, or all."""

    def experts(self, n: int) -> list[int]:
        """Their numbers, where the layer has n."""
        return list(range(n) if self.cell.units is None else self.cell.units)


@dataclass(frozen=True, eq=False)
class AblateExperts(ExpertEdit):
    """Never chosen: their logits are −inf before the choice, so that weights are what they would be without them."""

    op: ClassVar[str] = "ablate"


@dataclass(frozen=True, eq=False)
class ForceExperts(ExpertEdit):
    """Always chosen, each in the place of the last that would be, with the weights that their own logits give."""

    op: ClassVar[str] = "force"


@dataclass(frozen=True, eq=False)
class WeighExperts(ExpertEdit):
    """Where they are chosen, their weights in the sum times a factor; the others' stay as they are."""

    factor: float
    op: ClassVar[str] = "weigh"

    @property
    def size(self) -> str:
        return f":{self.factor!r}"


def check_experts(anatomy: Anatomy, edit: ExpertEdit) -> None:
    """Raises `BadEdit` for experts that the layer does not have, and where nothing could change or be chosen."""
    found = _experts(anatomy, edit.cell.layer)
    n, k = found.n_experts, found.n_chosen
    named = len(edit.experts(n))
    if isinstance(edit, AblateExperts) and n - named < k:
        fewer = f"name fewer, as in router@{edit.cell.layer}.e0={edit.op}"
        raise BadEdit(f"{edit} leaves {n - named} experts, and {k} are chosen for each token", hint=fewer)
    if isinstance(edit, ForceExperts) and (named > k or k == n):
        why = "all are chosen anyway" if k == n else f"only {k} are chosen for each token"
        raise BadEdit(f"{edit} cannot be made: {why}", hint="weigh:FACTOR changes how much they count")


def _experts(anatomy: Anatomy, layer: int) -> Experts:
    anatomy.site("router", layer)  # raises
    found = anatomy.layers[layer].experts
    assert found is not None, "a router was found by its experts"
    return found


class ExpertEditor:
    """The hooks of the expert edits of one context."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, active: ActiveEdits, forwards: ForwardPositions) -> None:
        """Raises `SiteAbsent` where the model's own choice can't be reached."""
        self._model, self._anatomy, self._active, self._forwards = model, anatomy, active, forwards
        self._layers: dict[int, list[int]] = defaultdict(list)
        for i, edit in enumerate(active.edits):
            if isinstance(edit, ExpertEdit):
                self._layers[edit.cell.layer].append(i)
                if not isinstance(edit, WeighExperts):
                    check_choice(model, anatomy, edit.cell.layer)

    def active(self) -> AbstractContextManager[Any]:
        """While it lasts, choices and weights are those of the edits."""
        hooked = ExitStack()
        for layer, members in self._layers.items():
            weighing = [i for i in members if isinstance(self._active.edits[i], WeighExperts)]
            choosers = [i for i in members if i not in weighing]
            if choosers:
                path = self._anatomy.tap("router", layer).path
                n_experts = _experts(self._anatomy, layer).n_experts
                choice = ChangedChoice(n_experts, self._changer(choosers, logits=True), self._changer(choosers, logits=False))
                hooked.enter_context(choosing(self._model, {path: choice}))
            if weighing:
                hooked.enter_context(tapping(self._model, self._weigher(layer, weighing)))
        return hooked

    def _changer(self, members: Sequence[int], *, logits: bool) -> Callable[[Tensor], Tensor]:
        """Logits: −inf where an expert is ablated. Scores: that, and +inf where one is forced."""

        def change(value: Tensor) -> Tensor:
            new = value
            for i in members:
                edit, tokens = self._active.edits[i], self._tokens(i, value)
                assert isinstance(edit, ExpertEdit), "only those are members"
                if isinstance(edit, ForceExperts) and logits:
                    continue
                own, n = set(edit.experts(value.shape[-1])), value.shape[-1]
                there = uploaded(tokens, value.device)[..., None] & uploaded([e in own for e in range(n)], value.device)
                new = new.masked_fill(there, torch.inf if isinstance(edit, ForceExperts) else -torch.inf)
                self._active.met[i] += int(tokens.sum())
            return new

        return change

    def _weigher(self, layer: int, members: Sequence[int]) -> dict[Tap, Callable[[Tensor], Tensor | None]]:
        found, chosen = _experts(self._anatomy, layer), list[Tensor]()

        def weigh(weights: Tensor) -> Tensor:
            new, experts = weights, chosen.pop()
            for i in members:
                edit = self._active.edits[i]
                assert isinstance(edit, WeighExperts), "only those are members"
                mine = torch.isin(experts, uploaded(edit.experts(found.n_experts), experts.device))
                there = mine & uploaded(self._tokens(i, weights), weights.device)[..., None]
                new = torch.where(there, new * edit.factor, new)
                self._active.met[i] = self._active.met[i] + there.sum()
            return new

        return {found.chosen: chosen.append, found.weights: weigh}

    def _tokens(self, i: int, value: Tensor) -> Tensor:
        """Bool, on the CPU, of the leading shape of a tensor (token, …) or (batch, pos, …): which tokens edit i is for."""
        absolute = self._active.edits[i].absolute
        assert absolute is not None, "edits have positions"
        shape = value.shape[:-1]
        positions = self._forwards.part(*(shape if len(shape) == 2 else (1, shape[0]))).positions
        meant = self._active.meant(i, absolute, positions)
        if meant.numel() != shape.numel():
            raise BadEdit(
                f"{self._active.edits[i]} cannot be made: the router sees other rows than the tokens", hint="edit mlp_out"
            )
        return meant.reshape(shape)


_reached: weakref.WeakKeyDictionary[nn.Module, set[int]] = weakref.WeakKeyDictionary()  # layers where it was tried


@torch.no_grad()
def check_choice(model: nn.Module, anatomy: Anatomy, layer: int) -> None:
    """Raises `SiteAbsent` where a change of logits doesn't reach the choice: tried on a few tokens, once a layer. The expert
    chosen most often is ablated: no token may have it, and its logit must be −inf. The one chosen least often is forced."""
    known = _reached.setdefault(model, set())
    if layer in known:
        return
    router, experts, ids = anatomy.tap("router", layer), _experts(anatomy, layer), probe_tokens(model)
    taps, n = [router, experts.chosen], experts.n_experts
    counts = torch.bincount(values_at(model, ids, taps)[experts.chosen].flatten(), minlength=n)
    most, least = int(counts.argmax()), int(counts.argmin())

    def put(expert: int, number: float) -> Callable[[Tensor], Tensor]:
        there = torch.arange(n) == expert
        return lambda value: value.masked_fill(there.to(value.device), number)

    def unchanged(value: Tensor) -> Tensor:
        return value

    with choosing(model, {router.path: ChangedChoice(n, put(most, -torch.inf), put(most, -torch.inf))}):
        without = values_at(model, ids, taps)
    with choosing(model, {router.path: ChangedChoice(n, unchanged, put(least, torch.inf))}):
        forced = values_at(model, ids, taps)
    gone = not bool((without[experts.chosen] == most).any()) and bool(without[router][..., most].isneginf().all())
    if not gone or not bool((forced[experts.chosen] == least).any(-1).all()):
        raise SiteAbsent(
            f"the choice of experts of layer {layer} cannot be changed: '{router.path}' takes no largest few of its logits",
            hint="weigh:FACTOR changes how much an expert counts",
        )
    known.add(layer)
