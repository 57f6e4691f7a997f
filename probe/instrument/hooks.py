"""One forward, hooked: activations read or replaced, calls of modules recorded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from probe.instrument.shards import shards


class Tap(NamedTuple):
    """A tensor that goes into or comes out of a module.

    `key` is the place of the tensor: a positional argument (int) or a keyword (str) of the call, or an element of a
    tuple (int) or a field of a dict-like (str) that it returns; 0 for an output that is itself a tensor.
    One forward may visit a block several times: `call` picks the visit, None is all of them.
    less: what is read is the tensor without that of another module, computed before it, so many times; a change of what is
    read is a change of the tensor.
    """

    path: str
    side: Literal["input", "output"]
    key: int | str = 0
    call: int | None = None
    less: Tap | None = None
    times: float = 1.0


Reader = Callable[[Tensor], Tensor | None]
"""Takes an activation, returns None (only read) or a tensor to go on with. It never writes in place."""

Recorder = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
"""(path, module, args, kwargs, output) of one call of one module."""


class _Rest:
    """Reads and changes what is left of a tensor without another one."""

    def __init__(self, reader: Reader, times: float) -> None:
        self._reader, self._times = reader, times
        self._part: Tensor | None = None

    def keep(self, part: Tensor) -> None:
        """The other tensor, so many times; a copy, for a model may add the rest to it in place."""
        self._part = part * self._times

    def __call__(self, value: Tensor) -> Tensor | None:
        assert self._part is not None, "it is computed before"
        own = value - self._part.to(value.device).reshape(value.shape)
        new = self._reader(own)
        return None if new is None else value + (new - own)


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
    anatomy is wrong, not the user. Of a tensor that several processes share, each reads and replaces all.
    """
    shared = shards(model)
    grouped: dict[tuple[str, str], list[tuple[Any, Reader]]] = defaultdict(list)
    rests: list[tuple[Tap, _Rest]] = []
    for tap, reader in taps.items():
        less = getattr(tap, "less", None)
        if less is not None:
            rests.append((less, _Rest(reader, tap.times)))
        reader = reader if less is None else rests[-1][1]
        processes = shared.get((tap.path, tap.side))
        grouped[tap.path, tap.side].append((tap, reader if processes is None else processes.reader(reader)))
    visits = _Visits()
    with ExitStack() as undo:
        undo.enter_context(_keeping(model, rests))
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


@contextmanager
def _keeping(model: nn.Module, rests: list[tuple[Tap, _Rest]]) -> Iterator[None]:
    """While active, each rest is told what it is without. It listens behind all hooks of that module, also those that were
    added later: so it is hooked when a forward begins."""
    with ExitStack() as undo, ExitStack() as hooked:

        def begin(*_: Any) -> None:
            hooked.close()
            for tap, rest in rests:
                hook = _output_hook(tap.path, [(tap, rest.keep)], _Visits())
                hooked.callback(model.get_submodule(tap.path).register_forward_hook(hook).remove)

        if rests:
            undo.callback(model.register_forward_pre_hook(begin).remove)
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


def emptied(output: Any, key: int | str) -> Any:
    """What a module returned, with `...` for the tensor at `key` and without other tensors, such as attention weights."""
    if isinstance(output, Tensor):
        return ...
    return tuple(... if i == key else None if isinstance(x, Tensor) else x for i, x in enumerate(output))


def filled(form: Any, value: Tensor) -> Any:
    """What `emptied` was of, with this tensor in it."""
    return value if form is ... else tuple(value if x is ... else x for x in form)


@contextmanager
def bypassing(model: nn.Module, outputs: Mapping[str, Any]) -> Iterator[None]:
    """While active, each of these modules (by path) only returns what stands here."""
    with ExitStack() as undo:
        for path, output in outputs.items():
            own = vars(model.get_submodule(path))
            if "forward" in own:
                undo.callback(own.update, forward=own["forward"])
            else:
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

    A module that stands in several places goes by its first path; one visited several times is recorded as often. Of what
    several processes share, each records all.
    """
    shared = shards(model)

    def hook_for(path: str) -> Callable[..., None]:
        taken, given = shared.get((path, "input")), shared.get((path, "output"))

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if taken is not None:
                args = (taken.whole(args[0]), *args[1:])
            if given is not None:
                output = given.whole(output)
            recorder(path, module, args, kwargs, output)

        return hook

    with ExitStack() as undo:
        for path, module in model.named_modules():
            undo.callback(module.register_forward_hook(hook_for(path), with_kwargs=True).remove)
        yield
