"""What an edit of weights names: a parameter, or the columns of the matrix that reads a head or a neuron, by the anatomy."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from probe.errors import BadEdit, SiteAbsent
from probe.language_model.weights_patch import parameter_of
from probe.sites import SITES, parse_place
from probe.sites.positions import EVERYWHERE

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

_READERS = ("z", "mlp_post")  # sites that one matrix reads, column by column


class EditedMatrix(NamedTuple):
    """A parameter, or slices of it along an axis. linear: the path of the module whose matrix it is."""

    parameter: str
    shape: tuple[int, ...]
    axis: int = 0
    columns: Tensor | None = None
    linear: str = ""


@torch.no_grad()
def input_axis(model: nn.Module, target: EditedMatrix) -> int:
    """Which axis of a stored matrix is what its layer reads: tried by running the layer."""
    owner, _, own = target.parameter.rpartition(".")
    path = target.linear or owner
    module = model.get_submodule(path)
    weight = parameter_of(model, target.parameter).data
    if weight.ndim == 2 and own == "weight" and not isinstance(module, nn.Embedding):
        bias = getattr(module, "bias", None)
        for axis in (1, 0):
            x = torch.randn(1, weight.shape[axis], generator=torch.Generator().manual_seed(0)).to(weight)
            try:
                y = module(x)
            except (RuntimeError, TypeError, ValueError):
                continue
            expected = x @ (weight.T if axis == 1 else weight)
            expected = expected if bias is None else expected + bias
            tolerance = 64 * torch.finfo(weight.dtype).eps * float(expected.abs().max())
            if isinstance(y, Tensor) and y.shape == expected.shape and float((y - expected).abs().max()) <= tolerance:
                return axis
    raise BadEdit(
        f"'{target.parameter}' {tuple(weight.shape)} is no matrix of a linear layer",
        hint="z@5 and mlp_post@5 name such matrices",
    )


def targets(lm: LanguageModel, where: str) -> list[EditedMatrix]:
    """What stands before the `=`: a parameter or a pattern of names, or a place whose matrix is meant."""
    names = dict(lm.model.named_parameters(remove_duplicate=False))
    if where in names:
        return [EditedMatrix(where, tuple(parameter_of(lm.model, where).shape))]
    word = re.split(r"[@:]", where, maxsplit=1)[0]
    if word in SITES:
        return _of_place(lm, where)
    if any(sign in where for sign in "*?["):
        own = list({id(p): name for name, p in reversed(names.items()) if fnmatchcase(name, where)}.values())[::-1]
        if own:
            return [EditedMatrix(name, tuple(parameter_of(lm.model, name).shape)) for name in own]
        raise BadEdit(f"no parameter of '{lm.name}' matches '{where}'", hint="as in '*.mlp.*'")
    near = difflib.get_close_matches(where, names, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise BadEdit(
        f"'{where}' is no parameter of '{lm.name}' and no place", hint=f"{hint}a name of the state dict, z@5.3 or mlp_post@5.n7"
    )


def _of_place(lm: LanguageModel, where: str) -> list[EditedMatrix]:
    anatomy, place = lm.anatomy, parse_place(where)
    if place.positions != EVERYWHERE:
        raise BadEdit(f"'{where}' names positions, and weights are the same at all", hint="leave them out, or use --edit")
    if place.site not in _READERS:
        raise BadEdit(f"'{place.site}' is no column of one matrix", hint=f"{' and '.join(_READERS)} are; or name the parameter")
    for part in place.parts:
        if part.layers.one:
            anatomy.site(place.site, part.layers.low or 0)  # raises with the reason where it is absent
    found = []
    for cell in anatomy.cells([place]):
        location = anatomy.site(cell.site, cell.layer)
        parameter, axis, shape = _reading(lm, cell.site, cell.layer)
        members = cell.units if cell.heads is None or len(cell.heads) == location.n_heads else cell.heads
        own = None if members is None else location.by_head(torch.arange(shape[axis]))[list(members)].flatten()
        found.append(EditedMatrix(parameter, shape, axis, own, parameter.rpartition(".")[0]))
    return found


def _reading(lm: LanguageModel, site: str, layer: int) -> tuple[str, int, tuple[int, ...]]:
    """(the matrix that reads a site, the axis along which, its shape). Raises `SiteAbsent` where none does alone."""
    location = lm.anatomy.site(site, layer)
    module = lm.model.get_submodule(location.tap.path)
    name = f"{location.tap.path}.weight"
    width = location.width * max(1, location.n_heads)
    if location.tap.side != "input" or not isinstance(getattr(module, "weight", None), Tensor):
        raise SiteAbsent(f"no matrix reads {site}@{layer} alone", hint="name the parameter")
    shape = tuple(parameter_of(lm.model, name).shape)
    try:
        axis = input_axis(lm.model, EditedMatrix(name, shape))
    except BadEdit as error:
        raise SiteAbsent(f"no matrix reads {site}@{layer} alone: {error.message}", hint="name the parameter") from error
    if shape[axis] != width:
        raise SiteAbsent(f"the matrix at {site}@{layer} reads {shape[axis]} values, not {width}", hint="name the parameter")
    return name, axis, shape
