"""Prefixes computed once each, and what they have in common only once: a tree of forks of the model's own cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers.generation.utils import ALL_CACHE_NAMES

from probe.decoding.caches import forked, grows
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


Base = tuple[TokenIds, Known]
"""A beginning and what the model knows after it."""


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
    lm: LanguageModel, prefixes: Sequence[TokenIds], base: Base | None = None, wanted: Collection[TokenIds] | None = None
) -> Iterator[tuple[TokenIds, Known]]:
    """Each of the prefixes (sorted, all different) with what the model knows after it; every shared beginning is run once.

    base: a beginning of all that is known already; it stays as it is. wanted: those that are asked for, if not all; the
    others have their part in where one begins to be read, and are not read. Of what was read only beginnings of prefixes to
    come are held. Where the cache can't go on from a beginning by several tokens, each prefix is run from its own.
    """
    asked = set(prefixes if wanted is None else wanted)
    below: list[tuple[Sequence[TokenIds], Base | None]] = [(prefixes, base)]
    while below:
        some, base = below.pop()
        if asked.isdisjoint(some):
            continue
        stem = common(some)
        known, base = _after(lm, stem, base), None
        if known is not None and not grows(known.cache):
            for prefix in (one for one in some if one in asked):
                yield prefix, known if prefix == stem else extended(lm, None, prefix, 0)
            continue
        longer = some[1:] if some[0] == stem else some
        below += [(group, None if known is None else (stem, known)) for group in reversed(_split(longer, len(stem)))]
        if known is not None and some[0] == stem and stem in asked:
            given, known = [_fork(known)], None  # and is held no longer than whoever has asked holds it
            yield stem, given.pop()


def _after(lm: LanguageModel, stem: TokenIds, base: Base | None) -> Known | None:
    """What the model knows after the stem; None after nothing."""
    if base is None:
        return extended(lm, None, stem, 0) if stem else None
    ids, known = base
    return extended(lm, _fork(known), stem, len(ids)) if len(stem) > len(ids) else known


def _fork(known: Known) -> Known:
    return known._replace(cache=forked(known.cache))


def _split(prefixes: Sequence[TokenIds], at: int) -> list[list[TokenIds]]:
    """Groups that agree in the token there too."""
    return [list(group) for _, group in groupby(prefixes, key=lambda prefix: prefix[at])]
