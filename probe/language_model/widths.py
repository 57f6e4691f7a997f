"""How many values each site has at a position: measured in one forward over three tokens, not read off configs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.anatomy.parts import LAYER_SITES
from probe.instrument import AttentionCall, Tap, attending, tapping

if TYPE_CHECKING:
    from probe.anatomy import Anatomy

CALLED = {"q": "query", "k": "key", "v": "value"}
WHOLE = ("embed", "final_norm", "logits")
_IDS = ((1, 2, 3),)


def widths(model: Any, anatomy: Anatomy, *, device: torch.device) -> dict[tuple[str, int], int]:
    """(site, layer) -> values at one position, of one head where the site has heads. Layer -1 where it has none.

    Patterns and scores are left out: they have a value a key.
    """
    places = [(site, layer) for site in LAYER_SITES for layer in range(anatomy.n_layers)] + [
        (site, -1) for site in WHOLE
    ]
    sites: dict[Tap, list[tuple[str, int]]] = defaultdict(list)
    for site, layer in places:
        if anatomy.has(site, layer):
            sites[anatomy.tap(site, layer)].append((site, layer))
    found: dict[tuple[str, int], int] = {}

    def note(site: str, layer: int, value: Tensor) -> None:
        found[site, layer] = value.numel() // len(_IDS[0]) // (anatomy.n_heads(site, layer) or 1)

    def reader(tap: Tap) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            for site, layer in sites[tap]:
                note(site, layer, value)

        return read

    def observe(path: str, call: AttentionCall, _: Tensor) -> None:
        layer = anatomy.calls.get((path, call.visit))
        if layer is not None:
            for site, name in CALLED.items():
                note(site, layer, getattr(call, name))

    ids = torch.tensor(_IDS, device=device)
    with torch.no_grad(), tapping(model, {tap: reader(tap) for tap in sites}), attending(model, observe):
        model(input_ids=ids, use_cache=False)
    return found
