"""Whether an edit fits a model: its site and heads are there and can be changed, and its vectors are as wide as the site."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probe.anatomy.mixing import values_at
from probe.anatomy.tape import probe_tokens
from probe.anatomy.units import in_units
from probe.errors import BadEdit, OutOfRange, SiteAbsent
from probe.interventions.edits import Cut, Edit, Patch, Resample
from probe.interventions.experts import AblateExperts, ExpertEdit, ForceExperts, WeighExperts, check_experts
from probe.sites import SITES, Cell, parse_places

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.language_model import LanguageModel


ROUTING = (AblateExperts.op, ForceExperts.op, WeighExperts.op)  # operations on the choice of experts


def cells(lm: LanguageModel, place: str) -> tuple[Cell, ...]:
    """The cells that a place's text means in this model: `cells(lm, "z@5.3:last")`. Raises `BadPlace` and its kinds."""
    anatomy = lm.anatomy
    return anatomy.cells(parse_places(place))


def check_edits(lm: LanguageModel, edits: Iterable[Edit]) -> None:
    """Raises `SiteAbsent`, `OutOfRange` or `BadEdit` for the first edit that does not fit the model."""
    for edit in edits:
        check_cell(lm, edit.cell, edit.op)
        if isinstance(edit, ExpertEdit):
            check_experts(lm.anatomy, edit)
        for name, tensor in edit.tensors().items():
            _check_shape(lm, edit, name, tensor)


def check_cell(lm: LanguageModel, cell: Cell, op: str) -> None:
    """Raises `SiteAbsent` or `OutOfRange` for a cell that the model does not have, `BadEdit` where `op` cannot change it."""
    anatomy, (site, layer, heads, _, _) = lm.anatomy, cell
    if SITES[site].per_layer and not 0 <= layer < anatomy.n_layers:
        raise OutOfRange(f"there is no layer {layer}", hint=f"layers 0 to {anatomy.n_layers - 1}")
    found = anatomy.site(site, layer)  # raises
    if not SITES[site].per_head and heads is not None:
        raise BadEdit(f"'{site}' has no heads", hint="leave them out")
    missing = [head for head in heads or () if not 0 <= head < found.n_heads]
    if missing:
        raise OutOfRange(f"no head {missing[0]} of {site}@{layer}", hint=f"heads are 0..{found.n_heads - 1}")
    if (op in ROUTING) != ("route" in SITES[site].uses):
        what = f"'{op}' cannot change '{site}'"
        raise BadEdit(what, hint="router@LAYER.eEXPERT takes ablate, force and weigh:FACTOR; others do not")
    check_units(anatomy, cell)
    if op not in (Cut.op, *ROUTING) and "change" not in SITES[site].uses:
        hint = "cut:KEYS takes edges out; z@LAYER.HEAD=zero silences a head"
        raise BadEdit(f"'{op}' cannot change '{site}'", hint=hint)
    if op == Cut.op and "cut" not in SITES[site].uses:
        raise BadEdit(f"'{op}' takes edges out of a pattern, and '{site}' has none", hint="write pattern@LAYER.HEAD")


def check_units(anatomy: Anatomy, cell: Cell) -> None:
    """Raises `BadEdit` for units of a site whose entries cannot be named, `OutOfRange` for those that are not there."""
    if cell.units is None:
        return
    unit, place = SITES[cell.site].unit, f"{cell.site}@{cell.layer}"
    if not unit:
        raise BadEdit(f"'{cell.site}' has no neurons that could be named", hint="leave the units out")
    n = anatomy.n_units(cell.site, cell.layer)
    if missing := [number for number in cell.units if not 0 <= number < n]:
        raise OutOfRange(f"no {unit} {missing[0]} of {place}", hint=f"{unit}s are 0..{n - 1}")


def _check_shape(lm: LanguageModel, edit: Edit, name: str, tensor: Tensor) -> None:
    site, layer, heads, _, units = edit.cell
    found, place = lm.anatomy.site(site, layer), f"{site}@{layer}" if SITES[site].per_layer else site
    width = found.width if units is None else len(units)
    if tensor.shape[-1:] != (width,):
        each = " a head" if SITES[site].per_head else "" if units is None else f" of the {SITES[site].unit}s that are meant"
        raise BadEdit(
            f"the {name} of {edit} has {tensor.shape[-1] if tensor.ndim else 1} values, and {place} has {width}{each}",
            hint="it was made at another site, or with another model",
        )
    of_heads = (len(heads or range(found.n_heads)),) if SITES[site].per_head else ()
    inside: Sequence[int] = tensor.shape[:-1]
    if isinstance(edit, (Patch, Resample)):
        outer = len(inside) - len(of_heads)
        fits = tuple(inside[outer:]) == of_heads and 1 <= outer <= (2 if isinstance(edit, Patch) else 1)
        wanted = f"(pos, {''.join(f'{n}, ' for n in of_heads)}{width})"
    else:
        fits, wanted = tuple(inside) in ((), of_heads), f"({width},)"
    if not fits or 0 in tensor.shape:
        raise BadEdit(f"the {name} of {edit} has the shape {tuple(tensor.shape)}", hint=f"it should be {wanted}")


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
    mid, post, here, ids = (
        anatomy.tap(site, layer),
        anatomy.tap("resid_post", layer),
        anatomy.layers[layer],
        probe_tokens(model),
    )
    taps = [mid, post, *(write.tap for write in here.writes)]
    assert len(set(taps)) == len(taps), f"{site}@{layer} is read where another site is"
    plain = values_at(model, ids, taps)
    noise = torch.randn(plain[mid].shape, generator=torch.Generator().manual_seed(0)).to(plain[mid])
    added = noise * plain[mid].float().std().to(noise)
    changed = values_at(model, ids, taps, edits={mid: lambda value: write_over(value, value + added)})
    left = (changed[post] - plain[post]).double().reshape(added.shape)
    for write in here.writes:
        own = (changed[write.tap] - plain[write.tap]).double().reshape(added.shape)
        left = left - in_units(own, write.unit(model))
    wanted = added.double()
    ratio = float((left * wanted).sum() / (wanted * wanted).sum())
    tolerance = max(TOLERANCE, 16 * torch.finfo(added.dtype).eps) * max(1.0, abs(ratio))
    if abs(ratio) < 0.01:
        return "its block adds to another copy of it than its norm reads"
    if not here.carry_gains and float((left - ratio * wanted).norm() / wanted.norm()) > tolerance:
        return "what its block adds to is not what its norm reads"
    return ""
