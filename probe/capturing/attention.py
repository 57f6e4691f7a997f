"""Watches the attention of one forward and hands a sink what was asked: cards, lines, top-k or full rows, scores, q, k, v.

One layer at a time, one block of rows at a time; only the lines of a layer are ever held whole.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.anatomy.parts import of_call
from probe.capturing import rows as lists
from probe.capturing.compiled import CompiledLines
from probe.capturing.masks import Masks
from probe.capturing.patterns import Block, CalledPattern, GivenPattern, Source, blocks
from probe.capturing.sinks import Columns, Sink
from probe.capturing.spec import AttentionSpec
from probe.capturing.statistics import NAMES, NAT, Lines, Matches
from probe.errors import SiteAbsent
from probe.instrument import AttentionCall
from probe.sites import SITES, sites_of
from probe.sites.positions import listed
from probe.workers import each, in_order

if TYPE_CHECKING:
    from probe.sites import Cell

LINED = ("summary", "topk", "full")  # modes with a line a row


@dataclass
class AttentionReader:
    """The observer of one read. `layers` says which layer a visit of a module is; cells say which heads to keep whole.

    `patterns` and `scores`: layer -> heads whose full rows are wanted. `emit` takes the sites q, k and v.
    After the forward `told` has a reason for every layer that was asked for and seen: empty if its pattern was read.
    """

    spec: AttentionSpec
    ids: Tensor
    lengths: Sequence[int]
    sink: Sink
    layers: dict[tuple[str, int], int]
    patterns: dict[int, list[int]]
    scores: dict[int, list[int]]
    emit: Callable[[str, int, Tensor], None]
    told: dict[int, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._matches = [Matches(self.ids[b, :n]) for b, n in enumerate(self.lengths)]
        self._masks, self._memory = Masks(), lists.Memory()
        self._buffers: deque[Tensor] = deque()
        self._emitted: set[tuple[str, int]] = set()

    def observe(self, path: str, call: AttentionCall, output: Tensor) -> None:
        """Read one attention call; the forward goes on with what it had."""
        layer = self.layers.get((path, call.visit))
        if layer is None:
            return
        for site in sites_of("call"):
            if SITES[site].field:
                self.emit(site, layer, of_call(call, site))
                self._emitted.add((site, layer))
        if not self.wants(layer):
            return
        sources: list[Source] = []
        for prompt, n in enumerate(self.lengths):
            problem = _unreadable(call)
            if not problem:
                source = CalledPattern(call, prompt, n, self._masks)
                problem = self._disagreement(source, call, output, prompt)
            if problem:
                self._refuse(layer, problem)
                return
            sources.append(source)
        self._read(layer, sources)

    def given(self, layer: int, weights: Tensor | None, *, causal: bool) -> bool:
        """Read a layer from weights (batch, head, query, key) that the model returned; whether they are such weights."""
        length = self.ids.shape[1]
        if weights is None or weights.ndim != 4 or weights.shape[2:] != (length, length) or float(weights.min()) < 0:
            self._refuse(layer, "the model neither calls a shared attention function nor returns weights for it")
            return False
        sources: list[Source] = [GivenPattern(weights[b, :, :n, :n], causal=causal) for b, n in enumerate(self.lengths)]
        self.scores.pop(layer, None)  # they are not what a weight's logarithm is
        self._read(layer, sources)
        return True

    def _refuse(self, layer: int, problem: str) -> None:
        self.told[layer] = problem

    def said(self) -> tuple[str, ...]:
        """What a user must know of the layers that were read, or were not: one sentence a reason."""
        layers: dict[str, list[int]] = {}
        for layer, problem in sorted(self.told.items()):
            if problem:
                layers.setdefault(problem, []).append(layer)
        unread = [f"no attention recorded at layers {listed(found)}: {why}" for why, found in layers.items()]
        return (*unread, *dict.fromkeys(self.warnings))

    def check(self, cells: Sequence[Cell]) -> None:
        """Raises `SiteAbsent` for a cell of `pattern`, `scores`, `q`, `k` or `v` that was asked for and never came."""
        for site, layer in {(cell.site, cell.layer) for cell in cells}:
            came = {
                "pattern": self.told.get(layer) == "", "scores": self.told.get(layer) == "" and layer in self.scores,
            }.get(site, not SITES[site].field or (site, layer) in self._emitted)  # fmt: skip
            if not came:
                why = self.told.get(layer) or "its attention function cannot be observed"
                raise SiteAbsent(f"this model has no {site}@{layer} to record", hint=why)

    @property
    def wanted(self) -> bool:
        """Whether anything of any layer's pattern was asked for."""
        return self.spec.mode != "none" or bool(self.patterns or self.scores)

    def wants(self, layer: int) -> bool:
        """Whether anything of this layer's pattern was asked for."""
        return self.spec.mode != "none" or layer in self.patterns or layer in self.scores

    def _read(self, layer: int, sources: list[Source]) -> None:
        cards = []
        for prompt, source in enumerate(sources):
            statistics = self._read_prompt(layer, prompt, source)
            if self.spec.mode != "none":
                cards.append(card(statistics, self._matches[prompt].rows))
            if self.spec.mode in LINED:
                self.sink.rows(prompt, layer, line_columns(statistics))
        if cards:
            self.sink.heads(layer, {name: np.stack([c[name] for c in cards]) for name in cards[0]})
        self.told[layer] = ""

    def _read_prompt(self, layer: int, prompt: int, source: Source) -> dict[str, Tensor]:
        """All blocks of one prompt in one layer; statistics (head, query)."""
        mode, matches = self.spec.mode, self._matches[prompt]
        whole = list(range(source.n_heads)) if mode == "full" else self.patterns.get(layer, [])
        scores_of = self.scores.get(layer, [])
        pieces = lists.Pieces(
            source, whole, partial(self.sink.attention, prompt, layer), name="weights", memory=self._memory
        )
        score_pieces = lists.Pieces(
            source, scores_of, partial(self.sink.scores, prompt, layer), name="scores", memory=self._memory
        )
        lines = (CompiledLines if source.compiled else Lines)(source, matches, peaks=mode in LINED)
        tops = _Tops(source, self.spec.k) if mode == "topk" else None

        def read(work: _Work) -> _Work:
            """Puts what a block amounts to where it belongs."""
            block, kept, kept_scores = work
            if mode == "none" and kept is None and kept_scores is None:
                return work
            with self._room(block, source) as (scores, room):
                scores = source.scores(block, scores)
                if kept_scores is not None:
                    lists.whole_scores(block, _of(scores, kept_scores, block), kept_scores)
                mass, total = lines.add(block, scores, room)
                if tops is not None:
                    tops.add(block, mass, total)
                if kept is not None:
                    mine = _of(mass, kept, block), _of(total, kept, block)
                    lists.whole_weights(block, *mine, kept, by_loops=source.compiled)
            return work

        def hand_over(work: _Work) -> None:
            pieces.add(work.weights)
            score_pieces.add(work.scores)

        if whole or scores_of:
            works = (
                _Work(block, pieces.room(block), score_pieces.room(block)) for block in blocks(source, single=True)
            )
            in_order(read, works, hand_over, source.device)
            pieces.flush()
            score_pieces.flush()
        else:
            each(read, [_Work(block, None, None) for block in blocks(source)], source.device)
        if tops is not None:
            self.sink.attention(prompt, layer, tops.columns(without=whole))
        return lines.statistics()

    @contextmanager
    def _room(self, block: Block, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """Two flat buffers with room for a block, which the next block takes over."""
        size = math.prod(block.shape)
        try:
            held = self._buffers.pop()
        except IndexError:
            held = torch.empty(2, 0)
        if len(held[0]) < size or held[0].dtype != source.dtype or held[0].device != source.device:
            held = torch.empty(2, size, dtype=source.dtype, device=source.device)
        yield held[0], held[1]
        self._buffers.append(held)

    def _disagreement(self, source: CalledPattern, call: AttentionCall, output: Tensor, prompt: int) -> str:
        """Whether the last row's weights times the values are what the attention function returned; the difference if not."""
        n = source.n
        block = Block(0, source.n_heads, n - 1, n, *source.keys(n - 1, n))
        with self._room(block, source) as (room, _):
            scores, sinks = source.scores(block, room) * NAT, source.sinks(block)
        if sinks is None:
            weights = scores.softmax(-1)
        else:
            weights = torch.cat([scores, sinks[:, -1:, None] * NAT], dim=-1).softmax(-1)[..., :-1]
        values = call.value[prompt, :, block.low : block.high].to(weights.dtype)
        expected = weights.reshape(values.shape[0], -1, weights.shape[-1]) @ values
        real = output[prompt, n - 1].to(weights.dtype)
        if real.numel() != expected.numel():
            return "the attention function's output has another shape than its weights times the values"
        error = float((expected.reshape(-1) - real.reshape(-1)).abs().max() / real.abs().max().clamp_min(1e-30))
        tolerance = max(1e-4, 8 * torch.finfo(output.dtype).eps)
        return "" if error <= tolerance else f"its weights times the values differ from its output by {error:.1e}"


class _Work(NamedTuple):
    """A block, and where those of its rows go that are kept whole."""

    block: Block
    weights: lists.Rows | None
    scores: lists.Rows | None


def _of(values: Tensor, rows: lists.Rows, block: Block) -> Tensor:
    """Of a block's values (head, ...) those of the heads of `rows`."""
    heads = rows.columns["head"][:: block.end - block.start].tolist()
    return values if len(heads) == block.n_heads else values[[head - block.head for head in heads]]


class _Tops:
    """The k largest weights of every row of a layer, best first: `weights` and `keys` (head, query, k), 0 past the last."""

    def __init__(self, source: Source, k: int) -> None:
        shape = source.n_heads, source.n, min(k, source.n)
        self._source = source
        self.weights = torch.zeros(shape, dtype=source.dtype, device=source.device)
        self.keys = torch.zeros(shape, dtype=torch.int32, device=source.device)

    def add(self, block: Block, mass: Tensor, total: Tensor) -> None:
        weights, keys = lists.top_of(self._source, block, mass, total, self.weights.shape[-1])
        where = slice(block.head, block.head + block.n_heads), slice(block.start, block.end), slice(0, keys.shape[-1])
        self.weights[where], self.keys[where] = weights, keys.to(torch.int32)

    def columns(self, *, without: list[int]) -> Columns:
        """Columns of `attention`, but for heads whose full rows are kept."""
        heads = [h for h in range(len(self.weights)) if h not in without]
        return lists.top_columns(heads, self.weights[heads], self.keys[heads])


def card(statistics: dict[str, Tensor], matched: dict[str, Tensor]) -> Columns:
    """Columns of `heads` for one prompt, each (head,): means over queries 1.. (the first has nothing to choose from).

    duplicate and induction: over the queries that have such a position. NaN where there is no query to average.
    """
    n_heads, n = statistics["entropy"].shape
    out: Columns = {"rows": np.full(n_heads, n - 1, np.int32)}
    for name in NAMES:
        chosen = statistics[name].cpu()[:, 1:]
        if name in matched:
            chosen = chosen[:, matched[name][1:]]
        out[name] = chosen.mean(-1, dtype=torch.float64).to(torch.float32).numpy()
    return out


def line_columns(statistics: dict[str, Tensor]) -> Columns:
    """Columns of `attention_rows` for one prompt and layer: statistics (head, query) flattened."""
    n_heads, n = statistics["entropy"].shape
    flat: dict[str, Any] = {
        name: statistics[name].flatten().to(torch.float32).cpu().numpy() for name in (*NAMES, "max_weight")
    }
    return {
        "head": np.repeat(np.arange(n_heads, dtype=np.int16), n), "query": np.tile(np.arange(n, dtype=np.int32), n_heads),
        **flat, "max_key": statistics["max_key"].flatten().cpu().numpy().astype(np.int32),
    }  # fmt: skip


def _unreadable(call: AttentionCall) -> str:
    """Why a call cannot be read at all, or nothing."""
    if call.key.shape[2] != call.query.shape[2]:
        return f"{call.query.shape[2]} queries look at {call.key.shape[2]} keys"
    if call.mask is not None and not isinstance(call.mask, Tensor):
        return f"its mask is a {type(call.mask).__name__}"
    return ""
