"""What each neuron of an MLP reads and writes, as directions in the stream, read off the matrices that make and read its hidden
layer. Knows no names of parameters, and no tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from probe.anatomy import Layer
from probe.anatomy.mixing import values_at
from probe.anatomy.tape import probe_tokens
from probe.attributing.decomposition import behind
from probe.attributing.linear import call
from probe.errors import BadEdit, BadModel
from probe.instrument import in_memory
from probe.matrices.calls import StreamNorm, norm_of, recorded_calls, to_stream
from probe.matrices.naming import ParameterRoles, halves
from probe.weight_edits.targets import EditedMatrix, input_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probe.language_model import LanguageModel

READS = {"W_gate": "gate", "W_in": "in"}
FUSED = "W_gate+W_in"


class NeuronDirections(NamedTuple):
    """Of neurons of one layer, float64. read: by "in", and "gate" where there is one: rows (n, d) of what the MLP reads,
    x = norm(stream), and what is added (n,); an MLP's hidden value is act(gate . x) * (in . x), or act(in . x) where it has no
    gate. out (n, d): what a hidden value of 1 adds to the stream, at a scale of 1 of a norm behind the MLP."""

    read: dict[str, tuple[Tensor, Tensor]]
    out: Tensor
    norm: StreamNorm

    def folded(self, name: str) -> Tensor:
        """What is read, as directions of the stream before the norm: its gain and its centring are in them."""
        found = self.read[name][0] * self.norm.norm.gain
        return found - self.norm.norm.centre * found.mean(-1, keepdim=True)

    def constant(self, name: str) -> Tensor:
        """What is read of a stream of zeros, by what the norm and the matrix add (n,)."""
        rows, added = self.read[name]
        return rows @ self.norm.norm.bias + added


class _Reading(NamedTuple):
    """The matrix of one direction: its parameter, the axis of what it reads, its entries on the other axis."""

    parameter: str
    axis: int
    entries: range


class NeuronReader:
    """Reads the neurons of any layer of a model."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm, self._model, self._anatomy = lm, lm.model, lm.anatomy
        self._roles = ParameterRoles(lm)
        ids = probe_tokens(self._model)
        self._calls = recorded_calls(self._model, ids[:, :1])
        sites = ("resid_pre", "resid_mid", "mlp_post", "mlp_out")
        self._seen = values_at(self._model, ids, {layer.taps[s] for layer in self._anatomy.layers for s in sites
                                                  if s in layer.taps})  # fmt: skip
        self._halves: dict[str, tuple[int, slice] | None] = {}

    def layer(self, number: int, neurons: Sequence[int]) -> NeuronDirections | str:
        """Those neurons of a layer, or why none can be read."""
        layer = self._anatomy.layers[number]
        if "mlp_post" not in layer.taps:
            return self._anatomy.reason("mlp_post", number)
        with in_memory(self._model.get_submodule(layer.block)):
            return self._read(layer, neurons)

    def _read(self, layer: Layer, neurons: Sequence[int]) -> NeuronDirections | str:
        try:
            reads = self._readings(layer)
            if isinstance(reads, str):
                return reads
            chosen = torch.tensor(neurons)
            norm = self._norm(layer, reads["in"])
            out = self._out(layer, chosen)
        except (BadEdit, BadModel) as error:  # a matrix that has no numbers, or is none
            return error.message
        if norm is None:
            return "what its MLP reads is no norm of the stream"
        return out if isinstance(out, str) else NeuronDirections(
            {name: self._rows(reading, chosen) for name, reading in reads.items()}, out, norm
        )  # fmt: skip

    def _readings(self, layer: Layer) -> dict[str, _Reading] | str:
        """By gate and in, the matrices that make the hidden layer."""
        width = layer.widths["mlp_post"]
        found: dict[str, _Reading] = {}
        for name, parameter in self._model.named_parameters():
            if not name.startswith(f"{layer.block}.") or parameter.dim() != 2:
                continue
            role = self._roles.of(name)
            if role not in (*READS, FUSED):
                continue
            axis = input_axis(self._model, EditedMatrix(name, tuple(parameter.shape)))
            n = parameter.shape[1 - axis]
            if role == FUSED and n == 2 * width:
                parts = self._parts(name, axis, n)
            else:
                parts = {READS[role]: range(n)} if role in READS and n == width else {}
            if not parts or parts.keys() & found.keys():
                return f"which part '{name}' has in its hidden layer is not known"
            found |= {what: _Reading(name, axis, entries) for what, entries in parts.items()}
        return found if "in" in found else "no matrix of this block is known to make its hidden layer"

    def _parts(self, name: str, axis: int, n: int) -> dict[str, range]:
        """Which entries of a fused matrix are W_in, and which W_gate; nothing where that is not known."""
        within = name.removeprefix(f"{self._anatomy.layers[self._roles.layer(name)].block}.")
        if within not in self._halves:
            flow = self._roles.flow(self._roles.layer(name))
            self._halves[within] = halves(flow, name, self._model.get_parameter(name), "mlp_post")
        found = self._halves[within]
        if found is None or found[0] != 1 - axis:
            return {}
        own = range(n)[found[1]]
        rest = range(1 - own.start, n, 2) if own.step == 2 else range(n)[slice(n // 2, n) if own.start == 0 else slice(n // 2)]
        return {"in": own, "gate": rest}

    def _rows(self, reading: _Reading, neurons: Tensor) -> tuple[Tensor, Tensor]:
        """(rows (n, d), what is added (n,)) of one matrix."""
        which = torch.tensor(reading.entries)[neurons]
        rows = _taken(self._model.get_parameter(reading.parameter), 1 - reading.axis, which)
        bias = getattr(self._model.get_submodule(reading.parameter.rpartition(".")[0]), "bias", None)
        return rows, torch.zeros(len(which)).double() if bias is None else _taken(bias, 0, which)

    def _norm(self, layer: Layer, reading: _Reading) -> StreamNorm | None:
        """What makes the MLP's input of the stream; None where it is no norm."""
        given = self._calls[reading.parameter.rpartition(".")[0], layer.visit].given
        taps = [layer.taps[site] for site in ("resid_mid", "resid_pre") if site in layer.taps]
        return norm_of(self._lm, self._calls, given, taps, [self._seen[tap].flatten(0, -2) for tap in taps])

    def _out(self, layer: Layer, neurons: Tensor) -> Tensor | str:
        """(n, d): what each neuron adds to the stream; or why that is not known."""
        write = next((one for one in layer.writes if one.kind == "mlp"), None)
        if write is None or layer.taps["mlp_post"].side != "input":
            return "what its MLP adds to the stream was not found"
        path = layer.taps["mlp_post"].path
        name = f"{path}.weight"
        axis = input_axis(self._model, EditedMatrix(name, tuple(self._model.get_parameter(name).shape)))
        post, value = (self._seen[tap].flatten(0, -2).double().cpu() for tap in (layer.taps["mlp_post"], layer.taps["mlp_out"]))
        after = behind(self._model, write, call(self._model.get_submodule(path), post), value, self._lm.dtype)
        if isinstance(after, str):
            return after
        return to_stream(self._model, write, after, _taken(self._model.get_parameter(name), axis, neurons))


def _taken(parameter: Tensor, axis: int, which: Tensor) -> Tensor:
    """Slices of a parameter, one a row, float64 on the CPU."""
    return parameter.detach().movedim(axis, 0).index_select(0, which.to(parameter.device)).double().cpu()


def chance_of_cosine(cosine: Tensor, d: int, tokens: int) -> Tensor:
    """At most how probable it is that a direction at random in d dimensions has so large a cosine, by size, with any of so many
    tokens: the square of a cosine is a beta variable with 1/2 and (d - 1)/2; the sum over the tokens."""
    tail = stats.beta.sf(cosine.double().square().clamp(max=1.0).numpy(), 0.5, (d - 1) / 2)
    return torch.from_numpy(tail).mul(tokens).clamp(max=1.0)
