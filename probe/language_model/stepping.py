"""How a model goes on from a text by its own code: with its cache or without, given its positions or not. Tried once."""

from __future__ import annotations

import inspect
import math
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.generation.utils import ALL_CACHE_NAMES

from probe.anatomy.sums import apart, loudest
from probe.anatomy.tape import probe_tokens

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

STEPS = 3  # of the trial; the one in the middle counts, for rounding can send one of them to other experts
_known: weakref.WeakKeyDictionary[nn.Module, CacheSupport] = weakref.WeakKeyDictionary()
# in any of these cases some families' own code says that it can't
FAILURES = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class CacheSupport(NamedTuple):
    """What gives the logits of one forward over the whole text.

    cached: its cache can be gone on from; needs_positions: only if positions are given too (bamba counts from 0 again,
    transformers 5.23). origin: the position that it gives to a text's first token (RoBERTa: not 0); None if positions can't
    be given. continues: the inputs that it makes for generation give these logits at all. causal: what follows changes nothing.
    """

    cached: bool
    needs_positions: bool
    origin: int | None
    continues: bool = True
    causal: bool = True


def forward(lm: LanguageModel, ids: Tensor, kwargs: dict[str, Any], *, new: int | None) -> tuple[Tensor, dict[str, Any]]:
    """Logits (row, d_vocab) after ids (row, pos), of which the cache lacks the last `new` (None: all), and what to give next.

    By the model's own preparation of inputs and update of its cache.
    """
    output = stepped(lm, ids, kwargs, new=new)
    kwargs = lm.model._update_model_kwargs_for_generation(output, kwargs, is_encoder_decoder=False)
    return output.logits[:, -1], {k: v for k, v in kwargs.items() if k not in ALL_CACHE_NAMES or v is not None}


def stepped(lm: LanguageModel, ids: Tensor, kwargs: dict[str, Any], *, new: int | None) -> Any:
    """What the model returns of such a forward, after which its cache may be dropped."""
    inputs = lm.model.prepare_inputs_for_generation(
        ids, next_sequence_length=new, is_first_iteration=new is None, **kwargs
    )  # fmt: skip
    return lm.model(**inputs, return_dict=True)


def plain_kwargs(lm: LanguageModel, ids: Tensor, *, read: int = 1) -> dict[str, Any]:
    """What the first forward over ids (row, pos) is given: only the last logits, where the others can be left out."""
    support = cache_support(lm)
    more = {"position_ids": positions(ids, support.origin)} if support.needs_positions else {}
    return {**uncached_kwargs(lm, read=read), "use_cache": support.cached, **more}


def uncached_kwargs(lm: LanguageModel, *, read: int = 1) -> dict[str, Any]:
    """The same for one whole forward that nothing follows. read: how many of the last logits."""
    kept = "logits_to_keep" in inspect.signature(lm.model.forward).parameters
    return {"use_cache": False} | ({"logits_to_keep": read} if kept else {})


def positions(ids: Tensor, origin: int | None) -> Tensor:
    """Positions (row, pos) of ids that begin a text."""
    return (torch.arange(ids.shape[1], device=ids.device) + (origin or 0)).expand_as(ids)


def cache_support(lm: LanguageModel) -> CacheSupport:
    """How this model goes on. Tried on a few tokens when it is first asked for, which is to be while no edit is at work.

    Where its cache can't be gone on from, every token is decoded by a forward of the whole text.
    """
    if lm.model not in _known:
        with torch.inference_mode(False), torch.no_grad():  # what a model keeps of it may be used with gradients later
            _known[lm.model] = _tried(lm)
    return _known[lm.model]


def _tried(lm: LanguageModel) -> CacheSupport:
    ids = probe_tokens(lm.model)
    try:
        whole = lm.model(input_ids=ids, use_cache=False).logits[0].float()
    except FAILURES:
        return CacheSupport(False, False, None)
    most = max(1e-3, 8 * torch.finfo(lm.dtype).eps) * float(loudest(whole))
    if math.isnan(most):  # that is for whoever uses the logits to say
        return CacheSupport(True, False, None)
    origin = _origin(lm, ids, whole, most)
    plain = _gap(lm, ids, whole, {"use_cache": True})
    if origin is not None and plain > most / 4:
        placed = _gap(lm, ids, whole, {"use_cache": True, "position_ids": positions(ids[:, :-STEPS], origin)})
        if placed <= min(most, plain / 2):
            return CacheSupport(True, True, origin)
    if plain <= most:
        return CacheSupport(True, False, origin)
    short = lm.model(input_ids=ids[:, :-1], use_cache=False).logits[0, -1]
    causal = bool(apart(short, whole[-2]).max() <= most)
    return CacheSupport(False, False, origin, _gap(lm, ids, whole, {"use_cache": False}) <= most, causal)


def _gap(lm: LanguageModel, ids: Tensor, whole: Tensor, kwargs: dict[str, Any]) -> float:
    """How far logits lie from those of the whole text: the middle one of the last few tokens, which come one by one.

    Infinite where the model's own code fails."""
    gaps, new, first = [], None, ids.shape[1] - STEPS
    try:
        for end in range(first, ids.shape[1] + 1):
            logits, kwargs = forward(lm, ids[:, :end], kwargs, new=new)
            new = 1 if set(kwargs) & set(ALL_CACHE_NAMES) else None
            gaps.append(float(apart(logits[0], whole[end - 1]).max()))
    except FAILURES:
        return math.inf
    return sorted(gaps[1:])[STEPS // 2]


def _origin(lm: LanguageModel, ids: Tensor, whole: Tensor, most: float) -> int | None:
    """The position of a text's first token: 0, or the one after that of padding, whichever gives the same logits."""
    if "position_ids" not in inspect.signature(lm.model.forward).parameters:
        return None
    padding, room = getattr(lm.model.config, "pad_token_id", None), lm.context_length
    after = [padding + 1] if isinstance(padding, int) and room and 0 <= padding < room - ids.shape[1] else []
    gaps: dict[int, float] = {}
    for first in [0, *after]:
        try:
            found = lm.model(input_ids=ids, position_ids=positions(ids, first), use_cache=False).logits[0]
        except FAILURES:
            continue
        gaps[first] = float(apart(found, whole).max())
        if gaps[first] <= most / 8:
            return first
    best = min(gaps, key=lambda first: gaps[first], default=None)
    return best if best is not None and gaps[best] <= most else None
