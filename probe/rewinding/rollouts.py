"""Draws continuations of the arms of several problems, each (problem, arm, sample) once, and keeps them in a run.

Knows no statistics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from probe import answers
from probe.decoding import Continuation, Sampling
from probe.decoding.rollouts import Engine, LocalEngine, Rollout
from probe.decoding.teacher_forced import Prefix
from probe.errors import BadEdit
from probe.interventions import Edit, Patch, applying, locate_edits
from probe.outcomes import Outcome, OutcomeRule, outcome_class
from probe.texts import token_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.running import Running
    from probe.store import Writer

ROWS = 64  # continuations that are thought to run together, for a guess at the time
ARMS = 3  # of one place that is gone back to: control, edited, before
BLOCK, PROBLEMS = 1024, 16  # continuations, and problems, that are asked for at once: what is drawn of them shares batches
ORIGINAL = 0  # the branch that was rewound

T = TypeVar("T")


class Arm(NamedTuple):
    """A prefix that is drawn from. `fork_pos`: where it leaves the original; `n_prompt`: how much of it is the prompt."""

    name: str
    number: int  # from 0; branch ids are 1 + of * sample + number, whatever else is drawn
    prefix: tuple[int, ...]
    fork_pos: int
    n_prompt: int
    edit: str = ""
    of: int = ARMS  # arms that the problem can have
    changes: tuple[Edit, ...] = ()  # of activations, from the last token of the prefix on
    max_new: int = 0  # tokens of its continuations, where not the rollouts'
    step: int | None = None  # the step that was gone back to


class RolloutOptions(NamedTuple):
    """How continuations of one problem are drawn and read: at most `max_new` tokens; the sampling has the problem's own seed.

    stops: stop texts that the original was written with; whole: its ids, without an end token.
    """

    sampling: Sampling
    max_new: int
    rule: OutcomeRule
    prompt_id: int = 0
    stops: tuple[str, ...] = ()
    whole: tuple[int, ...] = ()

    def is_over(self, lm: LanguageModel, prefix: tuple[int, ...], n_prompt: int) -> bool:
        """Whether a prefix ends in a stop text, so that decoding it would have ended there.

        A stop text that the original was not written with ends a prefix only where the original ends too: it says how far
        new text may go, not that old text is wrong.
        """
        stops = [one for one in self.sampling.stop if one in self.stops or prefix == self.whole]
        own = prefix[n_prompt:]
        if not stops or not own:
            return False
        pieces = lm.pieces(own[-2 * max(map(len, stops)) - 8 :])
        last = pieces.offsets[-1][0]
        return any(pieces.text.find(one, max(0, last - len(one) + 1)) >= 0 for one in stops)


def answer_in(lm: LanguageModel, ids: Sequence[int], n_prompt: int, how: str) -> tuple[answers.Answer, int, bool]:
    """The answer of a completion, the character it begins at in the whole text, and whether it ends while it still thinks.

    Special tokens and thinking are no part of it; the prompt may have opened the thinking.
    """
    text, begin, thinking, hidden = _completion(lm, ids, n_prompt)
    found = answers.extract(text, how, thinking=thinking, hidden=hidden)
    return found, begin + found.start, answers.speech(text, opened=thinking).thinking


def outcome_of(lm: LanguageModel, ids: Sequence[int], n_prompt: int, stop_reason: str, rule: OutcomeRule | str) -> Outcome:
    """What a whole sequence comes to by a rule, or by the answer that `rule` finds: see `OutcomeRule.read`."""
    text, _, thinking, hidden = _completion(lm, ids, n_prompt)
    ended = ids[-1] in lm.eos_ids
    return outcome_class(text, rule, stop_reason=stop_reason, ended=ended, thinking=thinking, hidden=hidden)


def _completion(lm: LanguageModel, ids: Sequence[int], n_prompt: int) -> tuple[str, int, bool, list[tuple[int, int]]]:
    """Its text, where it begins, whether the prompt has opened the thinking, and the characters of special tokens in it."""
    pieces = lm.pieces(ids)
    begin = _char(pieces, n_prompt)
    special = set(lm.tokenizer.all_special_ids)
    hidden = [
        (a - begin, b - begin)
        for token, (a, b) in zip(ids[n_prompt:], pieces.offsets[n_prompt:], strict=True)
        if token in special
    ]
    return pieces.text[begin:], begin, answers.opens_thinking(pieces.text[:begin]), hidden


class ArmSamples(NamedTuple):
    """Arms of one problem of which these samples are to be had. stem: what the model has read of their prefixes already."""

    arms: Sequence[Arm]
    samples: Sequence[int]
    rollout: RolloutOptions
    stem: Prefix | None = None


def blocks(wanted: Iterable[tuple[int, T]]) -> Iterator[list[T]]:
    """What belongs to problems, each with the continuations that it needs, as lists of what is drawn together."""
    some: list[T] = []
    size = 0
    for needed, one in wanted:
        if some and (size + needed > BLOCK or len(some) == PROBLEMS):
            yield some
            some, size = [], 0
        some.append(one)
        size += needed
    if some:
        yield some


def draw(run: Running, engine: Engine, wanted: Sequence[ArmSamples]) -> None:
    """Draw every (problem, arm, sample) that the run does not have yet and keep each as it ends.

    All share batches, but arms whose activations are changed run by themselves. Which share a batch is decided by what is
    wanted alone, never by what the run has: it resumes to the same bytes.
    """
    pairs = [(one, arm, sample) for one in wanted for arm in one.arms for sample in one.samples]
    keys = [_key(one.rollout.prompt_id, arm.name, sample, arm.step) for one, arm, sample in pairs]
    ended = sum(map(run.writer.done, keys))

    def keep(place: int, continuation: Continuation) -> None:
        nonlocal ended
        if run.writer.done(keys[place]):  # of a batch that was cut short, and is run as a whole
            return
        one, arm, sample = pairs[place]
        with run.writer.unit(keys[place]):
            _write(run.lm, run.writer, arm, sample, continuation, one.rollout)
        ended += 1
        run.report("continuations", ended, len(pairs))

    plain: list[int] = []
    changed: dict[int, list[int]] = defaultdict(list)
    for place, (one, arm, _) in enumerate(pairs):
        if one.rollout.is_over(run.lm, arm.prefix, arm.n_prompt):
            keep(place, Continuation(stop_reason="stop"))  # a stop text has ended it
        elif arm.changes:
            changed[id(arm)].append(place)
        else:
            plain.append(place)

    def together(places: Sequence[int], engine: Engine, stems: Sequence[Prefix]) -> None:
        some = [pairs[place] for place in places]
        rollouts = [Rollout(arm.prefix, sample, _most(one, arm), one.rollout.sampling.seed) for one, arm, sample in some]
        engine.draw(
            rollouts, some[0][0].rollout.sampling, done=lambda i, found: keep(places[i], found),
            kept=lambda i: run.writer.done(keys[places[i]]), stems=stems,
        )  # fmt: skip

    if plain:
        together(plain, engine, [one.stem for one in wanted if one.stem is not None])
    for places in changed.values():
        one, arm, _ = pairs[places[0]]
        with changing(run.lm, arm, _most(one, arm)):
            together(places, LocalEngine(run.lm), ())


def _most(one: ArmSamples, arm: Arm) -> int:
    """Tokens that a continuation of this arm may have."""
    return arm.max_new or one.rollout.max_new


def changing(lm: LanguageModel, arm: Arm, longest: int) -> AbstractContextManager[Any]:
    """The model with the arm's changes at work: at the positions they name, but only from the prefix's last token on."""
    if not arm.changes:
        return nullcontext()
    first, n = len(arm.prefix) - 1, len(arm.prefix)
    settled = []
    for edit in locate_edits(lm, arm.changes, ids=list(arm.prefix), n_prompt=arm.n_prompt, longest=n + longest):
        spots = edit.absolute
        assert spots is not None, "settled edits have positions"
        listed = tuple(p for p in spots.listed if p >= first)
        onward = None if spots.onward is None else max(first, spots.onward)
        if not listed and onward is None:
            raise BadEdit(f"{edit} is before the fork and changes nothing", hint=f"name positions from {first} on")
        if isinstance(edit, Patch) and (listed, onward) != (spots.listed, spots.onward):
            raise BadEdit(f"{edit} begins before the fork", hint=f"name positions from {first} on")
        settled.append(replace(edit, absolute=spots._replace(listed=listed, onward=onward)))
    return applying(lm, settled)


def is_drawn(run: Running, prompt_id: int, arm: str, samples: int) -> bool:
    """Whether the run has so many continuations of a problem's arm that goes back to no step."""
    return all(run.writer.done(_key(prompt_id, arm, sample)) for sample in range(samples))


def _key(prompt_id: int, arm: str, sample: int, step: int | None = None) -> str:
    return f"{prompt_id}{'' if step is None else f'-step{step}'}-{arm}-{sample}"


def _write(lm: LanguageModel, writer: Writer, arm: Arm, sample: int, drawn: Continuation, rollout: RolloutOptions) -> None:
    ids = [*arm.prefix, *drawn.ids]
    pieces = lm.pieces(ids)
    begin = _char(pieces, len(arm.prefix))
    found = outcome_of(lm, ids, arm.n_prompt, drawn.stop_reason, rollout.rule)
    branch = 1 + arm.of * sample + arm.number
    writer.write("branches", {
        "prompt_id": [rollout.prompt_id], "branch": [branch], "parent": [ORIGINAL], "arm": [arm.name], "sample": [sample],
        "step": [arm.step],
        "fork_pos": [arm.fork_pos], "draw_pos": [len(arm.prefix)], "n_prompt": [arm.n_prompt], "edit": [arm.edit],
        "text": [pieces.text[begin:]], "n_tokens": [len(drawn.ids)], "max_new": [arm.max_new or rollout.max_new],
        "stop_reason": [drawn.stop_reason],
        "outcome": [found.key], "answer": [found.text], "rule": [found.rule], "confidence": [found.confidence],
        "logprob": [drawn.total],
    })  # fmt: skip
    if len(ids) > arm.fork_pos:
        own = token_columns(
            rollout.prompt_id, ids, pieces, len(arm.prefix), branch=branch, first=arm.fork_pos, before="edit", drawn=drawn
        )
        writer.write("tokens", own)


def _char(pieces: Any, position: int) -> int:
    """The first character of a token, or the end of the text."""
    return int(pieces.offsets[position][0]) if position < len(pieces.offsets) else len(pieces.text)
