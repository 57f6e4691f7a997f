"""What is asked of `compare`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Annotated, Any, ClassVar, Self

from probe.errors import BadOption, RunError
from probe.requests.base import Request
from probe.requests.groups import ChatOptions, FileOptions, Seed, plain_prompts, plain_run, prompts_of
from probe.requests.options import Option


def _plain_side(side: Any) -> Any:
    """A model by its name, a run by its place."""
    return {"model": side.title} if _is_model(side) else plain_run(side)


def _is_model(side: Any) -> bool:
    return hasattr(side, "title") and not isinstance(side, str)


@dataclass(frozen=True)
class Compare(ChatOptions, FileOptions, Request):
    """Which two models read which texts, or which two runs are held against each other."""

    command: ClassVar[str] = "compare"
    runner: ClassVar[str] = "probe.comparing:run_compare"

    a: Annotated[Any, Option("A model, or a run of `trace` or its path.", hidden=True, to_plain=_plain_side)]
    b: Annotated[Any, Option("The other model, or the other run; one model may be both.", hidden=True, to_plain=_plain_side)]
    texts: Annotated[
        Any, Option("As the prompts of `trace`; None for two runs.", hidden=True, to_plain=plain_prompts, from_plain=prompts_of)
    ] = None
    _: KW_ONLY
    edit: Annotated[
        str | Iterable[Any],
        Option(
            "Change B's activations: PLACE=OP, e.g. z@5.3=zero; repeatable.",
            ("--edit", "-e"),
            shell=list[str] | None,
            complete="edits",
        ),
    ] = ()
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        models = _is_model(self.a) + _is_model(self.b)
        if models == 1:
            raise BadOption("one is a run and the other a model", hint="give two models and a text, or two runs")
        if models == 2 and self.texts is None:
            raise BadOption("what are the models to read?", hint="give a text")
        if self.of_runs and (self.texts is not None or self.edit or self.chat or self.template_options):
            raise BadOption("two runs hold their own texts", hint="leave out the text, --edit, --chat and its options")

    @property
    def of_runs(self) -> bool:
        """Whether it is two runs that are compared."""
        return not any(_is_model(side) or isinstance(side, dict) for side in (self.a, self.b))

    def on(self, lm: Any) -> Self:
        """The request on a loaded model, as a replay of it needs one. Raises `RunError` where it was made by two."""
        if self.of_runs:
            return self
        if not self.a == self.b == {"model": lm.title}:
            raise RunError("two models were compared", hint="load both, and compare them")
        return replace(self, a=lm, b=lm)
