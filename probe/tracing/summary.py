"""The totals of a trace, from its tables alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SHOWN = 8
TEXTS = 100  # of what was generated, in the summary; the table has all


def summarize(
    prompts: pa.Table, tokens: pa.Table, *, expected: Callable[[int], str], shown: Callable[[int, str], str]
) -> dict[str, Any]:
    """First what was asked for: what was generated, or the prompt; a chat template's own words apart. Then the whole text.

    `parts` are in that order, each with its log-prob (nats), perplexity, bits a token and mean entropy over its scored
    positions, as the whole text has them too; `most_surprising` are tokens of the first part; `completions` are texts of the
    first prompts. expected(id) is the text of a token that was not chosen, shown(id, piece) that of one in the text.
    """
    reasons = Counter(reason for reason in prompts["stop_reason"].to_pylist() if reason)
    failed = pc.sum(pc.not_equal(prompts["error"], "")).as_py() or 0
    parts = _parts(tokens)
    return {
        "parts": {name: _totals(part) for name, part in parts.items()},
        "completions": [
            {"prompt_id": row["prompt_id"], "text": row["completion"]}
            for row in prompts.select(["prompt_id", "completion"]).slice(0, TEXTS).to_pylist()
            if row["completion"] is not None
        ],
        "prompts": prompts.num_rows,
        "errors": failed,
        "generated": parts["completion"].num_rows if "completion" in parts else 0,
        "stop_reasons": dict(sorted(reasons.items())),
        **_totals(tokens),
        "most_surprising": _most_surprising(next(iter(parts.values()), tokens), expected, shown),
    }


def _parts(tokens: pa.Table) -> dict[str, pa.Table]:
    """Completion, prompt and template, those that there are, in the order in which they are told."""
    written = pc.equal(tokens["segment"].cast(pa.string()), "completion")
    template = pc.fill_null(tokens["template"], False)
    which = {"completion": written, "prompt": pc.invert(pc.or_(written, template)), "template": template}
    found = {name: tokens.filter(mask) for name, mask in which.items()}
    return {name: part for name, part in found.items() if part.num_rows}


def _totals(tokens: pa.Table) -> dict[str, Any]:
    logprob = tokens["logprob"].drop_null().to_numpy()
    scored, total = len(logprob), float(logprob.sum(dtype=np.float64))
    mean = total / scored if scored else math.nan
    return {
        "tokens": tokens.num_rows,
        "scored": scored,
        "logprob": _number(total if scored else math.nan),
        "perplexity": _number(math.exp(-mean) if -mean < 700 else math.inf),
        "bits_per_token": _number(-mean / math.log(2)),
        "mean_entropy": _number(pc.mean(tokens["entropy"]).as_py() if scored else math.nan),
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


def _most_surprising(
    tokens: pa.Table, expected: Callable[[int], str], shown: Callable[[int, str], str]
) -> list[dict[str, Any]]:
    columns = ["prompt_id", "pos", "token_id", "token", "surprisal", "rank", "top_ids"]
    return [
        {
            "prompt_id": row["prompt_id"], "pos": row["pos"], "token": shown(row["token_id"], row["token"]),
            "surprisal": _number(row["surprisal"]), "rank": row["rank"],
            "expected": expected(row["top_ids"][0]) if row["top_ids"] else "",
        }
        for row in most_surprising(tokens).select(columns).to_pylist()
    ]  # fmt: skip


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN: null stands for both."""
    return value if math.isfinite(value) else None
