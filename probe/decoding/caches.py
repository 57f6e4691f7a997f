"""A model's own cache, forked and joined: one prefix for many rows, several prefixes in one batch. Knows no sampling."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)
from transformers.generation.utils import ALL_CACHE_NAMES

_KEYED = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
_JOINED = (*_KEYED, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer)
ROOM = 64  # positions that are made room for at once, or a quarter of what is there if that is more


def slot(model: nn.Module) -> str | None:
    """Under which name the model's forward takes its cache (transformers renamed it in 5.24); None if it takes none."""
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in ALL_CACHE_NAMES if name in accepted), None)


def held(output: Any) -> Any:
    """The cache in what a forward returned; None if there is none."""
    return next((output[name] for name in ALL_CACHE_NAMES if output.get(name) is not None), None)


def selects(cache: Any) -> bool:
    """Whether rows of the cache can be repeated and dropped: not lists of states, nor what a family adds to the layers."""
    return type(cache) in (Cache, DynamicCache) and all(hasattr(layer, "reorder_cache") for layer in cache.layers)


def grows(cache: Any) -> bool:
    """Whether several tokens may follow what is cached: yes for keys and values.

    Some families forget a recurrent state when several tokens follow it (jamba, transformers 5.23).
    """
    return selects(cache) and not any(hasattr(layer, "update_recurrent_state") for layer in cache.layers)


def joins(cache: Any) -> bool:
    """Whether caches of this kind, of prefixes of one length, can be rows of one."""
    return selects(cache) and all(type(layer) in _JOINED for layer in cache.layers)


def pads(cache: Any) -> bool:
    """Whether they can where the lengths differ: shorter ones get empty positions on the left, which a mask must hide."""
    return selects(cache) and all(type(layer) in _KEYED for layer in cache.layers)


def expected(config: Any) -> Any:
    """An empty cache as transformers makes it for a model of this config; None where it has no layer of some type."""
    try:
        return DynamicCache(config=config)
    except KeyError:
        return None


def forked(cache: Any) -> Any:
    """The same once more, for other tokens to follow: what is cached is shared where a layer never writes over it."""
    other = copy.copy(cache)
    other.layers = [copy.copy(one) if type(one) in _KEYED else copy.deepcopy(one) for one in cache.layers]
    return other


def select(cache: Cache, rows: Sequence[int]) -> None:
    """Rows of the cache become these of its rows, in place; one may come many times."""
    cache.reorder_cache(torch.tensor(list(rows)))  # type: ignore[arg-type]


def joined(caches: Sequence[Any], repeats: Sequence[int]) -> Cache:
    """One cache whose rows are each cache's only one, repeated, in this order; the caches are used up.

    Where there is but one its keys and values are shared by all rows until the first token follows; from then on each row
    has its own, in a room in which every further token is written in place.
    """
    whole = caches[0]
    if joins(whole):
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            _join(layers, repeats)
    else:
        assert len(caches) == 1, "caches of this kind can't be joined"
        select(whole, [0] * repeats[0])
    make_room(whole)
    return whole


def make_room(cache: Any) -> None:
    """Let the plain layers of a cache write in place from now on, not copy all they hold for every token."""
    if selects(cache):
        cache.layers[:] = [roomy(layer) for layer in cache.layers]


def roomy(layer: Any) -> Any:
    """A plain layer that holds something as one that writes in place; another as it is."""
    if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
        return layer
    return RoomyLayer(layer.keys, layer.values)


class FilledLayer(DynamicLayer):
    """A layer of a cache that holds keys and values (row, head, pos, d) from the beginning."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


class RoomyLayer(FilledLayer):
    """Keys and values (row, head, pos, d) of every position, in a room that is larger than they are."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(keys, values)
        self._rooms: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, old: Tensor, new: Tensor) -> Tensor:
        n, rows = old.shape[-2], len(new)
        total, room = n + new.shape[-2], self._rooms.get(name)
        ours = room is not None and room.data_ptr() == old.data_ptr() and len(room) == rows
        if room is None or not ours or room.shape[-2] < total:
            room = new.new_empty((*new.shape[:-2], total + max(ROOM, total // 4), new.shape[-1]))
            room[..., :n, :] = old
            self._rooms[name] = room
        room[..., n:total, :] = new
        return room[..., :total, :]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Fewer rows move together within the room."""
        for name in ("keys", "values"):
            old, room = getattr(self, name), self._rooms.pop(name, None)
            found = old.index_select(0, beam_idx.to(old.device))
            if room is not None and len(found) <= len(room):
                self._rooms[name] = room[: len(found)]
                self._rooms[name][..., : old.shape[-2], :] = found
                found = self._rooms[name][..., : old.shape[-2], :]
            setattr(self, name, found)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)


def _join(layers: Sequence[Any], repeats: Sequence[int]) -> None:
    """The first layer gets the rows of all."""
    first = layers[0]
    if getattr(first, "keys", None) is not None:
        first.keys = _stacked([layer.keys for layer in layers], repeats)
        first.values = _stacked([layer.values for layer in layers], repeats)
    for name in ("conv_states", "recurrent_states"):
        states = getattr(first, name, {})
        for key in [key for key, state in states.items() if state is not None]:
            states[key] = torch.cat(
                [getattr(layer, name)[key].repeat_interleave(n, 0) for layer, n in zip(layers, repeats, strict=True)]
            )
    if hasattr(first, "cumulative_length"):
        first.cumulative_length = max(layer.cumulative_length for layer in layers)


def _stacked(parts: Sequence[Tensor], repeats: Sequence[int]) -> Tensor:
    """Tensors (1, head, pos, d) -> (row, head, pos, d), flush right over zeros; a single one is not copied."""
    if len(parts) == 1:
        return parts[0].expand(repeats[0], *parts[0].shape[1:])
    width, shape = max(part.shape[-2] for part in parts), parts[0].shape
    whole = parts[0].new_zeros((sum(repeats), *shape[1:-2], width, shape[-1]))
    row = 0
    for part, n in zip(parts, repeats, strict=True):
        whole[row : row + n, ..., width - part.shape[-2] :, :] = part
        row += n
    return whole
