"""A trace's request on one model: what its words mean there, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probe.capturing import AttentionSpec
from probe.interventions import Edit, parse_all
from probe.language_model.chat import Chat
from probe.requests import Sampling, Trace
from probe.sites import Cell, parse_places, resolve
from probe.texts.explaining import Explain, explanation

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


@dataclass(frozen=True)
class Tracing:
    """A request on one model: the places, edits and settings that its texts mean there."""

    request: Trace
    sampling: Sampling
    cells: tuple[Cell, ...]
    attention: AttentionSpec
    chat: Chat
    edits: tuple[Edit, ...]
    explain: Explain | None


def resolved(lm: LanguageModel, request: Trace) -> Tracing:
    """Check what is asked against the model; raises `BadOption` or `BadPlace` before anything runs."""
    anatomy, sampling = lm.anatomy, request.sampling or Sampling()
    places = tuple(place for text in request.capture for place in parse_places(text))
    cells = resolve(places, n_layers=anatomy.n_layers, n_heads=anatomy.n_heads, has=anatomy.has)
    return Tracing(
        request, sampling, cells, AttentionSpec.parse(request.attention), Chat.of(request),
        parse_all(lm, request.edit, seed=sampling.seed), explanation(request.explain, request.order, sampling),
    )  # fmt: skip
