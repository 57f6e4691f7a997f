"""Runs a few tokens through a model and solves for its anatomy; keeps what it found on disk, and checks it when it is read."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probe import durable
from probe.anatomy.chain import Block, elsewhere, find_chains, why_no_chain
from probe.anatomy.checking import verify
from probe.anatomy.ends import Ends, find_ends
from probe.anatomy.inside import Inside, insides
from probe.anatomy.parts import LOGITS, Anatomy, Layer, Write
from probe.anatomy.roles import Roles, Trials, find_roles
from probe.anatomy.sums import apart, loudest
from probe.anatomy.tape import Tape, probe_tokens, tape
from probe.anatomy.writes import Equation, find_equation
from probe.errors import StorageFull
from probe.instrument import Tap
from probe.sites import SITES, sites_of


def find(model: nn.Module) -> Anatomy:
    """The anatomy of a causal language model in eval mode; the model is left as it was.

    What no equation that holds finds is absent, with a reason: this never fails on a model that runs.
    """
    ids = probe_tokens(model)
    recorded = tape(model, ids)
    chains = find_chains(model, recorded) or [()]
    blocks, ends = _stream(model, ids, recorded, chains)
    absent = dict(ends.absent)
    if others := elsewhere(chains, blocks):
        absent["elsewhere"] = others
    trials, layers = Trials(model, ids), []
    once = {path for path, n in recorded.calls().items() if n == 1}
    for inside in insides(blocks, recorded):
        equation = find_equation(inside)
        roles = find_roles(inside, equation, trials)
        if isinstance(equation, str):
            layers.append(_unsolved(inside, equation, roles, once))
        else:
            layers.append(_layer(inside, equation, roles, once))
    if not blocks:
        absent["blocks"] = why_no_chain(recorded)
    return Anatomy(
        d_model=blocks[0].before.shape[-1] if blocks else 0,
        d_vocab=recorded.logits.shape[-1],
        n_layers=len(blocks),
        causal=_is_causal(model, ids, recorded),
        layers=tuple(layers),
        taps={site: _tidy(port.tap, once) for site, port in ends.ports.items()} | {"logits": LOGITS},
        widths={site: port.width(ids.shape[1]) for site, port in ends.ports.items()} | {"logits": recorded.logits.shape[-1]},
        head=ends.head,
        readout=ends.readout,
        readout_exact=ends.exact,
        readout_error=ends.error,
        residual_error=max((layer.error for layer in layers), default=0.0),
        absent=absent,
        masked=ends.masked,
    )


def _stream(model: nn.Module, ids: Tensor, recorded: Tape, chains: list[tuple[Block, ...]]) -> tuple[tuple[Block, ...], Ends]:
    """The heaviest chain of blocks that leads to the logits; where none does, the heaviest."""
    found = [(chains[0], find_ends(model, ids, recorded, chains[0]))]
    for blocks in chains[1:]:
        if found[-1][1].exact:
            break
        found.append((blocks, find_ends(model, ids, recorded, blocks)))
    return found[-1] if found[-1][1].exact else found[0]


def _tidy(tap: Tap, once: set[str]) -> Tap:
    """Without the call number where the module is called once in a forward."""
    less = None if tap.less is None else _tidy(tap.less, once)
    return tap._replace(call=None if tap.path in once else tap.call, less=less)


def _layer(inside: Inside, equation: Equation, roles: Roles, once: set[str]) -> Layer:
    writes = tuple(
        Write(_tidy(port.tap, once), number, kind, gains)
        for port, number, kind, gains in zip(equation.terms, equation.coefficients, roles.kinds, equation.gains, strict=True)
    )
    return Layer(
        block=inside.block.event.path,
        carry=equation.carry,
        writes=writes,
        error=equation.error,
        equation=_written(inside, equation),
        carry_gains=equation.carry_gains,
        offset=equation.offset,
        **_found(inside, roles, once),
    )


def _unsolved(inside: Inside, why: str, roles: Roles, once: set[str]) -> Layer:
    """A block whose equation isn't found: its attention can be read, and the stream if there is one."""
    fields = _found(inside, roles, once)
    if len(inside.block.before.shape) != 3:
        for site in ("resid_pre", "resid_post"):
            del fields["taps"][site]
            fields["absent"][site] = why
    return Layer(inside.block.event.path, 1.0, (), error=float("inf"), equation=why, **fields)


def _found(inside: Inside, roles: Roles, once: set[str]) -> dict[str, Any]:
    """The fields of a layer that its equation doesn't say."""
    found = {"resid_pre": inside.block.before, **roles.ports, "resid_post": inside.block.after}
    attention, n = roles.attention, inside.tape.n_tokens
    widths = {site: port.width(n) for site, port in found.items()}
    taps = {site: _tidy(port.tap, once) for site, port in found.items()}
    fields = {"taps": taps, "widths": widths, "absent": roles.absent, "entries": roles.entries}
    if roles.routed is not None:
        experts = roles.routed.experts
        chosen, weights = _tidy(experts.chosen, once), _tidy(experts.weights, once)
        fields["experts"] = experts._replace(chosen=chosen, weights=weights)
    if attention is None:
        return fields
    d_head = attention.d_head
    for site in found:
        if SITES[site].per_head:
            widths[site] = d_head if site in roles.entries else widths[site] // attention.n_heads
    sizes = {"query": d_head, "key": d_head, "value": attention.d_value}
    widths |= {site: sizes[SITES[site].field] for site in sites_of("call") if SITES[site].field}
    return fields | {
        "attention": attention.path, "visit": attention.visit, "n_heads": attention.n_heads,
        "n_kv_heads": attention.n_kv_heads, "d_head": d_head,
    }  # fmt: skip


def _written(inside: Inside, equation: Equation) -> str:
    """`resid_post = resid_pre + 0.7 self_attn + 0.7 mlp`."""

    def term(number: float, names: tuple[str, ...], what: str) -> str:
        factors = [f"{number:.4g}"] if number != 1.0 else []
        return " ".join([*factors, *(inside.relative(n) for n in names), what])

    parts = [term(equation.carry, equation.carry_gains, "resid_pre")] if equation.carry else []
    for port, number, gains in zip(equation.terms, equation.coefficients, equation.gains, strict=True):
        parts.append(term(number, gains, inside.relative(port.tap.path)))
    if equation.offset:
        parts.append(inside.relative(equation.offset) if "." in equation.offset else equation.offset)
    post = "" if equation.carry else " (nothing of resid_pre is carried around it)"
    return f"resid_post = {' + '.join(parts)}{post}"


def _is_causal(model: nn.Module, ids: Tensor, recorded: Tape) -> bool:
    """Whether another last token leaves the logits of the positions before it as they were."""
    other = ids.clone()
    other[0, -1] = ids[0, 0] if ids[0, 0] != ids[0, -1] else ids[0, 1]
    with torch.no_grad():
        logits = model(input_ids=other, use_cache=False).logits
    change = apart(logits[:, :-1], recorded.logits[:, :-1]).max()
    return bool(change <= 1e-3 * loudest(recorded.logits))


@torch.inference_mode(False)  # whoever asks first may be in it, and its tensors don't say when they are written into
def cached_find(model: nn.Module, cache_dir: Path | None) -> Anatomy:
    """`find(model)`, or what it found for a model of the same class and config, if that holds here too.

    Only an anatomy that has every block and the readout is kept. A cache that can't be read or written is done without."""
    if cache_dir is None:
        return find(model)
    path = cache_dir / f"{key(model)}.json"
    try:
        anatomy = Anatomy.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        anatomy = None
    if anatomy is not None and not verify(model, anatomy):
        return anatomy
    anatomy = find(model)
    if anatomy.readout_exact and all(layer.writes for layer in anatomy.layers):
        # what is absent might only be absent with these weights (zeroed ones), and can't be checked on others
        _write(path, json.dumps(anatomy.to_dict()))
    return anatomy


def key(model: nn.Module) -> str:
    """Class, config (without the names of places it came from), versions of transformers and of this package."""
    import transformers

    config = getattr(model, "config", None)
    plain: dict[str, Any] = config.to_dict() if config is not None else {}
    plain = {k: v for k, v in plain.items() if k not in {"_name_or_path", "transformers_version", "architectures"}}
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    whole = json.dumps([kind, plain, transformers.__version__, _own_version()], sort_keys=True, default=str)
    return f"{type(model).__name__}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"


def _own_version() -> str:
    """A hash of this package's source: a better search finds more than an older cache holds."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    """Whole or not at all, also when two processes write."""
    with contextlib.suppress(OSError, StorageFull):
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(path, text.encode(), shared=True)
