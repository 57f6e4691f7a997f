"""Which engine draws continuations: the model in this process, or a server that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe.decoding.rollouts import Engine, LocalEngine
from probe.errors import BadOption

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

__all__ = ["engine_of"]


def engine_of(lm: LanguageModel, name: str) -> Engine:
    """The engine that is asked for by this name. Raises `BadOption` for one that there is not."""
    if name == "local":
        return LocalEngine(lm)
    raise BadOption(f"unknown engine '{name}'", hint="local")
