"""What places mean in a model of so many layers and heads: its cells. Knows counts, no modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from probe.errors import SiteAbsent
from probe.sites.catalogue import SITES, Site
from probe.sites.places import Place
from probe.sites.positions import Positions, parse_positions
from probe.sites.ranges import Range


class Cell(NamedTuple):
    """One site of one layer (-1 where it has none), its heads (None where it has none) and positions."""

    site: str
    layer: int
    heads: tuple[int, ...] | None
    positions: Positions


def resolve(
    places: Iterable[Place],
    *,
    n_layers: int,
    n_heads: Callable[[str, int], int],
    has: Callable[[str, int], bool] | None = None,
) -> tuple[Cell, ...]:
    """The cells that places mean in a model, by site and layer; no site, layer, head and position is in two of them.

    n_heads(site, layer), has(site, layer): what the model has; without `has`, every layer has every site. From `all` or
    a range the layers that have the site are taken. A layer named by its number is kept, and whoever reads it says why it
    is absent, unless it should have heads and has none. Raises `OutOfRange`, or `SiteAbsent` where nothing is left.
    """
    found: dict[tuple[str, int], dict[int | None, list[str]]] = defaultdict(lambda: defaultdict(list))
    for place in places:
        site = SITES[place.site]
        for layers, heads in place.parts or ((Range(), None),):
            for layer, count in _layers(site, layers, n_layers, n_heads, has):
                for head in (heads or Range()).of(count, "head") if site.per_head else (None,):
                    found[site.name, layer][head] += place.positions.parts
    order = list(SITES)
    cells = []
    for (name, layer), by_head in sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        grouped: dict[Positions, list[int]] = defaultdict(list)
        for head, parts in by_head.items():
            grouped[parse_positions(parts)] += [] if head is None else [head]
        for positions, members in grouped.items():
            cells.append(Cell(name, layer, tuple(sorted(members)) or None, positions))
    return tuple(cells)


def _layers(
    site: Site,
    layers: Range,
    n_layers: int,
    n_heads: Callable[[str, int], int],
    has: Callable[[str, int], bool] | None,
) -> list[tuple[int, int]]:
    """(layer, its number of heads) of the layers that have the site."""
    if not site.per_layer:
        return [(-1, 0)]
    named = list(layers.of(n_layers, "layer"))
    if has is not None and not layers.one:
        named = [layer for layer in named if has(site.name, layer)]
    having = [(layer, n_heads(site.name, layer) if site.per_head else 0) for layer in named]
    having = [(layer, count) for layer, count in having if count or not site.per_head]
    if not having:
        which = (
            f"layer {layers} has no"
            if layers.one
            else ("no layer has" if layers == Range() else f"no layer of {layers} has")
        )
        raise SiteAbsent(f"{which} '{site.name}'", hint="probe models check MODEL says why")
    return having
