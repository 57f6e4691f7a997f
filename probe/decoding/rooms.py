"""A cache whose rows come and go while the others stay where they are: keys and values in one room, flush right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from probe.decoding.caches import FilledLayer
from probe.language_model.stepping import cache_support, forward, plain_kwargs

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

SPARE = 16  # columns that are made room for at once, or an eighth of what there is if that is more


class Room:
    """Rows of keys and values that end at one column, whatever their lengths: the next token of all is written to the next.

    A row that comes is written over one that has left; a mask and positions hide what stood before it. The columns in use
    are `left` up to `right`: those that no row needs any more are given up by narrowing the view. All is moved only when
    there is no column left, or more rows come than ever were.
    """

    def __init__(self, limit: int, tokens: int) -> None:
        self.limit, self.tokens = limit, tokens  # the most rows, and the most rows times columns, of more than one row
        self.begins: list[int] = []  # the column of each row's first token
        self.left = self.right = 0
        self.high = self.wide = 0  # rows and columns that there is memory for
        self.cache = DynamicCache()

    @property
    def width(self) -> int:
        """Columns in use: the length of the longest row."""
        return self.right - self.left

    @property
    def columns(self) -> int:
        """Columns that each row will have memory for when one more token is written."""
        return self.wide if self.right < self.wide else _spared(self.width)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [self.right - begin for begin in self.begins]

    def mask(self, lengths: Tensor) -> Tensor:
        """(row, column), with a column for the token to come: 1 where the row has a token. lengths (row, 1): of the rows."""
        return (torch.arange(self.width, -1, -1, device=lengths.device) <= lengths).long()

    def fits(self, n: int, length: int, drawn: int) -> bool:
        """Whether n rows may be in it, the new ones of so many tokens, of which each is expected to draw as many more."""
        columns = max(_spared(max(self.width, length)), length + drawn)
        return n <= 1 or (n <= self.limit and n * columns <= self.tokens)

    @property
    def full(self) -> bool:
        """Whether it may not hold one more token of each row."""
        n = len(self.begins)
        return n > 1 and n * (self.width + 1) > self.tokens

    def place(self, rows: Sequence[int], cache: Any, length: int) -> None:
        """Rows become copies of the only one of the cache, which holds `length` tokens; new ones follow on the others."""
        n = max(len(self.begins), max(rows) + 1)
        if not self.cache.layers:
            held = filled(cache)
            self.cache.layers.extend(RoomLayer(layer.keys, layer.values) if layer in held else layer for layer in cache.layers)
        if n > self.high or length > self.right:
            self._move(n, max(length, self.width))
        old, self.left = self.left, min(self.left, self.right - length) if self.begins else self.right - length
        self.begins += [self.right] * (n - len(self.begins))
        for row in rows:
            self.begins[row] = self.right - length
        for own, other in zip(self._own, filled(cache), strict=True):
            own.clear(n, self.left, old)
            for row in rows:
                own.write(row, other.keys, other.values)
        self._trim()

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Rows leave; the last ones take their places. Which of the rows stand where now."""
        places, gone = list(range(len(self.begins))), set(rows)
        for row in sorted(gone):
            while places and places[-1] in gone:
                places.pop()
            if row >= len(places):
                break
            places[row] = places.pop()
            for own in self._own:
                own.copy(row, places[row])
        self.begins = [self.begins[place] for place in places]
        self._trim()
        return places

    def append(self) -> None:
        """A token of every row has been written."""
        self.right += 1
        self._view()

    def make_room(self, lengths: Tensor | None = None) -> None:
        """See to it that there is a column for one more token, and memory for no more than there may be."""
        n = len(self.begins)
        many = self.high > n + n // 4 + 2 or self.high * self.wide > max(self.tokens, n * (self.width + 1))
        if many or self.right == self.wide:
            self._move(n, self.width)

    @property
    def _own(self) -> list[RoomLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, RoomLayer)]

    def _trim(self) -> None:
        """Give up the columns before the longest row, and the room if no row is left."""
        if self.begins:
            self.left = min(self.begins)
        else:
            self.left = self.right
        self._view()

    def _view(self) -> None:
        for own in self._own:
            own.view(len(self.begins), self.left, self.right)

    def _move(self, n: int, width: int) -> None:
        """Lay the room out anew for n rows and more columns than `width`."""
        self.wide = max(width + 1, min(_spared(width), self.tokens // n))
        self.high = max(n, min(self.limit, self.tokens // self.wide, n + n // 8 + 1))
        for own in self._own:
            own.move(self.high, self.wide, width)
        self.begins = [begin + width - self.right for begin in self.begins]
        self.left, self.right = self.left + width - self.right, width


class RoomLayer(FilledLayer):
    """Keys and values (row, head, column, d) of one layer, as its room says where they are."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(keys[:0, :, :0], values[:0, :, :0])
        self._whole = (keys.new_empty((0, *keys.shape[1:])), values.new_empty((0, *values.shape[1:])))
        self._at = (0, 0, 0)  # rows, left, right

    def view(self, n: int, left: int, right: int) -> None:
        self._at = (n, left, right)
        self.keys, self.values = (whole[:n, :, left:right] for whole in self._whole)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one more token of every row; what attention is to see. The room takes it in when all layers have it."""
        n, left, right = self._at
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:n, :, right : right + 1] = new
        keys, values = (whole[:n, :, left : right + 1] for whole in self._whole)
        return keys, values

    def clear(self, n: int, left: int, old: int) -> None:
        """Columns that come into use again hold nothing for the rows that do not begin there."""
        for whole in self._whole:
            whole[:n, :, left:old] = 0

    def write(self, row: int, keys: Tensor, values: Tensor) -> None:
        """A row, flush right over zeros: a hidden NaN would be one of what is seen."""
        right = self._at[2]
        for whole, new in zip(self._whole, (keys, values), strict=True):
            begin = right - new.shape[-2]
            whole[row, :, :begin] = 0
            whole[row, :, begin:right] = new[0]

    def copy(self, row: int, other: int) -> None:
        _, left, right = self._at
        for whole in self._whole:
            whole[row, :, left:right] = whole[other, :, left:right]

    def move(self, high: int, wide: int, right: int) -> None:
        """To a room of these rows and columns, so that it ends at `right`."""
        n, left, end = self._at
        moved = []
        for whole in self._whole:
            room = whole.new_zeros((high, whole.shape[1], wide, whole.shape[3]))
            room[:n, :, right - (end - left) : right] = whole[:n, :, left:end]
            moved.append(room)
        self._whole = (moved[0], moved[1])
        self.view(n, right - (end - left), right)


def _spared(width: int) -> int:
    """So many columns and some that are free."""
    return width + max(SPARE, width // 8)


def filled(cache: Any) -> list[Any]:
    """The layers of a cache that hold keys and values of their own."""
    return [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]


def next_logits(lm: LanguageModel, room: Any, slot: str, last: Tensor, lengths: Tensor) -> Tensor:
    """Logits (row, d_vocab) after one more token of each row of a room, `last` (row, 1), which is written; the model takes
    caches as `slot`. lengths (row, 1): of the rows, without these tokens."""
    places = lengths + (cache_support(lm).origin or 0)
    given = {slot: room.cache, "position_ids": places, "attention_mask": room.mask(lengths)}
    kwargs = plain_kwargs(lm, last) | {name: value for name, value in given.items() if value is not None}
    room.make_room(lengths)
    logits, _ = forward(lm, last, kwargs, new=1)
    room.append()
    return logits
