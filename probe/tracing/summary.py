"""The totals of a trace, from its tables alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SHOWN = 8


def summarize(prompts: pa.Table, tokens: pa.Table, *, expected: dict[int, str]) -> dict[str, Any]:
    """Log-prob (nats), perplexity and bits a token over the scored positions, mean entropy, the most surprising tokens.

    `expected` maps the id of a top token to its text, for the tokens that `most_surprising` will name.
    """
    logprob = tokens["logprob"].drop_null().to_numpy()
    scored, total = len(logprob), float(logprob.sum(dtype=np.float64))
    mean = total / scored if scored else math.nan
    reasons = Counter(reason for reason in prompts["stop_reason"].to_pylist() if reason)
    failed = pc.sum(pc.not_equal(prompts["error"], "")).as_py() or 0
    return {
        "prompts": prompts.num_rows,
        "errors": failed,
        "tokens": tokens.num_rows,
        "scored": scored,
        "generated": pc.sum(pc.equal(tokens["segment"].cast(pa.string()), "completion")).as_py() or 0,
        "stop_reasons": dict(sorted(reasons.items())),
        "logprob": _number(total if scored else math.nan),
        "perplexity": _number(math.exp(-mean) if -mean < 700 else math.inf),
        "bits_per_token": _number(-mean / math.log(2)),
        "mean_entropy": _number(pc.mean(tokens["entropy"]).as_py() if scored else math.nan),
        "most_surprising": _most_surprising(tokens, expected),
    }


def most_surprising(tokens: pa.Table, shown: int = SHOWN) -> pa.Table:
    """The `shown` rows of `tokens` with the highest surprisal, highest first; ties by position."""
    scored = tokens.filter(pc.is_valid(tokens["surprisal"]))
    order = pc.select_k_unstable(
        scored,
        k=min(shown, scored.num_rows),
        sort_keys=[("surprisal", "descending"), ("prompt_id", "ascending"), ("pos", "ascending")],
    )
    return scored.take(order)


def _most_surprising(tokens: pa.Table, expected: dict[int, str]) -> list[dict[str, Any]]:
    rows = most_surprising(tokens).select(["prompt_id", "pos", "token", "surprisal", "rank", "top_ids"]).to_pylist()
    return [
        {
            "prompt_id": row["prompt_id"], "pos": row["pos"], "token": row["token"],
            "surprisal": _number(row["surprisal"]), "rank": row["rank"],
            "expected": expected.get(row["top_ids"][0], "") if row["top_ids"] else "",
        }
        for row in rows
    ]  # fmt: skip


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN: null stands for both."""
    return value if math.isfinite(value) else None
