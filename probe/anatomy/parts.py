"""What an anatomy is: taps, equations and their errors, and the reasons for what is absent; runs no model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from probe.anatomy.units import Entries, Unit, unit_of
from probe.errors import OutOfRange, SiteAbsent
from probe.instrument import AttentionCall, Tap
from probe.sites import SITES, Cell, Place, Site, resolve, sites_of

LOGITS = Tap("", "output", "logits")


def of_text(value: Tensor, batch: int, n: int, what: str) -> Tensor:
    """A tap's tensor as (batch, pos, …) over the n tokens of each text: some models pad texts on the right to a multiple of
    a number of their own, and some hand on all rows flat. Raises `SiteAbsent` where it is neither."""
    if value.ndim > 2 and value.shape[0] == batch and value.shape[1] >= n:
        return value[:, :n]
    if value.shape[0] == batch * n:
        return value.reshape(batch, n, *value.shape[1:])
    raise SiteAbsent(
        f"'{what}' has no vector for each token here: its shape is {tuple(value.shape)} for {batch} x {n} tokens",
        hint="this model cuts texts otherwise; try another site",
    )


def of_call(call: AttentionCall, site: str) -> Tensor:
    """What a site is of an attention call: queries, keys or values (batch, head, pos, d)."""
    found: Tensor = getattr(call, SITES[site].field)
    return found


class Experts(NamedTuple):
    """The routed experts of a layer: where the numbers of each token's experts and their weights, both (token, chosen), are
    handed to the module that computes them; how many experts there are, and how many of them a token has."""

    chosen: Tap
    weights: Tap
    n_experts: int
    n_chosen: int


class Write(NamedTuple):
    """One addition to the residual stream: `coefficient` x the tensor at `tap` (batch, pos, d_model).

    `gains` are parameters of width d_model that the model multiplies it by, elementwise, besides."""

    tap: Tap
    coefficient: float
    kind: str
    gains: tuple[str, ...] = ()

    def unit(self, model: nn.Module) -> Unit:
        """Its coefficient times its gains."""
        return unit_of(model, self.coefficient, self.gains)


@dataclass(frozen=True)
class Location:
    """Where a site is in one model, and what it is of the tensor there: that times `coefficient` and `gains`, as of a `Write`.

    Whoever reads a site and whoever changes it goes through here, so that what was read can be put back.
    call: (path of the attention module, which of its calls in one forward), of a site that is read off an attention call.
    changed: the tap where it is changed; a block's input is the output of the one before, and is changed there.
    width: values at one position, of one head where it has heads; 0 where it has none at a position.
    entries: which values of the tensor it is, where it is not all of them in their order.
    """

    site: Site
    layer: int
    read: Tap | None = None
    changed: Tap | None = None
    call: tuple[str, int] | None = None
    coefficient: float = 1.0
    gains: tuple[str, ...] = ()
    n_heads: int = 0
    width: int = 0
    entries: Entries | None = None

    @property
    def tap(self) -> Tap:
        """The tap where it is read."""
        assert self.read is not None, f"{self.site.name} is read off an attention call"
        return self.read

    def unit(self, model: nn.Module) -> Unit:
        """What the model multiplies the tensor at the tap by before it adds it to the stream; 1 where it adds nothing."""
        return unit_of(model, self.coefficient, self.gains)

    def positions_first(self, value: Tensor) -> Tensor:
        """The tensor at the tap as (batch, pos, …), or flat as the model has it."""
        return value if self.entries is None or value.ndim < 4 else value.movedim(self.entries.axis, 1)

    def by_head(self, flat: Tensor) -> Tensor:
        """All values at a position (…, n) -> (…, head, width); as they are where the site has no heads."""
        if self.entries is not None:
            return flat[..., self.entries.numbers(self.width, flat.device)]
        return flat.unflatten(-1, (self.n_heads, -1)) if self.n_heads else flat

    def put(self, flat: Tensor, vectors: Tensor) -> Tensor:
        """The inverse: flat (…, n) with the site's values (…, head, width) in their places."""
        if self.entries is None:
            return vectors.reshape(flat.shape)
        new = flat.clone()
        new[..., self.entries.numbers(self.width, flat.device)] = vectors
        return new


class Readout(NamedTuple):
    """logits = cap * tanh(scale * head(x) / cap), or scale * head(x) where cap is None."""

    scale: float = 1.0
    cap: float | None = None


@dataclass(frozen=True)
class Layer:
    """One block: resid_post = carry * resid_pre + sum of writes (+ offset), to a relative `error`.

    `carry_gains` are parameters (d_model) that multiply resid_pre; `offset` is the parameter that is added, or says that
    a constant vector is added that is no parameter."""

    block: str
    carry: float
    writes: tuple[Write, ...]
    taps: Mapping[str, Tap]
    attention: str | None = None  # path of the module that calls transformers' attention registry
    n_heads: int = 0
    n_kv_heads: int = 0
    d_head: int = 0
    error: float = 0.0
    equation: str = ""
    carry_gains: tuple[str, ...] = ()
    offset: str = ""
    visit: int = 0  # which of the attention module's calls in one forward
    entries: Mapping[str, Entries] = field(default_factory=dict)  # by site, where it is not the whole tensor at its tap
    experts: Experts | None = None
    widths: Mapping[str, int] = field(default_factory=dict)  # by site: values at a position, of one head where it has heads
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def write_sites(self) -> list[str]:
        """The sites of its writes, in their order."""
        site_of = {SITES[site].part: site for site in sites_of("write")}
        return [site_of[write.kind] for write in self.writes]

    @property
    def sum(self) -> str:
        """The equation in sites, which hold the coefficients of writes: `resid_post = resid_pre + attn_out + mlp_out`."""
        if not self.writes or (not self.carry and len(self.writes) == 1):
            return ""
        gains = [name.removeprefix(f"{self.block}.") for name in self.carry_gains]
        number = [] if self.carry == 1 else [f"{self.carry:.4g}"]
        parts = [" ".join([*number, *gains, "resid_pre"])] if self.carry else []
        parts += self.write_sites
        parts += [self.offset.removeprefix(f"{self.block}.")] if self.offset else []
        return f"resid_post = {' + '.join(parts)}"


@dataclass(frozen=True)
class Anatomy:
    """Where things are in one model: what holds numerically, to which error, and why the rest is absent.

    `absent` is why, by site, or for 'blocks' and 'head'; 'elsewhere' names blocks that are no part of this stream."""

    d_model: int
    d_vocab: int
    n_layers: int
    causal: bool
    layers: tuple[Layer, ...]
    taps: Mapping[str, Tap]  # of sites that belong to no layer
    widths: Mapping[str, int]  # of the same
    head: str | None
    readout: Readout
    readout_exact: bool
    readout_error: float
    residual_error: float
    absent: Mapping[str, str]
    masked: tuple[tuple[int, int], ...] = ()  # runs of ids, [first, last + 1), that the model rules out after its head

    @property
    def embed(self) -> Tap | None:
        """Where the stream begins."""
        return self.taps.get("embed")

    @property
    def final_norm(self) -> Tap | None:
        """What the head reads."""
        return self.taps.get("final_norm")

    def site(self, name: str, layer: int = -1) -> Location:
        """Where a site is, and all that is known of it here. Raises `SiteAbsent`, with the reason, or `OutOfRange`."""
        if not self.has(name, layer):
            where = "this model" if name in SITES and not SITES[name].per_layer else f"layer {layer}"
            raise SiteAbsent(f"{where} has no '{name}': {self.reason(name, layer)}", hint=self._hint(layer))
        site = SITES[name]
        if not site.per_layer:
            return Location(site, -1, self.taps[name], self.taps[name], width=self.widths[name])
        here, layer = self._layer(layer), layer % self.n_layers
        read = changed = here.taps.get(name)
        if name == "resid_pre" and layer > 0 and self.has("resid_post", layer - 1):
            changed = self.layers[layer - 1].taps["resid_post"]
        added = site.source in ("write", "share")
        times = here.taps["shared_out"].times if name == "routed_out" else 1.0
        write = next((w for w in here.writes if w.kind == site.part), None) if added else None
        return Location(
            site, layer, read, changed,
            call=(here.attention, here.visit) if site.source == "call" and here.attention is not None else None,
            coefficient=times * write.coefficient if write else 1.0, gains=write.gains if write else (),
            n_heads=self.n_heads(name, layer), width=here.widths.get(name, 0), entries=here.entries.get(name),
        )  # fmt: skip

    def tap(self, site: str, layer: int = -1) -> Tap:
        """Where the site is read. Raises as `site` does."""
        return self.site(site, layer).tap

    def has(self, site: str, layer: int = -1) -> bool:
        """Whether the site can be read (those of an attention call: whether the registry shows it)."""
        source = SITES[site].source if site in SITES else None
        if source == "end":
            return site in self.taps
        here = self._layer(layer)
        return here.attention is not None if source == "call" else source is not None and site in here.taps

    def n_heads(self, site: str, layer: int = -1) -> int:
        """How many heads the site has at that layer: 0 where it has none."""
        if not SITES[site].per_head:
            return 0
        return self._layer(layer).n_kv_heads if SITES[site].of_keys else self._layer(layer).n_heads

    def n_units(self, site: str, layer: int = -1) -> int:
        """How many neurons (experts) the site has at that layer, each of which can be named: 0 where it has none."""
        return self._layer(layer).widths.get(site, 0) if SITES[site].unit and self.has(site, layer) else 0

    def cells(self, places: Iterable[Place]) -> tuple[Cell, ...]:
        """The cells that places mean here. Raises `OutOfRange`, `SiteAbsent`."""
        return resolve(places, n_layers=self.n_layers, n_heads=self.n_heads, has=self.has, n_units=self.n_units)

    @property
    def calls(self) -> dict[tuple[str, int], int]:
        """(path of an attention module, which of its calls in one forward) -> the layer whose attention that is."""
        return {(layer.attention, layer.visit): i for i, layer in enumerate(self.layers) if layer.attention is not None}

    def reason(self, site: str, layer: int = -1) -> str:
        """Why the site is absent."""
        own = self._layer(layer).absent.get(site) if site not in sites_of("end") and self.layers else None
        return own or self.absent.get(site) or self.absent.get("blocks") or "no equation that holds finds it"

    def _layer(self, layer: int) -> Layer:
        if not -self.n_layers <= layer < self.n_layers:
            if not self.n_layers:
                raise SiteAbsent(f"no layers were found: {self.absent.get('blocks', '')}", hint=self._hint())
            raise OutOfRange(f"there is no layer {layer}", hint=f"layers 0 to {self.n_layers - 1}")
        return self.layers[layer]

    def _hint(self, layer: int = 0) -> str:
        names = [s for s in SITES if (self.layers or s in sites_of("end")) and self.has(s, layer)]
        return f"found here: {', '.join(names)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Anatomy:
        """The inverse of `to_dict`, also after a trip through JSON."""
        fields = dict(plain)
        fields["layers"] = tuple(_layer_from(entry) for entry in plain["layers"])
        fields["taps"] = {site: _tap_from(tap) for site, tap in plain["taps"].items()}
        fields["readout"] = Readout(*plain["readout"])
        fields["masked"] = tuple((start, end) for start, end in plain.get("masked", ()))
        return cls(**fields)


def _tap_from(plain: Sequence[Any]) -> Tap:
    path, side, key, call, less, times = plain
    return Tap(path, side, key, call, None if less is None else _tap_from(less), times)


def _layer_from(plain: Mapping[str, Any]) -> Layer:
    fields = dict(plain)
    fields["writes"] = tuple(
        Write(_tap_from(tap), coefficient, kind, tuple(gains)) for tap, coefficient, kind, gains in plain["writes"]
    )
    fields["taps"] = {site: _tap_from(tap) for site, tap in plain["taps"].items()}
    fields["carry_gains"] = tuple(plain["carry_gains"])
    if fields["experts"] is not None:
        chosen, weights, *sizes = fields["experts"]
        fields["experts"] = Experts(_tap_from(chosen), _tap_from(weights), *sizes)
    fields["entries"] = {
        site: Entries(tuple(starts), tuple(order), axis) for site, (starts, order, axis) in plain["entries"].items()
    }
    return Layer(**fields)
