"""Which keys a query may see, from the masks that attention functions are given; knows no scores."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

REMEMBERED = 4  # masks: a model alternates between few


class View(NamedTuple):
    """What a block of queries sees: keys [low, high), of which all, those up to the query, or what the mask says."""

    low: int
    high: int
    kind: Literal["all", "causal", "mask"]


class Mask:
    """One prompt's mask: `visible` (head or 1, query, key) bool, or None; `additive` likewise if it says more than that."""

    def __init__(
        self, mask: Tensor | None, n: int, *, causal: bool, window: int | None = None, device: torch.device | None = None,
        first: int = 0, origin: int = 0,
    ) -> None:  # fmt: skip
        """mask (head or 1, n - first, n - origin), bool or additive, of queries [first, n) and keys [origin, n); without one,
        every key is visible, or those up to the query if `causal`.

        device: of the scores, where there is no mask to tell."""
        self.n, self.first, self.origin, self.visible, self.additive = n, first, origin, mask, None
        self._device = device if mask is None else mask.device
        self._views: dict[tuple[int, int], View] = {}
        self._triangles: dict[int, Tensor] = {}  # what comes later, among so many queries and their own keys
        if mask is None:
            self.causal, self.window = causal, window if causal else None
            return
        if mask.dtype != torch.bool:
            mask, additive = mask > torch.finfo(mask.dtype).min / 2, mask
            self.visible = mask
            if not bool(((additive == 0) | ~mask).all()):
                self.additive = additive
        self.causal, self.window = not bool(mask.triu(first - origin + 1).any()), None

    def part(self, values: Tensor, start: int, end: int, low: int, high: int) -> Tensor:
        """Of values (…, query, key) of this mask's queries and keys, those of queries [start, end) and keys [low, high)."""
        return values[..., start - self.first : end - self.first, low - self.origin : high - self.origin]

    def view(self, start: int, end: int) -> View:
        """What queries [start, end) see."""
        if (start, end) not in self._views:
            self._views[start, end] = self._view(start, end)
        return self._views[start, end]

    def _view(self, start: int, end: int) -> View:
        if self.visible is None:
            low = max(self.origin, start - self.window + 1) if self.window else self.origin
            inside = not self.window or end - self.window <= low
            return View(low, end, "causal" if inside else "mask") if self.causal else View(self.origin, self.n, "all")
        keys = self.part(self.visible, start, end, self.origin, self.n).any(0).any(0).nonzero() + self.origin
        low, high = (int(keys[0]), int(keys[-1]) + 1) if len(keys) else (self.origin, end)
        rows = self.part(self.visible, start, end, low, high)
        if bool(rows.all()):
            return View(low, high, "all")
        late = _late(start, end, low, high, rows.device)
        return View(low, high, "causal" if high == end and bool((rows == ~late).all()) else "mask")

    def hidden(self, start: int, end: int) -> Tensor | None:
        """The keys [low, high) that queries [start, end) don't see, broadcastable to (head, query, key); None: all are seen.

        For a causal view only its last `end - start` keys, of which alone some are hidden.
        """
        low, high, kind = self.view(start, end)
        if kind == "all":
            return None
        device = self._device
        if kind == "causal":
            if end - start not in self._triangles:
                self._triangles[end - start] = _late(0, end - start, 0, end - start, device)
            return self._triangles[end - start]
        if self.visible is not None:
            return ~self.part(self.visible, start, end, low, high)
        assert self.window, "without a mask only a window hides more than what comes later"
        return _late(start, end, low, high, device) | ~_late(start, end, low + self.window, high + self.window, device)


def seen_by(mask: Mask, rows: Tensor) -> Tensor:
    """The keys that some queries see: rows (row,) -> (head or 1, row, key) bool."""
    if mask.visible is not None:
        return mask.visible[:, rows.to(mask.visible.device)]
    keys = torch.arange(mask.n, device=rows.device)
    seen = keys <= rows[:, None] if mask.causal else torch.ones(len(rows), mask.n, dtype=torch.bool, device=rows.device)
    return (seen & (keys > rows[:, None] - mask.window) if mask.window else seen)[None]


def _late(start: int, end: int, low: int, high: int, device: torch.device | None) -> Tensor:
    """(query, key): the key comes after the query."""
    return torch.arange(start, end, device=device)[:, None] < torch.arange(low, high, device=device)


class Masks:
    """The masks of one forward; layers share them, so what was found out about one is remembered."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int, int], tuple[Tensor, Mask]] = OrderedDict()
        self._plain: dict[tuple[Any, ...], Mask] = {}

    def of(
        self, mask: Tensor | None, prompt: int, n: int, *, causal: bool, window: int | None, device: torch.device,
        first: int = 0, origin: int = 0,
    ) -> Mask:  # fmt: skip
        """The mask (batch or 1, head or 1, query, key) of one prompt's n tokens, of queries from `first` and keys from `origin`
        on. One of (batch, key) only marks padding.

        device: of the scores."""
        if mask is None or mask.ndim == 2:
            alike = n, causal, window, device, first, origin
            if alike not in self._plain:
                self._plain[alike] = Mask(
                    None, n, causal=causal, window=window, device=device, first=first, origin=origin
                )  # fmt: skip
            return self._plain[alike]
        where = id(mask), prompt, n
        if where not in self._known:
            own = Mask(of_prompt(mask, prompt, n - first, n - origin), n, causal=causal, first=first, origin=origin)
            self._known[where] = mask, own  # holds the mask, so its id is its own
            while len(self._known) > REMEMBERED * max(1, mask.shape[0]):
                self._known.popitem(last=False)
        return self._known[where][1]


def of_prompt(values: Tensor, prompt: int, queries: int, keys: int) -> Tensor:
    """(batch or 1, head or 1, query or 1, key) -> (head or 1, queries, keys) of one prompt, not copied."""
    own = values[prompt if values.shape[0] > 1 else 0]
    return own.expand(own.shape[0], max(own.shape[1], queries), own.shape[2])[:, :queries, :keys]
