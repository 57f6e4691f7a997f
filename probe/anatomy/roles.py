"""Which write is the attention's, which the MLP's, and the sites between them; takes the block's equation as given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from probe.anatomy.experts import Routed, find_router, find_shared
from probe.anatomy.inside import Inside, is_leaf, is_linear
from probe.anatomy.mixing import Reach, fed, headwise, reach
from probe.anatomy.rotation import Picked, Tried, unrotated
from probe.anatomy.sums import channelwise_sum, shortest_sum
from probe.anatomy.tape import Attended, Event, Port
from probe.anatomy.units import Entries
from probe.anatomy.writes import Equation
from probe.sites import SITES, sites_of

OTHERS = tuple(site.part for site in SITES.values() if site.part.startswith("other"))  # as many as a sum has terms

NO_CALL = "its attention, if there is one, doesn't go through transformers' attention registry"


@dataclass
class Trials:
    """What was tried on the model, once for each kind of place: layers are built alike, so one of them is asked."""

    model: nn.Module
    ids: Tensor
    reaches: dict[tuple[str, ...], Reach] = field(default_factory=dict)
    gated: dict[tuple[str, ...], str | None] = field(default_factory=dict)
    fed: dict[tuple[str, ...], list[bool]] = field(default_factory=dict)
    unrotated: dict[tuple[str, ...], Tried] = field(default_factory=dict)
    experts: dict[tuple[str, ...], float] = field(default_factory=dict)
    shared: dict[tuple[str, ...], float | str] = field(default_factory=dict)


@dataclass
class Roles:
    """What the writes of one block are, and where its other sites are, or why they are not there."""

    equation: Equation | str
    kinds: list[str]
    attention: Attended | None
    ports: dict[str, Port] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    entries: dict[str, Entries] = field(default_factory=dict)  # of ports of which a site is not the whole
    routed: Routed | None = None


class Finder(NamedTuple):
    """What finds a site in a block, or says why it is not there. unsolved: also in a block whose equation is not known."""

    find: Callable[[Inside, Roles, Trials], Port | Picked | str]
    unsolved: bool = False


def find_roles(inside: Inside, equation: Equation | str, trials: Trials) -> Roles:
    """Kinds of the writes in the equation's order, and where each site of the block is; from a text, which says why there is
    no equation, what can be found without."""
    if isinstance(equation, str):
        roles = Roles(equation, [], next(iter(inside.attended), None), absent=dict.fromkeys(sites_of("write"), equation))
    else:
        roles = _write_roles(inside, equation, trials)
    for site, finder in FINDERS.items():
        found = equation if isinstance(equation, str) and not finder.unsolved else finder.find(inside, roles, trials)
        if isinstance(found, str):
            roles.absent[site] = found
        elif isinstance(found, Picked):
            roles.ports[site], roles.entries[site] = found
        else:
            roles.ports[site] = found
    if roles.attention is None:
        roles.absent |= dict.fromkeys(sites_of("call"), NO_CALL)
    return roles


def _write_roles(inside: Inside, equation: Equation, trials: Trials) -> Roles:
    origins = [inside.sources(p) + inside.ancestors(p.tap.path) for p in equation.terms]
    roles = Roles(equation, *_kinds(inside, equation, origins, trials))
    replaced = equation.carry == 0 and len(equation.terms) == 1
    for site in sites_of("write"):
        kind = SITES[site].part
        if kind in roles.kinds and not replaced:
            roles.ports[site] = equation.terms[roles.kinds.index(kind)]
        else:
            roles.absent[site] = _why_no(kind, equation, inside)
    return roles


def _why_no(kind: str, equation: Equation, inside: Inside) -> str:
    if equation.carry == 0 and len(equation.terms) == 1:
        return "the block ends with a norm, so what was written is not added to the stream as it is"
    if kind == "attn" and inside.attended:
        return "no write of this block is made of the attention's result alone"
    if kind not in ("attn", "mlp"):
        return "no further part of this block writes to the stream"
    what = "mixes positions" if kind == "attn" else "works on each position alone"
    return f"no write of this block {what}"


def _kinds(inside: Inside, equation: Equation, origins: list[list[Event]], trials: Trials) -> tuple[list[str], Attended | None]:
    """attn: the write that the registry's attention feeds; else the one whose part mixes most positions. mlp: the one
    with the most weights among those that mix none; else the last that is left. mixer: the first other that mixes."""
    if equation.carry == 0 and len(equation.terms) == 1:
        return ["other"], next(iter(inside.attended), None)
    parts = [_part(inside, equation, i, origins[i]) for i in range(len(equation.terms))]
    holds = [any(a.path == e.path or a.path.startswith(f"{e.path}.") for a in inside.attended for e in part) for part in parts]
    reaches = [_reach_of(inside, part, trials) for part in parts]
    attn = next((i for i, held in enumerate(holds) if held), None)
    if attn is None and inside.attended:
        attn = next((i for i, only in enumerate(_fed(inside, equation, trials)) if only), None)
        holds = [i == attn for i in range(len(parts))] if attn is not None else holds
    elif attn is None:
        mixers = [i for i, r in enumerate(reaches) if r.others]
        attn = max(mixers, key=lambda i: reaches[i].others, default=None)
    bare = [i for i in range(len(parts)) if parts[i] and not _has_matrix(parts[i])]  # a norm from which the sum starts anew
    rest = [i for i in range(len(parts)) if i != attn and parts[i] and i not in bare]
    still = [i for i in rest if not reaches[i].others and not holds[i]]
    mlp = max(still, key=lambda i: _n_weights(parts[i]), default=None)
    if mlp is None and attn is not None and rest and not any(holds[i] for i in rest):
        mlp = rest[-1] if len(parts) - len(bare) == 2 or (equation.carry and not inside.attended) else None
    mixer = next((i for i in rest if i != mlp and (reaches[i].others or holds[i])), None)
    known: dict[int | None, str] = {mixer: "mixer", mlp: "mlp", attn: "attn"}
    others = iter(OTHERS)
    kinds: list[str] = [known[i] if i in known else next(others) for i in range(len(parts))]
    attention = next((a for a in inside.attended if attn is None or holds[attn]), None)
    return kinds, attention


def _fed(inside: Inside, equation: Equation, trials: Trials) -> list[bool]:
    paths = [a.path for a in inside.attended] + [port.tap.path for port in equation.terms]
    key = tuple(inside.relative(path) for path in paths)
    if key not in trials.fed:
        trials.fed[key] = fed(trials.model, trials.ids, inside.attended, equation.terms)
    return trials.fed[key]


def _part(inside: Inside, equation: Equation, index: int, origins: list[Event]) -> list[Event]:
    """The calls that belong to one write alone: not those that hold another write too."""
    others = [p.tap.path for i, p in enumerate(equation.terms) if i != index]
    return [
        e for e in origins if not any(inside.contains(e.path, o) and e.path != equation.terms[index].tap.path for o in others)
    ]


def _has_matrix(part: list[Event]) -> bool:
    return any(p.dim() > 1 for e in part for p in e.module.parameters())


def _n_weights(part: list[Event]) -> int:
    return max((sum(p.numel() for p in e.module.parameters()) for e in part), default=0)


def _reach_of(inside: Inside, part: list[Event], trials: Trials) -> Reach:
    """The furthest reach of the calls of a part, tried on those that are whole parts (or on leaves if there are none)."""
    whole = [e for e in part if not is_leaf(e.module)] or part
    found = [Reach(0, False)]
    for event in whole:
        given = next((p for p in event.inputs if inside.is_like_the_stream(p)), None)
        taken = next((p for p in event.outputs if inside.is_like_the_stream(p)), None)
        if given is None or taken is None:
            continue
        key = (inside.relative(event.path), type(event.module).__name__)
        if key not in trials.reaches:
            trials.reaches[key] = reach(trials.model, trials.ids, given, taken)
        found.append(trials.reaches[key])
    return max(found)


def _middle(inside: Inside, roles: Roles, trials: Trials) -> Port | str:
    """resid_mid: the module input that is the equation's sum without the MLP's write (and what comes after it)."""
    equation = roles.equation
    assert isinstance(equation, Equation)
    if {"attn", "mlp"} - set(roles.kinds):
        return "there are not two writes to be between"
    attn, mlp = roles.kinds.index("attn"), roles.kinds.index("mlp")
    before = [i for i in range(len(equation.terms)) if i != mlp and (i <= max(attn, mlp) or roles.kinds[i] == "attn")]
    base = inside.resid_pre
    terms = [inside.value(equation.terms[i]) for i in before]
    seen = {inside.block.before.fingerprint, inside.block.after.fingerprint}
    for event in inside.events:
        for port in event.inputs:
            if not inside.is_like_the_stream(port) or port.fingerprint in seen or port.tap.side != "input":
                continue
            seen.add(port.fingerprint)
            found = shortest_sum(inside.value(port), base, terms, max_terms=len(terms))
            if found is not None and before.index(attn) in found.terms:
                ratio = found.coefficients[found.terms.index(before.index(attn))] / found.carry
                if equation.carry_gains or abs(ratio * equation.carry / equation.coefficients[attn] - 1) < 1e-3:
                    return port
    middle = None
    if equation.offset or equation.carry_gains:
        middle = _middle_by_channel(inside, equation.terms[attn], equation.terms[mlp])
    return middle or "no module reads resid_pre + attn_out (the MLP doesn't come after the attention)"


def _middle_by_channel(inside: Inside, attn: Port, mlp: Port) -> Port | None:
    """The module input that resid_pre and attn_out add up to, and that resid_post is made of with mlp_out; in each
    channel by numbers of its own."""
    seen = {inside.block.before.fingerprint, inside.block.after.fingerprint}
    for event in inside.events:
        for port in event.inputs:
            if inside.is_like_the_stream(port) and port.fingerprint not in seen:
                seen.add(port.fingerprint)
                middle = inside.value(port)
                before = channelwise_sum(middle, inside.resid_pre, [inside.value(attn)])
                if before is not None and channelwise_sum(inside.resid_post, middle, [inside.value(mlp)]) is not None:
                    return port
    return None


def _heads(inside: Inside, roles: Roles, trials: Trials) -> Port | str:
    """z: what the output projection reads, where that is the attention's result, or that times a gate, head by head."""
    attention = roles.attention
    if attention is None:
        return NO_CALL
    for event in inside.events:
        for port in event.inputs:
            if port.fingerprint == attention.fingerprint:
                return port
    owner = inside.relative(attention.path)
    after = [e for e in inside.events if e.seq >= attention.seq and inside.contains(attention.path, e.path)]
    candidates = [p for e in after if is_linear(e.module) for p in e.inputs[:1] if p.shape[-1] % attention.n_heads == 0]
    key = (owner, *(inside.relative(p.tap.path) for p in candidates))
    if key not in trials.gated:
        gated = headwise(trials.model, trials.ids, attention, candidates) if candidates else None
        trials.gated[key] = None if gated is None else inside.relative(gated.tap.path)
    found = next((p for p in candidates if inside.relative(p.tap.path) == trials.gated[key]), None)
    return found or "no linear layer reads the attention's result head by head: something mixes the heads before"


def _hidden(inside: Inside, roles: Roles, trials: Trials) -> Port | str:
    """mlp_post: what the last linear layer of the MLP reads."""
    if "mlp" not in roles.kinds or isinstance(roles.equation, str):
        return roles.absent["mlp_out"]
    write = roles.equation.terms[roles.kinds.index("mlp")]
    fingerprints = {p.fingerprint for e in inside.sources(write) for p in e.outputs} | {write.fingerprint}
    for event in reversed(inside.events):
        wide = any(p.fingerprint in fingerprints and p.shape[-1] == write.shape[-1] for p in event.outputs)
        if wide and is_linear(event.module) and event.inputs:
            return event.inputs[0]
    return "no linear layer gives the MLP's write as it is (a mixture of experts, or a scaled one)"


def _before_rotation(inside: Inside, roles: Roles, trials: Trials, which: str) -> Picked | str:
    """q_pre, k_pre: the module output that is the call's queries or keys before they are rotated."""
    if roles.attention is None:
        return NO_CALL
    return unrotated(inside, roles.attention, which, trials.model, trials.ids, trials.unrotated)


def _router(inside: Inside, roles: Roles, trials: Trials) -> Port | str:
    """router: the logits by which each token's experts are chosen."""
    found = find_router(inside, trials.model, trials.ids, trials.experts)
    if isinstance(found, str):
        return found
    roles.routed = found
    return found.logits


def _shared(inside: Inside, roles: Roles, trials: Trials) -> Port | str:
    """shared_out: what of the MLP's write is not that of the experts which a router chose."""
    if roles.routed is None or "mlp_out" not in roles.ports:
        return roles.absent["router" if roles.routed is None else "mlp_out"]
    return find_shared(inside, trials.model, trials.ids, roles.routed.output, roles.ports["mlp_out"], trials.shared)


def _routed(inside: Inside, roles: Roles, trials: Trials) -> Port | str:
    """routed_out: what they give, where something is added to it."""
    if "shared_out" not in roles.ports or roles.routed is None:
        return roles.absent["shared_out"]
    return roles.routed.output


FINDERS: dict[str, Finder] = {
    "resid_mid": Finder(_middle),
    "z": Finder(_heads, unsolved=True),
    "mlp_post": Finder(_hidden),
    "q_pre": Finder(partial(_before_rotation, which="query"), unsolved=True),
    "k_pre": Finder(partial(_before_rotation, which="key"), unsolved=True),
    "router": Finder(_router, unsolved=True),
    "shared_out": Finder(_shared),
    "routed_out": Finder(_routed),
}
