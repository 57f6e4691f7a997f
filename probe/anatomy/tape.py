"""The few tokens that an anatomy is found with, and what every module took and gave in one forward of them; judges nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probe.errors import NonFinite
from probe.instrument import AttentionCall, Tap, attending, device_of, recording

N_TOKENS = (13, 11, 17, 19, 23, 29)

Fingerprint = int  # a hash of a tensor's bytes: two tensors of one fingerprint are the same numbers


class Port(NamedTuple):
    """A tensor at a tap. Its numbers are `tape.values[fingerprint]`; `shape` as the module saw it."""

    tap: Tap
    fingerprint: Fingerprint
    shape: tuple[int, ...]

    def width(self, n_tokens: int) -> int:
        """Values at a position, of (1, pos, …) or, flat, (pos, …)."""
        flat = self.shape[0] == n_tokens or len(self.shape) < 3
        return math.prod(self.shape[1 if flat else 2 :])


class Event(NamedTuple):
    """One call of one module. `seq` orders the ends of calls: inner ones come before outer ones."""

    seq: int
    path: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    choices: tuple[Port, ...] = ()  # whole numbers that it was given, some for each token


class Attended(NamedTuple):
    """One call of the attention registry by the module at `path`; `fingerprint` is that of (batch, pos, head * d_head)."""

    seq: int
    path: str
    visit: int
    fingerprint: Fingerprint
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int
    query: Fingerprint = 0  # of (batch, pos, head, d_head)
    key: Fingerprint = 0  # of (batch, pos, kv head, d_head)


@dataclass
class Tape:
    """Events in order of their ends, attention calls, and the numbers by fingerprint (of tensors that can be a stream's), all
    on the device of the ids."""

    n_tokens: int
    events: list[Event] = field(default_factory=list)
    attended: list[Attended] = field(default_factory=list)
    values: dict[Fingerprint, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def calls(self) -> Mapping[str, int]:
        """How often each module was called."""
        return Counter(event.path for event in self.events)


def tape(model: nn.Module, ids: Tensor) -> Tape:
    """One plain forward over `ids` (1, pos), with every module watched."""
    recorded = Tape(n_tokens=ids.shape[1])
    visits: Counter[str] = Counter()
    kept: list[Tensor] = []  # so that no tensor's address is used twice while fingerprints are remembered by address
    seen: dict[tuple[int, int, tuple[int, ...]], Fingerprint] = {}

    def port(tensor: Tensor, tap: Tap) -> Port:
        key = (tensor.data_ptr(), tensor._version, tuple(tensor.shape))
        if key not in seen:
            kept.append(tensor)
            seen[key] = _fingerprint(tensor)
            if tensor.shape[0] in {1, recorded.n_tokens} and 2 <= tensor.dim() <= 4:
                recorded.values.setdefault(seen[key], tensor.detach().to(ids.device, copy=True))
        return Port(tap, seen[key], tuple(tensor.shape))

    def record(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        visit = visits[path]
        visits[path] += 1
        given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        inputs = tuple(port(t, Tap(path, "input", k, visit)) for k, t in given if _is_activation(t))
        outputs = tuple(port(t, Tap(path, "output", k, visit)) for k, t in _elements(output) if _is_activation(t))
        choices = tuple(port(t, Tap(path, "input", k, visit)) for k, t in given if _is_choice(t, recorded.n_tokens))
        recorded.events.append(Event(len(recorded.events), path, module, inputs, outputs, choices))

    def attend(path: str, call: AttentionCall, output: Tensor) -> None:
        if call.query.shape[0] != 1 or call.query.shape[2] != recorded.n_tokens:
            return  # its queries are not the text's positions: blocks that look back on blocks, chunks
        heads, width = call.query.shape[1], call.query.shape[-1]
        given = []
        for tensor in (call.query.transpose(1, 2), call.key.transpose(1, 2)):
            given.append(_fingerprint(tensor))
            recorded.values.setdefault(given[-1], tensor.detach().to(ids.device, copy=True))
        recorded.attended.append(
            Attended(
                len(recorded.events), path, call.visit, _fingerprint(output), heads, call.key.shape[1], width,
                call.value.shape[-1], *given,
            )
        )  # fmt: skip

    with torch.no_grad(), recording(model, record), attending(model, attend):
        recorded.logits = model(input_ids=ids, use_cache=False).logits.to(ids.device)
    if bool(recorded.logits.isnan().any()):
        raise NonFinite(
            f"the logits are not finite numbers{_first_nan(recorded)}",
            hint="try --dtype float32; if it stays so, the weights are damaged",
        )
    return recorded


def _first_nan(recorded: Tape) -> str:
    """Which module gives the first NaN."""
    for event in recorded.events:
        values = [recorded.values[port.fingerprint] for port in event.outputs if port.fingerprint in recorded.values]
        if any(bool(value.isnan().any()) for value in values):
            return f": the first NaN comes out of '{event.path}'"
    return ""


def _is_activation(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1


def _is_choice(value: object, n_tokens: int) -> bool:
    """Whether it may be the numbers of each token's experts: whole numbers (token, chosen) or (1, token, chosen)."""
    if not isinstance(value, Tensor) or value.dtype not in (torch.int64, torch.int32) or value.dim() not in (2, 3):
        return False
    return value.numel() > 1 and value.shape[-2] == n_tokens and value.shape[0] in {1, n_tokens}


def _elements(output: Any) -> Iterator[tuple[int | str, Any]]:
    if isinstance(output, Tensor):
        yield 0, output
    elif isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, (tuple, list)):
        yield from enumerate(output)


def _fingerprint(tensor: Tensor) -> Fingerprint:
    raw = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8)
    return hash((raw.numel(), raw.numpy().tobytes()))


def n_tokens(model: nn.Module) -> int:
    """How many: a prime that is no size of this model, so that no other axis can be taken for that of positions."""
    config = getattr(model, "config", None)
    sizes = {n for p in model.parameters() for n in p.shape} | set(_numbers(config.to_dict() if config else {}))
    return next((n for n in N_TOKENS if n not in sizes), N_TOKENS[0])


def _numbers(value: Any) -> Iterator[int]:
    """Every whole number of a config."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def probe_tokens(model: nn.Module, *, seed: int = 0) -> Tensor:
    """A few ordinary token ids (1, pos), the same each time, on the model's input device."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    n_vocab = getattr(embedding, "num_embeddings", 256)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, max(4, min(n_vocab - 16, 30_000)), (1, n_tokens(model)), generator=generator)
    return ids.to(device_of(embedding if any(True for _ in embedding.parameters()) else model))
