"""A logit as a sum of what was written to the stream: walks the anatomy's equations backwards. Runs no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy.inside import is_leaf, is_linear
from probe.anatomy.parts import Layer, Write
from probe.anatomy.writes import UNNAMED
from probe.attributing.linear import ROOM, Frozen, Unembedded, call, close, dtype_of, freeze, identity, transposed
from probe.attributing.recording import Recording
from probe.errors import SiteAbsent
from probe.instrument import weight_of

if TYPE_CHECKING:
    from probe.anatomy import Anatomy


class Component(NamedTuple):
    """One component's contribution (pos,), logits before the cap; layer, head and neuron -1 where it has none."""

    component: str
    layer: int
    head: int
    value: Tensor
    neuron: int = -1


class LayerHeads(NamedTuple):
    """A layer's split, and the direction (pos, d_model) on its write that the logit grows along."""

    split: Split
    direction: Tensor


@dataclass
class Decomposition:
    """All components, in order of the network; `heads` by layer; `notes`: what could not be taken apart, and why."""

    components: list[Component] = field(default_factory=list)
    heads: dict[int, LayerHeads] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def total(self) -> Tensor:
        """Their sum (pos,)."""
        return torch.stack([part.value for part in self.components]).sum(0)


def decompose(
    model: nn.Module, anatomy: Anatomy, seen: Recording, logit: Unembedded, dtype: torch.dtype, *, neurons: int = 0
) -> Decomposition:  # fmt: skip
    """logit = scale * (row . (norm'(embed + sum of writes) + b) + b'), with the final norm's scale frozen; see METHODS B5.

    neurons: so many of each layer are components of their own, those that wrote most at any of the positions.
    Raises `SiteAbsent` where the final norm is not a scaling of its input channel by channel, and where neurons are asked for
    and no layer's MLP is their sum.
    """
    parts, walk = Decomposition(), _Walk(model, anatomy, seen, neurons)
    last = seen.values[anatomy.layers[-1].taps["resid_post"]]
    n = len(last)
    norm = identity(*last.shape)
    if anatomy.final_norm is not None:
        frozen = freeze(model.get_submodule(anatomy.final_norm.path), last, dtype)
        if frozen is None:
            raise SiteAbsent(
                "no logit can be taken apart: the final norm is no scaling of its input", hint="see probe models check"
            )
        norm = frozen
    direction = logit.scale * norm.back(logit.row).expand(n, -1)
    ends = [Component("norm_bias", -1, -1, (logit.scale * (logit.row @ norm.bias)).expand(n))] if bool(norm.bias.any()) else []
    if bool(logit.bias.any()):
        ends.append(Component("head_bias", -1, -1, (logit.scale * logit.bias).expand(n)))
    backwards: list[list[Component]] = []
    for number in reversed(range(anatomy.n_layers)):
        own, direction = walk.layer(number, direction, parts)
        backwards.append(own)
        if not bool(direction.any()):
            parts.notes.append(f"nothing that was written before layer {number} is carried around it: its write holds it")
            break
    else:
        starts = seen.embeddings.items()
        backwards.append([Component(name, -1, -1, (value * direction).sum(-1)) for name, value in starts])
    parts.components = [part for own in reversed(backwards) for part in own] + ends
    if neurons and not any(part.neuron >= 0 for part in parts.components):
        raise SiteAbsent(f"no MLP can be taken apart: {walk.whole or 'none is found'}", hint="leave out --by neuron")
    return parts


class _Walk:
    """Layers from the last to the first."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, seen: Recording, neurons: int) -> None:
        self._model, self._anatomy, self._seen, self._neurons = model, anatomy, seen, neurons
        self.whole = ""  # why an MLP was not taken apart

    def layer(self, number: int, direction: Tensor, parts: Decomposition) -> tuple[list[Component], Tensor]:
        """The parts of one layer, and the direction (pos, d_model) on its resid_pre."""
        layer = self._anatomy.layers[number]
        if not layer.writes:
            return self._unsolved(number, layer, direction, parts)
        own: list[Component] = []
        for write in layer.writes:
            along = direction * write.coefficient * self._gains(write.gains)
            own += self._write(number, layer, write, along, parts)
        if layer.offset:
            own.append(Component("offset", number, -1, self._offset(layer, direction)))
        return own, direction * layer.carry * self._gains(layer.carry_gains)

    def _write(self, number: int, layer: Layer, write: Write, along: Tensor, parts: Decomposition) -> list[Component]:
        value = self._value(write)
        if write.kind == "mlp" and self._neurons and (own := self._by_neuron(number, layer, write, along, parts)):
            return own
        if write.kind != "attn":
            whole = (value * along).sum(-1)
            if write.kind == "mlp" and "routed_out" in layer.taps:
                times = layer.taps["shared_out"].times
                routed = times * (self._seen.values[layer.taps["routed_out"]] * along).sum(-1)
                shares = {"mlp_routed": routed, "mlp_shared": whole - routed}
                return [Component(name, number, -1, share) for name, share in shares.items()]
            return [Component(_name(layer, write), number, -1, whole)]
        z = self._seen.values.get(layer.taps["z"]) if "z" in layer.taps else None
        found = split(self._model, layer, write, z, value)
        if isinstance(found, str):
            parts.notes.append(f"layer {number}: the attention's write is whole, not by heads: {found}")
            return [Component("attn", number, -1, (value * along).sum(-1))]
        parts.heads[number] = LayerHeads(found, along)
        by_head = torch.einsum("phd,pd->ph", found.heads, along)  # p pos, h head, d d_model
        own = [Component("attn", number, head, by_head[:, head]) for head in range(layer.n_heads)]
        if bool(found.bias.any()):
            own.append(Component("attn_bias", number, -1, (found.bias * along).sum(-1)))
        return own

    def _by_neuron(self, number: int, layer: Layer, write: Write, along: Tensor, parts: Decomposition) -> list[Component]:
        """The neurons that wrote most, all others together, and the bias of the last matrix; nothing where the write is not
        their sum."""
        hidden = self._seen.values.get(layer.taps["mlp_post"]) if "mlp_post" in layer.taps else None
        found = neuron_writes(self._model, layer, write, hidden, self._value(write), along)
        if isinstance(found, str):
            self.whole = found
            parts.notes.append(f"layer {number}: the MLP's write is not by neurons: {found}")
            return []
        order = found.neurons.abs().amax(0).argsort(descending=True, stable=True)
        some, rest = order[: self._neurons].tolist(), order[self._neurons :]
        own = [Component("mlp", number, -1, found.neurons[:, neuron], neuron) for neuron in sorted(some)]
        if len(rest):
            own.append(Component("mlp_others", number, -1, found.neurons[:, rest].sum(-1)))
        if bool(found.bias.any()):
            own.append(Component("mlp_bias", number, -1, found.bias))
        return own

    def _unsolved(self, number: int, layer: Layer, direction: Tensor, parts: Decomposition) -> tuple[list[Component], Tensor]:
        """A block whose equation is not known, as one write: resid_post - resid_pre."""
        if "resid_pre" not in layer.taps or "resid_post" not in layer.taps:
            raise SiteAbsent(f"no logit can be taken apart: layer {number}: {layer.equation}", hint="see probe models check")
        parts.notes.append(f"layer {number} is one write: {layer.equation}")
        wrote = self._seen.values[layer.taps["resid_post"]] - self._seen.values[layer.taps["resid_pre"]]
        return [Component("block", number, -1, (wrote * direction).sum(-1))], direction

    def _offset(self, layer: Layer, direction: Tensor) -> Tensor:
        """A constant vector: the parameter, or, where it is none, what is left of the equation."""
        if layer.offset != UNNAMED:
            return direction @ weight_of(self._model, layer.offset).double().flatten().cpu()
        left = self._seen.values[layer.taps["resid_post"]]
        left = left - layer.carry * self._gains(layer.carry_gains) * self._seen.values[layer.taps["resid_pre"]]
        for write in layer.writes:
            left = left - write.coefficient * self._gains(write.gains) * self._value(write)
        return (left * direction).sum(-1)

    def _value(self, write: Write) -> Tensor:
        return self._seen.values[write.tap]

    def _gains(self, names: tuple[str, ...]) -> Tensor:
        found = torch.ones(self._anatomy.d_model, dtype=torch.float64)
        for name in names:
            found = found * weight_of(self._model, name).double().flatten().cpu()
        return found


def _name(layer: Layer, write: Write) -> str:
    """`mlp`, or the path within the block of a write that is neither attention nor MLP."""
    if write.kind in ("attn", "mlp"):
        return write.kind
    return write.tap.path.removeprefix(layer.block).removeprefix(".") or "other"


class Split(NamedTuple):
    """write (n, d) = sum of heads (n, head, d) + bias (n, d), to rounding. `after` is what stands behind the projection."""

    heads: Tensor
    bias: Tensor
    after: Frozen


def split(model: nn.Module, layer: Layer, write: Write, z: Tensor | None, value: Tensor) -> Split | str:
    """The write `value` (n, d) over the heads of z (n, head * d_head), float64; or why it can't be split."""
    if z is None:
        return layer.absent.get("z", "its heads' values were not found")
    projection = model.get_submodule(layer.taps["z"].path)
    if not is_linear(projection):
        return "what reads the heads' values is not one matrix"
    n, width = z.shape
    masked = torch.zeros(n, layer.n_heads, layer.n_heads, width // layer.n_heads, dtype=torch.float64)
    for head in range(layer.n_heads):
        masked[:, head, head] = z.unflatten(-1, (layer.n_heads, -1))[:, head]
    bias = call(projection, torch.zeros(1, width))[0]
    heads = (call(projection, masked.flatten(2).flatten(0, 1)) - bias).unflatten(0, (n, layer.n_heads))
    after = behind(model, write, heads.sum(1) + bias, value, dtype_of(projection))
    if isinstance(after, str):
        return after
    return Split(after.forward(heads), after.forward(bias.expand(n, -1)) + after.bias, after)


class NeuronWrites(NamedTuple):
    """What each neuron of a layer, and the bias of its MLP's last matrix, wrote along a direction: (pos, neuron), (pos,)."""

    neurons: Tensor
    bias: Tensor


def neuron_writes(
    model: nn.Module, layer: Layer, write: Write, hidden: Tensor | None, value: Tensor, along: Tensor
) -> NeuronWrites | str:  # fmt: skip
    """What the hidden layer (n, d_mlp) of an MLP, whose write is `value` (n, d), wrote along directions (n, d), neuron by
    neuron, float64: h_i (W_outᵀ u)_i with u the direction before what stands behind the matrix; or why that is not its sum."""
    if hidden is None:
        return layer.absent.get("mlp_post", "its hidden layer is not found")
    projection = model.get_submodule(layer.taps["mlp_post"].path)
    if not is_linear(projection):
        return "what reads its hidden layer is not one matrix"
    after = behind(model, write, call(projection, hidden), value, dtype_of(projection))
    if isinstance(after, str):
        return after
    bias = call(projection, torch.zeros(1, hidden.shape[-1]))
    constant = ((after.forward(bias.expand(value.shape)) + after.bias) * along).sum(-1)
    neurons = hidden * transposed(projection, after.back(along), hidden.shape[-1])
    missed, size = neurons.sum(-1) + constant - (value * along).sum(-1), value.norm(dim=-1) * along.norm(dim=-1)
    if bool((missed.abs() > max(1e-3, ROOM * torch.finfo(dtype_of(projection)).eps) * size).any()):
        return "what reads its hidden layer is not linear, or no gradient comes through it"
    return NeuronWrites(neurons, constant)


def behind(model: nn.Module, write: Write, out: Tensor, value: Tensor, dtype: torch.dtype) -> Frozen | str:
    """What makes the write of the projection's output, (n, d): nothing, a number, or a norm, with its scale frozen."""
    if out.shape != value.shape:
        return "the projection does not give the write"
    number = float((out * value).sum() / out.pow(2).sum().clamp_min(1e-300))
    if close(value, number * out, dtype):
        plain = identity(*out.shape)
        return plain._replace(scale=plain.scale * (1.0 if abs(number - 1.0) < 1e-5 else number))
    module = model.get_submodule(write.tap.path)
    if write.tap.side == "output" and is_leaf(module):
        norm = freeze(module, out, dtype)
        if norm is not None and close(value, norm.forward(out) + norm.bias, dtype):
            return norm
    return "between the last matrix and the write is more than a norm"
