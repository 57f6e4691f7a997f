"""Rows that share prefixes: each prefix is there once, and what a row has drawn since is its own, in a room of its cohort."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from probe.anatomy.sums import apart, loudest
from probe.anatomy.tape import probe_tokens
from probe.decoding.caches import FilledLayer, expected
from probe.decoding.prefixes import extended
from probe.decoding.rooms import SPARE, Room, filled, next_logits
from probe.decoding.shared_attention import Layout, SharedLayer, SharedPrefix, attend
from probe.devices import uploaded
from probe.instrument import AttentionCall, attended, attending
from probe.language_model.stepping import FAILURES

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

_known: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class Order(NamedTuple):
    """What of it stays until rows come or go; `prefixes` (row, 1) are the lengths of theirs."""

    order: Tensor
    back: Tensor
    prefixes: Tensor
    spans: list[tuple[int, int, SharedPrefix]]


class SharedRoom:
    """Rows that hold what they have drawn only; their prefixes are shared. They come and go as those of a `Room`.

    Rows that came at about the same time are a cohort with a room of its own: no row has memory for the age of another.
    """

    def __init__(self, limit: int, tokens: int) -> None:
        self.limit, self.tokens = limit, tokens  # the most rows, and columns of prefixes and of rows, of more than one row
        self.cohorts: list[Room] = []  # the oldest first; their rows one after the other are the rows
        self.groups: list[SharedPrefix] = []  # of each row
        self._order: Order | None = None  # of these
        self.cache = DynamicCache()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        drawn = [length for cohort in self.cohorts for length in cohort.lengths]
        return [group.length + own for group, own in zip(self.groups, drawn, strict=True)]

    def mask(self, lengths: Tensor) -> None:
        """The model has none to look at: attention knows what is whose."""

    @property
    def size(self) -> int:
        """Columns that the next token of each row takes, of prefixes and of rows."""
        return self._shared + sum(len(cohort.begins) * cohort.columns for cohort in self.cohorts)

    @property
    def _shared(self) -> int:
        return sum({id(group): group.length for group in self.groups}.values())

    @property
    def full(self) -> bool:
        """Whether it may not hold one more token of each row."""
        return len(self.groups) > 1 and self.size > self.tokens

    def fits(self, n: int, length: int, drawn: int) -> bool:
        """Whether n rows may be in it, the new ones of a prefix of so many tokens, if each draws about `drawn` tokens.

        There is to be memory for them at any time to come, as long as no others follow.
        """
        if n <= 1 or n > self.limit:
            return n <= 1
        youngest = self._youngest()
        new = n - len(self.groups) + (0 if youngest is None else len(youngest.begins))
        if new > max(1, self._in_turn(self.tokens - self._shared - length, drawn)):
            return False
        ages = np.zeros(n)
        for start, end, cohort in self.spans():
            ages[start:end] = cohort.width
        left = np.maximum(drawn - ages, SPARE)
        alive = left >= left[:, None]  # (time at which a row ends, row)
        most = (alive * (ages + left[:, None])).sum(-1).max()
        return self._shared + length + most + n * SPARE // 2 <= self.tokens

    def _in_turn(self, columns: int, drawn: int) -> int:
        """Rows of one cohort, so that there is memory for as many as can be if cohorts follow each other in time and draw
        `drawn` tokens each: the oldest are at their end when the youngest begin. Rows that came all at once would take most
        at their end, and little before. All that may be, if there is memory for them anyway."""
        if self.limit * (drawn + SPARE) <= columns:
            return self.limit
        turns = -(-drawn // SPARE)
        return 2 * columns // (SPARE * turns * (turns + 1))

    def place(self, rows: Sequence[int], cache: Any, length: int) -> None:
        """Rows, which follow on the others, begin after the prefix of the cache, which has `length` tokens and is held as it
        is."""
        layers = filled(cache)
        if not self.cache.layers:
            shared = [SharedLayer(layer.keys, layer.values) if layer in layers else layer for layer in cache.layers]
            self.cache.layers.extend(shared)
        group = next((one for one in self.groups if one.cache is cache), None)
        if group is None:
            group = SharedPrefix(cache, length, [(layer.keys[0], layer.values[0]) for layer in layers])
        self.groups += [group] * len(rows)
        self._order = None
        cohort = self._youngest()
        if cohort is None:
            cohort = Room(0, sys.maxsize)
            self.cohorts.append(cohort)
        empty = DynamicCache()
        empty.layers.extend(FilledLayer(layer.keys[:, :, :0], layer.values[:, :, :0]) for layer in layers)
        n = len(cohort.begins)
        cohort.limit = n + len(rows)
        cohort.place(range(n, n + len(rows)), empty, 0)

    def _youngest(self) -> Room | None:
        """The cohort that rows may still join: the oldest are few times as old as its age."""
        span = max([SPARE, *(cohort.width // 8 for cohort in self.cohorts)])
        return self.cohorts[-1] if self.cohorts and self.cohorts[-1].width < span else None

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Rows leave, and prefixes of which none is left; which of the rows stand where now."""
        places: list[int] = []
        for start, end, cohort in self.spans():
            gone = [row - start for row in rows if start <= row < end]
            places += [start + place for place in (cohort.drop(gone) if gone else range(end - start))]
        self.cohorts = [cohort for cohort in self.cohorts if cohort.begins]
        self.groups, self._order = [self.groups[place] for place in places], None
        return places

    def spans(self) -> list[tuple[int, int, Room]]:
        """The rows of each cohort."""
        ends = list(accumulate(len(cohort.begins) for cohort in self.cohorts))
        return [(end - len(cohort.begins), end, cohort) for end, cohort in zip(ends, self.cohorts, strict=True)]

    def make_room(self, lengths: Tensor) -> None:
        """See to it that there is a column for one more token, and tell the layers which rows are whose. lengths (row, 1): of
        the rows, with their prefixes."""
        for cohort in self.cohorts:
            cohort.make_room()
        held = filled(self.cache)
        if self._order is None:
            self._order = self._ordered(held[0].keys.device)
        order, back, prefixes, spans = self._order
        own = lengths.to(prefixes.device) - prefixes
        layout = Layout(
            order, back, spans, max(group.length for group in self.groups),
            [cohort.mask(own[start:end])[:, None, None] == 0 for start, end, cohort in self.spans()],
            max(cohort.width for cohort in self.cohorts) + 1,
        )  # fmt: skip
        for number, layer in enumerate(held):
            layer.number, layer.layout, layer.spans = number, layout, self.spans()

    def _ordered(self, device: torch.device) -> Order:
        groups = list({id(group): group for group in self.groups}.values())
        places = [[i for i, own in enumerate(self.groups) if own is group] for group in groups]
        ends = list(accumulate(map(len, places)))
        order, prefixes = uploaded([[i for some in places for i in some], [group.length for group in self.groups]], device)
        spans = [(end - len(some), end, group) for end, some, group in zip(ends, places, groups, strict=True)]
        return Order(order, order.argsort(), prefixes[:, None], spans)

    def append(self) -> None:
        """A token of every row has been written."""
        for cohort in self.cohorts:
            cohort.append()
        for layer in filled(self.cache):
            layer.seen, layer.own = None, []


@contextmanager
def sharing(lm: LanguageModel, room: SharedRoom) -> Iterator[None]:
    """While active, attention to what the layers of the room hold is also to the prefixes of its rows."""

    def attention(call: AttentionCall) -> Tensor | None:
        layer = next((one for one in filled(room.cache) if one.seen is call.key), None)
        return None if layer is None else attend(call.query, call.scaling, layer, layer.layout)

    with attending(lm.model, attention=attention):
        yield


def shares(lm: LanguageModel) -> bool:
    """Whether rows of the model can share prefixes: its attention is a softmax over all positions that goes through
    transformers' registry, and nobody else has his hands on it. Tried once, on a few tokens."""
    if attended(lm.model):
        return False
    if lm.model not in _known:
        plain = all(type(layer) is DynamicLayer for layer in expected(lm.model.config).layers)
        with torch.inference_mode(False), torch.no_grad():
            _known[lm.model] = plain and _tried(lm)
    return _known[lm.model]


def _tried(lm: LanguageModel) -> bool:
    """Whether two steps of three rows give the logits of their whole texts."""
    ids = probe_tokens(lm.model)[0].tolist()
    texts = [ids[:-3], [*ids[:-4], ids[-1]], ids[: len(ids) // 2]]
    room = SharedRoom(len(texts), sys.maxsize)
    try:
        for rows, prefix in (([0, 1], ids[:-4]), ([2], texts[2][:-1])):
            known = extended(lm, None, tuple(prefix), 0)
            room.place(rows, known.cache, len(prefix))
        with sharing(lm, room):
            for _ in range(2):
                last, lengths = uploaded([[text[-1] for text in texts], room.lengths], lm.device)[..., None]
                logits = next_logits(lm, room, known.slot, last, lengths)
                whole = [lm.model(torch.tensor([text], device=lm.device), use_cache=False).logits[0, -1] for text in texts]
                most = max(1e-3, 8 * torch.finfo(lm.dtype).eps) * float(loudest(torch.stack(whole)))
                if not all(float(apart(own, other).max()) <= most for own, other in zip(logits, whole, strict=True)):
                    return False
                texts = [[*text, ids[i]] for i, text in enumerate(texts)]
    except FAILURES:
        return False
    return True
