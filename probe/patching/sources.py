"""What a patch puts in: the other text's activations, zeros, a mean, noise, or a vector of another place."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.capturing import MemorySink, read
from probe.errors import BadOption
from probe.interventions import Edit, applying
from probe.sites import Cell, Positions

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

SOURCES = {
    "clean": "the other text of the pair, at the same place",
    "zero": "zeros",
    "mean": "the mean over all positions of all texts of the sweep",
    "noise": "the value there plus normal noise of 3 standard deviations of the site",
    "resample": "the value at another place, drawn from all texts of the sweep",
}
POOLED = ("mean", "noise", "resample")  # made of the values in all texts
SIGMAS = 3.0  # Meng et al. 2022 (2202.05262)

Values = dict[int, Tensor]
"""layer -> (pos, [head,] d) of one text at one site."""


def check_source(source: str) -> None:
    """Raises `BadOption` for a source that there is not."""
    if source not in SOURCES:
        raise BadOption(f"unknown source '{source}'", hint=f"--from takes {', '.join(SOURCES)}")


@torch.no_grad()
def activations(
    lm: LanguageModel, ids: Sequence[int], site: str, layers: Sequence[int], edits: Sequence[Edit] = ()
) -> Values:
    """One site of some layers of a text, as the model has it under `edits`. Raises `NonFinite`, `SiteAbsent`."""
    sink, batch = MemorySink(), torch.tensor([list(ids)])
    cells = [Cell(site, layer, None, Positions()) for layer in layers]
    with applying(lm, edits, ids=batch):
        read(lm, batch, [len(ids)], cells=cells, sink=sink, top=1)
    found: Values = {}
    for layer in layers:
        flat = sink.activations[site, layer, None][0]
        found[layer] = lm.anatomy.site(site, layer).by_head(flat)
    return found


def replacement(
    source: str, base: Tensor, other: Tensor, origins: Mapping[int, int], pool: Tensor, *, address: str
) -> Tensor:
    """What each position of the base may take, (pos, [head,] d) as `base`; positions that are not aligned keep theirs.

    other: the other text's values. pool (n, [head,] d): of all texts. address: names the noise of this site and layer.
    """
    if source == "clean":
        found = base.clone()
        here = list(origins)
        found[here] = other[[origins[p] for p in here]].to(base)
        return found
    if source == "zero":
        return torch.zeros_like(base)
    if source == "mean":
        return pool.double().mean(0).to(base).expand_as(base)
    if source == "noise":
        noise = torch.randn(base.shape, generator=generator(address)).to(base)
        return base + SIGMAS * pool.double().std(unbiased=False).to(base) * noise
    drawn = torch.randint(len(pool), (len(base),), generator=generator(address.rpartition(" ")[0]))
    return pool[drawn.to(pool.device)].to(base)


@functools.lru_cache(maxsize=4096)
def _seed(address: str) -> int:
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:7])


def generator(address: str) -> torch.Generator:
    """Random numbers that are a function of the address alone."""
    return torch.Generator().manual_seed(_seed(address))
