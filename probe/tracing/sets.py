"""Sets of tokens, any of which will do: their log-prob after each prompt, and in the place of every token. Draws nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probe.capturing.logits import NO_SETS
from probe.decoding.teacher_forced import Prefix
from probe.errors import ProbeError
from probe.requests import Trace
from probe.requests.answering import REGEX
from probe.scoring import BLOCK, set_logprobs
from probe.targets import AnswerTarget, token_set
from probe.texts import TokenSequence

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

COLUMNS = {"answer_logprob": "answer", "against_logprob": "against"}  # of `tokens` and `lens` -> the option's name


class SetAfterPrompt(NamedTuple):
    """Log-probs after a prompt: of the set, and of each of its tokens. Nats."""

    logprob: float
    logprobs: list[float]


class SetScorer:
    """Scores the sets that a request names."""

    def __init__(self, lm: LanguageModel, request: Trace, premise: TokenSequence | None) -> None:
        """premise: the neutral prompt, if there is one to calibrate by."""
        self.lm, self._premise = lm, premise
        written = {"answer": request.answer_set, "against": request.against_set}
        self.written = {name: text for name, text in written.items() if text is not None}
        self._everywhere: dict[str, AnswerTarget] = {}
        self._neutral: Tensor | None = None
        self._found: dict[tuple[int, str], SetAfterPrompt] = {}

    def tokens(self, sequence: TokenSequence) -> tuple[Mapping[str, Sequence[int]], list[str]]:
        """The tokens of each set after a prompt, by their column, and what is to be said of them; nothing of one that cannot
        be written there."""
        found: dict[str, Sequence[int]] = {}
        said: list[str] = []
        for column, name in COLUMNS.items():
            if name in self.written:
                try:
                    target, notes = self._target(sequence, name)
                except ProbeError:  # the table of answers says why
                    continue
                found[column], said = target.steps[0], [*said, *notes]
        return found or NO_SETS, said

    def _target(self, sequence: TokenSequence, name: str) -> tuple[AnswerTarget, list[str]]:
        """A set as it is written after a prompt; an expression over the vocabulary is read once. Raises `BadOption`."""
        if name in self._everywhere:
            return self._everywhere[name], []
        target, notes = token_set(self.lm, self.written[name], name, after=sequence.ids[: sequence.n_prompt])
        if self.written[name].startswith(REGEX):
            self._everywhere[name] = target
        return target, notes

    def read(self, sequence: TokenSequence, logits: Callable[[Any], Tensor]) -> dict[str, list[float | None]]:
        """Columns of `tokens`, from the logits after some of its positions; what comes after the prompt is kept for `rows`."""
        n, found = len(sequence.ids), {}
        for column, own in self.tokens(sequence)[0].items():
            after = torch.cat([set_logprobs(logits(slice(i, min(i + BLOCK, n))), own) for i in range(0, n, BLOCK)]).tolist()
            if last := sequence.n_prompt:  # a transcript may have none
                each = logits(slice(last - 1, last)).double().log_softmax(-1)[0, list(own)]
                key = sequence.prompt.prompt_id, COLUMNS[column]
                self._found[key] = SetAfterPrompt(after[last - 1], each.tolist())
            found[column] = [None, *after[:-1]]
        return found

    def rows(self, sequence: TokenSequence, first: int) -> list[dict[str, Any]]:
        """Rows of `answers` for a text that was read, numbered from `first` on."""
        rows = []
        for number, (name, written) in enumerate(self.written.items(), first):
            row = {
                "prompt_id": sequence.prompt.prompt_id, "answer": number, "text": written, "lead": "", "set": True,
                "error": "",
            }  # fmt: skip
            try:
                (own,) = self._target(sequence, name)[0].steps
            except ProbeError as error:
                rows.append({**row, "error": error.message})
                continue
            found, prior = self._found.pop((sequence.prompt.prompt_id, name), None), self._prior(own)
            if found is None:
                rows.append({**row, "error": "there is no prompt that it could follow"})
                continue
            rows.append({
                **row, "start": sequence.n_prompt, "token_ids": list(own), "tokens": len(own), "prior": prior,
                "logprob": found.logprob, "logprobs": found.logprobs,
                "calibrated": None if prior is None else found.logprob - prior,
            })  # fmt: skip
        return rows

    def _prior(self, tokens: Sequence[int]) -> float | None:
        """The set's log-prob after the neutral prompt."""
        if self._premise is None:
            return None
        if self._neutral is None:
            (self._neutral,) = Prefix(self.lm, self._premise.ids).teacher_forced([[self._premise.ids[-1]]])
        return float(set_logprobs(self._neutral, tokens)[0])
