"""Draws continuations of several arms, each (arm, sample) once, and keeps them in a run. Knows no statistics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from probe import answers
from probe.decoding import Continuation, Sampling, branch
from probe.decoding.teacher_forced import Prefix
from probe.errors import BadEdit
from probe.interventions import Edit, Patch, applying, locate_edits
from probe.outcomes import Outcome, OutcomeRule, outcome_class
from probe.texts import token_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.running import Running
    from probe.store import Writer

ROWS = 64  # continuations that run together
BLOCK = 8 * ROWS  # continuations that are asked for at once: what was drawn is held until the last of them is
ORIGINAL = 0  # the branch that was rewound


class Arm(NamedTuple):
    """A prefix that is drawn from. `fork_pos`: where it leaves the original; `n_prompt`: how much of it is the prompt."""

    name: str
    number: int  # from 0; branch ids are 1 + of * sample + number, whatever else is drawn
    prefix: tuple[int, ...]
    fork_pos: int
    n_prompt: int
    edit: str = ""
    of: int = 3  # arms that the run can have: a rewind has control, edited, before
    changes: tuple[Edit, ...] = ()  # of activations, from the last token of the prefix on
    max_new: int = 0  # tokens of its continuations, where not the rollouts'


class RolloutOptions(NamedTuple):
    """How continuations are drawn and read: at most `max_new` tokens, answers found by `answer` (see `answers.extract`).

    stops: stop texts that the original was written with; whole: its ids, without an end token.
    """

    sampling: Sampling
    max_new: int
    answer: str
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


def draw(run: Running, arms: Sequence[Arm], samples: Sequence[int], rollout: RolloutOptions, stem: Prefix) -> None:
    """Draw every (arm, sample) that the run does not have yet and keep each as it ends; arms run side by side.

    What their prefixes have in common is computed once, and the stem, which has been read already, not again. Arms whose
    activations are changed run by themselves.
    Which of them share a batch is decided by their numbers alone, never by what the run has: it resumes to the same bytes.
    """
    lm, writer = run.lm, run.writer
    over = _keep_over(run, arms, samples, rollout)
    total = len(arms) * len(samples)
    ended = sum(writer.done(_key(arm, sample)) for arm in arms for sample in samples)

    def together(some: Sequence[Arm], own: Sequence[int], known: Prefix | None) -> None:
        def keep(i: int, sample: int, continuation: Continuation) -> None:
            nonlocal ended
            key = _key(some[i], sample)
            if writer.done(key):  # of a batch that was cut short, and is run as a whole
                return
            with writer.unit(key):
                _write(lm, writer, some[i], sample, continuation, rollout)
            ended += 1
            run.report("continuations", ended, total)

        branch(
            lm, [arm.prefix for arm in some], own, max_new=[arm.max_new or rollout.max_new for arm in some],
            sampling=rollout.sampling, batch=ROWS, done=keep, kept=lambda i, sample: writer.done(_key(some[i], sample)),
            stem=known,
        )  # fmt: skip

    def in_blocks(some: Sequence[Arm], known: Prefix | None = None) -> None:
        block = max(1, BLOCK // len(some))
        for start in range(0, len(samples), block):
            together(some, samples[start : start + block], known)

    running = [arm for arm in arms if arm not in over]
    plain = [arm for arm in running if not arm.changes]
    forked = [arm for arm in plain if list(arm.prefix[: len(stem.ids)]) == stem.ids]
    if forked:
        in_blocks(forked, stem)
    if others := [arm for arm in plain if arm not in forked]:
        in_blocks(others)
    for arm in running:
        if arm.changes:
            with changing(lm, arm, arm.max_new or rollout.max_new):
                in_blocks([arm])


def _keep_over(run: Running, arms: Sequence[Arm], samples: Sequence[int], rollout: RolloutOptions) -> list[Arm]:
    """The arms that a stop text has ended, which are kept as they are."""
    over = [arm for arm in arms if rollout.is_over(run.lm, arm.prefix, arm.n_prompt)]
    for arm in over:
        for sample in (s for s in samples if not run.writer.done(_key(arm, s))):
            with run.writer.unit(_key(arm, sample)):
                _write(run.lm, run.writer, arm, sample, Continuation(stop_reason="stop"), rollout)
    return over


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


def _key(arm: Arm, sample: int) -> str:
    return f"{arm.name}-{sample}"


def _write(lm: LanguageModel, writer: Writer, arm: Arm, sample: int, drawn: Continuation, rollout: RolloutOptions) -> None:
    ids = [*arm.prefix, *drawn.ids]
    pieces = lm.pieces(ids)
    begin = _char(pieces, len(arm.prefix))
    found = outcome_of(lm, ids, arm.n_prompt, drawn.stop_reason, rollout.answer)
    branch = 1 + arm.of * sample + arm.number
    writer.write("branches", {
        "prompt_id": [rollout.prompt_id], "branch": [branch], "parent": [ORIGINAL], "arm": [arm.name], "sample": [sample],
        "fork_pos": [arm.fork_pos], "draw_pos": [len(arm.prefix)], "n_prompt": [arm.n_prompt], "edit": [arm.edit],
        "text": [pieces.text[begin:]], "n_tokens": [len(drawn.ids)], "stop_reason": [drawn.stop_reason],
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
