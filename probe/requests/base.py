"""What all requests share, and the public function that takes a request's fields as its keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar, overload

from probe.errors import BadOption, RunError
from probe.requests.options import Declared, Option, options_of, plain

Progress = Callable[[str, int, int], None]
"""What is going on, how much of it is done, and how much there is."""

P = ParamSpec("P")
R = TypeVar("R")
Subject = TypeVar("Subject")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of one verb. `arguments` decides its numbers; where the run goes and who watches does not.

    out: a directory, a URL (`s3://BUCKET/RUN`), "auto" for a new directory under `runs/`, None to keep the run in memory.
    """

    command: ClassVar[str]  # the verb, and the name of its command
    runner: ClassVar[str]  # "module:function" that takes a request

    out: Annotated[
        str | Path | None,
        Option(
            "The run directory, or its URL: s3://BUCKET/RUN.", ("--out", "-o"),
            shell=str | None, metavar="PATH|URL", default="runs/TIME-COMMAND-WORD", stored=False,
        ),
    ] = None  # fmt: skip
    resume: Annotated[bool, Option("Complete the interrupted run at --out.", stored=False)] = False
    expect_that: Annotated[
        tuple[str, ...],
        Option(
            "What is expected of the run, such as 'effects.difference > 0.1' (probe help expectations); repeatable. Exit code "
            "0 held, 4 failed, 5 not resolved.", shell=list[str] | None,
        ),
    ] = ()  # fmt: skip
    progress: Annotated[
        Progress | None, Option("Called with what is going on, how much is done, of how much.", hidden=True, stored=False)
    ] = None

    def __post_init__(self) -> None:
        if self.resume and self.out in (None, "auto"):
            raise BadOption("which run is to be resumed?", hint="name it with --out")
        for one in options_of(type(self)):
            if one.many:
                given = getattr(self, one.name)
                object.__setattr__(self, one.name, (given,) if isinstance(given, str) else tuple(given))
        if self.expect_that:  # or nothing that stands on tables is imported
            from probe.expecting import checked

            for text in self.expect_that:
                checked(text, self.command)

    def arguments(self) -> dict[str, Any]:
        """As the manifest holds them: plain values from which `from_arguments` makes an equal request. What is expected is
        there where something is, so that a run which was begun without the option can be gone on with."""
        stored = [(one.name, one.option.to_plain or plain) for one in options_of(type(self)) if one.option.stored]
        return {name: to_plain(getattr(self, name)) for name, to_plain in stored if name != "expect_that" or self.expect_that}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """The request that a manifest's `arguments` describe. Raises `RunError` for one that this version does not have."""
        arguments = cls.upgraded(arguments)
        makers = {one.name: one.option.from_plain for one in options_of(cls)}
        if unknown := arguments.keys() - makers.keys():
            raise RunError(f"'{min(unknown)}' is no option of {cls.command}", hint="the run is of another version of probe")
        return cls(**{name: make(value) if (make := makers[name]) else value for name, value in arguments.items()})

    @classmethod
    def upgraded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """A manifest's arguments as this version would have them."""
        return arguments

    def on(self, lm: Any) -> Self:
        """The same request with a loaded model where it has a field for one."""
        live = {"lm": lm}
        return replace(self, **live) if any(f.name == "lm" for f in fields(self)) else self

    @classmethod
    def function(cls) -> Callable[..., Any]:
        """What runs such a request; imports the verb."""
        module, _, name = cls.runner.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), name)
        return found


@overload
def public(run: Callable[[Subject, R], Result], request: Callable[P, R]) -> Callable[Concatenate[Subject, P], Result]: ...
@overload
def public(run: Callable[[R], Result], request: Callable[P, R]) -> Callable[P, Result]: ...
def public(run: Any, request: Any) -> Any:
    """A verb as a function of plain keywords: those of the request's fields, after what the verb works on.

    `run(subject, request)` or `run(request)` does the work. The signature is the fields; so is the list in the docstring.
    """
    subjects = list(inspect.signature(run).parameters.values())[:-1]
    declared = options_of(request)
    signature = inspect.Signature(
        [*subjects, *(_parameter(one) for one in sorted(declared, key=lambda one: one.keyword))],
        return_annotation=inspect.signature(run).return_annotation,
    )

    @wraps(run)
    def verb(*args: Any, **given: Any) -> Any:
        try:
            values = signature.bind(*args, **given).arguments
        except TypeError as error:
            raise TypeError(f"{verb.__name__}() {error}") from None
        found = [values.pop(one.name) for one in subjects]
        return run(*found, request(**values))

    verb.__name__ = verb.__qualname__ = run.__name__.removeprefix("run_")
    verb.__signature__ = signature  # type: ignore[attr-defined]
    lines = [f"    {one.name}: {one.option.help}" for one in declared]
    verb.__doc__ = "\n".join([inspect.cleandoc(run.__doc__ or ""), "", "Options:", *lines])
    return verb


def _parameter(one: Declared) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY if one.keyword else inspect.Parameter.POSITIONAL_OR_KEYWORD
    default = inspect.Parameter.empty if one.default is MISSING else one.default
    return inspect.Parameter(one.name, kind, default=default, annotation=one.type)
