"""What a parameter has a part in, tried on a copy of it: which tensors of its layer change with it, and which in proportion.
Knows no names of parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probe.anatomy import Anatomy
from probe.anatomy.tape import probe_tokens
from probe.instrument import AttentionCall, attending, tapping

FELT = 1e-6  # of a tensor's own size
SITES = ("z", "attn_out", "mlp_post", "mlp_out", "mixer_out", "other_out", "resid_post")  # beside queries, keys and values


class Effect(NamedTuple):
    """The tensors of the layer that a parameter's sign and size change, and those that are a sum of two parts: one in
    proportion to the parameter, one without it. Names: query, key, value, and sites."""

    felt: frozenset[str]
    affine: frozenset[str]


class _EnoughSeen(Exception):
    """All that is asked of a forward is seen."""


class Flow:
    """Tries parameters of one layer, on a few tokens; the model's own are left as they are."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, layer: int) -> None:
        self._model, self._layer = model, anatomy.layers[layer]
        self._taps = {site: self._layer.taps[site] for site in SITES if site in self._layer.taps}
        self._ids = probe_tokens(model)
        self._plain = self.seen({})

    def effect(self, name: str, part: Callable[[Tensor, float], Tensor] | None = None) -> Effect:
        """Of the parameter called `name`, or of a part of it: `part(parameter, t)` is the parameter with that part times t."""
        own = self._model.get_parameter(name).detach()
        times = part or (lambda parameter, t: parameter * t)
        none, less = (self.seen({name: times(own, t)}) for t in (0.0, -1.0))
        there = [site for site in self._plain if site in none and site in less]
        felt = {site for site in there if _apart(self._plain[site], none[site]) > FELT}
        room = max(1e-4, 16 * torch.finfo(own.dtype).eps)
        affine = set()
        for site in felt:
            one, zero, minus = (seen[site].double() for seen in (self._plain, none, less))
            if float((one - 2 * zero + minus).norm()) <= room * float((one - minus).norm()):
                affine.add(site)
        return Effect(frozenset(felt), frozenset(affine))

    def seen(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """The layer's tensors, with these in place of parameters of the model."""
        found: dict[str, Tensor] = {}

        def keep(site: str) -> Callable[[Tensor], None]:
            def reader(value: Tensor) -> None:
                found[site] = value.detach().clone()
                if site == "resid_post":
                    raise _EnoughSeen

            return reader

        def watch(path: str, call: AttentionCall, output: Tensor) -> None:
            if (path, call.visit) == (self._layer.attention, self._layer.visit):
                found.update(query=call.query.detach(), key=call.key.detach(), value=call.value.detach())

        with torch.no_grad(), ExitStack() as stack:
            for site, tap in self._taps.items():  # one by one: two sites may be one tensor
                stack.enter_context(tapping(self._model, {tap: keep(site)}))
            stack.enter_context(attending(self._model, watch))
            with suppress(_EnoughSeen):
                functional_call(self._model, parameters, (), {"input_ids": self._ids, "use_cache": False})
        return found


def _apart(one: Tensor, other: Tensor) -> float:
    one, other = one.double(), other.double()
    return float((one - other).norm() / one.norm().clamp_min(1e-30))
