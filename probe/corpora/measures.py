"""Places of which each is one number at a token: a neuron's activation, a norm, the projection on a direction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.devices import uploaded
from probe.errors import BadOption, BadPlace
from probe.interventions import cells
from probe.interventions.directions import load_direction
from probe.sites import SITES, Cell, Positions

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DIRECTION = "direction:"
MOST = 1024  # places of one run: each has 65 kB of counts

Key = tuple[str, int, int | None]
"""Site, layer and head, as a read hands an activation over."""


@dataclass(frozen=True, eq=False)
class ScalarPlace:
    """One number at each token.

    column: which entry of what a read hands over; None: all of it. vector (d,), of length 1: what that is projected on.
    """

    name: str
    site: str
    layer: int
    head: int | None
    measure: str
    unit: int | None = None
    column: int | None = None
    vector: Tensor | None = None

    @property
    def key(self) -> Key:
        return self.site, self.layer, self.head

    def numbers(self, values: Tensor) -> Tensor:
        """values (batch, pos, d) -> (batch, pos) float64."""
        if self.column is not None:
            return values[..., self.column].double()
        if self.vector is not None:
            return values.double() @ uploaded(self.vector, values.device)
        return torch.linalg.vector_norm(values, dim=-1, dtype=torch.float64)


def read_cells(lm: LanguageModel, places: Iterable[str]) -> tuple[Cell, ...]:
    """The cells that places mean, of vectors at all positions. Raises `BadPlace` for others."""
    found = cells(lm, ",".join(places))
    for cell in found:
        if not SITES[cell.site].at_positions:
            raise BadPlace(f"'{cell.site}' has no vector at a position", hint="a residual stream, z, mlp_post, q, k, v, …")
        if cell.positions != Positions():
            raise BadPlace(
                f"'{cell.site}:{cell.positions}' names positions, and a file of texts is read at all of them",
                hint="leave them out; --skip leaves out the first tokens",
            )
    return found


def measured(
    lm: LanguageModel, places: Iterable[str], project: str | Path | None
) -> tuple[tuple[ScalarPlace, ...], tuple[Cell, ...]]:
    """The places of `--at` one by one, in their order, and the cells that are read for them.

    Raises `BadPlace`, `BadEdit` for a file that is no direction of this model, `BadOption` for too many places.
    """
    found: list[ScalarPlace] = []
    for text in places:
        if text.startswith(DIRECTION):
            if project is not None:
                raise BadOption(f"'{text}' says already what it is projected on", hint="leave out --project")
            found.append(_direction(lm, text))
        else:
            found += [one for cell in read_cells(lm, [text]) for one in _places(lm, cell, project)]
    found = list({one.name: one for one in found}.values())
    if len(found) > MOST:
        raise BadOption(f"{len(found):,} places at once", hint=f"at most {MOST:,}: name layers, heads or neurons")
    return tuple(found), _cells(found)


def _direction(lm: LanguageModel, text: str) -> ScalarPlace:
    """The place where a direction was made."""
    direction = load_direction(text.removeprefix(DIRECTION), lm=lm)
    if not direction.site:
        raise BadPlace(f"'{text}' does not say at which place it was made", hint="name the place, and the file in --project")
    unit = _unit(direction.vector, text)
    return ScalarPlace(text, direction.site, direction.layer, direction.head, "projection", vector=unit)


def _unit(vector: Tensor, name: str | Path) -> Tensor:
    norm = vector.double().norm()
    if float(norm) == 0:
        raise BadPlace(f"the direction in '{name}' is zero", hint="make it anew")
    return vector.double() / norm


def _places(lm: LanguageModel, cell: Cell, project: str | Path | None) -> list[ScalarPlace]:
    """The places of one cell: each head, each unit by itself."""
    where = cell.site if cell.layer < 0 else f"{cell.site}@{cell.layer}"
    if cell.units is not None:
        what = SITES[cell.site].unit
        if project is not None:
            raise BadOption(
                f"a {what} is a single number, which has no projection", hint=f"leave out --project, or the {what}s"
            )
        return [
            ScalarPlace(f"{where}.{what[0]}{unit}", cell.site, cell.layer, None, "activation", unit=unit, column=unit)
            for unit in cell.units
        ]
    if project is None:
        if cell.heads is None:
            return [ScalarPlace(where, cell.site, cell.layer, None, "norm")]
        return [ScalarPlace(f"{where}.{head}", cell.site, cell.layer, head, "norm") for head in cell.heads]
    vector, width = load_direction(project, lm=lm).vector, lm.width(cell.site, cell.layer)
    if len(vector) != width:
        raise BadPlace(f"the direction in '{project}' has {len(vector)} values, and {where} has {width}", hint="another place")
    unit = _unit(vector, project)
    return [
        ScalarPlace(where if head is None else f"{where}.{head}", cell.site, cell.layer, head, "projection", vector=unit)
        for head in cell.heads or (None,)
    ]


def _cells(found: list[ScalarPlace]) -> tuple[Cell, ...]:
    """What is read for the places, each site, layer and head once."""
    keys = dict.fromkeys(one.key for one in found)
    return tuple(Cell(site, layer, None if head is None else (head,), Positions()) for site, layer, head in keys)
