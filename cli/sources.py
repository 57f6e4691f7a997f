"""A prompt or a run as the argument of a command: its options, and the model that is to read it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Source = Annotated[str, typer.Argument(metavar="RUN|PROMPT", help="A prompt, or the directory of a run.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m",
        help="Alias, Hugging Face id, local directory, .gguf file, or tiny:FAMILY [default: the run's, or smollm2].",
    ),
]  # fmt: skip
PromptId = Annotated[int | None, typer.Option("--prompt", min=0, help="Which prompt of the run.")]
Branch = Annotated[int, typer.Option("--branch", min=0, help="Which branch of a run made by rewind.")]
Position = Annotated[str, typer.Option("--position", "-p", help="Positions: all, last, 7, 3..9, tok=Paris, step3.")]


def load_for(source: Any, model: str | None, *, allow_fetch: bool, **loading: Any) -> LanguageModel:
    """The model that was named; else the run's own, or the default one for a prompt."""
    import probe
    from probe.store import run_of

    run = run_of(source)
    if run is not None:
        return load(run, model, allow_fetch=allow_fetch, **loading)
    name = (os.environ.get("PROBE_MODEL") or "smollm2") if model is None else model
    return probe.load(name, **loading)


def load(
    source: Any, model: str | None, *, revision: str | None = None, adapter: str | None = None,
    context_length: int | None = None, allow_fetch: bool = False, **loading: Any,
) -> Any:  # fmt: skip
    """The run's own model, or the one that was named."""
    import probe
    from probe.errors import BadOption
    from probe.language_model import model_of

    if model is not None:
        return probe.load(model, revision=revision, adapter=adapter, context_length=context_length, **loading)
    if revision is not None or adapter is not None:
        raise BadOption(
            "a run says which revision and adapter made it", hint="name the model too, with --model, to use another"
        )
    more = {} if context_length is None else {"context_length": context_length}
    return model_of(source, allow_fetch=allow_fetch, **more, **loading)


__all__ = ["Branch", "Model", "Position", "PromptId", "Source", "load", "load_for"]
