"""Given answers, scored as what follows a prompt: teacher-forced from the prompt, which is read once. Draws nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe.decoding.teacher_forced import Prefix
from probe.errors import BadOption, BadPrompt, ProbeError
from probe.interventions import Edit, applying
from probe.language_model.following import ids_after
from probe.requests import Trace
from probe.store import Writer
from probe.texts import Prompt, TokenSequence, encode
from probe.tracing.sets import SetScorer

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

CUT_ANEW = (
    "encoded together with some answers, a prompt ends in other tokens than alone: these answers are scored from the first "
    "token that differs (the column start of the table answers)"
)
NOT_THERE = "what is expected of some prompts is none of their answers, by its text or by its letter (A is the first)"


class LaidAnswer(NamedTuple):
    """A prompt and an answer as ids, encoded together. start: where the answer begins, at the first token that the prompt
    alone does not have there."""

    ids: list[int]
    start: int


class AnswerScorer:
    """Scores the answers of each prompt: those of the request, or the prompt's own choices."""

    def __init__(self, lm: LanguageModel, request: Trace, edits: Sequence[Edit]) -> None:
        """Raises `BadOption` where there is no neutral prompt to calibrate by."""
        self.lm, self.request, self._edits = lm, request, edits
        self._premise = premise_of(lm, request) if request.calibrate else None
        self._neutral: Prefix | None = None
        self.sets = SetScorer(lm, request, self._premise)

    def answers(self, sequence: TokenSequence) -> list[tuple[str, str]]:
        """(lead, text) of each answer to a prompt."""
        if self.request.answers:
            return [("", text) for text in self.request.answers]
        return [(self._lead(sequence.rendered, text), text) for text in sequence.prompt.choices or ()]

    def _lead(self, rendered: str, text: str) -> str:
        if self.request.choice_lead is not None:
            return self.request.choice_lead
        return "" if not rendered or rendered[-1].isspace() or text[:1].isspace() else " "

    def write(self, batch: Sequence[TokenSequence], writer: Writer) -> None:
        """The rows of all answers to the prompts of a batch."""
        for sequence in batch:
            rows = list(self.rows(sequence))
            if every := [*rows, *self.sets.rows(sequence, len(rows))]:
                writer.write("answers", {name: [row.get(name) for row in every] for name in _COLUMNS})
            if any(not row["error"] and row["start"] < sequence.n_prompt for row in rows):
                writer.warn(CUT_ANEW)
            if len(rows) > 1 and sequence.prompt.expect is not None and rows[0]["correct"] is None:
                writer.warn(NOT_THERE)

    def rows(self, sequence: TokenSequence) -> Iterator[dict[str, Any]]:
        """A row of `answers` for each answer to a prompt."""
        given = self.answers(sequence)
        laid, errors = self._lay(sequence, given)
        right = right_answer(sequence.prompt.expect, [text for _, text in given])
        base = min((one.start for one in laid.values()), default=0)
        prior = self._priors(laid, sequence.n_prompt, [lead + text for lead, text in given], errors)
        found = dict(zip(laid, self._logprobs(sequence, base, list(laid.values())), strict=True))
        for i, (lead, text) in enumerate(given):
            row = {
                "prompt_id": sequence.prompt.prompt_id, "answer": i, "text": text, "lead": lead,
                "characters": len(text), "bytes": len(text.encode()), "correct": None if right is None else i == right,
                "set": False,
            }  # fmt: skip
            if i in found and i not in errors and not np.isnan(found[i]).any():
                own = _numbers(laid[i], found[i], base, prior.get(i))
                yield {**row, **own, **_by_length(own["logprob"], row, own["tokens"]), "error": ""}
            else:
                error = errors.get(i, "the model gives numbers that are none")
                yield {**row, **dict.fromkeys(_NUMBERS), "error": error}

    def _lay(self, sequence: TokenSequence, given: Sequence[tuple[str, str]]) -> tuple[dict[int, LaidAnswer], dict[int, str]]:
        """The answers that can be scored, and why the others cannot, by their places."""
        laid, errors = {}, {}
        for i, (lead, text) in enumerate(given):
            try:
                laid[i] = lay(self.lm, sequence, lead + text) if text else _refuse("the answer is empty")
            except ProbeError as error:
                errors[i] = error.message
        return laid, errors

    def _logprobs(self, sequence: TokenSequence, base: int, laid: Sequence[LaidAnswer]) -> list[np.ndarray]:
        """Log-probs (n,) of each from `base` on, under the edits if there are any."""
        if not laid:
            return []
        prompt = sequence.ids[: sequence.n_prompt]
        longest = max(len(one.ids) for one in laid)
        edited: Any = nullcontext()
        if self._edits:
            edited = applying(self.lm, self._edits, ids=prompt, n_prompt=len(prompt), longest=max(longest, len(prompt)))
        with edited:
            if self._edits or self.lm.sets_frequencies(longest):  # one row at a time
                return [Prefix(self.lm, prompt[:base]).logprobs([one.ids[base:]])[0] for one in laid]
            return Prefix(self.lm, prompt[:base]).logprobs([one.ids[base:] for one in laid])

    def _priors(
        self, laid: dict[int, LaidAnswer], n_prompt: int, texts: Sequence[str], errors: dict[int, str]
    ) -> dict[int, float]:
        """Log-probs of the answers after the neutral prompt: of the same ids after the token that begins a text, of the ids
        that they have together with a text. What goes wrong is added to the errors."""
        if self._premise is None:
            return {}
        after = {}
        for i, one in laid.items():
            try:
                after[i] = self._after_premise(one, n_prompt, texts[i])
            except ProbeError as error:
                errors[i] = f"after the neutral prompt: {error.message}"
        base = min((one.start for one in after.values()), default=0)
        if not after:
            return {}
        if self._neutral is None or len(self._neutral.ids) != base:
            self._neutral = Prefix(self.lm, self._premise.ids[:base])
        found = self._neutral.logprobs([one.ids[base:] for one in after.values()])
        return {i: float(values.sum(dtype=np.float64)) for i, values in zip(after, found, strict=True)}

    def _after_premise(self, laid: LaidAnswer, n_prompt: int, text: str) -> LaidAnswer:
        assert self._premise is not None, "answers are calibrated by one"
        if self._premise.rendered:
            return lay(self.lm, self._premise, text)
        ids = laid.ids[n_prompt:] if laid.start == n_prompt else self.lm.ids_of(text)
        return LaidAnswer([*self._premise.ids, *ids], 1)


_NUMBERS = (
    "start", "token_ids", "logprobs", "logprob", "before", "tokens", "per_token", "per_character", "per_byte", "prior",
    "calibrated",
)  # fmt: skip


_COLUMNS = ("prompt_id", "answer", "text", "lead", "characters", "bytes", "correct", "set", *_NUMBERS, "error")


def _numbers(laid: LaidAnswer, found: np.ndarray, base: int, prior: float | None) -> dict[str, Any]:
    """Columns of an answer of which the log-probs from `base` on were found."""
    own, before = found[laid.start - base :], float(found[: laid.start - base].sum(dtype=np.float64))
    total = float(own.sum(dtype=np.float64))
    return {
        "start": laid.start, "token_ids": laid.ids[laid.start :], "logprobs": own.tolist(), "logprob": total, "before": before,
        "tokens": len(own), "prior": prior, "calibrated": None if prior is None else total + before - prior,
    }  # fmt: skip


def _by_length(logprob: float, row: dict[str, Any], tokens: int) -> dict[str, float]:
    return {
        "per_token": logprob / tokens, "per_character": logprob / row["characters"], "per_byte": logprob / row["bytes"]
    }  # fmt: skip


def lay(lm: LanguageModel, sequence: TokenSequence, text: str) -> LaidAnswer:
    """A prompt and what follows it as the ids that come when both are encoded together.

    Where the prompt's ids are not what its text is encoded as, the answer is written after them. Raises `BadOption` where
    nothing of the answer is left, no token of the prompt is, or the context is too short.
    """
    prompt = sequence.ids[: sequence.n_prompt]
    chat = sequence.message_spans is not None
    alone = lm.ids_of(sequence.rendered) if chat else lm.encode(sequence.rendered).ids
    if list(alone) == prompt:
        both = sequence.rendered + text
        ids = list(lm.ids_of(both) if chat else lm.encode(both).ids)
    else:
        ids = [*prompt, *ids_after(lm, prompt, text)]
    same = (i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b)
    start = next(same, min(len(ids), len(prompt)))
    if start == len(ids):
        _refuse("the tokenizer writes nothing for the answer")
    if start == 0:
        _refuse("encoded together with the answer, the prompt is cut anew from its first token")
    if lm.context_length is not None and len(ids) > lm.context_length:
        _refuse(f"prompt and answer have {len(ids):,} tokens, and the context holds {lm.context_length:,}")
    return LaidAnswer(ids, start)


def _refuse(message: str) -> Any:
    raise BadOption(message, hint="give another answer")


def premise_of(lm: LanguageModel, request: Trace) -> TokenSequence:
    """The neutral prompt: the request's own, encoded as the prompts are, or the token that begins a text.

    Raises `BadOption` where there is no such token.
    """
    if request.premise is not None:
        try:
            return encode(lm, Prompt(0, request.premise), request)
        except BadPrompt as error:
            raise BadOption(f"the premise cannot be run: {error.message}", hint="as --premise 'Answer:'") from error
    if lm.bos_id is None:
        raise BadOption(
            f"'{lm.name}' has no token that begins a text, to calibrate by", hint="give a neutral prompt: --premise 'Answer:'"
        )
    return TokenSequence(Prompt(0, ""), "", [lm.bos_id], 1)


def right_answer(expect: str | None, texts: Sequence[str]) -> int | None:
    """Which answer is the right one: the one with the expected text, white space around it aside, else the one of that letter
    (A is the first). None where none is. A number is no place: some count from 0 and some from 1."""
    if expect is None:
        return None
    own = [text.strip() for text in texts]
    if expect.strip() in own:
        return own.index(expect.strip())
    letter = expect.strip().strip("().").upper()
    place = ord(letter) - ord("A") if len(letter) == 1 and letter.isascii() and letter.isalpha() else len(texts)
    return place if place < len(texts) else None
