"""At which absolute positions a forward's tokens and keys stand: from where the caller says it begins, or from what the model
is given. Knows caches and masks, no edits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.generation.utils import ALL_CACHE_NAMES

from probe.errors import BadEdit

Start = int | Sequence[int] | Tensor
"""The position of a forward's first token, for every row or for each; negative where a row begins with padding."""

_GIVE_START = "give start=, the position of its first token"


class Forward(NamedTuple):
    """`positions` (batch, pos) of its tokens, negative for padding on the left; `seen` keys are in its cache, the first of
    row r at position `origin[r]` (batch,)."""

    positions: Tensor
    seen: int
    origin: Tensor

    def keys(self, n: int) -> Tensor:
        """Positions (batch, n) of the n keys of an attention call; what lies beyond the tokens (an empty cache) is negative."""
        new, device = self.positions.shape[1], self.positions.device
        columns = torch.arange(n, device=device) + max(
            0, self.seen + new - n
        )  # a sliding cache has lost the first ones
        found = self.origin[:, None] + columns
        own = (columns - self.seen).clamp(0, new - 1)
        found = torch.where(columns >= self.seen, self.positions[:, own], found)
        return torch.where(columns < self.seen + new, found, -1)


class Whereabouts:
    """Follows the forwards of one model: `current` is the one under way, if the whole model runs."""

    def __init__(self, model: nn.Module, start: Start | None) -> None:
        self.start = start
        self.current: Forward | None = None
        self._signature = inspect.signature(model.forward)
        self._device = next(model.parameters()).device
        self._end: int | None = None  # of the last forward

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Forward:
        """A forward of the model begins with these arguments."""
        given = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        if isinstance(given.get("logits_to_keep"), Tensor):
            raise BadEdit("edits need logits at the end of a text, not at chosen positions", hint="logits_to_keep=1")
        tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        self.current = self._forward(tokens.shape[0], tokens.shape[1], given)
        return self.current

    def end(self) -> None:
        """The forward is over."""
        self.current = None

    def part(self, batch: int, n: int) -> Forward:
        """The forward under way; where only a part of the model runs, one of this shape that begins at `start`."""
        if self.current is not None:
            return self.current
        if self.start is None:
            raise BadEdit("only a part of the model runs, and it is not said where in the text", hint=_GIVE_START)
        return self._forward(batch, n, {})

    def _forward(self, batch: int, n: int, given: Mapping[str, Any]) -> Forward:
        steps = torch.arange(n, device=self._device)
        if self.start is not None:
            first = torch.as_tensor(self.start, device=self._device).expand(batch)
            seen = self._seen(given, n) if given else int(first.max())
            return Forward(first[:, None] + steps, seen, first - seen)
        seen, mask, told = self._seen(given, n), given.get("attention_mask"), given.get("position_ids")
        pads = torch.zeros(batch, dtype=torch.long, device=self._device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            pads = (mask.to(self._device).cumsum(-1) == 0).sum(-1).expand(batch)
        plain = seen + steps - pads[:, None]
        if not (isinstance(told, Tensor) and told.ndim == 2 and told.shape[1] == n):
            return Forward(plain, seen, -pads)
        positions = told.to(self._device).expand(batch, n)
        return Forward(torch.where(plain < 0, plain, positions), seen, -pads)

    def _seen(self, given: Mapping[str, Any], n: int) -> int:
        """How many tokens the cache holds. A recurrent state cannot tell: it is taken to go on where the last forward ended."""
        cache = next((given[name] for name in ALL_CACHE_NAMES if given.get(name) is not None), None)
        seen: int | None = 0 if cache is None else _length(cache)
        if seen is None:
            seen = self._end
        if seen is None:
            if self.start is None:
                raise BadEdit("this model's cache does not tell how much it has read", hint=_GIVE_START)
            seen = 0
        self._end = seen + n
        return seen


def _length(cache: Any) -> int | None:
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):  # a list of states; layers of which none has a length
        return None
