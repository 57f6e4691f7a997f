"""A prompt or a run as the argument of a command: its options, and the model that is to read it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import rewind as r

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
Position = Annotated[str, typer.Option("--position", "-p", help="Positions: all, last, 7, 3..9, tok=Paris, step3.")]


def load_for(source: Any, model: str | None, *, allow_fetch: bool, **loading: Any) -> LanguageModel:
    """The model that was named; else the run's own, or the default one for a prompt."""
    import probe
    from probe.store import run_of

    run = run_of(source)
    if run is not None:
        return r.load(run, model, allow_fetch=allow_fetch, **loading)
    name = (os.environ.get("PROBE_MODEL") or "smollm2") if model is None else model
    return probe.load(name, **loading)


__all__ = ["Model", "Position", "Source", "load_for"]
