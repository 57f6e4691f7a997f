"""Watches the attention of one forward and hands a sink head summaries, row statistics, top-k or full rows, scores, q, k, v.

One layer at a time, one tile of rows at a time; only the row statistics of a layer are ever held whole.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.anatomy.parts import of_call
from probe.capturing import rows as lists
from probe.capturing.masks import Masks
from probe.capturing.patterns import CalledPattern, GivenPattern, ScoreSource, Tile, tiles
from probe.capturing.sinks import AttentionSpec, Sink
from probe.capturing.statistics import NAT, CompiledRowStatistics, Matches, RowStatistics, SummarySums, row_columns
from probe.devices import Readback, uploaded
from probe.errors import SiteAbsent
from probe.instrument import AttentionCall
from probe.sites import SITES, sites_of
from probe.sites.positions import listed
from probe.workers import each, in_order

if TYPE_CHECKING:
    from probe.sites import Cell

SHAPES = "the attention function's output has another shape than its weights times the values"
WITH_ROWS = ("summary", "topk", "full")  # modes with statistics of each row

CallReader = Callable[[int, int, AttentionCall, Tensor, CalledPattern], None]
"""(prompt, layer, the call, its output (batch, pos, head, d), that prompt's scores) of each layer whose pattern was read: the
call's tensors are the forward's own, not to be kept or written into."""


@dataclass
class AttentionReader:
    """The observer of one read. `layers` says which layer a visit of a module is; cells say which heads to keep whole.

    `patterns` and `scores`: layer -> heads whose full rows are wanted. `emit` takes the sites q, k and v.
    `first`: where the forward begins, if it is of a later part of one text; `ids` are those up to its end. `sums`: what parts
    before it gave to the head summaries; `ended`: whether it is the last part.
    After the forward `reasons` says of every layer that was asked for and seen why its pattern was not read: empty if it was.
    """

    spec: AttentionSpec
    ids: Tensor
    lengths: Sequence[int]
    sink: Sink
    layers: dict[tuple[str, int], int]
    patterns: dict[int, list[int]]
    scores: dict[int, list[int]]
    emit: Callable[[str, int, Tensor], None]
    calls: CallReader | None = None
    first: int = 0
    ended: bool = True
    sums: dict[tuple[int, int], SummarySums] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    readback: Readback = field(default_factory=Readback)

    def __post_init__(self) -> None:
        self._matches = [Matches(self.ids[b, :n]) for b, n in enumerate(self.lengths)]
        self._masks, self._memory = Masks(), lists.PieceMemory()
        self._buffers: deque[Tensor] = deque()
        self._emitted: set[tuple[str, int]] = set()

    def observe(self, path: str, call: AttentionCall, output: Tensor) -> None:
        """Read one attention call; the forward goes on with what it had."""
        layer = self.layers.get((path, call.visit))
        if layer is None:
            return
        for site in sites_of("call"):
            if SITES[site].field:
                value = of_call(call, site)
                own = value[:, :, -call.query.shape[2] :] if self.first else value  # not the keys and values of parts before
                self.emit(site, layer, own)
                self._emitted.add((site, layer))
        if not self.wants(layer):
            return
        patterns: list[CalledPattern] = []
        errors: list[Tensor] = []
        for prompt, n in enumerate(self.lengths):
            problem = _unreadable(call, self.first)
            if not problem:
                patterns.append(CalledPattern(call, prompt, n, self._masks, first=self.first))
                error = self._disagreement(patterns[-1], call, output, prompt)
                errors += [] if error is None else [error]
                problem = "" if error is not None else SHAPES
            if problem:
                self.reasons[layer] = problem
                return
        tolerance = max(1e-4, 8 * torch.finfo(output.dtype).eps)
        self.readback.put([torch.stack(errors)], partial(self._judge, layer, tolerance))
        if self.calls is not None:  # who takes rows as they are made must know
            self.readback.finish()
        if self.reasons.get(layer):
            return
        self._read(layer, patterns)
        if self.calls is not None:
            for prompt, pattern in enumerate(patterns):
                self.calls(prompt, layer, call, output, pattern)

    def read_returned(self, layer: int, weights: Tensor | None, *, causal: bool) -> bool:
        """Read a layer from weights (batch, head, query, key) that the model returned; whether they are such weights."""
        length = self.ids.shape[1]
        if weights is None or weights.ndim != 4 or weights.shape[2:] != (length, length) or float(weights.min()) < 0:
            self.reasons[layer] = "the model neither calls a shared attention function nor returns weights for it"
            return False
        patterns: list[ScoreSource] = [GivenPattern(weights[b, :, :n, :n], causal=causal) for b, n in enumerate(self.lengths)]
        self.scores.pop(layer, None)  # they are not what a weight's logarithm is
        self.reasons[layer] = ""
        self._read(layer, patterns)
        return True

    def finish(self) -> None:
        """Hand over what is still on its way from the device."""
        self.readback.finish()

    def messages(self) -> tuple[str, ...]:
        """What a user must know of the layers that were read, or were not: one sentence for each reason."""
        layers: dict[str, list[int]] = {}
        for layer, problem in sorted(self.reasons.items()):
            if problem:
                layers.setdefault(problem, []).append(layer)
        unread = [f"no attention recorded at layers {listed(found)}: {why}" for why, found in layers.items()]
        return (*unread, *dict.fromkeys(self.warnings))

    def check(self, cells: Sequence[Cell]) -> None:
        """Raises `SiteAbsent` for a cell of `pattern`, `scores`, `q`, `k` or `v` that was asked for and never came."""
        for site, layer in {(cell.site, cell.layer) for cell in cells}:
            came = {
                "pattern": self.reasons.get(layer) == "", "scores": self.reasons.get(layer) == "" and layer in self.scores,
            }.get(site, not SITES[site].field or (site, layer) in self._emitted)  # fmt: skip
            if not came:
                why = self.reasons.get(layer) or "its attention function cannot be observed"
                raise SiteAbsent(f"this model has no {site}@{layer} to record", hint=why)

    @property
    def wanted(self) -> bool:
        """Whether anything of any layer's pattern was asked for."""
        return self.spec.mode != "none" or bool(self.patterns or self.scores)

    def wants(self, layer: int) -> bool:
        """Whether anything of this layer's pattern was asked for."""
        return self.spec.mode != "none" or layer in self.patterns or layer in self.scores

    def _judge(self, layer: int, tolerance: float, errors: Tensor) -> None:
        """Whether a layer's rows may be handed over, by how far each prompt's weights are from the call's output."""
        error = next((error for error in errors.tolist() if not error <= tolerance), None)
        self.reasons[layer] = "" if error is None else f"its weights times the values differ from its output by {error:.1e}"

    def _read(self, layer: int, patterns: Sequence[ScoreSource]) -> None:
        for prompt, pattern in enumerate(patterns):
            statistics = self._read_prompt(layer, prompt, pattern)
            if self.spec.mode != "none":
                last = prompt == len(patterns) - 1
                self._hand(layer, list(statistics.values()), partial(self._summarize, layer, prompt, list(statistics), last))

    def _hand(self, layer: int, tensors: Sequence[Tensor], then: Callable[..., object]) -> None:
        """Do something with tensors when they are there, unless the layer turns out to be none that can be read."""
        self.readback.put(tensors, lambda *values: None if self.reasons[layer] else then(*values))

    def _summarize(self, layer: int, prompt: int, names: Sequence[str], last: bool, *values: Tensor) -> None:
        """Hand over what the statistics of a prompt's rows come to, and with the last prompt all their summaries."""
        statistics = dict(zip(names, values, strict=True))
        sums = self.sums.setdefault((layer, prompt), SummarySums(len(statistics["entropy"])))
        sums.add(statistics, self._matches[prompt].rows, self.first)
        if self.spec.mode in WITH_ROWS:
            self.sink.rows(prompt, layer, row_columns(statistics, self.first))
        if last and self.ended:
            own = [self.sums.pop((layer, one)).columns() for one in range(prompt + 1)]
            self.sink.heads(layer, {name: np.stack([s[name] for s in own]) for name in own[0]})

    def _read_prompt(self, layer: int, prompt: int, pattern: ScoreSource) -> dict[str, Tensor]:
        """All tiles of one prompt in one layer; statistics (head, query) of its queries from `first` on."""
        mode, matches = self.spec.mode, self._matches[prompt]
        whole = list(range(pattern.n_heads)) if mode == "full" else self.patterns.get(layer, [])
        scores_of = self.scores.get(layer, [])
        pieces = lists.RowPieces(
            pattern, whole, partial(self.sink.attention, prompt, layer), name="weights", memory=self._memory
        )
        score_pieces = lists.RowPieces(
            pattern, scores_of, partial(self.sink.scores, prompt, layer), name="scores", memory=self._memory
        )
        statistics = (CompiledRowStatistics if pattern.compiled else RowStatistics)(pattern, matches, peaks=mode in WITH_ROWS)
        tops = lists.TopRows(pattern, self.spec.k) if mode == "topk" else None

        def read(work: _Work) -> _Work:
            """Puts what a tile amounts to where it belongs."""
            tile, kept, kept_scores, _ = work
            if mode == "none" and kept is None and kept_scores is None:
                return work
            with self._room(tile, pattern) as (scores, room):
                scores = pattern.scores(tile, scores)
                if kept_scores is not None:
                    filled(work, lists.whole_scores(tile, _of(scores, kept_scores, tile), kept_scores))
                mass, total = statistics.add(tile, scores, room)
                if tops is not None:
                    tops.add(tile, mass, total)
                if kept is not None:
                    mine = _of(mass, kept, tile), _of(total, kept, tile)
                    filled(work, lists.whole_weights(tile, *mine, kept, by_loops=pattern.compiled))
            return work

        def filled(work: _Work, filling: lists.Filling) -> None:
            """On a CPU here and now, by whichever thread this is; from a device when they are there."""
            if pattern.device.type == "cpu":
                filling.fill(*filling.tensors)
            else:
                work.fillings.append(filling)

        def hand_over(work: _Work) -> None:
            for tensors, fill in work.fillings:
                self._hand(layer, tensors, fill)
            self._hand(layer, (), partial(pieces.add, work.weights))
            self._hand(layer, (), partial(score_pieces.add, work.scores))

        if whole or scores_of:
            works = (_Work(tile, pieces.room(tile), score_pieces.room(tile), []) for tile in tiles(pattern, single=True))
            in_order(read, works, hand_over, pattern.device)
            self._hand(layer, (), pieces.flush)
            self._hand(layer, (), score_pieces.flush)
        else:
            each(read, [_Work(tile, None, None, []) for tile in tiles(pattern)], pattern.device)
        if tops is not None:
            heads, *found = tops.kept(without=whole)
            columns = partial(lists.top_columns, heads, first=self.first)
            self._hand(layer, found, lambda *kept: self.sink.attention(prompt, layer, columns(*kept)))
        return statistics.finished()

    @contextmanager
    def _room(self, tile: Tile, pattern: ScoreSource) -> Iterator[tuple[Tensor, Tensor]]:
        """Two flat buffers with room for a tile, which the next tile takes over."""
        size = math.prod(tile.shape)
        try:
            held = self._buffers.pop()
        except IndexError:
            held = torch.empty(2, 0)
        if len(held[0]) < size or held[0].dtype != pattern.dtype or held[0].device != pattern.device:
            held = torch.empty(2, size, dtype=pattern.dtype, device=pattern.device)
        yield held[0], held[1]
        self._buffers.append(held)

    def _disagreement(self, pattern: CalledPattern, call: AttentionCall, output: Tensor, prompt: int) -> Tensor | None:
        """How far the last row's weights times the values are from what the attention function returned, in its largest
        number; None if they have another shape."""
        n = pattern.n
        tile = Tile(0, pattern.n_heads, n - 1, n, *pattern.keys(n - 1, n))
        with self._room(tile, pattern) as (room, _):
            scores, sinks = pattern.scores(tile, room) * NAT, pattern.sinks(tile)
        if sinks is None:
            weights = scores.softmax(-1)
        else:
            weights = torch.cat([scores, sinks[:, -1:, None] * NAT], dim=-1).softmax(-1)[..., :-1]
        values = pattern.values(call, prompt, tile.low, tile.high).to(weights.dtype)
        expected = weights.reshape(values.shape[0], -1, weights.shape[-1]) @ values
        real = output[prompt, n - 1 - self.first].to(weights.dtype)
        if real.numel() != expected.numel():
            return None
        return (expected.reshape(-1) - real.reshape(-1)).abs().max() / real.abs().max().clamp_min(1e-30)


class _Work(NamedTuple):
    """A tile, where those of its rows go that are kept whole, and what is yet to come of them from a device."""

    tile: Tile
    weights: lists.Rows | None
    scores: lists.Rows | None
    fillings: list[lists.Filling]


def _of(values: Tensor, rows: lists.Rows, tile: Tile) -> Tensor:
    """Of a tile's values (head, ...) those of the heads of `rows`."""
    heads = rows.columns["head"][:: tile.end - tile.start].tolist()
    return values if len(heads) == tile.n_heads else values[uploaded([head - tile.head for head in heads], values.device)]


def _unreadable(call: AttentionCall, first: int) -> str:
    """Why a call of a forward that begins at `first` cannot be read at all, or nothing."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    if not queries <= keys <= first + queries:
        return f"{queries} queries look at {keys} keys"
    if call.mask is not None and not isinstance(call.mask, Tensor):
        return f"its mask is a {type(call.mask).__name__}"
    return ""
