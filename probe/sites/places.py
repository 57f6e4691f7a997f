"""Reads and writes places, `SITE[@LAYERS[.HEADS]][:POSITIONS]`, and edits, `PLACE=OP[:ARGS]`, and says which cells they are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from probe.errors import BadPlace, SiteAbsent
from probe.sites.catalogue import SITES, Site, find_site
from probe.sites.positions import EVERYWHERE, NUMBERS, POSITION, Positions, Range, parse_positions, parse_range

Part = tuple[Range, Range | None]

_FORM = "SITE[@LAYERS[.HEADS]][:POSITIONS], as in resid_post@5, z@5.3 or resid_pre@all:-1"
_TOKEN = "in a token's text a comma, '=' or '#' is written twice: tok=1,,000"
_LAYER = re.compile(rf"(?P<layers>{NUMBERS})(?:\.(?P<heads>{NUMBERS}))?|L(?P<l>[0-9]+)H(?P<h>[0-9]+)")
_SITE = re.compile(r"[A-Za-z_][A-Za-z_0-9.]*")
_OP = re.compile(r"=(?P<op>[a-z][a-z_-]*)(?::(?P<args>.*))?", flags=re.DOTALL)


@dataclass(frozen=True)
class Place:
    """A place as written: site, (layers, heads) parts, positions. `str` gives its canonical text.

    No parts: every layer (or the one that is, of a site without layers). Heads None: every head.
    """

    site: str
    parts: tuple[Part, ...] = ()
    positions: Positions = EVERYWHERE

    def __str__(self) -> str:
        parts = ",".join(f"{layers}" if heads is None else f"{layers}.{heads}" for layers, heads in self.parts)
        where = "" if self.positions == EVERYWHERE else f":{self.positions}"
        return f"{self.site}{'@' if parts else ''}{parts}{where}"


def parse_places(text: str) -> tuple[Place, ...]:
    """Places separated by commas; a comma inside a place's layers or positions stays in it: a site's name ends it.

    Raises `BadPlace`, `UnknownSite`.
    """
    places = []
    rest = text.lstrip()
    while True:
        place, rest = _read_place(rest, text)
        places.append(place)
        if not rest.strip():
            return tuple(places)
        if not rest.startswith(","):
            raise _unreadable(rest, text)
        rest = rest[1:].lstrip()


def parse_place(text: str) -> Place:
    """The one place that a text names. Raises `BadPlace`, `UnknownSite`."""
    places = parse_places(text)
    if len(places) != 1:
        raise BadPlace(f"'{text}' names {len(places)} places", hint="one is wanted here")
    return places[0]


def split_edit(text: str) -> tuple[Place, str, tuple[str, ...]]:
    """`PLACE=OP[:ARG…]` -> (place, op, args). Raises `BadPlace`, `UnknownSite`."""
    place, rest = _read_place(text.lstrip(), text)
    match = _OP.fullmatch(rest)
    if match is not None:
        return place, match["op"], tuple(match["args"].split(":")) if match["args"] is not None else ()
    if rest.startswith(","):
        raise BadPlace(f"'{text}' names several places", hint="give an --edit for each")
    hint = _TOKEN if "tok=" in text else "write PLACE=OP, as in z@5.3=zero or resid_post@12:-1=patch:RUN"
    raise BadPlace(f"'{text}' is not an edit", hint=hint)


def parse_where(text: str) -> Positions:
    """Positions alone, as they stand after a place's colon: `7`, `-1`, `3..9`, `last`, `tok=Paris`, with commas."""
    try:
        items, rest = _items(text.strip(), POSITION, text)
    except BadPlace:
        items, rest = [], text
    if rest:
        raise BadPlace(f"'{text}' is no position", hint="7, -1, 3..9, last, completion, step3 or tok=Paris, with commas")
    return parse_positions(items)


def _read_place(text: str, whole: str) -> tuple[Place, str]:
    """The place that a text begins with, and what follows it."""
    word = _SITE.match(text)
    if word is None:
        what = f"'{text}' in '{whole}'" if text.strip() and text != whole else f"'{whole}'"
        raise BadPlace(f"{what} is not a place", hint=f"write {_FORM}")
    site, layer = find_site(word[0])
    rest = text[word.end() :]
    parts: tuple[Part, ...] = () if layer is None else ((Range(layer, layer), None),)
    if rest.startswith("@"):
        if parts:
            raise BadPlace(f"'{word[0]}' holds its layer already", hint=f"write {site}@{layer}")
        items, rest = _items(rest[1:], _LAYER, whole)
        parts = _parts(site, items)
    where = EVERYWHERE
    if rest.startswith(":"):
        items, rest = _items(rest[1:], POSITION, whole)
        where = parse_positions(items)
    return Place(site, parts, where), rest


def _items(rest: str, form: re.Pattern[str], whole: str) -> tuple[list[str], str]:
    """Comma-separated items of one form, and what follows; a comma that no such item follows is left to the caller."""
    match = form.match(rest)
    if match is None:
        raise _unreadable(rest, whole)
    items = [match[0]]
    rest = rest[match.end() :]
    while rest.startswith(","):
        follows = rest[1:].lstrip()
        match = form.match(follows)
        if match is None:
            if not _SITE.match(follows):
                raise _unreadable(follows, whole)
            break
        items.append(match[0])
        rest = follows[match.end() :]
    return items, rest


def _parts(site: str, items: list[str]) -> tuple[Part, ...]:
    """What follows the @, each part once; no parts for all. Raises `BadPlace` for what the site can't have."""
    if not SITES[site].per_layer:
        raise BadPlace(f"'{site}' has no layers", hint=f"write {site}")
    parts = []
    for item in items:
        match = _LAYER.fullmatch(item)
        assert match is not None, f"{item} matched before"
        heads = parse_range(match["heads"] or match["h"] or "all")
        if (match["heads"] or match["h"]) and not SITES[site].per_head:
            raise BadPlace(f"'{site}' has no heads", hint=f"write {site}@{match['layers'] or match['l']}")
        parts.append((parse_range(match["layers"] or match["l"]), None if heads == Range() else heads))
    return () if (Range(), None) in parts else tuple(dict.fromkeys(parts))


def _unreadable(rest: str, whole: str) -> BadPlace:
    what = f"'{rest}' in '{whole}'" if rest.strip() else f"the end of '{whole}'"
    return BadPlace(f"cannot read {what}", hint=_TOKEN if "tok=" in whole else f"write {_FORM}")


class Cell(NamedTuple):
    """One site of one layer (-1 where it has none), its heads (None where it has none) and positions."""

    site: str
    layer: int
    heads: tuple[int, ...] | None
    positions: Positions


def resolve(
    places: Iterable[Place], *, n_layers: int, n_heads: Callable[[str, int], int], has: Callable[[str, int], bool] | None = None
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
    site: Site, layers: Range, n_layers: int, n_heads: Callable[[str, int], int], has: Callable[[str, int], bool] | None
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
            f"layer {layers} has no" if layers.one else ("no layer has" if layers == Range() else f"no layer of {layers} has")
        )
        raise SiteAbsent(f"{which} '{site.name}'", hint="probe models check MODEL says why")
    return having
