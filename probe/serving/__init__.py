"""Which engine draws continuations: the model in this process, or a server that has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probe.errors import BadOption
from probe.requests.workers import LOCAL, RAY

if TYPE_CHECKING:
    import numpy as np

    from probe.decoding.rollouts import Engine
    from probe.language_model import LanguageModel
    from probe.requests import Sampling

__all__ = ["engine_of", "in_process", "remarks", "suffix_logprobs"]


def engine_of(lm: LanguageModel, name: str) -> Engine:
    """The engine that is asked for by this name: `local`, or the address of a server, which is compared with the model here.

    `ray` is many processes, of which each draws as this one would. Raises `BadOption` for one that there is not, `EngineError`
    for a server that cannot be used.
    """
    if name in (LOCAL, RAY):
        from probe.decoding.rollouts import LocalEngine

        return LocalEngine(lm)
    if "://" in name:
        from probe.serving.server import ServerEngine

        if lm.patches:  # one that changes little would pass as rounding
            raise BadOption("a server has the weights without the patch", hint="--engine local")
        return ServerEngine(lm, name)
    raise BadOption(f"unknown engine '{name}'", hint="local, ray, or the address of a server: http://127.0.0.1:8000")


def in_process(engine: Engine, what: str) -> None:
    """Raises `BadOption` where what is asked for needs the model's activations and a server has the model."""
    if not engine.activations:
        raise BadOption(f"{what} needs activations, and a server gives none", hint="--engine local")


def remarks(engine: Engine, sampling: Sampling) -> list[str]:
    """What a reader of a run must know of the engine that draws it with these settings: empty where it is this process."""
    from probe.serving.server import ServerEngine

    return engine.remarks(sampling) if isinstance(engine, ServerEngine) else []


def suffix_logprobs(
    engine: Engine, lm: LanguageModel, prefix: Sequence[int], suffixes: Sequence[Sequence[int]]
) -> list[np.ndarray]:  # fmt: skip
    """Raw log-probs (len(suffix),), nats, float32, of the tokens of each suffix after the prefix: by the engine where it can
    score a text, else by the model here."""
    from probe.decoding.teacher_forced import suffix_logprobs as own
    from probe.serving.server import ServerEngine

    return engine.suffix_logprobs(prefix, suffixes) if isinstance(engine, ServerEngine) else own(lm, prefix, suffixes)
