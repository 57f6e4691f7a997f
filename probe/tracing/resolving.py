"""A trace's request on one model, checked before anything runs: the places, edits and settings that its texts mean there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probe.capturing import AttentionSpec
from probe.interventions import Edit, parse_all
from probe.requests import Sampling, Trace
from probe.sites import Cell, parse_places
from probe.texts.explaining import ExplainedTokens, explanation

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


@dataclass(frozen=True)
class Tracing:
    """A request on one model: the places, edits and settings that its texts mean there."""

    request: Trace
    sampling: Sampling
    cells: tuple[Cell, ...]
    attention: AttentionSpec
    edits: tuple[Edit, ...]
    explain: ExplainedTokens | None


def resolved(lm: LanguageModel, request: Trace) -> Tracing:
    """Check what is asked against the model; raises `BadOption` or `BadPlace` before anything runs."""
    anatomy, sampling = lm.anatomy, request.sampling or Sampling()
    places = tuple(place for text in request.capture for place in parse_places(text))
    cells = anatomy.cells(places)
    return Tracing(
        request, sampling, cells, AttentionSpec.parse(request.attention),
        parse_all(lm, request.edit, seed=sampling.seed), explanation(request.explain, request.order, sampling),
    )  # fmt: skip
