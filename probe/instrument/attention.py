"""Attention calls that go through transformers' registry: seen, changed, or computed by another function."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from probe.instrument.shards import Processes, shared_heads


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one attention function was called with. Keys and values are not yet repeated for grouped queries.

    query (batch, head, query, d_head), key and value (batch, kv head, key, d_head or d_value), after rotation.
    `mask` is bool (True: visible) or additive, broadcastable to (batch, head, query, key); None means causal if
    `is_causal`, else every key is visible. `sinks` (head,) are extra scores that take mass and give nothing.
    `visit` counts the calls of this module within one forward of the model. `extra` is whatever else was given.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    scaling: float
    is_causal: bool
    softcap: float | None = None
    sinks: Tensor | None = None
    position_bias: Tensor | None = None
    sliding_window: int | None = None
    visit: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


Observer = Callable[[str, AttentionCall, Tensor], Tensor | None]
"""(path of the calling module, the call, its output (batch, query, head, d_value)) -> None or the output to use."""

Changer = Callable[[str, AttentionCall], AttentionCall | None]
"""(path of the calling module, the call) -> None, or the call whose query, key, value and mask are to be used."""

Attention = Callable[[AttentionCall], Tensor | None]
"""the call -> its output, in place of the model's own attention function; None: that one is to run."""


class _Watch(NamedTuple):
    paths: dict[int, str]  # id of a module of the model -> its first path
    observer: Observer | None
    visits: Counter[str]
    changer: Changer | None = None
    attention: Attention | None = None
    shared: Mapping[str, Processes] = {}  # by the path of a module whose heads several processes share


_watches: ContextVar[tuple[_Watch, ...]] = ContextVar("watches", default=())  # of this thread or task only
_lock = threading.Lock()
_users: Counter[int] = Counter()  # id of a registry -> how many contexts need the patch


@contextmanager
def attending(
    model: nn.Module, observer: Observer | None = None, *, changer: Changer | None = None, attention: Attention | None = None
) -> Iterator[None]:
    """While active, `observer` sees each attention call of the model that goes through transformers' registry.

    The model's own attention function runs unchanged; the observer comes after it, in the thread that entered the context
    only. Nested observers come in the order in which they were entered, each with the output that the one before left. A
    `changer` comes before the function, and observers see the call it made. `attention` computes calls in its place, with the
    heads of this process; where several share them, observers and changers see all.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    watch = _Watch(paths, observer, Counter(), changer, attention, shared_heads(model))
    with ExitStack() as undo:
        for registry in _registries(model):
            undo.enter_context(_patching(registry))
        undo.callback(model.register_forward_pre_hook(lambda *_: watch.visits.clear()).remove)
        undo.callback(_watches.reset, _watches.set((*_watches.get(), watch)))
        yield


def attended(model: nn.Module) -> bool:
    """Whether any context of this thread has its hands on the attention calls of the model."""
    return any(id(model) in watch.paths for watch in _watches.get())


def _registries(model: nn.Module) -> list[Any]:
    """The registries that the files of the model's classes use: most share one, some declare their own."""
    from transformers.modeling_utils import AttentionInterface

    files = {type(module).__module__ for module in model.modules()}
    found = (getattr(sys.modules.get(name), "ALL_ATTENTION_FUNCTIONS", None) for name in files)
    return list({id(r): r for r in found if isinstance(r, AttentionInterface)}.values())


@contextmanager
def _patching(registry: Any) -> Iterator[None]:
    """What the registry gives is watched, for as long as any context needs it."""
    with _lock:
        _users[id(registry)] += 1
        if _users[id(registry)] == 1:
            original = registry.get_interface
            registry.get_interface = lambda *args, **kwargs: _watched(original(*args, **kwargs))
    try:
        yield
    finally:
        with _lock:
            _users[id(registry)] -= 1
            if not _users[id(registry)]:  # only the instance's own goes: the class's is underneath
                del registry.get_interface


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function, followed by whoever watches the module that called it."""
    if not _watches.get():
        return function

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        here = [(watch, watch.paths[id(module)]) for watch in _watches.get() if id(module) in watch.paths]
        own = _described(module, query, key, value, attention_mask, kwargs)
        processes = _sharing(here)
        given = call = own if processes is None else _with_heads(own, processes.whole)
        for watch, path in here:
            if watch.changer is not None:
                call = watch.changer(path, replace(call, visit=watch.visits[path])) or call
        if processes is None:
            own = call
        elif call is not given:
            own = _with_heads(call, processes.own)
        output, *rest = _computed(here, own) or function(module, own.query, own.key, own.value, own.mask, **kwargs)
        seen = output if processes is None else processes.whole(output, dim=2)
        edited = _observed(here, call, seen)
        if edited is not seen:
            output = edited if processes is None else processes.own(edited, dim=2)
        return (output, *rest)

    return attention


def _observed(watches: list[tuple[_Watch, str]], call: AttentionCall, output: Tensor) -> Tensor:
    """The output, as each observer leaves it to the next."""
    for watch, path in watches:
        seen = replace(call, visit=watch.visits[path])
        watch.visits[path] += 1
        edited = watch.observer(path, seen, output) if watch.observer is not None else None
        output = output if edited is None else edited
    return output


def _sharing(watches: list[tuple[_Watch, str]]) -> Processes | None:
    """The processes that share the heads of a call, where anyone sees or changes it; what only computes it does so with its
    own heads."""
    asked = [(watch, path) for watch, path in watches if watch.observer is not None or watch.changer is not None]
    return next((watch.shared[path] for watch, path in asked if path in watch.shared), None)


def _with_heads(call: AttentionCall, part: Callable[[Tensor, int], Tensor]) -> AttentionCall:
    """The call with all heads, or some, in every tensor that has an axis of them."""
    axes = {"query": 1, "key": 1, "value": 1, "sinks": 0, "position_bias": 1}
    if isinstance(call.mask, Tensor) and call.mask.dim() == 4 and call.mask.shape[1] > 1:
        axes["mask"] = 1
    there = {name: getattr(call, name) for name in axes}
    changed: dict[str, Any] = {name: part(value, axes[name]) for name, value in there.items() if value is not None}
    return replace(call, **changed)


def _computed(watches: list[tuple[_Watch, str]], call: AttentionCall) -> tuple[Tensor, None] | None:
    """What the first says that computes this call, as a model's own function returns it: without weights."""
    own = (watch.attention(call) for watch, _ in watches if watch.attention is not None)
    return next(((output, None) for output in own if output is not None), None)


def _described(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]
) -> AttentionCall:
    """The call in our words; names are those that transformers' attention functions use."""
    extra = dict(kwargs)
    scaling, is_causal, sinks = extra.pop("scaling", None), extra.pop("is_causal", None), extra.pop("s_aux", None)
    sinks = extra.pop("sinks", None) if sinks is None else sinks
    return AttentionCall(
        module, query, key, value, mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        is_causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        softcap=extra.pop("softcap", None),
        sinks=getattr(module, "sinks", None) if sinks is None else sinks,
        position_bias=extra.pop("position_bias", None), sliding_window=extra.pop("sliding_window", None),
        extra=extra,
    )  # fmt: skip
