"""Every matrix and every gain of a model with its layer and its role, by what it has a part in. Computes nothing of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy import Anatomy, Layer
from probe.anatomy.inside import is_leaf
from probe.attributing.linear import freeze
from probe.instrument import in_memory, is_readable, weight_of
from probe.matrices.flow import Effect, Flow

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

PROJECTED = {"query": "Q", "key": "K", "value": "V"}
TRIES = 16  # parameters of one kind that are asked: an expert that no token goes to has a part in nothing


class Matrix(NamedTuple):
    """A parameter of two axes, or one slice of a stack of them (`expert`, else -1). `also`: its other names, where it is tied.

    role: what it is in its layer; the rest of its path where that is not known. layer: -1 outside the blocks."""

    name: str
    role: str
    layer: int
    expert: int
    also: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What the work on it is called."""
        return self.name if self.expert < 0 else f"{self.name}[{self.expert}]"


class MatrixReader:
    """The numbers of a model's matrices; what is kept on disk is read when it is asked for, a parameter at a time."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._name, self._held = model, "", torch.empty(0)

    def value(self, one: Matrix) -> Tensor:
        """Of more than two axes, the first against the rest."""
        if one.name != self._name:
            self._held = torch.empty(0)  # let go before the next comes
            self._name, self._held = one.name, weight_of(self._model, one.name)
        return self._held[one.expert] if one.expert >= 0 else self._held.flatten(1)


class Gain(NamedTuple):
    """What a norm multiplies (d,) and adds (d,), channel by channel, once its input has its mean and scale. role: where it
    stands in its layer; its path where that is not known."""

    name: str
    role: str
    layer: int
    gain: Tensor
    bias: Tensor


class ParameterRoles:
    """What each parameter of the blocks is; asked once for each kind, in the first layer that has it: they are alike."""

    def __init__(self, lm: LanguageModel) -> None:
        self._model: nn.Module = lm.model
        self._anatomy: Anatomy = lm.anatomy
        self._flows: dict[int, Flow] = {}
        self._found: dict[str, str] = {}
        self._members: dict[str, list[str]] = defaultdict(list)
        self._plain = dict(self._model.named_parameters())
        for name in self._plain:
            self._members[_pattern(name)].append(name)

    def of(self, name: str) -> str:
        """The role of a parameter that lies in a block; the rest of its path if it has none."""
        pattern = _pattern(name)
        if pattern not in self._found:
            self._found[pattern] = self._asked(pattern)
        layer = self.layer(name)
        own = name if layer < 0 else name.removeprefix(f"{self._anatomy.layers[layer].block}.")
        return self._found[pattern] or own

    def layer(self, name: str) -> int:
        """The layer whose block holds it; -1 if none does."""
        there = [i for i, layer in enumerate(self._anatomy.layers) if name.startswith(f"{layer.block}.")]
        return min(there, default=-1)

    def effect(self, name: str) -> Effect:
        """What a parameter of a block has a part in."""
        return self.flow(self.layer(name)).effect(name)

    def flow(self, layer: int) -> Flow:
        """What parameters of a layer are tried with."""
        if layer not in self._flows:
            self._flows[layer] = Flow(self._model, self._anatomy, layer)
        return self._flows[layer]

    def _asked(self, pattern: str) -> str:
        for name in self._members[pattern][:TRIES]:
            if self.layer(name) < 0 or not is_readable(self._model, name):
                return ""
            here = self._anatomy.layers[self.layer(name)]
            with in_memory(self._model.get_submodule(here.block)):
                effect = self.effect(name)
                if effect.felt:
                    parameter = self._model.get_parameter(name)
                    return _gain_role(effect) if parameter.dim() == 1 else self._matrix_role(name, parameter, effect, here)
        return ""

    def _matrix_role(self, name: str, parameter: Tensor, effect: Effect, layer: Layer) -> str:
        felt, path = effect.felt, name.rpartition(".")[0]
        if projected := "".join(letter for what, letter in PROJECTED.items() if what in felt):
            return f"W_{projected}"
        if felt & {"z", "attn_out"}:
            wrote = "z" not in felt and "z" in layer.taps and layer.taps["z"].path == path
            return "" if layer.attention is None else "W_O" if wrote else "attention"
        if "mlp_post" in felt:
            return self._into(name, parameter, effect, "mlp_post")
        if "mlp_out" in felt:
            if "mlp_post" in layer.taps and layer.taps["mlp_post"].path == path:
                return "W_out"
            return self._of_experts(name, parameter, effect)
        return ""

    def _into(self, name: str, parameter: Tensor, effect: Effect, site: str) -> str:
        """W_in or W_gate of an MLP act(W_gate x) * (W_in x); W_in alone of act(W_in x). A fused one is both."""
        if site in effect.affine:
            return "W_in"
        flow = self.flow(self.layer(name))
        if halves(flow, name, parameter, site) is not None:
            return "W_gate+W_in"
        block = self._anatomy.layers[self.layer(name)].block
        others = [n for n, p in self._plain.items() if n.startswith(f"{block}.") and p.dim() == parameter.dim() and n != name]
        gated = any(site in (other := self.effect(n)).affine and _beside(other, effect) for n in others)
        return "W_gate" if gated else "W_in"

    def _of_experts(self, name: str, parameter: Tensor, effect: Effect) -> str:
        """What a matrix is of a mixture of experts, whose hidden layer is seen nowhere."""
        block = self._anatomy.layers[self.layer(name)].block
        own = {n: p for n, p in self._plain.items() if n.startswith(f"{block}.")}
        experts = {p.shape[0] for p in own.values() if p.dim() == 3} | {_indices(n) for n in own if _indices(n)}
        if parameter.dim() == 2 and _indices(name) == 0:
            routes = experts & set(parameter.shape) and self._anatomy.d_model in parameter.shape
            return "router" if routes and "mlp_out" not in effect.affine else ""
        if "mlp_out" not in effect.affine:
            fused = halves(self.flow(self.layer(name)), name, parameter, "mlp_out") is not None
            return "W_gate+W_in" if fused else "W_gate"
        return "W_out" if _gives(self.flow(self.layer(name)), name, parameter) else "W_in"


def halves(flow: Flow, name: str, parameter: Tensor, site: str) -> tuple[int, slice] | None:
    """(axis, entries) of the part of a fused matrix that `site` is in proportion to: W_in; the rest is W_gate. The first or
    the last half of an axis, or every second entry. None where no part is."""
    for axis in range(parameter.dim() - 2, parameter.dim()):
        n = parameter.shape[axis]
        for part in (slice(n // 2, n), slice(0, n // 2), slice(1, n, 2), slice(0, n, 2)) if n % 2 == 0 else ():

            def scaled(value: Tensor, t: float, axis: int = axis, part: slice = part) -> Tensor:
                value = value.clone()
                value.movedim(axis, 0)[part] *= t
                return value

            effect = flow.effect(name, scaled)
            if site in effect.affine:
                return axis, part
    return None


def _gives(flow: Flow, name: str, parameter: Tensor) -> bool:
    """Whether one of its axes is that of what the MLP writes: its channel i times s_i makes the write's channel i so."""
    without = flow.seen({name: torch.zeros_like(parameter)})["mlp_out"].double()
    plain = flow.seen({})["mlp_out"].double() - without
    s = torch.linspace(0.5, 1.5, plain.shape[-1], dtype=torch.float64, device=plain.device)
    for axis in range(parameter.dim() - 2, parameter.dim()):
        if parameter.shape[axis] == plain.shape[-1]:
            changed = (parameter.detach().movedim(axis, -1) * s.to(parameter)).movedim(-1, axis)
            found = flow.seen({name: changed})["mlp_out"].double() - without
            if float((found - plain * s).norm()) <= 1e-3 * float(plain.norm()):
                return True
    return False


def _gain_role(effect: Effect) -> str:
    """Where a norm stands, by the first tensor that feels its gain."""
    felt = effect.felt
    if {"query", "key", "value"} & felt:
        projected = "".join(letter for what, letter in PROJECTED.items() if what in felt)
        return "before attention" if len(projected) == 3 else f"of {projected}"
    if "z" in felt:
        return "of z"
    for site, part in (("attn_out", "attention"), ("mlp_out", "MLP")):
        if site in felt:  # what is written is in proportion to the gain of a norm that comes last
            return f"{'after' if site in effect.affine else 'before'} {part}"
    return ""


def _beside(other: Effect, effect: Effect) -> bool:
    """Whether two matrices have a part in the same tensors."""
    return other.felt == effect.felt


def _pattern(name: str) -> str:
    return re.sub(r"\b[0-9]+\b", "*", name)


def _indices(name: str) -> int:
    """How many numbers a path has beside that of its block: 1 for an expert of a list."""
    return max(len(re.findall(r"\b[0-9]+\b", name)) - 1, 0)


def matrices(lm: LanguageModel, layers: Sequence[int] | None = None) -> tuple[list[Matrix], list[str]]:
    """Every matrix of a model, once, and the names of parameters that cannot be read. layers: only those of these blocks.

    A stack of matrices (experts, in transformers one parameter of three axes) is told slice by slice.
    """
    roles, found, odd = ParameterRoles(lm), [], []
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in lm.model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    for name, parameter in lm.model.named_parameters():
        layer = roles.layer(name)
        if parameter.dim() < 2 or (layers is not None and layer not in layers):
            continue
        if not is_readable(lm.model, name):
            odd.append(name)
            continue
        role = _end_role(lm, parameter) if layer < 0 else roles.of(name)
        also = tuple(other for other in names[id(parameter)] if other != name)
        stacked = parameter.dim() == 3 and min(parameter.shape[1:]) > 1
        found += [Matrix(name, role or name, layer, i, also) for i in (range(len(parameter)) if stacked else (-1,))]
    return found, odd


def _end_role(lm: LanguageModel, parameter: Tensor) -> str:
    """The embedding's or the unembedding's matrix, or both."""
    model, head = lm.model, lm.anatomy.head
    embedding = any(p is parameter for p in model.get_input_embeddings().parameters())
    unembedding = head is not None and any(p is parameter for p in model.get_submodule(head).parameters())
    return "+".join(name for name, there in (("embedding", embedding), ("unembedding", unembedding)) if there)


def gains(lm: LanguageModel, layers: Iterable[int] | None = None) -> list[Gain]:
    """What every norm multiplies and adds, channel by channel, read off what it makes of plain vectors; of other modules
    that have vectors only, those vectors."""
    roles, found = ParameterRoles(lm), []
    final = lm.anatomy.final_norm
    for path, module in lm.model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        names = [f"{path}.{key}" for key in own]
        if not own or not is_leaf(module) or any(p.dim() != 1 for p in own.values()):
            continue
        if not all(is_readable(lm.model, name) for name in names):
            continue
        name = names[0]
        layer = roles.layer(name)
        if layers is not None and layer not in layers:
            continue
        role = (roles.of(name) if layer >= 0 else "final" if final is not None and final.path == path else "") or path
        width = len(next(iter(own.values())))
        x = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).double()
        norm = freeze(module, x, next(iter(own.values())).dtype)
        if norm is not None:
            found.append(Gain(path, role, layer, norm.gain, norm.bias))
        else:
            vectors = [weight_of(lm.model, name) for name in names]
            found += [Gain(name, role, layer, v, torch.zeros_like(v)) for name, v in zip(names, vectors, strict=True)]
    return found
