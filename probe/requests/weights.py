"""What is asked of `weights`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.requests.base import Request
from probe.requests.options import Option

LOOKS = ("matrices", "norms", "heads", "composition", "tokens", "neurons")


def _plain_model(model: Any) -> str | None:
    """A model by its name."""
    return None if model is None else str(getattr(model, "title", model))


@dataclass(frozen=True)
class WeightSurvey(Request):
    """Which of a model's weights are looked at, and what is told of them."""

    command: ClassVar[str] = "weights"
    runner: ClassVar[str] = "probe.matrices:run_weights"

    _: KW_ONLY
    what: Annotated[str, Option(f"Of {', '.join(LOOKS)}, with commas; tokens and neurons are slow.")] = "matrices,norms,heads"
    layers: Annotated[str, Option("Layers: all, 5, 3..9, with commas.")] = "all"
    heads: Annotated[str, Option("Heads of tokens: all, 5.3, 4..6.all, with commas.")] = "all"
    tokens: Annotated[
        str | None, Option("Follow the tokens of this text through the heads.", default="none; five, if --what has tokens")
    ] = None
    neurons: Annotated[
        str | None, Option("Neurons: all, 5.n3, 4..6.n0..99, with commas.", default="none; all, if --what has neurons")
    ] = None
    offset: Annotated[int, Option("Positions from key to query, where positions rotate.", minimum=0)] = 0
    top: Annotated[int, Option("Singular values, and tokens up and down, that are kept.", minimum=1)] = 10
    against: Annotated[
        Any,
        Option("Another model with matrices of the same names.", shell=str | None, complete="models", to_plain=_plain_model),
    ] = None  # fmt: skip
    memory: Annotated[str | int, Option("What may be held at once, beside the model.", shell=str)] = "2GB"

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [word for word in self.looks if word not in LOOKS]
        if unknown or not self.looks:
            raise BadOption(f"'{(unknown or [''])[0]}' is nothing to look at", hint=f"of {', '.join(LOOKS)}")
        if self.heads != "all" and "tokens" not in self.looks:
            raise BadOption("--heads names heads in which tokens are followed", hint="add --what tokens, or --tokens TEXT")
        if self.top < 1 or self.offset < 0:
            raise BadOption(f"top is {self.top}, offset {self.offset}", hint="top is at least 1, offset at least 0")

    @property
    def looks(self) -> tuple[str, ...]:
        """What is looked at, in the order of `LOOKS` if all is known."""
        words = [word.strip() for word in self.what.split(",") if word.strip()]
        return tuple(dict.fromkeys([*words, *(["tokens"] if self.tokens else []), *(["neurons"] if self.neurons else [])]))
