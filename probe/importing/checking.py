"""Whether a server's streams are those of the layers that they are said to be of: by the model's own read of the same ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from probe.capturing import MemorySink, observe
from probe.errors import BadOption, BadPrompt
from probe.importing.files import States
from probe.sites import Cell, parse_places

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

SAMPLE = 64  # first tokens at which every stream is held against every layer
ONE_TOKEN = 10  # times the tolerance of a layer's mean: what rounding does to one token, no more
TOLD = "as the server was told: its eagle_aux_hidden_state_layer_ids"


class StreamPlace(NamedTuple):
    """Where a server's layer id stands here: id N is what goes into layer N, and n_layers what leaves the last block."""

    site: str
    layer: int

    def __str__(self) -> str:
        return f"{self.site}@{self.layer}"


class Check(NamedTuple):
    """One layer of a file beside the model's own: relative differences |server - own| / |own|.

    mean and largest over all tokens, and where that is; over the first tokens, the nearest of the other streams.
    """

    stream: StreamPlace
    mean: float
    largest: float
    position: int
    other: StreamPlace | None
    other_mean: float | None


def streams_of(lm: LanguageModel) -> list[StreamPlace]:
    """By a server's layer id, from 0 to n_layers."""
    last = lm.anatomy.n_layers - 1
    return [*(StreamPlace("resid_pre", layer) for layer in range(last + 1)), StreamPlace("resid_post", last)]


def cells_of(lm: LanguageModel) -> tuple[Cell, ...]:
    """Their cells. Raises `SiteAbsent`, `OutOfRange` where this model has none."""
    return lm.anatomy.cells([place for stream in streams_of(lm) for place in parse_places(str(stream))])


class ComparisonSink(MemorySink):
    """Compares while the model runs; keeps no stream. layers: by column of the file the id that it is said to be of."""

    def __init__(self, streams: list[StreamPlace], states: Tensor, layers: tuple[int, ...]) -> None:
        """states (pos, layer, d_model)"""
        super().__init__()
        self._states, self._streams = states, streams
        self._columns = {streams[layer]: column for column, layer in enumerate(layers)}
        self._first: dict[StreamPlace, Tensor] = {}
        self.whole: dict[StreamPlace, Tensor] = {}  # differences at all positions (pos,)

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        """The differences of one layer's stream (1, pos, d_model) from the file's."""
        stream, own = StreamPlace(site, layer), values[0].float()
        some = self._states[:SAMPLE].to(own.device)
        self._first[stream] = _difference(some.float(), own[:SAMPLE, None]).mean(0).cpu()
        if (column := self._columns.get(stream)) is not None:
            self.whole[stream] = _difference(self._states[:, column].to(own.device).float(), own).cpu()

    def first(self) -> Tensor:
        """Mean differences at the first tokens (id, column): each stream of the model from each of the file."""
        return torch.stack([self._first[stream] for stream in self._streams])


def _difference(found: Tensor, own: Tensor) -> Tensor:
    """|found - own| / |own| over the last axis."""
    return (found - own).norm(dim=-1) / own.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)


def settled_layers(lm: LanguageModel, found: States, given: tuple[int, ...] | None, tolerance: float) -> tuple[int, ...]:
    """The layer ids of a file's columns: those that are given, or of a file that has all layers which of them, once the
    model's own read of its first tokens agrees.

    Raises `BadOption` where it does not, with the layers that would fit if there are some.
    """
    n, width = lm.anatomy.n_layers, found.states.shape[1]
    if given is not None and max(given) > n:
        raise BadOption(f"{lm.name} has no layer {max(given)}", hint=f"0 to {n - 1}, or {n} for what leaves the last block")
    if given is not None and len(given) != width:
        raise BadOption(f"the file has {width} layers, and {len(given)} are named", hint=TOLD)
    whole = not lm.anatomy.causal or lm.sets_frequencies(len(found.ids))  # what comes later changes the first tokens
    ids = found.ids if whole else found.ids[:SAMPLE]
    sink = ComparisonSink(streams_of(lm), found.states, ())
    observe(lm, torch.tensor([ids]), [len(ids)], sink=sink, cells=cells_of(lm))
    first = sink.first()
    if given is None:
        all_layers = {n + 1: [range(n + 1)], n: [range(n), range(1, n + 1)]}.get(width)
        if all_layers is None:
            raise BadOption(
                f"the file has {width} layers and does not say which", hint=_fitting(first, tolerance) or f"--layers, {TOLD}"
            )
        given = min((tuple(some) for some in all_layers), key=lambda some: float(_chosen(first, some).sum()))
    _check_first(lm, first, given, tolerance)
    return given


def _chosen(first: Tensor, layers: tuple[int, ...]) -> Tensor:
    return first[list(layers), range(len(layers))]


def _fitting(first: Tensor, tolerance: float) -> str:
    """The layers that fit, as an option, if each stream of the file is near another one of the model's."""
    low, nearest = first.min(0)
    ids = nearest.tolist()
    fits = bool((low <= tolerance).all()) and len(set(ids)) == len(ids)
    return f"these fit: --layers {','.join(map(str, ids))}" if fits else ""


def _check_first(lm: LanguageModel, first: Tensor, layers: tuple[int, ...], tolerance: float) -> None:
    """Raises `BadOption` for a stream that is far from its layer, or nearer to another."""
    streams, own = streams_of(lm), _chosen(first, layers)
    low, nearest = first.min(0)
    wrong = (~(own <= tolerance) | (low < own)).nonzero().flatten().tolist()
    if not wrong:
        return
    worst = max(wrong, key=lambda column: float(own[column]))
    near = int(nearest[worst])
    raise BadOption(
        f"layer {layers[worst]} of the server is not {streams[layers[worst]]} of {lm.name}: they differ by "
        f"{own[worst]:.3g} of its norm, where {tolerance:g} is tolerated",
        hint=_fitting(first, tolerance) or (
            f"no other layer is nearer than {low[worst]:.3g}: another model, or a coarser number format (--tolerance)?"
            if near == layers[worst]
            else f"the nearest is layer {near}, by {low[worst]:.3g}: is it the same model, with the same adapter?"
        ),
    )  # fmt: skip


def checked(lm: LanguageModel, sink: ComparisonSink, layers: tuple[int, ...], tolerance: float) -> list[Check]:
    """What a whole read says of each layer, in the order of the file. Raises `BadPrompt` where it is too far, at any token."""
    streams, first = streams_of(lm), sink.first()
    found = []
    for column, layer in enumerate(layers):
        differences = sink.whole[streams[layer]]
        others = first[:, column].clone()
        others[layer] = torch.inf
        near = int(others.argmin())
        at = int(differences.argmax())
        one = Check(
            streams[layer], float(differences.mean(dtype=torch.float64)), float(differences[at]), at, streams[near],
            float(others[near]),
        )  # fmt: skip
        _refuse(one, float(first[layer, column]), tolerance)
        found.append(one)
    return found


def _refuse(one: Check, first: float, tolerance: float) -> None:
    """Raises `BadPrompt` for a layer that is not what it is said to be."""
    where = f"of {one.stream} differs by"
    if not one.mean <= tolerance:
        raise BadPrompt(f"what the file has {where} {one.mean:.3g}, where {tolerance:g} is tolerated", hint=_near(one))
    if not one.largest <= ONE_TOKEN * tolerance:
        raise BadPrompt(
            f"token {one.position} {where} {one.largest:.3g}, where {ONE_TOKEN * tolerance:g} is tolerated of one token",
            hint="the server may have read memory of another request: try it without prefix caching",
        )
    if one.other_mean is not None and one.other_mean < first:
        raise BadPrompt(f"what the file has {where} {first:.3g}, and from {one.other} by {one.other_mean:.3g}", hint=_near(one))


def _near(one: Check) -> str:
    return f"the nearest other is {one.other}, by {one.other_mean:.3g}: were all files written with the same layers?"
