"""The columns of `prompts`, `tokens` and `steps`; runs no model, writes no file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from probe.language_model import Pieces
from probe.spans import Step
from probe.tables import FLOATS, INTS
from probe.texts.file_columns import column_lists
from probe.texts.rows import Prompt
from probe.texts.sequences import Agreement, TokenSequence, Totals

if TYPE_CHECKING:
    from probe.decoding import Continuation
    from probe.scoring import Scores

Columns = dict[str, Any]


def prompt_columns(sequences: list[TokenSequence], failed: list[Prompt]) -> Columns:
    """Columns of the table `prompts`; a failed prompt has no tokens and says why. What their rows of a file have beside them
    is there too: `Writer.extend` comes first."""
    prompts = [*(s.prompt for s in sequences), *failed]
    return {
        "prompt_id": [s.prompt.prompt_id for s in sequences] + [p.prompt_id for p in failed],
        "text": [s.prompt.text for s in sequences] + [p.text for p in failed],
        "rendered": [s.rendered for s in sequences] + [None] * len(failed),
        "n_tokens": [s.n_prompt for s in sequences] + [0] * len(failed),
        "stop_reason": [s.stop_reason for s in sequences] + [None] * len(failed),
        "completion": [s.completion for s in sequences] + [None] * len(failed),
        **{name: [getattr(s.totals, name, None) for s in sequences] + [None] * len(failed) for name in Totals._fields},
        **{name: [getattr(s.agreement, name, None) for s in sequences] + [None] * len(failed) for name in Agreement._fields},
        "differs_at": [s.given.differs_at if s.given else None for s in sequences] + [None] * len(failed),
        "left_out": ["; ".join(s.given.left_out) if s.given else None for s in sequences] + [None] * len(failed),
        "expect": [p.expect for p in prompts],
        "choices": [None if p.choices is None else list(p.choices) for p in prompts],
        "error": [""] * len(sequences) + [p.error for p in failed],
        **column_lists([p.columns for p in prompts]),
    }


def token_columns(
    prompt_id: int, ids: Sequence[int], pieces: Pieces, begin: int, *, branch: int = 0, first: int = 0,
    before: str = "prompt", drawn: Continuation | None = None,
) -> Columns:  # fmt: skip
    """Columns of `tokens` for the positions of a sequence from `first` on.

    begin: where its completion begins; `before` is the segment of what stands before it. drawn: what the sampler saw at
    each token of the completion.
    """
    n, own = len(ids) - first, slice(first, None)
    lead = begin - first
    columns = {
        "prompt_id": np.full(n, prompt_id, dtype=np.int32), "branch": np.full(n, branch, dtype=np.int32),
        "pos": np.arange(first, len(ids), dtype=np.int32), "token_id": np.asarray(ids[own], dtype=np.int32),
        "token": pieces.tokens[own],
        "text_start": np.asarray([start for start, _ in pieces.offsets[own]], dtype=np.int32),
        "text_end": np.asarray([end for _, end in pieces.offsets[own]], dtype=np.int32),
        "segment": [before] * lead + ["completion"] * (n - lead),
    }  # fmt: skip
    if drawn is None or not drawn.ids:
        return columns
    kinds = {"sample_logprob": pa.float32(), "kept": pa.int32(), "noise": pa.float32()}
    if drawn.logprob:
        kinds["logprob"] = pa.float32()
    return columns | {name: pa.array([*[None] * lead, *getattr(drawn, name)], kind) for name, kind in kinds.items()}


def scored_columns(sequence: TokenSequence, scores: Scores, *, branch: int = 0) -> Columns:
    """Columns of `tokens` for a sequence that was read. `scores` row t is of the token that follows position t (T rows)."""
    assert sequence.pieces is not None, "finish() comes first"
    n = len(sequence.ids)
    first_unscored = np.arange(n) == 0
    step = np.full(n, -1, dtype=np.int32)
    for i, span in enumerate(sequence.steps):
        step[span.start : span.end] = i
    logprob = _shifted(scores.logprob)
    scored = {
        "logprob": logprob, "prob": np.exp(logprob), "surprisal": -logprob,
        **{name: _shifted(getattr(scores, name)) for name in ("entropy", "varentropy", "rank")},
    }  # fmt: skip
    template = None if sequence.template is None else [*sequence.template, *[False] * (n - sequence.n_prompt)]
    return {
        **token_columns(
            sequence.prompt.prompt_id, sequence.ids, sequence.pieces, sequence.n_prompt, branch=branch,
            drawn=sequence.continuation,
        ),
        "template": pa.nulls(n, pa.bool_()) if template is None else pa.array(template),
        "step": pa.array(step, mask=step < 0),
        **{name: pa.array(values, mask=first_unscored) for name, values in scored.items()},
        "top_ids": _lists(_shifted(scores.top_ids), INTS),
        "top_logprobs": _lists(_shifted(scores.top_logprobs), FLOATS),
    }  # fmt: skip


def step_columns(prompt_id: int, steps: Sequence[Step], *, branch: int = 0) -> Columns:
    """Columns of `steps` for one sequence that was not scored."""
    return {
        "prompt_id": [prompt_id] * len(steps), "branch": [branch] * len(steps), "step": list(range(len(steps))),
        **{name: [getattr(step, name) for step in steps] for name in Step._fields},
    }  # fmt: skip


def scored_step_columns(prompt_id: int, steps: Sequence[Step], logprob: np.ndarray, entropy: np.ndarray) -> Columns:
    """Columns of `steps` for one sequence, from the log-probs and entropies of all its tokens (T,), NaN where there is none."""
    inside = [slice(s.start, s.end) for s in steps]
    return {
        **step_columns(prompt_id, steps),
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


def _lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """(T, K) -> T lists, of which the first is empty: nothing predicted a first token."""
    n, k = values.shape
    offsets = np.concatenate([[0], np.arange(n) * k]).astype(np.int32)
    flat = pa.array(values[1:].reshape(-1), kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind)
