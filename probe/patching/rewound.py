"""The pair of a rewind: the text up to its answer with the step as it was, and with another in its place. Runs no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from probe import answers
from probe.errors import BadOption, RunError
from probe.patching.metrics import Target
from probe.patching.pairs import Pair, pair_of, target_of
from probe.rewinding.preparing import open_source
from probe.rewinding.rollouts import answer_in
from probe.rewinding.trajectory import Trajectory, check_model, trajectory
from probe.spans import of_other_texts, steps_from
from probe.store import Run

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


class _Draw(NamedTuple):
    """One continuation: its whole sequence and where the drawn part of it begins."""

    ids: tuple[int, ...]
    begin: int
    outcome: str


def rewound_pair(
    lm: LanguageModel, run: Run | str | Path, *, answer: str | None = None, against: str | None = None, align: str | None = None
) -> Pair:  # fmt: skip
    """Clean is the control arm's prefix with what followed it in the original up to its answer (or in the first control
    continuation that answers), corrupt the edited arm's prefix with the same tokens after it.

    The answer that is followed is the token there; it is compared with the edited arm's most frequent other answer.
    Raises `RunError` for a run that has no such arms or no answer after the step, and what making a pair raises.
    """
    source = open_source(run)
    if source.command != "rewind" or "branches" not in source.tables:
        raise RunError(f"'{source.run_id}' is not the run of a rewind", hint="make one: probe rewind RUN --to step2 …")
    check_model(source, lm)
    how, split = str(source.manifest["arguments"]["answer"]), str(source.manifest["arguments"]["split"])
    control, edited = list(_draws(source, lm, "control")), list(_draws(source, lm, "edited"))
    if not control or not edited:
        raise RunError("this rewind compared nothing: it has no edited arm", hint="give rewind an edit, as --numbers")
    whole = trajectory(source, lm)
    prefix, corrupt = control[0].ids[: control[0].begin], edited[0].ids[: edited[0].begin]
    original = [_Draw(whole.ids, len(prefix), "")] if whole.ids[: len(prefix)] == prefix else []
    found = next(
        ((draw, at) for draw in [*original, *control] if (at := _answer_at(lm, whole, draw, how)) is not None), None
    )
    if found is None:
        raise RunError(
            "no control continuation gives an answer after the step", hint="--answer of rewind says how answers look"
        )
    (kept, at), other = found, _others(lm, whole, edited, how)
    tail = kept.ids[len(prefix) : at]
    clean, corrupt = prefix + tail, corrupt + tail
    target, texts, notes = _target(lm, clean, kept.ids[at], other, answer, against)
    pieces = lm.pieces(clean)
    spans = tuple(
        (s.start, s.end) for s in steps_from(pieces.text, pieces.offsets, whole.n_prompt, of_other_texts(split))
    )
    names = (f"{source.run_id} control", f"{source.run_id} edited")
    return pair_of(clean, corrupt, target, texts, align=align, names=names, notes=notes, steps=spans)


def _draws(source: Run, lm: LanguageModel, arm: str) -> Iterator[_Draw]:
    rows = source.branches
    for row in rows[rows["arm"] == arm].sort_values("sample").itertuples():
        yield _Draw(trajectory(source, lm, branch=int(row.branch)).ids, int(row.draw_pos), str(row.outcome))


def _answer_at(lm: LanguageModel, whole: Trajectory, draw: _Draw, how: str) -> int | None:
    """The position of the token in which the answer of a continuation begins; None where it gives none after its prefix."""
    pieces = lm.pieces(draw.ids)
    found, start, _ = answer_in(lm, draw.ids, whole.n_prompt, how)
    if found.key == answers.NONE:
        return None
    at = next(i for i, (_, end) in enumerate(pieces.offsets) if end > start)
    return at if at >= draw.begin else None


def _others(lm: LanguageModel, whole: Trajectory, edited: list[_Draw], how: str) -> list[int]:
    """First tokens of the edited arm's answers, the most frequent first."""
    counts: dict[int, int] = {}
    for draw in edited:
        at = _answer_at(lm, whole, draw, how)
        if at is not None:
            counts[draw.ids[at]] = counts.get(draw.ids[at], 0) + 1
    return sorted(counts, key=lambda token: -counts[token])


def _target(
    lm: LanguageModel, clean: Sequence[int], there: int, others: list[int], answer: str | None, against: str | None
) -> tuple[Target, tuple[str, str | None], tuple[str, ...]]:
    """The run's own answers, where none are given."""
    if answer is not None:
        return target_of(lm, answer, against, after=clean)
    if against is not None:
        (token, _), (text, _), notes = target_of(lm, against, None, after=clean)
        if token == there:
            raise BadOption(f"--against {against!r} is the answer itself", hint="name another one")
        return Target(there, token), (lm.token_text(there), text), notes
    other = next((token for token in others if token != there), None)
    return Target(there, other), (lm.token_text(there), None if other is None else lm.token_text(other)), ()
