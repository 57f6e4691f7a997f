"""Which neurons are patched: those that a gradient promises most of, and others at random to compare with."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, islice
from typing import NamedTuple

import numpy as np
from torch import Tensor

from probe.patching.attribution import Attribution
from probe.patching.cells import CellPositions, LayerCells, LayerNeurons, PositionGroup
from probe.patching.planning import Patching, portions
from probe.patching.sources import Replacements
from probe.running import Running

TABLE, UNIT = "unfinished", "neurons"


class Neuron(NamedTuple):
    """One neuron with one group of positions, named alike in every pair: the number of its layer among those that can be
    chosen of; the group's position, from the end where texts differ in length, and its step; its number in the layer."""

    place: int
    pos: int
    step: int
    unit: int


class ChosenNeurons(NamedTuple):
    """The neurons that are patched: those that promise most, the first most of all, and those that were drawn beside."""

    chosen: tuple[Neuron, ...]
    control: tuple[Neuron, ...]


def with_neurons(run: Running, patching: Patching) -> Patching:
    """The sweep with its neurons among its cells. They are chosen once: a resumed run has those that it began with."""
    if not patching.neurons or run.writer.whole:
        return patching
    if not run.writer.done(UNIT):
        packed = _packed(choose(run, patching))
        with run.writer.unit(UNIT):
            run.write(TABLE, {"part": [UNIT], "state": [packed]})
    choice = _unpacked(run.writer.read(TABLE)["state"][0].as_py())
    parts = tuple((*own, *_cells(patching, number, choice)) for number, own in enumerate(patching.parts))
    return replace(patching, parts=parts)


def choose(run: Running, patching: Patching) -> ChosenNeurons:
    """The neurons whose patch changes the metric most, as far as the gradient at the base tells (METHODS B3), whichever way:
    by the sum over pairs of what is promised of each. Raises as `slopes` does."""
    pairs, best = patching.pairs, list[Scored]()
    shares = portions(patching, [(one.site, one.layer) for own in patching.neurons for one in own])
    for done, share in enumerate(shares):
        replacements, scores = Replacements(run.lm, patching, share), dict[Neuron, Tensor]()
        for number, pair in enumerate(pairs):
            engine = Attribution(run.lm, pair, patching, share)
            for place, one in enumerate(patching.neurons[number]):
                if (where := (one.site, one.layer)) in share:
                    change = engine.by_unit(where, replacements.of(number, where, *engine.values(where))).cpu()
                    change[:, sorted(_named(patching, one))] = 0.0
                    for group in one.groups:
                        key = _neuron(patching, number, place, group, 0)
                        own = change[list(group.positions)].sum(0).abs()
                        scores[key] = scores[key] + own if key in scores else own
            run.report("choosing neurons", done * len(pairs) + number + 1, len(shares) * len(pairs))
        best = _largest(best, scores, patching.request.chosen)
    chosen = tuple(neuron for _, neuron in best)
    return ChosenNeurons(chosen, tuple(islice(_drawn(patching, set(chosen)), patching.request.sampled)))


Scored = tuple[float, Neuron]


def _largest(best: list[Scored], scores: dict[Neuron, Tensor], keep: int) -> list[Scored]:
    """The largest of those so far and of scores (unit,) by place and positions, the first the largest; none that is 0."""
    for key, own in scores.items():
        values, units = own.topk(min(keep, len(own)))
        found = [(value, key._replace(unit=unit)) for value, unit in zip(values.tolist(), units.tolist(), strict=True)]
        best = sorted([*best, *(one for one in found if one[0] > 0)], key=lambda one: (-one[0], one[1]))[:keep]
    return best


def _drawn(patching: Patching, chosen: Collection[Neuron]) -> Iterable[Neuron]:
    """Other neurons in random order, among those of the first pair that the difference between the texts can reach."""
    reached = patching.pairs[0].reached(patching.request.towards)
    groups = [
        (place, one, group)
        for place, one in enumerate(patching.neurons[0])
        for group in one.groups
        if group.positions[-1] >= reached
    ]
    ends = list(accumulate(one.n_units for _, one, _ in groups))
    named = sum(len(_named(patching, one)) for _, one, _ in groups)
    total = ends[-1] if ends else 0
    some = min(total, patching.request.sampled + len(chosen) + named)
    for number in np.random.default_rng(patching.request.seed).choice(total, some, replace=False) if total else ():
        i = int(np.searchsorted(ends, number, side="right"))
        place, one, group = groups[i]
        neuron = _neuron(patching, 0, place, group, int(number) - (ends[i] - one.n_units))
        if neuron not in chosen and neuron.unit not in _named(patching, one):
            yield neuron


def _named(patching: Patching, one: LayerNeurons) -> set[int]:
    """The neurons of a layer that are patched because they are named."""
    return {
        cell.unit
        for part in patching.parts[0]
        if isinstance(part, LayerCells) and (part.site, part.layer) == (one.site, one.layer)
        for cell in part.locations
        if cell.unit is not None
    }


def _neuron(patching: Patching, number: int, place: int, group: PositionGroup, unit: int) -> Neuron:
    lengths = [len(pair.base(patching.request.towards)) for pair in patching.pairs]
    shift = lengths[number] if len(set(lengths)) > 1 and group.pos >= 0 else 0
    return Neuron(place, group.pos - shift, group.step, unit)


def _cells(patching: Patching, number: int, choice: ChosenNeurons) -> Iterator[LayerCells]:
    """The cells of one pair, layer by layer: its own positions."""
    for place, one in enumerate(patching.neurons[number]):
        groups = {_neuron(patching, number, place, group, 0): group for group in one.groups}
        rows = [
            (CellPositions(group.positions, None, neuron.unit), group.pos, group.step, control)
            for neurons, control in ((choice.chosen, False), (choice.control, True))
            for neuron in neurons
            if neuron.place == place and (group := groups.get(neuron._replace(unit=0))) is not None
        ]
        if rows:
            yield LayerCells(one.site, one.layer, *(tuple(column) for column in zip(*rows, strict=True)))


def _packed(choice: ChosenNeurons) -> bytes:
    file = io.BytesIO()
    arrays = {name: np.asarray(own, np.int64).reshape(-1, 4) for name, own in choice._asdict().items()}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _unpacked(packed: bytes) -> ChosenNeurons:
    with np.load(io.BytesIO(packed)) as arrays:
        return ChosenNeurons(*(tuple(Neuron(*row) for row in arrays[name].tolist()) for name in ChosenNeurons._fields))
