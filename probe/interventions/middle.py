"""The stream between attention and MLP belongs to no module: it is changed where the second norm reads it, in place, so that
what the block adds to later is the same tensor. Whether that holds is tried on each model before the first such edit."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probe.anatomy.parts import in_units
from probe.anatomy.tape import probe_tokens
from probe.errors import SiteAbsent
from probe.instrument import tapping

if TYPE_CHECKING:
    from probe.anatomy import Anatomy, Tap
    from probe.instrument import Reader

TOLERANCE = 1e-3  # of the change: the rounding of a block's sums
_good: weakref.WeakKeyDictionary[nn.Module, set[tuple[str, int]]] = weakref.WeakKeyDictionary()  # where it holds


def check_middle(model: nn.Module, anatomy: Anatomy, site: str, layer: int) -> None:
    """Raises `SiteAbsent` where a change of the site would not reach both its readers, the norm and the sum."""
    known = _good.setdefault(model, set())
    if (site, layer) in known:
        return
    problem = _why_not(model, anatomy, site, layer)
    if problem:
        raise SiteAbsent(f"{site}@{layer} cannot be changed: {problem}", hint="change attn_out or resid_post")
    known.add((site, layer))


def write_over(held: Tensor, new: Tensor) -> None:
    """Put `new` in the place of a tensor that several hold."""
    held.copy_(new)


@torch.no_grad()
def _why_not(model: nn.Module, anatomy: Anatomy, site: str, layer: int) -> str:
    """Add a vector there; what the block gives must change by it, once its writes' own changes are taken off."""
    tap, here, ids = anatomy.tap(site, layer), anatomy.layers[layer], probe_tokens(model)
    taps = {"mid": tap, "post": anatomy.tap("resid_post", layer), **{f"{i}": w.tap for i, w in enumerate(here.writes)}}
    plain = _values(model, ids, taps)
    noise = torch.randn(plain["mid"].shape, generator=torch.Generator().manual_seed(0)).to(plain["mid"])
    added = noise * plain["mid"].float().std().to(noise)
    changed = _values(model, ids, taps, add=added)
    left = (changed["post"] - plain["post"]).double().reshape(added.shape)
    for i, write in enumerate(here.writes):
        own = (changed[f"{i}"] - plain[f"{i}"]).double().reshape(added.shape)
        left = left - in_units(own, write.unit(model))
    wanted = added.double()
    ratio = float((left * wanted).sum() / (wanted * wanted).sum())
    tolerance = max(TOLERANCE, 16 * torch.finfo(added.dtype).eps) * max(1.0, abs(ratio))
    if abs(ratio) < 0.01:
        return "its block adds to another copy of it than its norm reads"
    if not here.carry_gains and float((left - ratio * wanted).norm() / wanted.norm()) > tolerance:
        return "what its block adds to is not what its norm reads"
    return ""


def _values(model: nn.Module, ids: Tensor, taps: dict[str, Tap], *, add: Tensor | None = None) -> dict[str, Tensor]:
    """Copies of the tapped tensors of one forward, with `add` written onto resid_mid."""
    seen: dict[str, Tensor] = {}
    readers: dict[Tap, Reader] = {}
    for name, tap in taps.items():

        def read(value: Tensor, name: str = name) -> None:
            if name == "mid" and add is not None:
                write_over(value, value + add)
            seen[name] = value.clone()

        assert tap not in readers, f"{name} is read where another site is"
        readers[tap] = read
    with tapping(model, readers):
        model(input_ids=ids, use_cache=False)
    return seen
