"""What a lens is of: a text, its positions and an answer, resolved on one model; and every layer's guesses there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.capturing import MemorySink, observe, read
from probe.capturing.logits import NO_SETS, row_guesses, unembedding
from probe.decoding.teacher_forced import check_beginnings
from probe.devices import uploaded
from probe.errors import BadEdit
from probe.interventions import Edit, applying, edits_up_to, locate_edits, parse_all
from probe.requests import Lens
from probe.sites import SITES, parse_places, parse_where
from probe.targets import AnswerTarget, Contrast, contrast_after
from probe.texts import TokenSequence, read_source

if TYPE_CHECKING:
    from probe.capturing.sinks import Columns
    from probe.language_model import LanguageModel
    from probe.scoring import Scores

ANSWERS = ("answer_logprob", "against_logprob")  # columns of `lens`, in the order of a contrast


@dataclass(frozen=True)
class Lensing:
    """A request on one model. measured: the position after which the answer stands, one of `positions`."""

    request: Lens
    lm: LanguageModel
    sequence: TokenSequence
    positions: list[int]
    measured: int
    contrast: Contrast | None
    edits: tuple[Edit, ...]
    notes: list[str]

    @property
    def token(self) -> int | None:
        """The token that is followed at every position, if one is."""
        return self.contrast.answer.token if self.contrast is not None and self.contrast.answer.is_token else None

    @property
    def answers(self) -> dict[str, AnswerTarget]:
        """By the column of their log-probs."""
        return {} if self.contrast is None else {n: one for n, one in zip(ANSWERS, self.contrast, strict=True) if one}

    @property
    def forwards(self) -> int:
        """Of the text, and of its beginning with each answer of several tokens after it."""
        return 1 + sum(len(one.steps) > 1 for one in self.answers.values())


def resolved(lm: LanguageModel | None, request: Lens) -> Lensing:
    """Check what is asked against the model. Raises `BadPrompt`, `BadPlace`, `BadEdit`, `BadOption`, `RunError`."""
    lm, sequence = read_source(lm, request.source, request)
    positions, measured = sequence.positions(parse_where(request.position)), None
    if request.measure_at is not None:
        measured = sequence.position(parse_where(str(request.measure_at)))
        positions = sorted({*positions, measured})
    measured = positions[-1] if measured is None else measured
    contrast, notes = contrast_after(
        lm, request, request.answer, request.against, after=sequence.ids[: measured + 1], whole=request.whole_answer
    )
    said = [*notes, *_notes(sequence, request)]
    asked = Lensing(request, lm, sequence, positions, measured, contrast, _edits(lm, request), said)
    if asked.forwards > 1:
        check_beginnings(lm)
    return asked


def _edits(lm: LanguageModel, request: Lens) -> tuple[Edit, ...]:
    edits = parse_all(lm, request.edit, seed=request.seed)
    for edit in edits:
        if SITES[edit.cell.site].after_blocks:
            raise BadEdit(f"{edit} changes no layer's guess: the lens reads the stream before it", hint="edit resid_post")
    return edits


def _notes(sequence: TokenSequence, request: Lens) -> list[str]:
    """What has to be said of how a chat was rendered, and of a run that was made under edits which are not at work now."""
    notes = list(sequence.notes)
    made = (sequence.run.manifest["arguments"].get("edit") if sequence.run else None) or []
    if made and isinstance(made, list) and not request.edit:
        notes.append(f"the run was made with edits ({'; '.join(map(str, made))}): give them with --edit to see them at work")
    return notes


class _Streams(MemorySink):
    """Keeps resid_post of the chosen positions: stream[layer] (pos, d_model)."""

    def __init__(self, positions: Sequence[int]) -> None:
        super().__init__()
        self._positions = torch.tensor(positions)
        self.stream: dict[int, Tensor] = {}

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        self.stream[layer] = values[0].index_select(0, uploaded(self._positions, values.device))


def guessed(asked: Lensing) -> tuple[Scores, list[Columns], Tensor]:
    """Scores of the text, columns of `lens` for each layer, and the target at each position (pos,)."""
    lm, sequence, sink = asked.lm, asked.sequence, _Streams(asked.positions)
    top = asked.request.top
    located = locate_edits(lm, asked.edits, ids=sequence.ids, n_prompt=sequence.n_prompt, steps=sequence.spans)
    cells = lm.anatomy.cells(parse_places("resid_post@all"))
    with applying(lm, located):
        reading = read(lm, torch.tensor([sequence.ids]), [len(sequence.ids)], sink=sink, cells=cells, top=top)
    (scores,) = reading.scores
    following, index = torch.tensor([*sequence.ids[1:], int(scores.top_ids[-1, 0])]), torch.tensor(asked.positions)
    targets = following[index] if asked.token is None else torch.full_like(index, asked.token)
    whole = {name: one for name, one in asked.answers.items() if len(one.steps) > 1}
    sets = {name: one.steps[0] for name, one in asked.answers.items() if name not in whole}
    tables = _guesses(lm, sink, targets, top=top, sets=sets)
    for name, answer in whole.items():
        for columns, total in zip(tables, _teacher_forced(asked, answer, edits_up_to(located, asked.measured)), strict=True):
            columns[name] = [total if pos == asked.measured else None for pos in asked.positions]
    return scores, tables, targets


def _teacher_forced(asked: Lensing, answer: AnswerTarget, edits: Sequence[Edit]) -> list[float]:
    """Of each layer: the log-probs of the answer's tokens, each read at its own position, summed. Nats."""
    lm, ids = asked.lm, [*asked.sequence.ids[: asked.measured + 1], *answer.tail]
    sink = _Streams(range(asked.measured, len(ids)))
    with applying(lm, edits):
        observe(lm, torch.tensor([ids]), [len(ids)], sink=sink, cells=lm.anatomy.cells(parse_places("resid_post@all")))
    tables = _guesses(lm, sink, torch.tensor([token for (token,) in answer.steps]), top=1)
    return [float(columns["target_logprob"].double().sum()) for columns in tables]


def _guesses(
    lm: LanguageModel, sink: _Streams, targets: Tensor, *, top: int, sets: Mapping[str, Sequence[int]] = NO_SETS
) -> list[Columns]:
    """Outside of edits: norm and head are called with rows that are not the text's."""
    streams = [sink.stream[layer] for layer in sorted(sink.stream)]
    with torch.no_grad():
        return row_guesses(
            lm.model, lm.anatomy, unembedding(lm.model, lm.anatomy), streams, targets.to(lm.device), top=top, sets=sets
        )
