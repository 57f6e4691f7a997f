"""The tokens of a text that a run has no table of: from the ids in its manifest, or from the run that it was made from."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from probe.errors import ProbeError
from probe.language_model.pieces import pieces
from probe.reporting.panels.context import Context
from probe.store import open_run


class GivenTokens(NamedTuple):
    """`pos`, `token_id`, `token`, `segment`, `shown` and what else is known, one row a position; where they are from."""

    frame: pd.DataFrame
    note: str


def given_tokens(context: Context) -> GivenTokens | None:
    """The tokens of the prompt; None where nothing says what they were."""
    if context.prompt["error"]:
        return None
    ids = _ids(context.run.manifest.get("resolved") or {}, context.prompt_id)
    return _of_parent(context, ids) or _of_ids(context, ids)


def _of_ids(context: Context, ids: list[int] | None) -> GivenTokens | None:
    if ids is None or context.text_of.tokenizer is None:
        return None
    found = pieces(context.text_of.tokenizer, ids)
    n_prompt = int(context.prompt["n_tokens"] or len(ids))
    frame = pd.DataFrame({"pos": range(len(ids)), "token_id": ids, "token": found.tokens})
    frame["segment"] = ["prompt" if i < n_prompt else "completion" for i in range(len(ids))]
    frame["shown"] = context.text_of.bytes_in_place_of(frame["token"], frame["token_id"])
    return GivenTokens(frame, "The run has no table of tokens: these are of the ids that it read.")


def _ids(resolved: dict[str, Any], prompt_id: int) -> list[int] | None:
    """The ids of a prompt as verbs that read one text, scan several, or make a direction from two lists keep them."""
    if "ids" in resolved:
        return list(resolved["ids"])
    several = resolved.get("prompt_ids") or [*resolved.get("positive_ids", ()), *resolved.get("negative_ids", ())]
    return list(several[prompt_id]) if prompt_id < len(several) else None


def _of_parent(context: Context, ids: list[int] | None) -> GivenTokens | None:
    """Those of the run that this one was made from, if it is still there; not of another of its branches than was read."""
    parent = context.run.manifest.get("parent") or {}
    if not isinstance(parent.get("path"), str):
        return None
    try:
        run = open_run(parent["path"])
    except ProbeError:
        return None  # it was moved or removed: the text is shown without it
    if run.run_id != parent.get("run") or "tokens" not in run.tables:
        return None
    columns = [field.name for field in run.schema("tokens") if not pa.types.is_nested(field.type)]
    found = run.scan("tokens", columns=columns, prompt_id=context.prompt_id).to_pandas()
    if not len(found):
        return None
    frame = (
        found[found["branch"] == found["branch"].min()]
        .drop(columns=["run_id", "prompt_id", "branch"])
        .sort_values("pos")
        .reset_index(drop=True)
    )
    if ids is not None and frame["token_id"].tolist() != ids:
        return None
    frame["shown"] = context.text_of.bytes_in_place_of(frame["token"], frame["token_id"])
    return GivenTokens(frame, f"The tokens are those of the run {run.run_id}, which this one was made from.")
