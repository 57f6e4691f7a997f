"""A prompt as ids, and, once decoded, what the model added: its text, its steps, its totals. Runs no model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe.language_model.messages import locate
from probe.spans import Step, steps_from
from probe.texts.rows import Prompt

if TYPE_CHECKING:
    from probe.decoding import Continuation
    from probe.language_model import LanguageModel, Pieces
    from probe.sites import Positions
    from probe.store import Run


class Totals(NamedTuple):
    """Of the tokens that a reader asks for first: those generated, or without any those of the prompt."""

    scored: int
    logprob: float | None  # nats, summed
    perplexity: float | None
    mean_entropy: float | None  # nats


class Agreement(NamedTuple):
    """How far this model would have written a generation that came with its prompt."""

    mean_logprob: float | None  # nats a token
    top1_agreement: float | None  # share of the tokens that are its most probable one
    below_1pct: float | None  # share of them with a probability below 1 %


class Given(NamedTuple):
    """What is known of a generation that came with its prompt.

    differs_at: the first position where the ids are others than those that the text has; None if nowhere.
    """

    stop_reason: str | None
    differs_at: int | None
    left_out: tuple[str, ...]


@dataclass
class TokenSequence:
    """One prompt on its way: its ids, and, once decoded, what the model added."""

    prompt: Prompt
    rendered: str
    ids: list[int]
    n_prompt: int
    message_spans: list[tuple[int, int]] | None = None  # characters of `rendered` that are theirs; None without a chat
    continuation: Continuation | None = None
    given: Given | None = None  # of a generation that came with the prompt: `ids` hold it
    pieces: Pieces | None = None
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    template: list[bool] | None = None  # of each token of the prompt: whether the chat template wrote it
    totals: Totals | None = None
    agreement: Agreement | None = None
    run: Run | None = None  # that it was read from
    branch: int = 0

    @property
    def tokens(self) -> list[str]:
        """The texts of its tokens, once it is finished."""
        assert self.pieces is not None, "finish() comes first"
        return self.pieces.tokens

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Token spans of its steps."""
        return [(step.start, step.end) for step in self.steps]

    @property
    def parent(self) -> dict[str, Any] | None:
        """The manifest's `parent` of a run that is made from it."""
        if self.run is None:
            return None
        return {**self.run.reference, "prompt_id": self.prompt.prompt_id, "branch": self.branch}

    def restart(self) -> None:
        """Forget the continuation."""
        if self.given is None:
            self.ids, self.continuation = self.ids[: self.n_prompt], None

    def finish(self, lm: LanguageModel, continuation: Continuation | None, split: str) -> None:
        """Take the continuation in and cut the text into steps: of the completion, or, without one, of the prompt."""
        self.continuation = continuation
        if continuation is not None:
            self.ids = [*self.ids, *continuation.ids]
        self.pieces = lm.pieces(self.ids)
        if self.message_spans is not None:
            self.template = _by_template(self.pieces, self.n_prompt, self.rendered, self.message_spans)
        first = self.n_prompt if len(self.ids) > self.n_prompt else 0
        self.steps = steps_from(self.pieces.text, self.pieces.offsets, first, split)

    @property
    def completion(self) -> str | None:
        """What was generated, here or before; None where nothing was chosen for."""
        if (self.continuation is None and self.given is None) or self.pieces is None:
            return None
        return self.pieces.text[self.pieces.offsets[self.n_prompt - 1][1] :] if self.n_prompt else self.pieces.text

    @property
    def stop_reason(self) -> str | None:
        """Why the generation ended, where that is known."""
        one = self.continuation or self.given
        return one.stop_reason if one else None

    def sum_up(self, logprob: np.ndarray, entropy: np.ndarray, rank: np.ndarray | None = None) -> None:
        """Take in the log-probs, entropies and ranks of all tokens (T,), NaN where there is none."""
        if self.given is not None and rank is not None:
            self.agreement = agreement_of(logprob[self.n_prompt :], rank[self.n_prompt :])
        chosen = np.arange(len(self.ids)) >= self.n_prompt
        if not chosen.any():
            chosen = ~np.asarray(self.template) if self.template is not None else ~chosen
        self.totals = totals_of(logprob[chosen], entropy[chosen])

    def positions(self, chosen: Positions) -> list[int]:
        """The absolute positions that are chosen here, once it is finished. Raises `OutOfRange` or `BadPlace`."""
        return chosen.indices(len(self.ids), self.n_prompt, steps=self.spans, tokens=self.tokens)

    def position(self, chosen: Positions) -> int:
        """The one position that is chosen here, of a step its last. Raises likewise, and `BadPlace` where there are several."""
        return chosen.one(len(self.ids), self.n_prompt, steps=self.spans, tokens=self.tokens)


def _by_template(pieces: Pieces, n_prompt: int, rendered: str, message_spans: list[tuple[int, int]]) -> list[bool]:
    """Which tokens of a prompt hold no character of what the messages say."""
    text = pieces.text[: pieces.offsets[n_prompt - 1][1]]
    # a decoder may put spaces between what a template wrote together: then the words are looked for
    spans = message_spans if text == rendered else locate([rendered[low:high] for low, high in message_spans], text)
    held = [span for span in spans if span is not None]
    return [
        not any(start < high and (end > low or low < end == start) for low, high in held)
        for start, end in pieces.offsets[:n_prompt]
    ]


def totals_of(logprob: np.ndarray, entropy: np.ndarray) -> Totals:
    """From the log-probs and entropies of tokens, NaN where there is none."""
    found = logprob[~np.isnan(logprob)].astype(np.float64)
    if not len(found):
        return Totals(0, None, None, None)
    mean = float(found.mean())
    return Totals(
        len(found), float(found.sum()), math.exp(-mean) if -mean < 700 else None,
        float(np.nanmean(entropy[~np.isnan(logprob)], dtype=np.float64)),
    )  # fmt: skip


def agreement_of(logprob: np.ndarray, rank: np.ndarray) -> Agreement:
    """From the log-probs and ranks of a generation's tokens, NaN where there is none."""
    scored = ~np.isnan(logprob)
    if not scored.any():
        return Agreement(None, None, None)
    found = logprob[scored].astype(np.float64)
    return Agreement(
        float(found.mean()), float((rank[scored] == 0).mean()), float((found < math.log(0.01)).mean())
    )  # fmt: skip
