"""Prefixes computed once each, and what they have in common only once: a tree of forks of the model's own cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers.generation.utils import ALL_CACHE_NAMES

from probe.decoding.caches import grows
from probe.language_model.stepping import forward, plain_kwargs

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

TokenIds = tuple[int, ...]


class Edits(Protocol):
    """Edits at work on the model (see `interventions.applying`), which are told what each forward is."""

    rows: Sequence[int] | None  # names of a forward's rows: the numbers of the prefixes
    start: Any  # the absolute position of the first token of each row


class Known(NamedTuple):
    """One prefix as the model knows it: logits (1, d_vocab) of the next token, its cache and under which name it is given."""

    logits: Tensor
    cache: Any
    slot: str


def extended(lm: LanguageModel, known: Known | None, prefix: TokenIds, start: int) -> Known:
    """The prefix, of which `known` holds the first `start` tokens; its cache is used up."""
    ids = torch.tensor([prefix], device=lm.device)
    kwargs = plain_kwargs(lm, ids)
    if known is not None:
        kwargs[known.slot] = known.cache
    logits, kwargs = forward(lm, ids, kwargs, new=None if known is None else len(prefix) - start)
    slot = next((name for name in ALL_CACHE_NAMES if name in kwargs), "")
    return Known(logits, kwargs.get(slot), slot)


def common(prefixes: Sequence[TokenIds]) -> TokenIds:
    """The longest beginning that all share."""
    first, last = min(prefixes), max(prefixes)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


def compute(
    lm: LanguageModel, prefixes: Sequence[TokenIds], base: tuple[TokenIds, Known] | None = None
) -> Iterator[tuple[TokenIds, Known]]:
    """Each of the prefixes (sorted, all different) with what the model knows after it; every shared beginning is run once.

    base: a beginning of all that is known already; it stays as it is. Where the cache can't go on from a beginning by
    several tokens, each prefix is run from its own.
    """
    stem = common(prefixes)
    start, known = (0, None) if base is None else (len(base[0]), base[1])
    if stem and (known is None or len(stem) > start):
        known = extended(lm, copy.deepcopy(known), stem, start)
    if known is None or not grows(known.cache):
        for prefix in prefixes:
            yield prefix, known if known is not None and prefix == stem else extended(lm, None, prefix, 0)
        return
    if prefixes[0] == stem:
        yield stem, known if len(prefixes) == 1 and len(stem) > start else copy.deepcopy(known)
        prefixes = prefixes[1:]
    for _, group in groupby(prefixes, key=lambda prefix: prefix[len(stem)]):
        yield from compute(lm, list(group), (stem, known))
