"""Attention of many rows to few prefixes: each prefix is there once, and what a row has drawn since is its own.

The scores of all rows of a prefix are one product of matrices; they and the scores of a row's own tokens go through one softmax
(Juravsky et al. 2024, "Hydragen", 2402.05099). So a prefix takes the memory of one row and is read once a step.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from probe.anatomy.sums import apart, loudest
from probe.anatomy.tape import probe_tokens
from probe.decoding.caches import FilledLayer, expected
from probe.decoding.prefixes import extended
from probe.decoding.rooms import Room, RoomLayer, filled, next_logits
from probe.instrument import AttentionCall, attended, attending
from probe.language_model.stepping import FAILURES

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

_known: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class Group(NamedTuple):
    """Rows of one prefix: its cache, and its keys and values (kv head, pos, d) of each layer."""

    cache: Any
    length: int
    layers: list[tuple[Tensor, Tensor]]


class Layout(NamedTuple):
    """Which rows belong to which group, for one step: `order` has them side by side, `back` is its inverse."""

    order: Tensor
    back: Tensor
    spans: list[tuple[int, int, Group]]  # rows of the order
    longest: int
    hidden: Tensor  # (row, 1, 1, column): a column of the room that is not the row's own


class SharedRoom:
    """A room whose rows hold what they have drawn only; their prefixes are shared. Rows come and go as in a `Room`."""

    def __init__(self, limit: int, tokens: int) -> None:
        self.tokens = tokens  # the most columns, of prefixes and of rows, of more than one row
        self.own = Room(limit, tokens, layer=SharedLayer)
        self.groups: list[Group] = []  # of each row

    @property
    def cache(self) -> DynamicCache:
        """What the model is given."""
        return self.own.cache

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [group.length + own for group, own in zip(self.groups, self.own.lengths, strict=True)]

    def mask(self, device: Any) -> None:
        """The model has none to look at: attention knows what is whose."""

    @property
    def _shared(self) -> int:
        return sum({id(group): group.length for group in self.groups}.values())

    def fits(self, n: int, length: int) -> bool:
        """Whether n rows may be in it, one of them of a prefix of so many tokens, and grow for a while."""
        self.own.tokens = max(1, self.tokens - self._shared - length)
        return n <= 1 or self.own.fits(n, 0)

    @property
    def full(self) -> bool:
        """Whether it may not hold one more token of each row."""
        self.own.tokens = max(1, self.tokens - self._shared)
        return self.own.full

    def place(self, rows: Sequence[int], cache: Any, length: int) -> None:
        """Rows begin after the prefix of the cache, which has `length` tokens and is held as it is."""
        layers = filled(cache)
        group = next((one for one in self.groups if one.cache is cache), None)
        if group is None:
            group = Group(cache, length, [(layer.keys[0], layer.values[0]) for layer in layers])
        empty = DynamicCache()
        empty.layers.extend(
            FilledLayer(layer.keys[:, :, :0], layer.values[:, :, :0]) if layer in layers else layer for layer in cache.layers
        )
        self.groups += [group] * (max(rows) + 1 - len(self.groups))
        for row in rows:
            self.groups[row] = group
        self.own.tokens = max(1, self.tokens - self._shared)
        self.own.place(rows, empty, 0)

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Rows leave, and prefixes of which none is left; which of the rows stand where now."""
        places = self.own.drop(rows)
        self.groups = [self.groups[place] for place in places]
        return places

    def make_room(self) -> None:
        """See to it that there is a column for one more token, and tell the layers which rows are whose."""
        self.own.tokens = max(1, self.tokens - self._shared)
        self.own.make_room()
        groups = list({id(group): group for group in self.groups}.values())
        places = [[i for i, own in enumerate(self.groups) if own is group] for group in groups]
        ends = torch.tensor([len(some) for some in places]).cumsum(0).tolist()
        device = filled(self.cache)[0].keys.device
        order = torch.tensor([i for some in places for i in some], device=device)
        layout = Layout(
            order, order.argsort(),
            [(end - len(some), end, group) for end, some, group in zip(ends, places, groups, strict=True)],
            max(group.length for group in groups),
            self.own.mask(device)[:, None, None] == 0,
        )  # fmt: skip
        for number, layer in enumerate(filled(self.cache)):
            layer.number, layer.layout = number, layout

    def append(self) -> None:
        """A token of every row has been written."""
        self.own.append()


class SharedLayer(RoomLayer):
    """The layer of such a room. `number`: which it is of those that hold anything."""

    number = 0
    layout: Layout


@contextmanager
def sharing(lm: LanguageModel, room: SharedRoom) -> Iterator[None]:
    """While active, attention to what the layers of the room hold is also to the prefixes of its rows."""

    def attention(call: AttentionCall) -> Tensor | None:
        layer = next((one for one in filled(room.cache) if one.seen is call.key), None)
        return None if layer is None else _attend(call, layer.layout, layer.number)

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
                logits = next_logits(lm, room, known.slot, [text[-1] for text in texts])
                whole = [lm.model(torch.tensor([text], device=lm.device), use_cache=False).logits[0, -1] for text in texts]
                most = max(1e-3, 8 * torch.finfo(lm.dtype).eps) * float(loudest(torch.stack(whole)))
                if not all(float(apart(own, other).max()) <= most for own, other in zip(logits, whole, strict=True)):
                    return False
                texts = [[*text, ids[i]] for i, text in enumerate(texts)]
    except FAILURES:
        return False
    return True


def _attend(call: AttentionCall, layout: Layout, number: int) -> Tensor:
    """Output (row, 1, head, d_value) of one query a row: softmax over its prefix and its own tokens."""
    rows, heads, _, d = call.query.shape
    kv_heads, n = call.key.shape[1], layout.longest
    repeats = heads // kv_heads
    query = call.query.reshape(rows, kv_heads, repeats, d) * call.scaling
    near = (query @ call.key.transpose(-1, -2)).masked_fill_(layout.hidden, -torch.inf)
    together = _by_head(query[layout.order])
    far = query.new_full((kv_heads, rows * repeats, n), -torch.inf)
    for start, end, group in layout.spans:
        keys, _ = group.layers[number]
        some = slice(start * repeats, end * repeats)
        far[:, some, : group.length] = together[:, some] @ keys.transpose(-1, -2)
    scores = torch.cat([_by_row(far, rows)[layout.back], near], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(call.value.dtype)
    output = weights[..., n:] @ call.value
    together = _by_head(weights[..., :n][layout.order])
    parts = []
    for start, end, group in layout.spans:
        _, values = group.layers[number]
        parts.append(together[:, start * repeats : end * repeats, : group.length] @ values)
    output += _by_row(torch.cat(parts, dim=1), rows)[layout.back]
    return output.reshape(rows, 1, heads, -1)


def _by_head(rows: Tensor) -> Tensor:
    """(row, kv head, query of it, n) -> (kv head, row and query, n)."""
    return rows.transpose(0, 1).flatten(1, 2)


def _by_row(heads: Tensor, rows: int) -> Tensor:
    """And back."""
    return heads.unflatten(1, (rows, -1)).transpose(0, 1)
