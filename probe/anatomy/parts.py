"""What an anatomy is: taps, equations and their errors, and the reasons for what is absent; runs no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from probe.errors import OutOfRange, SiteAbsent
from probe.instrument import Tap

ATTENTION_SITES = ("q", "k", "v", "pattern", "scores")  # read off the attention call, not off a module
MODEL_SITES = ("embed", "final_norm", "logits")
LOGITS = Tap("", "output", "logits")

Kind = Literal["attn", "mixer", "mlp", "other", "other_2", "other_3", "other_4", "other_5"]
WRITES: dict[str, Kind] = {  # site -> the kind of the block's write that it is
    "attn_out": "attn", "mixer_out": "mixer", "mlp_out": "mlp",
    "other_out": "other", "other_out_2": "other_2", "other_out_3": "other_3",
    "other_out_4": "other_4", "other_out_5": "other_5",
}  # fmt: skip
LAYER_SITES = ("resid_pre", "resid_mid", "resid_post", *WRITES, "mlp_post", "z")  # found at a module


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


class Write(NamedTuple):
    """One addition to the residual stream: `coefficient` x the tensor at `tap` (batch, pos, d_model).

    `gains` are parameters of width d_model that the model multiplies it by, elementwise, besides."""

    tap: Tap
    coefficient: float
    kind: Kind
    gains: tuple[str, ...] = ()


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
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def write_sites(self) -> list[str]:
        """The sites of its writes, in their order."""
        site_of = {kind: site for site, kind in WRITES.items()}
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
    embed: Tap | None
    final_norm: Tap | None
    head: str | None
    readout: Readout
    readout_exact: bool
    readout_error: float
    residual_error: float
    absent: Mapping[str, str]
    masked: tuple[tuple[int, int], ...] = ()  # runs of ids, [first, last + 1), that the model rules out after its head

    def tap(self, site: str, layer: int = -1) -> Tap:
        """Where the site is read. SiteAbsent (with the reason) where no verified equation finds it."""
        if site in MODEL_SITES:
            found = {"embed": self.embed, "final_norm": self.final_norm, "logits": LOGITS}[site]
            if found is None:
                raise SiteAbsent(f"this model has no '{site}': {self.reason(site)}", hint=self._hint())
            return found
        here = self._layer(layer)
        if site not in here.taps:
            raise SiteAbsent(f"layer {layer} has no '{site}': {self.reason(site, layer)}", hint=self._hint(layer))
        return here.taps[site]

    def has(self, site: str, layer: int = -1) -> bool:
        """Whether the site can be read (those of an attention call: whether the registry shows it)."""
        if site in MODEL_SITES:
            return {"embed": self.embed, "final_norm": self.final_norm, "logits": LOGITS}[site] is not None
        here = self._layer(layer)
        return here.attention is not None if site in ATTENTION_SITES else site in here.taps

    def write(self, site: str, layer: int = -1) -> Write | None:
        """The block's write that a site is; None for a site that is no write."""
        if site not in WRITES or not self.has(site, layer):
            return None
        return next(write for write in self._layer(layer).writes if write.kind == WRITES[site])

    def n_heads(self, site: str, layer: int = -1) -> int:
        """How many heads the site has at that layer: 0 where it has none."""
        if site in {"k", "v"}:
            return self._layer(layer).n_kv_heads
        return self._layer(layer).n_heads if site in {"q", "z", "pattern", "scores"} else 0

    @property
    def calls(self) -> dict[tuple[str, int], int]:
        """(path of an attention module, which of its calls in one forward) -> the layer whose attention that is."""
        return {(layer.attention, layer.visit): i for i, layer in enumerate(self.layers) if layer.attention is not None}

    def reason(self, site: str, layer: int = -1) -> str:
        """Why the site is absent."""
        own = self._layer(layer).absent.get(site) if site not in MODEL_SITES and self.layers else None
        return own or self.absent.get(site) or self.absent.get("blocks") or "no equation that holds finds it"

    def _layer(self, layer: int) -> Layer:
        if not -self.n_layers <= layer < self.n_layers:
            if not self.n_layers:
                raise SiteAbsent(f"no layers were found: {self.absent.get('blocks', '')}", hint=self._hint())
            raise OutOfRange(f"there is no layer {layer}", hint=f"layers 0 to {self.n_layers - 1}")
        return self.layers[layer]

    def _hint(self, layer: int | None = None) -> str:
        names = [s for s in MODEL_SITES if self.has(s)]
        if self.layers:
            names += [s for s in (*LAYER_SITES, *ATTENTION_SITES) if self.has(s, layer or 0)]
        return f"found here: {', '.join(names)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers."""
        return _plain(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Anatomy:
        """The inverse of `to_dict`, also after a trip through JSON."""
        fields = dict(plain)
        fields["layers"] = tuple(_layer_from(entry) for entry in plain["layers"])
        for name in ("embed", "final_norm"):
            fields[name] = None if plain[name] is None else Tap(*plain[name])
        fields["readout"] = Readout(*plain["readout"])
        fields["masked"] = tuple((start, end) for start, end in plain.get("masked", ()))
        return cls(**fields)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _layer_from(plain: Mapping[str, Any]) -> Layer:
    fields = dict(plain)
    fields["writes"] = tuple(
        Write(Tap(*tap), coefficient, kind, tuple(gains)) for tap, coefficient, kind, gains in plain["writes"]
    )
    fields["taps"] = {site: Tap(*tap) for site, tap in plain["taps"].items()}
    fields["carry_gains"] = tuple(plain["carry_gains"])
    return Layer(**fields)


Unit = float | Tensor
"""A number, or one for each of d_model."""


def unit_of(model: nn.Module, anatomy: Anatomy, site: str, layer: int) -> Unit:
    """What the model multiplies the tensor at the site's tap by before it adds it to the stream; 1 where it adds nothing."""
    write = anatomy.write(site, layer)
    return 1.0 if write is None else unit_of_write(model, write)


def unit_of_write(model: nn.Module, write: Write) -> Unit:
    """Its coefficient times its gains."""
    unit: Unit = write.coefficient
    for name in write.gains:
        unit = model.get_parameter(name).detach().flatten() * unit
    return unit


def in_units(value: Tensor, unit: Unit) -> Tensor:
    """The tensor at a tap (…, d) -> the site, rounded as the model would; the same tensor where the unit is 1."""
    if isinstance(unit, Tensor):
        return value * unit.to(value.device)
    return value if unit == 1.0 else value * unit


def out_of_units(value: Tensor, unit: Unit) -> Tensor:
    """The inverse; not finite where the model multiplies a channel by 0, so that nothing could be added to it."""
    return value / unit.to(value.device) if isinstance(unit, Tensor) else value / unit


def slope_in_units(slope: Tensor, unit: Unit) -> Tensor:
    """A derivative by the tensor at a tap -> by the site; 0 in a channel that the model multiplies by 0."""
    found = out_of_units(slope, unit)
    return torch.where(unit.to(slope.device) == 0, 0.0, found) if isinstance(unit, Tensor) else found
