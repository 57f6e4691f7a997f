"""Finds a block's equation: resid_post as the fewest outputs within it added to resid_pre; says not what they are."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from probe.anatomy.inside import Inside, is_leaf
from probe.anatomy.sums import Sum, channelwise_sum, shortest_sum
from probe.anatomy.tape import Port
from probe.instrument import weight_of

MAX_POOL = 24
UNNAMED = "a constant vector"


class Equation(NamedTuple):
    """resid_post = carry * resid_pre + sum of coefficients * terms + offset; gains multiply elementwise.

    `offset` is the path of a parameter, UNNAMED where the constant vector is none, "" where there is none."""

    carry: float
    terms: tuple[Port, ...]
    coefficients: tuple[float, ...]
    error: float
    carry_gains: tuple[str, ...] = ()
    gains: tuple[tuple[str, ...], ...] = ()
    offset: str = ""


def find_equation(inside: Inside) -> Equation | str:
    """The equation that holds, or why there is none.

    Tried in this order, outer modules before inner ones: plain numbers as coefficients; numbers and parameters of the
    block that multiply channel by channel, with a constant vector; and, where nothing is carried (a norm comes last),
    the one output that is the new stream."""
    if len(inside.block.before.shape) != 3:
        streams = inside.block.before.shape[2]
        return f"there are {streams} residual streams, not one: the block mixes them anew at each position"
    target, base = inside.resid_post, inside.resid_pre
    pools = _pools(inside)
    for pool in pools:
        found = shortest_sum(target, base, [inside.value(p) for p in pool])
        if found is not None:
            return _plain(found, pool)
    for pool in pools:
        equation = _with_channels(inside, pool)
        if equation is not None:
            return equation
    return _replaced(inside) or _restarted(inside, pools) or _why_none(inside)


def _why_none(inside: Inside) -> str:
    """Parts narrower than the stream are written to several streams that lie side by side."""
    width = inside.block.before.shape[-1]
    parts = {p.shape[-1] for e in inside.events if inside.depth(e.path) == 1 and not is_leaf(e.module) for p in e.outputs}
    narrow = max((n for n in parts if 8 <= n < width and width % n == 0), default=0)
    if narrow:
        return f"there are {width // narrow} residual streams side by side ({width} channels), and its parts read {narrow}"
    return "no sum of outputs of its modules is resid_post"


def _pools(inside: Inside) -> list[list[Port]]:
    """Candidate terms: the outputs of children, then of grandchildren too…"""
    outputs = inside.outputs()
    others = [p for p in inside.block.event.inputs if inside.is_like_the_stream(p) and p != inside.block.before]
    depths = sorted({inside.depth(p.tap.path) for p in outputs})
    pools = [[*(p for p in outputs if inside.depth(p.tap.path) <= depth), *others] for depth in depths]
    return [pool[:MAX_POOL] for pool in pools]


def _plain(found: Sum, pool: list[Port]) -> Equation:
    order = sorted(range(len(found.terms)), key=lambda i: found.terms[i])
    terms = tuple(pool[found.terms[i]] for i in order)
    return Equation(found.carry, terms, tuple(found.coefficients[i] for i in order), found.error, gains=((),) * len(order))


def _with_channels(inside: Inside, pool: list[Port]) -> Equation | None:
    """Coefficients that are vectors: parameters of the block, or products of two, that multiply channel by channel."""
    terms = [inside.value(p) for p in pool]
    found = channelwise_sum(inside.resid_post, inside.resid_pre, terms)
    if found is None:
        return None
    parameters, eps = _parameters(inside), torch.finfo(inside.resid_post.dtype).eps
    factors = [_named(parameters, vector, eps) for vector in found.factors]
    if any(f is None for f in factors):
        return None
    (carry, carry_gains), *rest = [f for f in factors if f is not None]
    return Equation(
        carry,
        tuple(pool[i] for i in found.terms),
        tuple(number for number, _ in rest),
        found.error,
        carry_gains,
        tuple(names for _, names in rest),
        _offset_name(parameters, found.offset, eps),
    )


def _replaced(inside: Inside) -> Equation | None:
    """A leaf (a norm) gives resid_post as it is, from one tensor: nothing is carried around it."""
    fingerprint = inside.block.after.fingerprint
    givers = [e for e in inside.givers(fingerprint) if inside.depth(e.path)]
    if not any(is_leaf(e.module) and sum(map(inside.is_like_the_stream, e.inputs)) == 1 for e in givers):
        return None
    outermost = givers[0]
    port = next(p for p in outermost.outputs if p.fingerprint == fingerprint)
    return Equation(0.0, (port,), (1.0,), 0.0, gains=((),))


def _restarted(inside: Inside, pools: list[list[Port]]) -> Equation | None:
    """Nothing of resid_pre itself is carried: the sum starts anew from one of the outputs, such as a norm's."""
    for pool in pools:
        terms = [inside.value(p) for p in pool]
        for i, start in enumerate(terms):
            found = shortest_sum(inside.resid_post, start, terms[i + 1 :], max_terms=2)
            if found is not None:
                chosen = (pool[i], *(pool[i + 1 + j] for j in found.terms))
                numbers = (found.carry, *found.coefficients)
                return Equation(0.0, chosen, numbers, found.error, gains=((),) * len(chosen))
    return None


def _parameters(inside: Inside) -> dict[str, Tensor]:
    """Every vector of the stream's width among the block's weights, by its path in the model."""
    width = inside.block.before.shape[-1]
    modules = [(inside.block.event.path, inside.block.event.module), *((e.path, e.module) for e in inside.events)]
    found: dict[str, Tensor] = {}
    for path, module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.numel() == width:
                own = weight_of(module, name).to(inside.resid_post.device)
                found.setdefault(f"{path}.{name}", own.double().flatten())
    return found


def _named(parameters: dict[str, Tensor], vector: Tensor, eps: float) -> tuple[float, tuple[str, ...]] | None:
    """A vector as a number times a product of at most two parameters; the fewest, unless more fit twice as well."""
    products: list[tuple[tuple[str, ...], Tensor]] = [((), torch.ones_like(vector))]
    products += [((name,), p) for name, p in parameters.items()]
    products += [((m, n), parameters[m] * parameters[n]) for m, n in itertools.combinations(parameters, 2)]
    fits = []
    for names, product in products:
        number = float((product @ vector) / (product @ product))
        fits.append((float((vector - number * product).norm() / vector.norm()), number, names))
    room = max(1e-3, 4 * eps)
    least = min(misfit for misfit, _, _ in fits)
    if least > room:
        return None
    _, number, names = next(fit for fit in fits if fit[0] <= 2 * least)
    return next((r for r in (round(number, d) for d in range(5)) if abs(r - number) <= room), number), names


def _offset_name(parameters: dict[str, Tensor], offset: Tensor | None, eps: float) -> str:
    if offset is None:
        return ""
    room = max(1e-3, 4 * eps) * float(offset.norm())
    return next((name for name, p in parameters.items() if float((p - offset).norm()) <= room), UNNAMED)
