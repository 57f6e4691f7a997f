"""The pair of a rewind: the step as it was and another in its place, both with what followed up to where it is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from probe import answers
from probe.decoding.teacher_forced import Prefix
from probe.errors import BadOption, OutOfRange, RunError
from probe.language_model import check_model
from probe.patching.pairs import Pair, pair_of
from probe.requests.answering import AnswerOptions, WholeAnswerOptions
from probe.rewinding.rollouts import answer_in
from probe.spans import of_other_texts, steps_from
from probe.store import Run, open_run
from probe.targets import Contrast, contrast_after, token_target
from probe.texts import Trajectory, trajectory

if TYPE_CHECKING:
    from torch import Tensor

    from probe.language_model import LanguageModel

PARTING, ANSWER = "parting", "answer"
NO_OPTIONS = WholeAnswerOptions()


class _Continuation(NamedTuple):
    """One continuation: its whole sequence and where the drawn part of it begins."""

    ids: tuple[int, ...]
    begin: int
    outcome: str


class RewindPair(NamedTuple):
    """The pair of a rewind and where it is measured: the position (in the clean text) of the token that is predicted there,
    the total variation of both texts' predictions, and the rewind's own effect on the outcome (its `difference`)."""

    pair: Pair
    measure_at: str
    position: int
    variation: float
    outcome: dict[str, Any] | None


def rewind_pair(
    lm: LanguageModel, run: Run | str | Path, *, answer: str | None = None, against: str | None = None,
    align: str | None = None, measure_at: str = PARTING, sets: WholeAnswerOptions = NO_OPTIONS,
) -> RewindPair:  # fmt: skip
    """Clean is the control arm's prefix with what followed it in the original (or in the first control continuation),
    corrupt the edited arm's prefix with the same tokens after it, both up to where the sweep measures.

    measure_at: `parting`, the first place after the step where the next-token distributions part (see `parting`), followed
    by the tokens that they differ in most; `answer`, where the answer begins, which is compared with the edited arm's most
    frequent other answer; or a position in the clean text.
    Raises `RunError` for a run that has no such arms or no answer after the step, `OutOfRange`, and what making a pair raises.
    """
    source = open_run(run)
    if source.command != "rewind" or "branches" not in source.tables:
        raise RunError(f"'{source.run_id}' is not the run of a rewind", hint="make one: probe rewind RUN --to step2 …")
    if "places" in source.summary:
        raise RunError(f"'{source.run_id}' is a rewind of several places", hint="rewind one: --prompt 0 --to step2")
    check_model(source, lm)
    how, split = str(source.manifest["arguments"]["answer"]), str(source.manifest["arguments"]["split"])
    control, edited = list(_draws(source, lm, "control")), list(_draws(source, lm, "edited"))
    if not control or not edited:
        raise RunError("this rewind compared nothing: it has no edited arm", hint="give rewind an edit, as --numbers")
    whole = trajectory(source, lm)
    prefix, corrupt = control[0].ids[: control[0].begin], edited[0].ids[: edited[0].begin]
    original = [_Continuation(whole.ids, len(prefix), "")] if whole.ids[: len(prefix)] == prefix else []
    kept, found, others = _measured(lm, whole, [*original, *control], edited, how, (prefix, corrupt), measure_at)
    tail = kept.ids[len(prefix) : len(prefix) + found.after]
    clean, corrupt = prefix + tail, corrupt + tail
    target, notes = _target(lm, clean, found.expected, others, answer, against, sets)
    if measure_at == PARTING and found.variation < DIVERGED:
        notes = (*notes, "the step hardly changes what comes next anywhere: measured where the total variation of the "
                 f"next-token distributions is largest, {found.variation:.3f}")  # fmt: skip
    pieces = lm.pieces(clean)
    steps = tuple(steps_from(pieces.text, pieces.offsets, whole.n_prompt, of_other_texts(split)))
    names = (f"{source.run_id} control", f"{source.run_id} edited")
    pair = pair_of(clean, corrupt, target, align=align, names=names, notes=notes, steps=steps)
    return RewindPair(pair, measure_at, len(clean), found.variation, source.summary.get("difference"))


def _measured(
    lm: LanguageModel, whole: Trajectory, draws: Sequence[_Continuation], edited: list[_Continuation], how: str,
    prefixes: tuple[tuple[int, ...], tuple[int, ...]], measure_at: str,
) -> tuple[_Continuation, Divergence, list[int]]:  # fmt: skip
    """The continuation that is followed, the place in it, and the tokens that may stand against the one there."""
    clean, corrupt = prefixes
    n = len(clean)
    if measure_at == ANSWER:
        kept, at = _answering(lm, whole, draws, how)
        found = divergence_at(lm, clean, corrupt, kept.ids[n:at])
        return kept, found._replace(expected=kept.ids[at]), _others(lm, whole, edited, how)
    kept = draws[0]
    if measure_at == PARTING:
        found = first_divergence(lm, clean, corrupt, kept.ids[n:])
    else:
        found = divergence_at(lm, clean, corrupt, kept.ids[n : _place(measure_at, n, len(kept.ids))])
    return kept, found, [found.other]


def _place(measure_at: str, first: int, end: int) -> int:
    """A position given as a number, from the first after the step to the end of the text."""
    try:
        place = int(measure_at)
    except ValueError as error:
        raise BadOption(
            f"unknown place '{measure_at}'", hint=f"--measure-at takes {PARTING}, {ANSWER} or a position"
        ) from error
    if not first <= place <= end:
        raise OutOfRange(f"position {place} is not after the step", hint=f"--measure-at takes {first}..{end}")
    return place


def _answering(lm: LanguageModel, whole: Trajectory, draws: Sequence[_Continuation], how: str) -> tuple[_Continuation, int]:
    """The first continuation that answers, and the position of its answer."""
    for draw in draws:
        at = _answer_at(lm, whole, draw, how)
        if at is not None:
            return draw, at
    raise RunError("no control continuation gives an answer after the step", hint="--answer of rewind says how answers look")


def _draws(source: Run, lm: LanguageModel, arm: str) -> Iterator[_Continuation]:
    rows = source.branches
    for row in rows[rows["arm"] == arm].sort_values("sample").itertuples():
        yield _Continuation(trajectory(source, lm, branch=int(row.branch)).ids, int(row.draw_pos), str(row.outcome))


def _answer_at(lm: LanguageModel, whole: Trajectory, draw: _Continuation, how: str) -> int | None:
    """The position of the token in which the answer of a continuation begins; None where it gives none after its prefix."""
    pieces = lm.pieces(draw.ids)
    found, start, _ = answer_in(lm, draw.ids, whole.n_prompt, how)
    if found.key == answers.NONE:
        return None
    at = next(i for i, (_, end) in enumerate(pieces.offsets) if end > start)
    return at if at >= draw.begin else None


def _others(lm: LanguageModel, whole: Trajectory, edited: list[_Continuation], how: str) -> list[int]:
    """First tokens of the edited arm's answers, the most frequent first."""
    counts: dict[int, int] = {}
    for draw in edited:
        at = _answer_at(lm, whole, draw, how)
        if at is not None:
            counts[draw.ids[at]] = counts.get(draw.ids[at], 0) + 1
    return sorted(counts, key=lambda token: -counts[token])


def _target(
    lm: LanguageModel, clean: Sequence[int], there: int, others: list[int], answer: str | None, against: str | None,
    sets: WholeAnswerOptions,
) -> tuple[Contrast, tuple[str, ...]]:  # fmt: skip
    """The run's own answers, where none are given."""
    given, notes = contrast_after(lm, sets, answer, against, after=clean, whole=sets.whole_answer)
    if given is not None:
        return given, tuple(notes)
    expected = token_target(lm, there)
    if (against, sets.against_set) != (None, None):
        rival, notes = contrast_after(
            lm, AnswerOptions(answer_set=sets.against_set), against, None, after=clean, name="against"
        )
        assert rival is not None, "one of both is given"
        if rival.answer.steps == expected.steps:
            raise BadOption(f"--against {against!r} is the answer itself", hint="name another one")
        return Contrast(expected, rival.answer), tuple(notes)
    other = next((token for token in others if token != there), None)
    return Contrast(expected, None if other is None else token_target(lm, other)), ()


DIVERGED = 0.1  # total variation from which two next-token distributions are said to part
_ROWS = 128  # tokens of the tail that are read at once


class Divergence(NamedTuple):
    """The place: so many tokens of the tail come before it; the total variation there of the next token's distributions;
    and the tokens that the one text and the other make more probable by most."""

    after: int
    variation: float
    expected: int
    other: int


@torch.inference_mode()
def first_divergence(lm: LanguageModel, clean: Sequence[int], corrupt: Sequence[int], tail: Sequence[int]) -> Divergence:
    """The first place after the prefixes at which the total variation is PARTED or more, if there is none the largest."""
    stems, best = (Prefix(lm, clean), Prefix(lm, corrupt)), None
    for start in range(0, max(1, len(tail)), _ROWS):
        some = list(tail[start : start + _ROWS])
        if start + len(some) == len(tail):  # what follows the last token is predicted too: any token stands for it
            first, second = (stem.teacher_forced([[*some, clean[0]]])[0] for stem in stems)
        else:
            first, second = (stem.extend(some) for stem in stems)
        p, q = first.double().softmax(-1), second.double().softmax(-1)
        apart = (p - q).abs().sum(-1) / 2
        row = int(apart.argmax()) if not bool((apart >= DIVERGED).any()) else int((apart >= DIVERGED).nonzero()[0])
        if best is None or apart[row] > best.variation:
            best = Divergence(start + row, float(apart[row]), *_most_changed(p[row] - q[row]))
        if best.variation >= DIVERGED:
            break
    assert best is not None, "there is one place at least"
    return best


@torch.inference_mode()
def divergence_at(lm: LanguageModel, clean: Sequence[int], corrupt: Sequence[int], tail: Sequence[int]) -> Divergence:
    """The same at the end of the tail."""
    p, q = (Prefix(lm, [*ids, *tail]).teacher_forced([[clean[0]]])[0][0].double().softmax(-1) for ids in (clean, corrupt))
    return Divergence(len(tail), float((p - q).abs().sum() / 2), *_most_changed(p - q))


def _most_changed(change: Tensor) -> tuple[int, int]:
    """change (d_vocab,) of probabilities."""
    return int(change.argmax()), int(change.argmin())
