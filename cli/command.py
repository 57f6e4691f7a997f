"""From the declarations of requests and groups to a command: a parameter that is one stands for its fields as options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, is_dataclass
from functools import wraps
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import typer

from probe.errors import BadOption
from probe.requests.options import Declared, options_of

from .completing import completed

R = TypeVar("R")
LARGEST = 2**63 - 1  # whole numbers of a manifest and of tables


class Begun(Generic[R]):
    """A request of which the command line has said its part; `build` adds the rest, and checks it."""

    def __init__(self, kind: Callable[..., R], said: dict[str, Any]) -> None:
        self.kind, self.said = kind, said

    def build(self, **more: Any) -> R:
        """The request, of the options and of what is no option. Raises what the request raises."""
        return self.kind(**{**self.said, **more})


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """The command that `typer` sees: for each parameter `Begun[Request]` or of a dataclass the options that it declares."""
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    kinds = {name: kind for name, hint in hints.items() if (kind := _declaring(hint)) is not None}
    declared = {name: [one for one in options_of(kind) if not one.option.hidden] for name, kind in kinds.items()}

    @wraps(function)
    def command(**given: Any) -> None:
        values = {name: value for name, value in given.items() if name in hints}
        for name, fields in declared.items():
            said = {one.name: _value(one, given[one.name]) for one in fields}
            said = {key: value for key, value in said.items() if value is not MISSING}
            values[name] = Begun(kinds[name], said) if get_origin(hints[name]) is Begun else kinds[name](**said)
        function(**values)

    shown = []
    for name, hint in hints.items():
        shown += [_parameter(one) for one in declared[name]] if name in declared else [_own(function, name, hint)]
    shown.sort(key=lambda p: not _is_argument(p))  # what has only a place comes first
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in shown}
    return command


def _declaring(hint: Any) -> type | None:
    """The dataclass whose fields are options, if a parameter stands for one."""
    if get_origin(hint) is Begun:
        (kind,) = get_args(hint)
        return kind if isinstance(kind, type) else None
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _value(one: Declared, given: Any) -> Any:
    """What the command line gave for a field; MISSING for a list that it did not give."""
    if isinstance(given, list):
        return tuple(given)
    if isinstance(given, int) and abs(given) > LARGEST:
        raise BadOption(f"'{given}' is no number for --{one.name.replace('_', '-')}", hint=f"whole numbers end at {LARGEST}")
    return MISSING if given is None and one.default is not None else given


def _parameter(one: Declared) -> inspect.Parameter:
    option = one.option
    more: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "envvar": option.envvar}
    if option.minimum is not None:
        more["min"] = option.minimum
    if option.maximum is not None:
        more["max"] = option.maximum
    if option.default is not None:
        more["show_default"] = option.default
    if option.complete is not None:
        more["autocompletion"] = completed(option.complete)
    names: Sequence[str] = option.names or (f"--{one.name.replace('_', '-')}",)
    info = typer.Argument(**more) if option.argument else typer.Option(*names, **more, show_envvar=option.envvar is not None)
    kind = option.shell or one.type
    default = one.default
    if default is MISSING:
        default = inspect.Parameter.empty
    elif option.shell is not None and default == ():
        default = None
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _own(function: Callable[..., None], name: str, hint: Any) -> inspect.Parameter:
    return inspect.signature(function).parameters[name].replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(isinstance(extra, type(typer.Argument())) for extra in getattr(parameter.annotation, "__metadata__", ()))
