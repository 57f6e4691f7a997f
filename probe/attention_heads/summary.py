"""The summary of a run of `heads`: how many heads are of each kind, and those that stand out by one statistic."""

from __future__ import annotations

from typing import Any

import pandas as pd

from probe.capturing.statistics import NAMES
from probe.requests import AttentionHeads
from probe.running import Running

SMALL_FIRST = ("entropy", "perplexity", "ess", "distance", "layer")  # sorted from the least on
CHANCE = 0.05
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
        **({"keys": _keys(run, request)} if request.keys else {}), **({"memory": _memory(run)} if request.memory else {}),
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


def _keys(run: Running, request: AttentionHeads) -> dict[str, Any]:
    """agree: labels -> what is held fixed -> how many heads, of how many, agree more than 19 of 20 shuffles do.

    listed: the first `top` heads and their largest clusters, by the least of the excesses that tags have, or positions
    without tags; before rotation where that is to be had.
    """
    whole, tokens = run.frame("head_key_agreement"), run.frame("head_key_tokens")
    space = "before" if (whole["space"] == "before").any() else "after"
    tagged = bool(tokens["tag"].notna().any())
    counted = {
        at: {
            labels: {
                within: {"heads": int((own["p"] <= CHANCE).sum()), "of": len(own), "excess": _plain(own["excess"].mean()),
                         "resid_excess": _plain(own["resid_excess"].mean())}
                for within, own in per.groupby("shuffled", observed=True)
            }
            for labels, per in spaced.groupby("labels", observed=True)
        }
        for at, spaced in whole.groupby("space", observed=True)
    }  # fmt: skip
    own = whole[(whole["space"] == space) & (whole["labels"] == ("tag" if tagged else "position"))]
    own = own.sort_values("excess").drop_duplicates(["layer", "head"])  # the rival that leaves least
    best = own.sort_values(["excess", "layer", "head"], ascending=[False, True, True]).head(request.top)
    columns = ["layer", "head", "labels", "shuffled", "nmi", "floor", "excess", "low", "high", "p", "resid_excess"]
    listed = [{name: _plain(value) for name, value in row.items()} for row in best[columns].to_dict("records")]
    clusters = run.frame("head_key_clusters")
    clusters = clusters[clusters["space"] == space].set_index(["layer", "head"]).sort_index()
    for row in listed:
        shown = clusters.loc[[(row["layer"], row["head"])]].sort_values("cluster").to_dict("records")
        row |= {"k": len(shown), "clusters": [
            {"size": one["size"], "tokens": list(one["tokens"]), "tags": list(one["tags"]),
             "tag_shares": [round(float(x), 4) for x in one["tag_shares"]],
             **{name: _plain(one[name]) for name in ("pos_first", "pos_median", "pos_last")}}
            for one in shown
        ]}  # fmt: skip
    return {"n": len(tokens), "tagged": int(tokens["tag"].notna().sum()), "space": space, "agree": counted, "listed": listed}


def _memory(run: Running) -> dict[str, Any]:
    """rule -> the error of the read and of what comes back for each key, median over heads, where most pairs are stored."""
    found: dict[str, Any] = {}
    for table, name in (("head_memory", "error"), ("head_retrieval", "retrieval_error")):
        whole = run.frame(table)
        most = whole.groupby(["prompt_id", "branch", "layer", "head"])["pairs"].transform("max")
        for rule, own in whole[whole["pairs"] == most].groupby("rule", observed=True):
            found.setdefault(str(rule), {})[name] = _plain(own["error"].median())
    return found


def _plain(value: Any) -> Any:
    """As JSON has it: NaN is null."""
    if value is None or value != value:
        return None
    return value.item() if hasattr(value, "item") else value
