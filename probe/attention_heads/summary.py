"""The summary of a run of `heads`: how many heads are of each kind, and those that stand out by one statistic."""

from __future__ import annotations

from typing import Any

import pandas as pd

from probe.capturing.statistics import NAMES
from probe.requests import AttentionHeads
from probe.running import Running

SMALL_FIRST = ("entropy", "perplexity", "ess", "distance", "layer")  # sorted from the least on
OF_KERNELS = ("similarity", "popularity", "covariance", "bandwidth_ratio", "gaussian_r2", "output_error")


def summarize(run: Running, request: AttentionHeads) -> dict[str, Any]:
    """kinds: of which input -> kind -> heads. listed: the first `top` heads, sorted by random tokens where there are some."""
    kinds = run.frame("head_kinds")
    prompts = run.frame("prompts")
    failed = int((prompts["error"] != "").sum())
    of = "repeated" if (kinds["input"] == "repeated").any() else "text"
    counted = {
        which: {kind: int(n) for kind, n in own["kind"].value_counts(sort=False).items() if n}
        for which, own in kinds.groupby("input", observed=True, sort=False)
    }
    return {
        "prompts": len(prompts) - (request.sequences if of == "repeated" else 0), "errors": failed,
        "sequences": request.sequences, "heads": len(kinds[kinds["input"] == of]), "kinds": counted,
        "thresholds": request.thresholds, "sort": request.sort, "sorted_on": of, "listed": _listed(run, request, kinds, of),
    }  # fmt: skip


def _listed(run: Running, request: AttentionHeads, kinds: pd.DataFrame, of: str) -> list[dict[str, Any]]:
    own = kinds[kinds["input"] == of]
    best = own.sort_values([request.sort, "layer", "head"], ascending=[request.sort in SMALL_FIRST, True, True]).head(
        request.top
    )
    columns = ["layer", "head", "kind", *NAMES]
    rows = [{name: _plain(value) for name, value in row.items()} for row in best[columns].to_dict("records")]
    if request.kernel:
        kernels = run.frame("head_means")
        kernels = kernels[(kernels["input"] == "text") & kernels["statistic"].isin(OF_KERNELS)]
        table = kernels.pivot(index=["layer", "head"], columns="statistic", values="mean")
        for row in rows:
            found = table.loc[(row["layer"], row["head"])] if (row["layer"], row["head"]) in table.index else {}
            row["kernel"] = {name: _plain(found.get(name)) for name in OF_KERNELS}
    return rows


def _plain(value: Any) -> Any:
    """As JSON has it: NaN is null."""
    if value is None or value != value:
        return None
    return value.item() if hasattr(value, "item") else value
