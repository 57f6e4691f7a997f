"""One forward, hooked: activations read or replaced, attention calls seen; knows modules, not what they mean.

The only module that changes a live module or touches transformers' attention registry. Everything is a context manager and
leaves the model as it was, in the middle of an exception too.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn


class Tap(NamedTuple):
    """A tensor that goes into or comes out of a module.

    `key` is the place of the tensor: a positional argument (int) or a keyword (str) of the call, or an element of a
    tuple (int) or a field of a dict-like (str) that it returns; 0 for an output that is itself a tensor.
    One forward may visit a block several times: `call` picks the visit, None is all of them.
    """

    path: str
    side: Literal["input", "output"]
    key: int | str = 0
    call: int | None = None


Reader = Callable[[Tensor], Tensor | None]
"""Takes an activation, returns None (only read) or a tensor to go on with. It never writes in place."""

Recorder = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
"""(path, module, args, kwargs, output) of one call of one module."""


class _Visits:
    """Counts the calls of each module within one forward of the root."""

    def __init__(self) -> None:
        self.before: Counter[str] = Counter()
        self.after: Counter[str] = Counter()

    def reset(self, *_: Any) -> None:
        self.before, self.after = Counter(), Counter()


@contextmanager
def tapping(model: nn.Module, taps: Mapping[Any, Reader]) -> Iterator[None]:
    """While active, every tap's reader sees its activation at each forward, and what it returns takes its place.

    Keys are `Tap`s, or anything with `path`, `side` and `key`. Readers of one module are called in their order. A path
    that the model does not have is an `AttributeError`, a key that the call does not have a `LookupError`: then the
    anatomy is wrong, not the user.
    """
    grouped: dict[tuple[str, str], list[tuple[Any, Reader]]] = defaultdict(list)
    for tap, reader in taps.items():
        grouped[tap.path, tap.side].append((tap, reader))
    visits = _Visits()
    with ExitStack() as undo:
        if any(getattr(tap, "call", None) is not None for tap in taps):
            undo.callback(model.register_forward_pre_hook(visits.reset).remove)
        for (path, side), readers in grouped.items():
            module = model.get_submodule(path)
            if side == "input":
                hook = _input_hook(path, readers, visits)
                undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            else:
                undo.callback(module.register_forward_hook(_output_hook(path, readers, visits)).remove)
        yield


def _input_hook(path: str, readers: list[tuple[Any, Reader]], visits: _Visits) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        visit, changed = visits.before[path], False
        visits.before[path] += 1
        for tap, reader in readers:
            if getattr(tap, "call", None) not in (None, visit):
                continue
            edited = reader(args[tap.key] if isinstance(tap.key, int) else kwargs[tap.key])
            if edited is not None:
                changed = True
                if isinstance(tap.key, int):
                    args = (*args[: tap.key], edited, *args[tap.key + 1 :])
                else:
                    kwargs = {**kwargs, tap.key: edited}
        return (args, kwargs) if changed else None

    return hook


def _output_hook(path: str, readers: list[tuple[Any, Reader]], visits: _Visits) -> Callable[..., Any]:
    def hook(_: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        visit, changed = visits.after[path], False
        visits.after[path] += 1
        for tap, reader in readers:
            if getattr(tap, "call", None) not in (None, visit):
                continue
            edited = reader(element(output, tap.key))
            if edited is not None:
                changed, output = True, _with_element(output, tap.key, edited)
        return output if changed else None

    return hook


def element(output: Any, key: int | str) -> Tensor:
    """The tensor at `key` of what a module returned: the output itself for key 0 of a plain tensor."""
    if isinstance(output, Tensor):
        if key != 0:
            raise LookupError(f"the output is one tensor and has no element {key!r}")
        return output
    return output[key]


def _with_element(output: Any, key: int | str, value: Tensor) -> Any:
    if isinstance(output, Tensor):
        return value
    if isinstance(output, (tuple, list)):
        changed = [value if i == key else old for i, old in enumerate(output)]
        return type(output)(*changed) if hasattr(output, "_fields") else type(output)(changed)
    fields = dict(output.items())
    name = key if isinstance(key, str) else list(fields)[key]
    return type(output)(**{**fields, name: value})


@contextmanager
def bypassing(model: nn.Module, outputs: Mapping[str, Any]) -> Iterator[None]:
    """While active, each of these modules (by path), whose `forward` is its class's, only returns what stands here."""
    with ExitStack() as undo:
        for path, output in outputs.items():
            own = vars(model.get_submodule(path))
            undo.callback(own.pop, "forward", None)
            own["forward"] = lambda *_, output=output, **__: output
        yield


@contextmanager
def entering(model: nn.Module, begin: Callable[..., None], end: Callable[[], None]) -> Iterator[None]:
    """While active, `begin(args, kwargs)` comes before each forward of the model, and `end()` after it, failed or not."""
    before = model.register_forward_pre_hook(lambda _, args, kwargs: begin(args, kwargs), with_kwargs=True)
    with ExitStack() as undo:
        undo.callback(before.remove)
        undo.callback(model.register_forward_hook(lambda *_: end(), always_call=True).remove)
        yield


@contextmanager
def recording(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """While active, `recorder` sees every call of every module, the root ("") included, inner calls before outer ones.

    A module that stands in several places goes by its first path; one visited several times is recorded as often.
    """

    def hook_for(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            recorder(path, module, args, kwargs, output)

        return hook

    with ExitStack() as undo:
        for path, module in model.named_modules():
            undo.callback(module.register_forward_hook(hook_for(path), with_kwargs=True).remove)
        yield


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


class _Watch(NamedTuple):
    paths: dict[int, str]  # id of a module of the model -> its first path
    observer: Observer | None
    visits: Counter[str]
    changer: Changer | None = None


_watches: ContextVar[tuple[_Watch, ...]] = ContextVar("watches", default=())  # of this thread or task only
_lock = threading.Lock()
_users: Counter[int] = Counter()  # id of a registry -> how many contexts need the patch


@contextmanager
def attending(model: nn.Module, observer: Observer | None = None, *, changer: Changer | None = None) -> Iterator[None]:
    """While active, `observer` sees each attention call of the model that goes through transformers' registry.

    The model's own attention function runs unchanged; the observer comes after it, in the thread that entered the context
    only. Nested observers come in the order in which they were entered, each with the output that the one before left. A
    `changer` comes before the function, and observers see the call it made.
    """
    watch = _Watch({id(module): path for path, module in model.named_modules()}, observer, Counter(), changer)
    with ExitStack() as undo:
        for registry in _registries(model):
            undo.enter_context(_patching(registry))
        undo.callback(model.register_forward_pre_hook(lambda *_: watch.visits.clear()).remove)
        undo.callback(_watches.reset, _watches.set((*_watches.get(), watch)))
        yield


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
        call = _described(module, query, key, value, attention_mask, kwargs)
        for watch, path in here:
            if watch.changer is not None:
                call = watch.changer(path, replace(call, visit=watch.visits[path])) or call
        output, *rest = function(module, call.query, call.key, call.value, call.mask, **kwargs)
        for watch, path in here:
            seen = replace(call, visit=watch.visits[path])
            watch.visits[path] += 1
            edited = watch.observer(path, seen, output) if watch.observer is not None else None
            output = output if edited is None else edited
        return (output, *rest)

    return attention


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
