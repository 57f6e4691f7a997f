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

_FORM = "SITE[@LAYERS[.HEADS]][:POSITIONS], as in resid_post@5, z@5.3, mlp_post@5.n12 or resid_pre@all:-1"
_TOKEN = "in a token's text a comma, '=' or '#' is written twice: tok=1,,000"
_UNITS = {site.unit[0]: site.unit for site in SITES.values() if site.unit}
_LAYER = re.compile(
    rf"(?P<layers>{NUMBERS})(?:\.(?P<heads>{NUMBERS})|\.(?P<letter>[{''.join(_UNITS)}])(?P<units>{NUMBERS}))?"
    "|L(?P<l>[0-9]+)H(?P<h>[0-9]+)"
)
_SITE = re.compile(r"[A-Za-z_][A-Za-z_0-9.]*")
_OP = re.compile(r"=(?P<op>[a-z][a-z_-]*)(?::(?P<args>.*))?", flags=re.DOTALL)


class Part(NamedTuple):
    """Layers, and the heads or units of them that are meant; None is all. `letter`: by which the site names its units."""

    layers: Range
    heads: Range | None = None
    units: Range | None = None
    letter: str = ""

    def __str__(self) -> str:
        members = self.heads if self.units is None else self.units
        return f"{self.layers}" if members is None else f"{self.layers}.{self.letter}{members}"


@dataclass(frozen=True)
class Place:
    """A place as written: site, parts, positions. `str` gives its canonical text.

    No parts: every layer (or the one that is, of a site without layers).
    """

    site: str
    parts: tuple[Part, ...] = ()
    positions: Positions = EVERYWHERE

    def __str__(self) -> str:
        parts = ",".join(map(str, self.parts))
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
    parts: tuple[Part, ...] = () if layer is None else (Part(Range(layer, layer)),)
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
        layers, heads = match["layers"] or match["l"], match["heads"] or match["h"]
        _check_members(SITES[site], layers, heads, match["letter"], match["units"])
        parts.append(Part(parse_range(layers), _some(heads), _some(match["units"]), match["letter"] or ""))
    parts = [part if part.units else part._replace(letter="") for part in parts]
    return () if Part(Range()) in parts else tuple(dict.fromkeys(parts))


def _some(numbers: str | None) -> Range | None:
    """A range of heads or units, None for all of them."""
    found = parse_range(numbers or "all")
    return None if found == Range() else found


def _check_members(site: Site, layers: str, heads: str | None, letter: str | None, units: str | None) -> None:
    """Raises `BadPlace` for heads or units of a site that has none of them; the hint names what it has."""
    if (heads is None or site.per_head) and (letter is None or site.unit.startswith(letter)):
        return
    what, which = (_UNITS[letter], units) if letter is not None else ("head", heads)
    own = "head" if site.per_head else site.unit
    numbers = f"{site.unit[:1]}{which}"
    hint = f"write {site.name}@{layers}.{numbers} for {own} {which}" if own else f"write {site.name}@{layers}"
    raise BadPlace(f"'{site.name}' has no {what}s", hint=hint)


def _unreadable(rest: str, whole: str) -> BadPlace:
    what = f"'{rest}' in '{whole}'" if rest.strip() else f"the end of '{whole}'"
    return BadPlace(f"cannot read {what}", hint=_TOKEN if "tok=" in whole else f"write {_FORM}")


class Cell(NamedTuple):
    """One site of one layer (-1 where it has none), its heads (None where it has none) and positions.

    units: the entries of its last axis that are meant, ascending (its neurons, its experts); None is all of them."""

    site: str
    layer: int
    heads: tuple[int, ...] | None
    positions: Positions
    units: tuple[int, ...] | None = None


def _none(site: str, layer: int) -> int:
    return 0


def resolve(
    places: Iterable[Place], *, n_layers: int, n_heads: Callable[[str, int], int],
    has: Callable[[str, int], bool] | None = None, n_units: Callable[[str, int], int] = _none,
) -> tuple[Cell, ...]:  # fmt: skip
    """The cells that places mean in a model, by site and layer; no site, layer, head, unit and position is in two of them.

    n_heads(site, layer), has(site, layer), n_units(site, layer): what the model has; without `has`, every layer has every
    site. From `all` or a range the layers that have the site are taken. A layer named by its number is kept, and whoever
    reads it says why it is absent, unless it should have heads or units and has none. Raises `OutOfRange`, or
    `SiteAbsent` where nothing is left.
    """
    found: dict[tuple[str, int], list[tuple[range | None, Positions]]] = defaultdict(list)
    for place in places:
        site = SITES[place.site]
        for part in place.parts or (Part(Range()),):
            members = (part.heads or Range()) if site.per_head else part.units
            count_of = n_heads if site.per_head else n_units if members is not None else None
            for layer, count in _layers(site, part.layers, n_layers, count_of, has):
                chosen = None if members is None else members.of(count, "head" if site.per_head else site.unit)
                found[site.name, layer].append((chosen, place.positions))
    order = list(SITES)
    cells = []
    for (name, layer), asked in sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        count = n_units(name, layer) if SITES[name].unit and any(members for members, _ in asked) else 0
        for positions, own in _by_positions(asked, count).items():
            named = (own, None) if SITES[name].per_head else (None, None if own is None or len(own) == count else own)
            cells.append(Cell(name, layer, named[0], positions, named[1]))
    return tuple(cells)


def units_read(cells: Iterable[Cell]) -> dict[tuple[str, int], tuple[int, ...] | None]:
    """By site and layer, the units that any of the cells wants at any position, ascending; None for all."""
    found: dict[tuple[str, int], set[int] | None] = {}
    for site, layer, _, _, units in cells:
        known = found.setdefault((site, layer), set())
        found[site, layer] = None if units is None or known is None else known.union(units)
    return {where: None if units is None else tuple(sorted(units)) for where, units in found.items()}


def _by_positions(asked: list[tuple[range | None, Positions]], count: int) -> dict[Positions, tuple[int, ...] | None]:
    """Members (None: all of `count`) and their positions -> each member's positions, all members of the same ones together."""
    if all(members is None for members, _ in asked):
        return {parse_positions([part for _, positions in asked for part in positions.parts]): None}
    parts: dict[int, tuple[str, ...]] = defaultdict(tuple)
    for members, positions in asked:
        for member in range(count) if members is None else members:
            parts[member] += positions.parts
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for member, own in parts.items():
        alike[own].append(member)
    grouped: dict[Positions, list[int]] = defaultdict(list)
    for own, chosen in alike.items():
        grouped[parse_positions(own)] += chosen
    return {positions: tuple(sorted(chosen)) for positions, chosen in grouped.items()}


def _layers(
    site: Site, layers: Range, n_layers: int, count: Callable[[str, int], int] | None, has: Callable[[str, int], bool] | None
) -> list[tuple[int, int]]:
    """(layer, its number of heads or units; 0 where `count` is None) of the layers that have the site."""
    if not site.per_layer:
        return [(-1, 0)]
    named = list(layers.of(n_layers, "layer"))
    if has is not None and not layers.one:
        named = [layer for layer in named if has(site.name, layer)]
    having = [(layer, count(site.name, layer) if count else 0) for layer in named]
    having = [(layer, own) for layer, own in having if own or not count]
    if not having:
        which = (
            f"layer {layers} has no" if layers.one else ("no layer has" if layers == Range() else f"no layer of {layers} has")
        )
        raise SiteAbsent(f"{which} '{site.name}'", hint="probe models check MODEL says why")
    return having
