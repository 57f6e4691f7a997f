"""The steps of a finished run, cut again in another way; reads its tokens, runs no model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probe.errors import RunError
from probe.spans import check_split, steps_from
from probe.store import Run
from probe.tracing.rows import step_columns


def steps_of(run: Run, *, split: str = "sentence", prompt_id: int | None = None) -> pd.DataFrame:
    """Steps of every sequence of a run (of its completion, or, where it has none, of its prompt), as the table `steps`.

    Raises `RunError` if the run has no tokens or not that prompt, `BadOption` for a split that is not understood.
    """
    check_split(split)
    if "tokens" not in run.tables:
        raise RunError("this run has no tokens", hint="probe runs show RUN lists what it has")
    tokens = run.tokens
    if prompt_id is not None:
        tokens = tokens[tokens["prompt_id"] == prompt_id]
        if tokens.empty:
            raise RunError(f"the run has no tokens of prompt {prompt_id}", hint="the table 'prompts' lists them")
    frames = []
    for (prompt, branch), rows in tokens.groupby(["prompt_id", "branch"], sort=True):
        completion = (rows["segment"] == "completion").to_numpy()
        first = int(completion.argmax()) if completion.any() else 0
        offsets = list(zip(rows["text_start"].tolist(), rows["text_end"].tolist(), strict=True))
        spans = steps_from(run.text(int(prompt), branch=int(branch)), offsets, first, split)
        logprob, entropy = (rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in ("logprob", "entropy"))
        frames.append(pd.DataFrame({**step_columns(int(prompt), spans, logprob, entropy), "branch": int(branch)}))
    return pd.concat(frames, ignore_index=True)
