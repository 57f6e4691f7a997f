"""Massive activations of the residual stream, and heads that rest on the first token: read off one forward."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.capturing import AttentionSpec, MemorySink, read
from probe.capturing.sinks import Columns
from probe.devices import Readback
from probe.interventions import cells
from probe.looking.findings import Finding
from probe.looking.subject import Subject
from probe.registries.head_kinds import KINDS

MASSIVE, RATIO = 100.0, 1000.0  # Sun et al. 2024 (2402.17762): above 100, and 1000 times the median magnitude


class Largest(NamedTuple):
    """The largest magnitude in a layer's stream, where it is, and the median magnitude."""

    value: float
    pos: int
    dimension: int
    median: float


class StreamSink(MemorySink):
    """Of each layer's stream the largest magnitude alone; head summaries as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[int, Largest] = {}
        self.readback = Readback()

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        size = values[0].float().abs()
        self.readback.put([size.amax(), size.argmax(), size.median()], partial(self._keep, layer, size.shape[1]))

    def _keep(self, layer: int, width: int, most: Tensor, at: Tensor, median: Tensor) -> None:
        self.largest[layer] = Largest(float(most), *divmod(int(at), width), float(median))


class StreamReading(NamedTuple):
    """What one forward told: by layer the columns of `heads`, and the largest magnitudes; what could not be read."""

    heads: dict[int, Columns]
    largest: dict[int, Largest]
    notes: tuple[str, ...]


def read_stream(subject: Subject) -> StreamReading:
    """One forward over the text up to the position."""
    sink, ids = StreamSink(), subject.ids
    found = read(
        subject.lm, torch.tensor([ids]), [len(ids)], sink=sink, cells=cells(subject.lm, "resid_post@all"),
        attention=AttentionSpec("heads"), top=1,
    )  # fmt: skip
    sink.readback.finish()
    return StreamReading(sink.summaries, sink.largest, found.warnings)


def massive(subject: Subject, stream: StreamReading) -> list[Finding]:
    """The largest magnitude in the stream, where it is massive by the definition of Sun et al. 2024."""
    there = {layer: one for layer, one in stream.largest.items() if one.value > max(MASSIVE, RATIO * one.median)}
    if not there:
        return []
    layer, most = max(there.items(), key=lambda item: item[1].value)
    return [Finding(
        "massive", f"dimension {most.dimension} of the stream at {subject.label(most.pos)} ({most.pos}) holds "
        f"{most.value:,.0f}, {most.value / most.median:,.0f} times the median; massive at layers {min(there)} to {max(there)}",
        most.value, "magnitude", most.median, "the median magnitude in that layer",
        subject.edited(f"resid_post@{layer}:{most.pos}=zero"), place=f"resid_post@{layer}:{most.pos}",
        layer=layer, pos=most.pos, token=subject.label(most.pos),
    )]  # fmt: skip


def sinks(subject: Subject, stream: StreamReading) -> list[Finding]:
    """How many heads give the first token so much of their weight that they are sinks, over the queries after it."""
    weights = {layer: np.asarray(columns["sink"])[0] for layer, columns in stream.heads.items()}
    resting = [(layer, head) for layer, values in weights.items() for head in np.flatnonzero(values >= KINDS["sink"].threshold)]
    n = len(subject.ids)
    if not resting or n < 4:
        return []
    even = float(np.mean(1 / np.arange(2, n + 1)))
    count = sum(map(len, weights.values()))
    layer, head = max(resting, key=lambda one: weights[one[0]][one[1]])
    most = float(weights[layer][head])
    return [Finding(
        "sink", f"{len(resting)} of {count} heads rest on the first token {subject.label(0)}, most of all head "
        f"{layer}.{head}: it gives it {most:.2f} of its weight",
        most, "weight", even, "what equal weights on all tokens would give it",
        subject.command("heads", "--sort", "sink"),
        place=f"pattern@{layer}.{head}", layer=layer, head=int(head), pos=0, token=subject.label(0),
    )]  # fmt: skip
