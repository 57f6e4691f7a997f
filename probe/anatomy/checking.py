"""Checks an anatomy on a model's actual weights with one forward of a few tokens; finds nothing new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from probe.anatomy.ends import apply_readout
from probe.anatomy.mixing import values_at
from probe.anatomy.parts import LOGITS, Anatomy, Layer, of_call
from probe.anatomy.rotation import rotation_error
from probe.anatomy.sums import misfit, tolerance
from probe.anatomy.tape import probe_tokens
from probe.anatomy.units import in_units
from probe.anatomy.writes import UNNAMED
from probe.instrument import AttentionCall, Tap, weight_of


def verify(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """What of the anatomy doesn't hold on this model, one sentence each; [] if all of it does."""
    ids = probe_tokens(model, seed=1)
    taps = set(anatomy.taps.values())
    calls: dict[tuple[str, int], AttentionCall] = {}
    for layer in anatomy.layers:
        taps |= {*layer.taps.values(), *(write.tap for write in layer.writes)}
        if layer.experts is not None:
            taps |= {layer.experts.chosen, layer.experts.weights}
    try:
        seen = values_at(model, ids, taps, observer=lambda path, call, _: calls.update({(path, call.visit): call}))
    except (AttributeError, LookupError) as error:
        return [f"a module is not where it was: {error}"]
    missing = [f"nothing passes '{tap.path}' ({tap.side})" for tap in taps if tap not in seen]
    if missing:
        return missing
    problems: list[str] = []
    for i, layer in enumerate(anatomy.layers):
        problems += _layer_problems(model, i, layer, seen)
        problems += _rotation_problems(anatomy, i, seen, calls)
    for i, (layer, after) in enumerate(zip(anatomy.layers, anatomy.layers[1:], strict=False)):
        if "resid_post" in layer.taps and "resid_pre" in after.taps:
            one, other = seen[layer.taps["resid_post"]], seen[after.taps["resid_pre"]]
            if not torch.equal(one, other.to(one.device)):
                problems.append(f"resid_post of layer {i} is not resid_pre of layer {i + 1}")
    return problems + _readout_problems(model, anatomy, seen)


def _layer_problems(model: nn.Module, i: int, layer: Layer, seen: Mapping[Tap, Tensor]) -> list[str]:
    """The layer's equation, with the coefficients that the anatomy states."""
    if not layer.writes:
        return []
    post = seen[layer.taps["resid_post"]]
    writes = [in_units(seen[write.tap].double(), write.unit(model)) for write in layer.writes]
    error = sum_error(model, layer, pre=seen[layer.taps["resid_pre"]], post=post, writes=writes)
    return [] if error <= 5 * tolerance(post.dtype) else [f"layer {i}: {layer.equation} is off by {error:.1e}"]


def _rotation_problems(
    anatomy: Anatomy, i: int, seen: Mapping[Tap, Tensor], calls: Mapping[tuple[str, int], AttentionCall]
) -> list[str]:
    """Whether the call's queries and keys are what stands before their rotation, rotated."""
    problems = []
    for before, after in (("q_pre", "q"), ("k_pre", "k")):
        if not anatomy.has(before, i):
            continue
        found, call = anatomy.site(before, i), calls.get(anatomy.site(after, i).call or ("", 0))
        value = found.positions_first(seen[found.tap])
        given = None if call is None else of_call(call, after)[0].transpose(0, 1)
        if given is None or rotation_error(found.by_head(value.reshape(len(given), -1)), given) > 10 * tolerance(given.dtype):
            problems.append(f"layer {i}: {after} is no rotation of {before}")
    return problems


def sum_error(model: nn.Module, layer: Layer, *, pre: Tensor, post: Tensor, writes: Sequence[Tensor]) -> float:
    """By how much resid_post is not what the layer's equation makes of resid_pre and its writes, in units of their sites."""
    total = layer.carry * pre.double()
    for name in layer.carry_gains:
        total = total * weight_of(model, name).double().flatten().to(total.device)
    for write in writes:
        total = total + write.double().reshape(total.shape).to(total.device)
    if layer.offset and layer.offset != UNNAMED:
        total = total + weight_of(model, layer.offset).double().flatten().to(total.device)
    elif layer.offset:
        total = total + (post.double().to(total.device) - total).mean(dim=(0, 1))
    return misfit(post, total.to(post.device))


def _readout_problems(model: nn.Module, anatomy: Anatomy, seen: Mapping[Tap, Tensor]) -> list[str]:
    """logits from the last resid_post, where the anatomy says that it is exact."""
    if not anatomy.readout_exact or anatomy.head is None:
        return []
    with torch.no_grad():
        logits = read_out(model, anatomy, seen[anatomy.layers[-1].taps["resid_post"]])
    wanted = seen[LOGITS]
    error = misfit(wanted, logits.reshape(wanted.shape).to(wanted.device))
    if error <= 10 * tolerance(wanted.dtype):
        return []
    return [f"logits are not the readout of the last resid_post (off by {error:.1e})"]


def read_out(model: nn.Module, anatomy: Anatomy, resid: Tensor) -> Tensor:
    """resid (..., d_model) -> logits (..., d_vocab), by the model's own final norm, head, scale and cap."""
    assert anatomy.head is not None, anatomy.absent.get("head")
    if anatomy.final_norm is not None:
        resid = model.get_submodule(anatomy.final_norm.path)(resid)
    return rule_out(anatomy, apply_readout(anatomy.readout, model.get_submodule(anatomy.head)(resid)))


def rule_out(anatomy: Anatomy, logits: Tensor) -> Tensor:
    """Logits (..., d_vocab), which may be written over, with -inf at the ids that the model rules out after its head."""
    for start, end in anatomy.masked:
        logits[..., start:end] = -torch.inf
    return logits
