"""What can be read or changed in a model, and the words for it: `SITE[@LAYERS[.HEADS]][:POSITIONS]`. Knows no model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from probe.errors import BadPlace, OutOfRange, SiteAbsent, UnknownSite


class Site(NamedTuple):
    """A kind of activation: its axes (after `batch`), and whether each layer, and each head, has its own."""

    name: str
    axes: tuple[str, ...]
    doc: str
    per_head: bool = False
    per_layer: bool = True


SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("embed", ("pos", "d_model"), "output of the token embedding", per_layer=False),
        Site("resid_pre", ("pos", "d_model"), "residual stream into a block"),
        Site("resid_mid", ("pos", "d_model"), "residual stream between attention and MLP"),
        Site("resid_post", ("pos", "d_model"), "residual stream out of a block"),
        Site("attn_out", ("pos", "d_model"), "what the attention (or other mixer) adds to the stream"),
        Site("mlp_out", ("pos", "d_model"), "what the MLP adds to the stream"),
        Site("mlp_post", ("pos", "d_mlp"), "the MLP's hidden layer, before its last matrix"),
        Site("q", ("pos", "head", "d_head"), "queries, after rotation", per_head=True),
        Site("k", ("pos", "head", "d_head"), "keys, after rotation; one a key-value head", per_head=True),
        Site("v", ("pos", "head", "d_head"), "values; one a key-value head", per_head=True),
        Site("z", ("pos", "head", "d_head"), "heads' weighted values, before W_O", per_head=True),
        Site("pattern", ("head", "query", "key"), "attention weights", per_head=True),
        Site("scores", ("head", "query", "key"), "attention scores before the softmax", per_head=True),
        Site("final_norm", ("pos", "d_model"), "output of the last norm", per_layer=False),
        Site("logits", ("pos", "d_vocab"), "the model's output", per_layer=False),
    )
}

# TransformerLens' names; {} is the layer
_LENS_NAMES = {
    "hook_embed": "embed",
    "ln_final.hook_normalized": "final_norm",
    "blocks.{}.hook_resid_pre": "resid_pre",
    "blocks.{}.hook_resid_mid": "resid_mid",
    "blocks.{}.hook_resid_post": "resid_post",
    "blocks.{}.hook_attn_out": "attn_out",
    "blocks.{}.hook_mlp_out": "mlp_out",
    "blocks.{}.mlp.hook_post": "mlp_post",
    "blocks.{}.attn.hook_q": "q",
    "blocks.{}.attn.hook_k": "k",
    "blocks.{}.attn.hook_v": "v",
    "blocks.{}.attn.hook_rot_q": "q",
    "blocks.{}.attn.hook_rot_k": "k",
    "blocks.{}.attn.hook_z": "z",
    "blocks.{}.attn.hook_pattern": "pattern",
    "blocks.{}.attn.hook_attn_scores": "scores",
}
_FORM = "SITE[@LAYERS[.HEADS]][:POSITIONS], as in resid_post@5, z@5.3 or resid_pre@all:-1"
_NUMBERS = r"all|-?\d+\.\.(?:-?\d+)?|\.\.-?\d+|-?\d+"
_LAYER_ITEM = re.compile(rf"(?P<layers>{_NUMBERS})(?:\.(?P<heads>{_NUMBERS}))?|L(?P<l>\d+)H(?P<h>\d+)")
_POSITION_ITEM = re.compile(rf"(?:{_NUMBERS})|last|prompt|completion|step\d+")
_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9.]*")
_CONTINUES = re.compile(r"all\b|last\b|prompt\b|completion\b|step\d+\b|tok=|L\d+H\d+\b")


class Range(NamedTuple):
    """Inclusive; negative numbers count from the end, None is open."""

    low: int | None = None
    high: int | None = None

    def __str__(self) -> str:
        if self == (None, None):
            return "all"
        if self.low == self.high:
            return str(self.low)
        return f"{'' if self.low is None else self.low}..{'' if self.high is None else self.high}"

    @property
    def one(self) -> bool:
        """Whether it names a single number."""
        return self.low is not None and self.low == self.high

    def of(self, n: int, what: str) -> range:
        """The numbers it means among 0..n-1. Raises `OutOfRange` with the legal range."""
        low, high = (None if end is None else end + n if end < 0 else end for end in self)
        low, high = 0 if low is None else low, n - 1 if high is None else high
        if not 0 <= low <= high < n:
            legal = f"{what}s are 0..{n - 1}, or -{n}..-1 from the end" if n else f"there is no {what} at all"
            raise OutOfRange(f"no {what} {self}", hint=legal)
        return range(low, high + 1)


@dataclass(frozen=True)
class Positions:
    """Which positions of a text: parts such as `last`, `3..9`, `prompt`, `step3`, `tok=Paris#2`; their union."""

    parts: tuple[str, ...] = ("all",)

    def __str__(self) -> str:
        return ",".join(self.parts)

    @property
    def static(self) -> bool:
        """Whether they are known before the text is generated and cut into steps."""
        return not any(part.startswith(("step", "tok=", "completion")) for part in self.parts)

    def indices(
        self, n: int, n_prompt: int, *, steps: Sequence[tuple[int, int]] = (), tokens: Sequence[str] = ()
    ) -> list[int]:
        """Sorted positions in a text of n tokens, n_prompt of them the prompt's. `steps` are token spans, `tokens` texts.

        Raises `OutOfRange` for what the text does not have, `BadPlace` for a token text that does not occur exactly once.
        """
        found: set[int] = set()
        for part in self.parts:
            if part.startswith("tok="):
                found.add(_token(part[4:], tokens))
            elif part.startswith("step"):
                step = Range(int(part[4:]), int(part[4:])).of(len(steps), "step")[0]
                found.update(range(*steps[step]))
            elif part == "prompt":
                found.update(range(n_prompt))
            elif part == "completion":
                found.update(range(n_prompt, n))
            else:
                found.update((Range(-1, -1) if part == "last" else _range(part)).of(n, "position"))
        return sorted(found)


@dataclass(frozen=True)
class Place:
    """A place as written: site, (layers, heads) parts, positions. `str` gives its canonical text."""

    site: str
    parts: tuple[tuple[Range, Range | None], ...] = ()
    positions: Positions = Positions()

    def __str__(self) -> str:
        parts = ",".join(f"{layers}" if heads is None else f"{layers}.{heads}" for layers, heads in self.parts)
        where = "" if self.positions == Positions() else f":{self.positions}"
        return f"{self.site}{'@' if parts else ''}{parts}{where}"


class Cell(NamedTuple):
    """One site of one layer (-1 where it has none), its heads (None where it has none) and positions."""

    site: str
    layer: int
    heads: tuple[int, ...] | None
    positions: Positions


def parse_places(text: str) -> tuple[Place, ...]:
    """Places separated by commas; commas inside a place's layers or positions stay in it. Raises `BadPlace`."""
    places = []
    rest = text.strip()
    while True:
        place, rest = _place(rest)
        places.append(place)
        if not rest:
            return tuple(places)


def split_edit(text: str) -> tuple[Place, str, tuple[str, ...]]:
    """`PLACE=OP[:ARG…]` -> (place, op, args). The last `=` that is not `tok=` separates; raises `BadPlace`."""
    match = re.fullmatch(r"(.*?(?:tok=[^=]*)?)=([a-z][a-z-]*)((?::.*)?)", text, flags=re.DOTALL)
    if match is None:
        raise BadPlace(f"'{text}' is not an edit", hint="PLACE=OP, as in z@5.3=zero or resid_post@12:-1=patch:RUN")
    places = parse_places(match[1])
    if len(places) != 1:
        raise BadPlace(f"'{text}' names {len(places)} places", hint="give one --edit for each")
    return places[0], match[2], tuple(match[3][1:].split(":")) if match[3] else ()


def resolve(
    places: Iterable[Place], *, n_layers: int, n_heads: Callable[[str, int], int], has: Callable[[str, int], bool]
) -> tuple[Cell, ...]:
    """The cells that places mean in a model, in the order of layers; heads of one site, layer and positions together.

    A layer named by its number must have the site; from `all` or a range those that have it are taken. Raises `OutOfRange`,
    `SiteAbsent` or `BadPlace`.
    """
    found: dict[tuple[str, int, Positions], set[int] | None] = {}
    for place in places:
        site = SITES[place.site]
        if not site.per_layer and place.parts:
            raise BadPlace(f"'{site.name}' has no layers", hint=f"write {site.name}")
        for layers, heads in place.parts or ((Range(), None),):
            for layer in _layers(site, layers, n_layers, has):
                key = site.name, layer, place.positions
                if not site.per_head:
                    if heads is not None:
                        raise BadPlace(f"'{site.name}' has no heads", hint=f"write {site.name}@{layers}")
                    found[key] = None
                    continue
                chosen = (heads or Range()).of(n_heads(site.name, layer), "head")
                found[key] = {*(found.get(key) or ()), *chosen}
    order = list(SITES)
    return tuple(
        Cell(site, layer, None if heads is None else tuple(sorted(heads)), positions)
        for (site, layer, positions), heads in sorted(found.items(), key=lambda i: (order.index(i[0][0]), i[0][1]))
    )


def _layers(site: Site, layers: Range, n_layers: int, has: Callable[[str, int], bool]) -> list[int]:
    if not site.per_layer:
        return [-1]
    named = layers.of(n_layers, "layer")
    having = list(named) if layers.one else [layer for layer in named if has(site.name, layer)]
    if not having:
        raise SiteAbsent(f"no layer of {layers} has '{site.name}'", hint="probe models check MODEL says why")
    return having


def _place(text: str) -> tuple[Place, str]:
    """The first place of a text, and what follows its comma."""
    word = _WORD.match(text)
    if word is None:
        raise BadPlace(f"'{text}' is not a place", hint=f"write {_FORM}")
    site, layer = _site(word[0])
    rest = text[word.end() :]
    parts: list[tuple[Range, Range | None]] = [] if layer is None else [(Range(layer, layer), None)]
    if rest.startswith("@"):
        items, rest = _items(rest[1:], _LAYER_ITEM, text)
        parts += [_layer_part(item) for item in items]
    where = Positions()
    if rest.startswith(":"):
        items, rest = _items(rest[1:], _POSITION_ITEM, text)
        where = Positions(tuple(items))
    if rest and not rest.startswith(","):
        raise BadPlace(f"cannot read '{rest}' in '{text}'", hint=f"write {_FORM}")
    if rest == ",":
        raise BadPlace(f"nothing follows the comma in '{text}'", hint=f"write {_FORM}")
    return Place(site, tuple(parts), where), rest[1:].lstrip()


def _items(rest: str, form: re.Pattern[str], text: str) -> tuple[list[str], str]:
    """Comma-separated items of one form; `tok=` takes the rest of the text. The comma before another place is left."""
    items = []
    while True:
        if form is _POSITION_ITEM and rest.startswith("tok="):
            return [*items, rest], ""
        match = form.match(rest)
        if match is None:
            raise BadPlace(f"cannot read '{rest}' in '{text}'", hint=f"write {_FORM}")
        items.append(match[0])
        rest = rest[match.end() :]
        follows = rest[1:].lstrip()
        if not rest.startswith(",") or (_WORD.match(follows) and not _CONTINUES.match(follows)):
            return items, rest
        rest = follows


def _site(word: str) -> tuple[str, int | None]:
    """Our name of a site, and the layer where TransformerLens' name holds it."""
    if word in SITES:
        return word, None
    number = re.search(r"(?<=blocks\.)\d+", word)
    ours = _LENS_NAMES.get(word if number is None else word.replace(number[0], "{}", 1))
    if ours is None:
        near = difflib.get_close_matches(word, SITES, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UnknownSite(f"unknown site '{word}'", hint=f"{hint}sites are: {', '.join(SITES)}")
    return ours, None if number is None else int(number[0])


def _layer_part(item: str) -> tuple[Range, Range | None]:
    match = _LAYER_ITEM.fullmatch(item)
    assert match is not None, "items are matched before"
    if match["l"]:
        return _range(match["l"]), _range(match["h"])
    return _range(match["layers"]), _range(match["heads"]) if match["heads"] else None


def _range(text: str) -> Range:
    if text == "all":
        return Range()
    low, dots, high = text.partition("..")
    return Range(int(low) if low else None, (int(high) if high else None) if dots else int(low))


def _token(wanted: str, tokens: Sequence[str]) -> int:
    """Position of the token with that text, spaces around it aside; `TEXT#2` is the second one."""
    text, mark, number = wanted.rpartition("#")
    if not mark or not number.isdecimal():
        text, number = wanted, ""
    found = [i for i, token in enumerate(tokens) if text in (token, token.strip())]
    if not found:
        raise BadPlace(f"no token '{text}' in the text", hint="probe trace --json or the table 'tokens' shows the tokens")
    if not number and len(found) > 1:
        raise BadPlace(f"token '{text}' occurs {len(found)} times, at {found}", hint=f"say which: tok={text}#1")
    return found[Range(int(number) - 1, int(number) - 1).of(len(found), "occurrence")[0] if number else 0]
