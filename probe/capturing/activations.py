"""Hands a sink the activations of the sites asked for, as the forward makes them; copies only what the model overwrites."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from probe.anatomy.parts import of_text
from probe.anatomy.units import Unit, in_units
from probe.capturing.sinks import Sink
from probe.instrument import tapping
from probe.sites import SITES, units_read

if TYPE_CHECKING:
    from probe.anatomy import Anatomy, Tap
    from probe.sites import Cell

LOGITS = "logits"  # the read has them anyway
SHORT = 8  # tokens that show whether a model writes into its activations

_overwritten: weakref.WeakKeyDictionary[nn.Module, dict[Tap, bool]] = weakref.WeakKeyDictionary()


class ActivationReader:
    """Taps for the cells of one read, and the way of their tensors to the sink."""

    def __init__(
        self, model: nn.Module, anatomy: Anatomy, cells: Sequence[Cell], sink: Sink, *, shape: tuple[int, int]
    ) -> None:
        """shape: (batch, pos) of the ids. Raises `SiteAbsent` for a cell that this model does not have."""
        self._model, self._sink, self._shape = model, sink, shape
        self._heads: dict[tuple[str, int], set[int | None]] = defaultdict(set)
        self._units = units_read(cells)
        self._given: list[tuple[str, weakref.ref[Tensor], int]] = []
        for cell in cells:
            if SITES[cell.site].at_positions:
                self._heads[cell.site, cell.layer].update([None] if cell.heads is None else cell.heads)
        self._locations = {where: anatomy.site(*where) for where in self._heads if _is_tapped(where[0])}

    @property
    def wants_logits(self) -> bool:
        """Whether the site `logits` was asked for."""
        return (LOGITS, -1) in self._heads

    def taps(self, ids: Tensor, *, also: dict[Tap, list[Tensor]], **inputs: Any) -> dict[Tap, Callable[[Tensor], None]]:
        """What to tap in the forward over `ids` with `inputs`; tensors of the taps `also` go into their lists.

        May run a short forward of its own, once a model.
        """
        copied = overwritten(self._model, {*also, *(found.tap for found in self._locations.values())}, ids, **inputs)
        readers: dict[Tap, list[Callable[[Tensor], None]]] = defaultdict(list)
        for tap, kept in also.items():
            readers[tap].append(_keeper(kept, copy=copied[tap]))
        for where, found in self._locations.items():
            readers[found.tap].append(self._reader(*where, found.unit(self._model), copy=copied[found.tap]))
        return {tap: _all(own) for tap, own in readers.items()}

    def _reader(self, site: str, layer: int, unit: Unit, *, copy: bool) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            found = in_units(value, unit)
            self.emit(site, layer, value.clone() if copy and found is value else found)

        return read

    def emit(self, site: str, layer: int, value: Tensor) -> None:
        """Hand over a site that was asked for: (batch, pos, …), flat (batch * pos, …), or for q, k, v (batch, head, pos, d)."""
        for head in sorted(self._heads.get((site, layer), ()), key=lambda h: -1 if h is None else h):
            if SITES[site].source == "call":
                own = value.transpose(1, 2).flatten(2) if head is None else value[:, head]
            else:
                found = self._locations.get((site, layer))
                own = of_text(value if found is None else found.positions_first(value), *self._shape, site)
                own = own if own.ndim == 3 else own.flatten(2)
                if head is not None and found is not None:
                    own = found.by_head(own)[:, :, head]
                elif found is not None and found.entries is not None:
                    own = found.by_head(own).flatten(2)
                units = self._units[site, layer]
                own = own if units is None else own[..., list(units)]
            self._sink.activation(site, layer, head, own)
            self._given.append((f"{site}@{layer}", weakref.ref(own), own._version))

    def check(self) -> None:
        """After the forward: what the sink still holds is what it was given."""
        for name, reference, version in self._given:
            tensor = reference()
            assert tensor is None or tensor._version == version, f"the model wrote into {name} after it was read"
        self._given.clear()


def _is_tapped(site: str) -> bool:
    return SITES[site].source != "call" and site != LOGITS


def overwritten(model: nn.Module, taps: set[Tap], ids: Tensor, **inputs: Any) -> dict[Tap, bool]:
    """Which of the taps' tensors the model later writes into, found with a few tokens and remembered for the model."""
    known = _overwritten.setdefault(model, {})
    missing = taps - set(known)
    if missing:
        held: dict[Tap, list[tuple[Tensor, int]]] = defaultdict(list)
        readers = {tap: _holder(held[tap]) for tap in missing}
        with tapping(model, readers):
            model(ids[:1, :SHORT], **{k: v[:1, :SHORT] if isinstance(v, Tensor) else v for k, v in inputs.items()})
        known.update({tap: any(t._version != version for t, version in held[tap]) for tap in missing})
    return known


def _holder(held: list[tuple[Tensor, int]]) -> Callable[[Tensor], None]:
    return lambda value: held.append((value, value._version))


def _keeper(kept: list[Tensor], *, copy: bool) -> Callable[[Tensor], None]:
    return lambda value: kept.append(value.clone() if copy else value)


def _all(readers: list[Callable[[Tensor], None]]) -> Callable[[Tensor], None]:
    if len(readers) == 1:
        return readers[0]

    def read(value: Tensor) -> None:
        for reader in readers:
            reader(value)

    return read
