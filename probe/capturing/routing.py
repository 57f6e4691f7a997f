"""Hands a sink which experts each token is sent to, as the forward sends it. Knows taps and rows, no table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.anatomy.parts import of_text

if TYPE_CHECKING:
    from probe.anatomy import Anatomy, Tap
    from probe.capturing.sinks import Sink

ROUTER = "router"


class RoutingReader:
    """Taps of the routers of some layers, and the way of what they choose to the sink."""

    def __init__(self, anatomy: Anatomy, layers: Iterable[int], sink: Sink, *, shape: tuple[int, int]) -> None:
        """shape: (batch, pos) of the ids. Raises `SiteAbsent` for a layer without a router."""
        self._sink, self._shape = sink, shape
        self._locations = {layer: anatomy.site(ROUTER, layer) for layer in sorted(set(layers))}
        self._experts = {layer: anatomy.layers[layer].experts for layer in self._locations}
        self._kept: dict[tuple[int, str], Tensor] = {}

    def taps(self) -> dict[Tap, Callable[[Tensor], Any]]:
        """What to tap: the logits come first, then the experts' numbers, then their weights."""
        found: dict[Tap, Callable[[Tensor], Any]] = {}
        for layer, location in self._locations.items():
            experts = self._experts[layer]
            assert experts is not None, "a router was found by its experts"
            found[location.tap] = self._keeper(layer, "logits")
            found[experts.chosen] = self._keeper(layer, "chosen")
            found[experts.weights] = self._keeper(layer, "weights")
        return found

    def _keeper(self, layer: int, name: str) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            self._kept[layer, name] = of_text(value, *self._shape, f"{ROUTER}@{layer}").clone()
            if all((layer, one) in self._kept for one in ("logits", "chosen", "weights")):
                logits, chosen, weights = (self._kept.pop((layer, one)) for one in ("logits", "chosen", "weights"))
                order = weights.argsort(dim=-1, descending=True, stable=True)
                entropy = torch.distributions.Categorical(logits=logits.float()).entropy()
                self._sink.routing(layer, chosen.gather(-1, order), weights.gather(-1, order).float(), entropy)

        return keep
