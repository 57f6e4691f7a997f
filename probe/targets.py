"""What is followed of the logits after a text: a token, a set of tokens, or a whole answer, one type for every verb.

Knows tokens and logits, no activation and no table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from probe.devices import uploaded
from probe.errors import BadOption
from probe.language_model.following import answer_ids
from probe.patterns import Pattern
from probe.requests.answering import REGEX, SET_HINT, AnswerOptions

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

NO_SETS = AnswerOptions()
SHOWN = 4  # tokens of a set that are named


@dataclass(frozen=True)
class AnswerTarget:
    """What is followed: at each of some steps after a text the tokens, any of which will do, ascending; and its name.

    One step of one token: that token. One step of several: a set. Several steps of one token: a whole answer, teacher-forced.
    """

    steps: tuple[tuple[int, ...], ...]
    name: str

    @property
    def tail(self) -> tuple[int, ...]:
        """The tokens that the model is given after the text: all of the answer but its last."""
        return tuple(ids[0] for ids in self.steps[:-1])

    @property
    def is_token(self) -> bool:
        """Whether it is one token: then its logit is one of the model's own."""
        return len(self.steps) == 1 and len(self.steps[0]) == 1

    @property
    def token(self) -> int:
        """The token that it begins with, the first of a set."""
        return self.steps[0][0]

    def of(self, scores: Tensor) -> Tensor:
        """scores (…, step, d_vocab), logits or log-probs -> (…,) float64: the log-sum-exp over each step's tokens, summed.

        Of log-probs it is the log-probability of the set, or of the whole answer.
        """
        found = [
            own[..., 0] if len(ids) == 1 else own.logsumexp(-1)
            for i, ids in enumerate(self.steps)
            for own in [scores[..., i, uploaded(list(ids), scores.device)].double()]
        ]
        return found[0] if len(found) == 1 else torch.stack(found).sum(0)


class Contrast(NamedTuple):
    """The target whose odds are followed, and the one it is compared with, if any."""

    answer: AnswerTarget
    against: AnswerTarget | None = None

    @property
    def names(self) -> tuple[str, str | None]:
        """As they are shown."""
        return self.answer.name, None if self.against is None else self.against.name

    @property
    def by_logits(self) -> bool:
        """Whether the difference of the log-probs is one of logits: both are read at one place, where the sum cancels."""
        return self.against is not None and len(self.answer.steps) == len(self.against.steps) == 1

    @property
    def tails(self) -> tuple[tuple[int, ...], ...]:
        """What the model is given after the text, one or two continuations; one where the shorter begins the longer."""
        one, other = self.answer.tail, self.against.tail if self.against else ()
        if one[: len(other)] == other:
            return (one,)
        return (other,) if other[: len(one)] == one else (one, other)

    @property
    def reads(self) -> tuple[int, ...]:
        """How many of the last logits are read of each of the continuations: the text's own, and those of its tail."""
        return tuple(1 + len(tail) for tail in self.tails)

    def by_continuation(self, scores: Tensor) -> tuple[Tensor, ...]:
        """scores (…, read, d_vocab), what is read of all continuations one after the other -> (…, step, d_vocab) for each."""
        return scores.split(self.reads, dim=-2)

    @property
    def rows(self) -> tuple[int, int]:
        """In which of the continuations answer and against are read."""
        return 0, len(self.tails) - 1

    def difference(self, logits: Sequence[Tensor], logprobs: Sequence[Tensor]) -> Tensor:
        """(…,) float64, answer - against: of the log-sum-exp of the logits where both are read at one place, else of the whole
        log-probs. Both arguments: (…, step, d_vocab) for each of the continuations."""
        assert self.against is not None, "a difference is of two answers"
        scores = logits if self.by_logits else logprobs
        own, other = self.rows
        return self.answer.of(scores[own]) - self.against.of(scores[other])


def token_target(lm: LanguageModel, token: int) -> AnswerTarget:
    """One token."""
    return AnswerTarget(((int(token),),), lm.token_text(int(token)))


def contrast_after(
    lm: LanguageModel,
    asked: AnswerOptions,
    answer: str | None,
    against: str | None,
    *,
    after: Sequence[int],
    name: str = "answer",
    whole: bool = False,
) -> tuple[Contrast | None, list[str]]:
    """What the options ask for where it follows these ids, None where they name no answer; and what has to be said of it.

    Raises `BadOption` where an answer is empty or cannot be written there, a set has no token or all of them, and where both
    are the same.
    """
    own, notes = _target(lm, answer, asked.answer_set, name, after, whole)
    other, more = _target(lm, against, asked.against_set, "against", after, whole)
    if own is None:
        return None, notes
    if other is not None and own.steps == other.steps:
        begin = asked.answer_set is None and asked.against_set is None and answer != against and not whole
        what = "begin with the same token" if begin else "are the same"
        raise BadOption(
            f"--{name} {answer or asked.answer_set!r} and --against {against or asked.against_set!r} {what}",
            hint="they must differ in the first token" if begin else "name two answers",
        )
    common = set(own.steps[0]) & set(other.steps[0]) if other and len(own.steps) == len(other.steps) == 1 else ()
    if common:
        more = [*more, f"in both sets: {len(common)} tokens, which count on both sides"]
    return Contrast(own, other), [*notes, *more]


def _target(
    lm: LanguageModel, text: str | None, tokens: str | None, name: str, after: Sequence[int], whole: bool
) -> tuple[AnswerTarget | None, list[str]]:
    """One side of a contrast."""
    if tokens is not None:
        return token_set(lm, tokens, name, after=after)
    if text is None:
        return None, []
    ids, notes = answer_ids(lm, text, name, after=after)
    if whole:
        if lm.context_length is not None and len(after) + len(ids) - 1 > lm.context_length:
            raise BadOption(f"the text and --{name} {text!r} are longer than the context", hint="a shorter text or answer")
        return AnswerTarget(tuple((i,) for i in ids), text), notes
    if len(ids) > 1:
        notes.append(f"--{name} {text!r} is {len(ids)} tokens: the first, {lm.token_text(ids[0])!r}, is used")
    return token_target(lm, ids[0]), notes


def token_set(lm: LanguageModel, written: str, name: str, *, after: Sequence[int]) -> tuple[AnswerTarget, list[str]]:
    """The set that ` 57| 58` names, each a single token where it follows these ids, or `re:PATTERN`: every token in whose text,
    as it reads in the middle of a text, the expression is found. Special tokens and parts of characters never match."""
    if written.startswith(REGEX):
        found, n = _matching(lm, written.removeprefix(REGEX))
        if not found:
            raise BadOption(f"no token matches {written!r}", hint="a token's text has its space, as in 're:^ ?[5-9][0-9]$'")
        if len(found) == n:
            raise BadOption(f"every token matches {written!r}", hint="the set of all tokens has probability 1")
    else:
        found = sorted({_single(lm, text, name, after) for text in written.split("|")})
    some = ", ".join(repr(lm.token_text(i)) for i in found[:SHOWN])
    more = f", … {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    note = f"--{name}-set {written!r}: {len(found)} token{'s' if len(found) > 1 else ''}: {some}{more}"
    return AnswerTarget((tuple(found),), written), [note]


def _single(lm: LanguageModel, text: str, name: str, after: Sequence[int]) -> int:
    ids, _ = answer_ids(lm, text, f"{name}-set", after=after)
    if len(ids) > 1:
        raise BadOption(f"{text!r} of --{name}-set is {len(ids)} tokens there, not one", hint=SET_HINT)
    return ids[0]


def _matching(lm: LanguageModel, expression: str) -> tuple[list[int], int]:
    """The tokens whose text matches, ascending, and how many could."""
    pattern = Pattern(expression, hint=SET_HINT)
    ordinary = {i: text for i, text in enumerate(lm.vocabulary) if text}
    return [i for i, text in ordinary.items() if pattern.search(text) is not None], len(ordinary)
