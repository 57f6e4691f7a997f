"""What a patch puts in: the other text's activations, zeros, a mean, noise, or a vector of another place."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.patching.reading import SiteLayer, values
from probe.requests.patch import POOLED

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.patching.planning import Patching

SIGMAS = 3.0  # Meng et al. 2022 (2202.05262)


def replacement(source: str, base: Tensor, other: Tensor, origins: Mapping[int, int], pool: Tensor, *, address: str) -> Tensor:
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


class Replacements:
    """What the patches of a sweep put in at some sites. Where that is made of all texts, each is read once."""

    def __init__(self, lm: LanguageModel, patching: Patching, wheres: Sequence[SiteLayer]) -> None:
        self._patching = patching
        pooled = patching.pairs if patching.request.source in POOLED else ()
        self._texts = [ids for pair in pooled for ids in (pair.clean, pair.corrupt)]
        self._pool = {ids: values(lm, ids, wheres, edits=patching.edits) for ids in dict.fromkeys(self._texts)}

    def of(self, number: int, where: SiteLayer, old: Tensor, other: Tensor) -> Tensor:
        """What each position of a pair's base may take, (pos, [head,] d). old, other: what the base and the source have."""
        request, (site, layer) = self._patching.request, where
        pool = torch.cat([old[:0], *(self._pool[ids].values[where] for ids in self._texts)])
        origins = self._patching.pairs[number].origins(request.towards)
        address = f"{request.seed} {number} {site}@{layer}"
        return replacement(request.source, old, other, origins, pool, address=address)


@functools.lru_cache(maxsize=4096)
def _seed(address: str) -> int:
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:7])


def generator(address: str) -> torch.Generator:
    """Random numbers that are a function of the address alone."""
    return torch.Generator().manual_seed(_seed(address))
