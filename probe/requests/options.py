"""The declaration of an option: what it means in a sentence and how a command line spells it; beside its type and default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import get_annotations
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from probe.durable import jsonable


@dataclass(frozen=True)
class Option:
    """Stands in a field's type: `top: Annotated[int, Option("Alternatives a position.", minimum=0)] = 5`.

    names: the command line's, if they are not `--field-name`. shell: the type of what is typed there, where it is not the
    field's. argument: it has no name there, only a place. hidden: it is no option there. default: how the help says what
    None stands for. complete: the kind of values that a shell completes. stored: it is one of the manifest's `arguments`, as
    the plain value `to_plain(value)`, from which `from_plain` makes it again.
    """

    help: str
    names: tuple[str, ...] = ()
    shell: Any = None
    minimum: float | None = None
    maximum: float | None = None
    metavar: str | None = None
    envvar: str | None = None
    default: str | None = None
    complete: str | None = None
    argument: bool = False
    hidden: bool = False
    stored: bool = True
    to_plain: Callable[[Any], Any] | None = None  # `plain` if there is none
    from_plain: Callable[[Any], Any] | None = None


class Declared(NamedTuple):
    """One field of a request or of a group: its name, type, default (MISSING where it must be given) and declaration."""

    name: str
    type: Any
    default: Any
    option: Option
    keyword: bool

    @property
    def many(self) -> bool:
        """Whether it may be given several times on a command line; a request has what was given as a tuple."""
        return isinstance(self.default, tuple) and list[str] in (self.option.shell, *get_args(self.option.shell))


def options_of(kind: type) -> list[Declared]:
    """The fields of a dataclass in the order in which they are shown: its own, then those of each group that it is made of."""
    hints = get_type_hints(kind, include_extras=True)
    by_name = {f.name: f for f in fields(kind)}
    order = [name for base in kind.__mro__[:-1] for name in get_annotations(base) if name in by_name]
    found = []
    for name in dict.fromkeys(order):
        assert get_origin(hints[name]) is Annotated, f"{kind.__name__}.{name} has no Option"
        base, *extras = get_args(hints[name])
        (option,) = (extra for extra in extras if isinstance(extra, Option))
        f = by_name[name]
        default = f.default if f.default_factory is MISSING else f.default_factory()
        found.append(Declared(name, base, default, option, f.kw_only is True))
    return found


def plain(value: Any) -> Any:
    """A value as JSON can hold it: edits as text, a run as its path, dataclasses as mappings, the rest as by `jsonable`."""
    if hasattr(value, "run_id"):
        return str(value.address or value.run_id)
    if is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "cell"):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else jsonable(value)
