"""The totals of a comparison, from its tables alone: means with intervals, where the two part most. Computes no distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from probe import stats

SHOWN = 8
MEANS = (
    "kl_ab", "kl_ba", "js", "tv", "accept", "difference", "same_top", "entropy_a", "entropy_b", "logprob_a", "logprob_b",
)  # fmt: skip
COLUMNS = ("prompt_id", "pos", "token", "logprob_a", "logprob_b", "difference", "kl_ab", "kl_ba", "js", "tv")


def of_tokens(table: pa.Table, *, seed: int, text: Callable[[int], str]) -> dict[str, Any]:
    """Of the table `comparison`; text(id) names a top token."""
    scored = table.filter(pa.compute.is_valid(table["difference"]))
    prompts = scored["prompt_id"].to_numpy()
    found: dict[str, Any] = {"tokens": table.num_rows, "scored": scored.num_rows}
    found["means"] = {name: _mean(scored[name], prompts, seed) for name in MEANS if name in scored.column_names}
    found["interval"] = stats.how(np.unique(prompts, return_counts=True)[1].tolist()).method
    for side in ("a", "b"):
        mean = found["means"][f"logprob_{side}"]["mean"]
        found[f"perplexity_{side}"] = _number(math.exp(-mean)) if mean is not None and -mean < 700 else None
    largest = _largest(scored, "js" if scored["js"].null_count < scored.num_rows else "difference")
    tops = {i for row in largest for i in (row["top_a"], row["top_b"]) if i is not None}
    names = {i: text(i) for i in tops}
    found["largest"] = [
        {**{key: _number(row[key]) for key in COLUMNS}, "top_a": names.get(row["top_a"]), "top_b": names.get(row["top_b"])}
        for row in largest
    ]
    return found


def of_segments(table: pa.Table, *, seed: int) -> dict[str, Any]:
    """Of the table `segments`: nats a segment and bits a character."""
    prompts = table["prompt_id"].to_numpy()
    length = int(np.sum(table["text_end"].to_numpy() - table["text_start"].to_numpy()))
    found: dict[str, Any] = {"segments": table.num_rows, "characters": length}
    found["means"] = {name: _mean(table[name], prompts, seed) for name in ("difference", "logprob_a", "logprob_b")}
    found["interval"] = stats.how(np.unique(prompts, return_counts=True)[1].tolist()).method
    for side in ("a", "b"):
        found[f"tokens_{side}"] = int(np.sum(table[f"tokens_{side}"].to_numpy()))
        total = float(np.sum(table[f"logprob_{side}"].to_numpy()))
        found[f"bits_per_character_{side}"] = _number(-total / math.log(2) / length) if length else None
    names = ("prompt_id", "text_start", "text", "tokens_a", "tokens_b", "logprob_a", "logprob_b", "difference")
    found["largest"] = [{name: _number(row[name]) for name in names} for row in _largest(table, "difference")]
    return found


def of_layers(table: pa.Table) -> list[dict[str, Any]]:
    """The table `similarity` as plain values, from the first block's input to the last one's output."""
    return sorted(table.drop_columns(["run_id"]).to_pylist(), key=lambda row: (row["site"] == "resid_post", row["layer"]))


def _mean(column: pa.ChunkedArray, prompts: np.ndarray, seed: int) -> dict[str, float | None]:
    """Mean and interval of a column; None throughout where it is empty, or has infinite values, which are counted then."""
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    there = ~np.isnan(values)
    parts = [values[(prompts == prompt) & there] for prompt in np.unique(prompts)]
    mean = stats.mean_of(parts, seed=seed)
    found = {"mean": _number(mean.estimate), "low": _number(mean.low), "high": _number(mean.high)}
    infinite = int(np.isinf(values).sum())
    return {**found, "infinite": infinite} if infinite else found


def _largest(table: pa.Table, by: str) -> list[dict[str, Any]]:
    """Rows where `by` is largest in size, largest first; those that differ at all."""
    size = np.nan_to_num(np.abs(table[by].to_numpy(zero_copy_only=False).astype(np.float64)), nan=0.0)
    order = np.argsort(-size, kind="stable")[:SHOWN]
    return table.take(order[size[order] > 0]).to_pylist()


def _number(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
