"""Turns what was read and decoded into the columns of `prompts`, `tokens` and `steps`; runs no model, writes no file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from probe.language_model.standing import find
from probe.spans import Step, steps_from
from probe.tables import FLOATS, INTS
from probe.tracing.prompts import Prompt

if TYPE_CHECKING:
    from probe.decoding import Continuation
    from probe.language_model import LanguageModel, Pieces
    from probe.scoring import Scores
    from probe.sites import Positions

Columns = dict[str, Any]


class Totals(NamedTuple):
    """Of the tokens that a reader asks for first: those generated, or without any those of the prompt."""

    scored: int
    logprob: float | None  # nats, summed
    perplexity: float | None
    mean_entropy: float | None  # nats


@dataclass
class Sequence:
    """One prompt on its way: its ids, and, once decoded, what the model added."""

    prompt: Prompt
    rendered: str
    ids: list[int]
    n_prompt: int
    continuation: Continuation | None = None
    pieces: Pieces | None = None
    steps: list[Step] = field(default_factory=list)
    said: list[tuple[int, int]] | None = (
        None  # characters of `rendered` that are the messages' own; None without a chat
    )
    notes: list[str] = field(default_factory=list)
    template: list[bool] | None = None  # of each token of the prompt: whether the chat template wrote it
    totals: Totals | None = None

    def restart(self) -> None:
        """Forget the continuation."""
        self.ids, self.continuation = self.ids[: self.n_prompt], None

    def finish(self, lm: LanguageModel, continuation: Continuation | None, split: str) -> None:
        """Take the continuation in and cut the text into steps: of the completion, or, without one, of the prompt."""
        self.continuation = continuation
        if continuation is not None:
            self.ids = [*self.ids, *continuation.ids]
        self.pieces = lm.pieces(self.ids)
        if self.said is not None:
            self.template = _by_template(self.pieces, self.n_prompt, self.rendered, self.said)
        first = self.n_prompt if len(self.ids) > self.n_prompt else 0
        self.steps = steps_from(self.pieces.text, self.pieces.offsets, first, split)

    @property
    def completion(self) -> str | None:
        """What was generated; None where nothing was asked for."""
        if self.continuation is None or self.pieces is None:
            return None
        return self.pieces.text[self.pieces.offsets[self.n_prompt - 1][1] :] if self.n_prompt else self.pieces.text

    def sum_up(self, logprob: np.ndarray, entropy: np.ndarray) -> None:
        """Take in the log-probs and entropies of all tokens (T,), NaN where there is none."""
        asked = np.arange(len(self.ids)) >= self.n_prompt
        if not asked.any():
            asked = ~np.asarray(self.template) if self.template is not None else ~asked
        self.totals = totals_of(logprob[asked], entropy[asked])

    def positions(self, chosen: Positions) -> list[int]:
        """The absolute positions that are chosen here, once it is finished. Raises `OutOfRange` or `BadPlace`."""
        assert self.pieces is not None, "finish() comes first"
        steps = [(step.start, step.end) for step in self.steps]
        return chosen.indices(len(self.ids), self.n_prompt, steps=steps, tokens=self.pieces.tokens)


def _by_template(pieces: Pieces, n_prompt: int, rendered: str, said: list[tuple[int, int]]) -> list[bool]:
    """Which tokens of a prompt hold no character of what the messages say."""
    text = pieces.text[: pieces.offsets[n_prompt - 1][1]]
    # a decoder may put spaces between what a template wrote together: then the words are looked for
    spans = said if text == rendered else find([rendered[low:high] for low, high in said], text)
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


def prompt_columns(sequences: list[Sequence], failed: list[Prompt]) -> Columns:
    """Columns of the table `prompts`; a failed prompt has no tokens and says why."""
    return {
        "prompt_id": [s.prompt.prompt_id for s in sequences] + [p.prompt_id for p in failed],
        "text": [s.prompt.text for s in sequences] + [p.text for p in failed],
        "rendered": [s.rendered for s in sequences] + [None] * len(failed),
        "n_tokens": [s.n_prompt for s in sequences] + [0] * len(failed),
        "stop_reason": [s.continuation.stop_reason if s.continuation else None for s in sequences]
        + [None] * len(failed),
        "completion": [s.completion for s in sequences] + [None] * len(failed),
        **{name: [getattr(s.totals, name, None) for s in sequences] + [None] * len(failed) for name in Totals._fields},
        "error": [""] * len(sequences) + [p.error for p in failed],
    }


def token_columns(sequence: Sequence, scores: Scores) -> Columns:
    """Columns of `tokens` for one sequence. `scores` row t tells of the token that follows position t (T rows)."""
    assert sequence.pieces is not None, "finish() comes first"
    ids, n = np.asarray(sequence.ids, dtype=np.int32), len(sequence.ids)
    first_unscored = pa.array([True] + [False] * (n - 1))
    step = np.full(n, -1, dtype=np.int32)
    for i, span in enumerate(sequence.steps):
        step[span.start : span.end] = i
    logprob = _shifted(scores.logprob)
    return {
        "prompt_id": np.full(n, sequence.prompt.prompt_id, dtype=np.int32),
        "branch": np.zeros(n, dtype=np.int32),
        "pos": np.arange(n, dtype=np.int32),
        "token_id": ids,
        "token": sequence.pieces.tokens,
        "text_start": np.asarray([start for start, _ in sequence.pieces.offsets], dtype=np.int32),
        "text_end": np.asarray([end for _, end in sequence.pieces.offsets], dtype=np.int32),
        "segment": ["prompt"] * sequence.n_prompt + ["completion"] * (n - sequence.n_prompt),
        "template": _template_column(sequence, n),
        "step": pa.array(step, mask=step < 0),
        "logprob": _nulled(logprob, first_unscored),
        "entropy": _nulled(_shifted(scores.entropy), first_unscored),
        "varentropy": _nulled(_shifted(scores.varentropy), first_unscored),
        "rank": _nulled(_shifted(scores.rank), first_unscored),
        "prob": _nulled(np.exp(logprob), first_unscored),
        "surprisal": _nulled(-logprob, first_unscored),
        "top_ids": _lists(_shifted(scores.top_ids), INTS),
        "top_logprobs": _lists(_shifted(scores.top_logprobs), FLOATS),
        **_choice_columns(sequence, n),
    }


def _template_column(sequence: Sequence, n: int) -> pa.Array:
    """Null where there was no chat; what the model wrote is of no template."""
    if sequence.template is None:
        return pa.nulls(n, pa.bool_())
    return pa.array([*sequence.template, *[False] * (n - sequence.n_prompt)])


def _choice_columns(sequence: Sequence, n: int) -> Columns:
    """What the sampler saw at each generated token; null elsewhere."""
    chosen = sequence.continuation
    before = [None] * sequence.n_prompt
    if chosen is None or not chosen.ids:
        empty = [None] * n
        return {
            "sample_logprob": pa.array(empty, pa.float32()),
            "kept": pa.array(empty, pa.int32()),
            "noise": pa.array(empty, pa.float32()),
        }
    return {
        "sample_logprob": pa.array([*before, *chosen.sample_logprob], pa.float32()),
        "kept": pa.array([*before, *chosen.kept], pa.int32()),
        "noise": pa.array([*before, *chosen.noise], pa.float32()),
    }


def step_columns(prompt_id: int, spans: list[Step], logprob: np.ndarray, entropy: np.ndarray) -> Columns:
    """Columns of `steps` for one sequence, from the log-probs and entropies of all its tokens (T,), NaN where there is none."""
    inside = [slice(s.start, s.end) for s in spans]
    return {
        "prompt_id": [prompt_id] * len(spans),
        "branch": [0] * len(spans),
        "step": list(range(len(spans))),
        **{
            name: [getattr(s, name) for s in spans]
            for name in ("start", "end", "text_start", "text_end", "kind", "text", "mid_token")
        },
        "logprob": [_over(partial(np.nansum, dtype=np.float64), logprob[i]) for i in inside],
        "mean_entropy": [_over(np.nanmean, entropy[i]) for i in inside],
        "max_entropy": [_over(np.nanmax, entropy[i]) for i in inside],
    }


def _over(statistic: Any, values: np.ndarray) -> float | None:
    """None where tokens were not scored; the first of a text never is."""
    gaps = np.isnan(values)
    return None if gaps.all() or gaps[1:].any() else float(statistic(values))


def _shifted(rows: Any) -> np.ndarray:
    """Row t of the scores tells of position t + 1: shift by one; the first row repeats and is nulled by the caller."""
    values = np.asarray(rows)
    return np.concatenate([values[:1], values[:-1]])


def _nulled(values: np.ndarray, mask: pa.Array) -> pa.Array:
    return pa.array(values, mask=mask.to_numpy(zero_copy_only=False))


def _lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """(T, K) -> T lists, of which the first is empty: nothing predicted a first token."""
    n, k = values.shape
    offsets = np.concatenate([[0], np.arange(n) * k]).astype(np.int32)
    flat = pa.array(values[1:].reshape(-1), kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind)
