"""The steps of a finished run, cut again in another way; reads its tokens, runs no model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from probe.errors import RunError
from probe.spans import check_split, steps_from
from probe.store import Run
from probe.tracing.rows import step_columns


def steps_of(
    run: Run, *, split: str = "sentence", prompt_id: int | None = None, branch: int | None = None
) -> pd.DataFrame:
    """Steps of every sequence of a run (of its completion, or, where it has none, of its prompt), as the table `steps`.

    A branch is the text before its fork and its own. Raises `RunError` if the run has no tokens or not that prompt or branch,
    `BadOption` for a split that is not understood or does not fit.
    """
    check_split(split)
    if "tokens" not in run.tables:
        raise RunError("this run has no tokens", hint="probe runs show RUN lists what it has")
    tokens = run.tokens
    if prompt_id is not None:
        tokens = tokens[tokens["prompt_id"] == prompt_id]
        if tokens.empty:
            raise RunError(f"the run has no tokens of prompt {prompt_id}", hint="the table 'prompts' lists them")
    frames = [
        _steps(rows, begin, int(prompt), number, split)
        for prompt, own in tokens.groupby("prompt_id", sort=True)
        for number, rows, begin in _sequences(run, own, int(prompt), branch)
    ]
    if not frames:
        what = "no tokens" if branch is None else f"no branch {branch}"
        raise RunError(f"the run has {what}", hint="the table 'branches' lists what was drawn")
    return pd.concat(frames, ignore_index=True)


def _sequences(
    run: Run, tokens: pd.DataFrame, prompt: int, wanted: int | None
) -> Iterator[tuple[int, pd.DataFrame, int]]:
    """(branch, its tokens from the beginning, position where its completion begins) of one prompt."""
    rows = {int(number): own.sort_values("pos") for number, own in tokens.groupby("branch", sort=True)}
    drawn = {}
    if "branches" in run.tables:
        drawn = {int(row.branch): row for row in run.branches.itertuples() if row.prompt_id == prompt and row.branch}

    def whole(number: int) -> pd.DataFrame:
        own = rows.get(number, tokens.iloc[:0])
        if number not in drawn:
            return own
        stem = whole(int(drawn[number].parent))
        return pd.concat([stem[stem["pos"] < drawn[number].fork_pos], own], ignore_index=True)

    for number in sorted({*rows, *drawn}):
        if wanted in (None, number):
            found = whole(number)
            completion = (found["segment"] == "completion").to_numpy()
            begin = int(drawn[number].n_prompt) if number in drawn else int(completion.argmax())
            yield number, found, begin if begin < len(found) else 0


def _steps(rows: pd.DataFrame, begin: int, prompt: int, branch: int, split: str) -> pd.DataFrame:
    offsets = list(zip(rows["text_start"].tolist(), rows["text_end"].tolist(), strict=True))
    text = ""
    for token, (_, end) in zip(rows["token"], offsets, strict=True):
        if end > len(text):  # several tokens can share a character
            text += token[len(text) - end :]
    logprob, entropy = (rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in ("logprob", "entropy"))
    found = step_columns(prompt, steps_from(text, offsets, begin, split), logprob, entropy)
    return pd.DataFrame({**found, "branch": branch})
