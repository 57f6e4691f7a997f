"""What is asked of `explain`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar

from probe.requests.base import Request
from probe.requests.groups import plain_run
from probe.requests.options import Option


@dataclass(frozen=True)
class Explain(Request):
    """Which tokens of a run are explained, and in whose order of stages."""

    command: ClassVar[str] = "explain"
    runner: ClassVar[str] = "probe.explaining:run_explain"

    run: Annotated[Any, Option("A run of trace.", hidden=True, to_plain=plain_run)]
    at: Annotated[str | int, Option("Tokens, as in a place: 7, -1, 3..9, last, completion, tok=Paris.", hidden=True)]
    _: KW_ONLY
    order: Annotated[
        str | None, Option("Also in another engine's order of stages: hf, vllm, llamacpp or all.", hidden=True)
    ] = None
    prompt_id: Annotated[int, Option("Which prompt of the run.", hidden=True)] = 0
    lm: Annotated[Any, Option("The run's own model, if it is loaded already.", hidden=True, stored=False)] = None
