"""What a run of speculation comes to: acceptance three ways, tokens a pass, speed-up, where the draft fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from probe import stats
from probe.speculating.rounds import Clock
from probe.speculating.verifying import expected_tokens

FEW, ALIKE = 10, 1e-3
BINS = 4  # of entropy, each with as many tested tokens
QUANTILES = ("lowest", "low", "high", "highest")


class Plain(NamedTuple):
    """Plain decoding of one prompt: tokens after the first, and the seconds they took; whether it gave the same tokens."""

    tokens: int
    seconds: float
    same: bool


def summarize(
    proposals: pd.DataFrame, clocks: Sequence[Clock], plains: Sequence[Plain], *, seed: int, greedy: bool
) -> dict[str, Any]:  # fmt: skip
    """Everything that the table `proposals` and the clocks say; JSON-able, null where there is nothing to tell."""
    drafted = proposals[proposals["verdict"] != "bonus"]
    tested = drafted[drafted["accepted"].notna()]
    rounds = rounds_of(proposals)
    alpha = float(1 - tested["tv"].mean()) if len(tested) else math.nan
    return {
        "passes": len(rounds), "drafted": len(drafted), "tested": len(tested), "accepted": int(tested["accepted"].sum()),
        "acceptance": acceptance(drafted, tested, seed=seed),
        "tokens_per_pass": _per_pass(rounds, alpha, seed=seed),
        "speed": _speed(rounds, alpha, clocks, plains),
        "same_as_plain": all(plain.same for plain in plains) if greedy and plains else None,
        "by_kind": _groups(tested, tested["kind"].astype(str)) if len(tested) else [],
        "by_entropy": _by_entropy(tested),
    }  # fmt: skip


def acceptance(drafted: pd.DataFrame, tested: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """Three estimates with 95 % intervals (Wilson; of the last a bootstrap over tested tokens), by their names.

    The first counts tokens that were never tested as failures; the last is what acceptance is on average over the draft's
    choices (1 - TV) at each tested place, and so has the least variance.
    """
    n = int(tested["accepted"].sum())
    return {
        "accepted/drafted": _interval(stats.wilson(n, len(drafted)) if len(drafted) else None),
        "accepted/tested": _interval(stats.wilson(n, len(tested)) if len(tested) else None),
        "mean sum of min(p, q)": _interval(_overlap(tested, seed=seed) if len(tested) else None),
    }


def _overlap(tested: pd.DataFrame, *, seed: int) -> stats.Interval:
    """Where they are few or all alike a bootstrap would give no width: Wilson's interval is safe for any mean in [0, 1]."""
    overlaps = 1 - tested["tv"].to_numpy(np.float64)
    if len(overlaps) < FEW or np.ptp(overlaps) < ALIKE:
        return stats.wilson(float(overlaps.sum()), len(overlaps))
    return stats.bootstrap_mean(overlaps, seed=seed)


def rounds_of(proposals: pd.DataFrame) -> pd.DataFrame:
    """A row a pass but for the one that reads the prompt: `drafted`, `kept` (what joined the text), `last` of its prompt."""
    rows = proposals.assign(
        drafted=proposals["verdict"] != "bonus", kept=proposals["verdict"].isin(["accepted", "rejected", "bonus"])
    )
    found = rows.groupby(["prompt_id", "round"], sort=True)[["drafted", "kept"]].sum().reset_index()
    found["last"] = found["round"] == found.groupby("prompt_id")["round"].transform("max")
    return found[found["round"] > 0]


def _whole(rounds: pd.DataFrame) -> np.ndarray:
    """Block lengths of the passes that the end of a text did not cut short, if there are any such."""
    whole = rounds[~rounds["last"]]
    return (whole if len(whole) else rounds)["drafted"].to_numpy()


def _per_pass(rounds: pd.DataFrame, alpha: float, *, seed: int) -> dict[str, Any]:
    """Tokens a target pass: what was seen, and what the formula gives for the blocks that were drafted."""
    if not len(rounds):
        return {"measured": None, "predicted": None}
    seen = stats.bootstrap_mean(rounds["kept"].to_numpy(np.float64), seed=seed)
    return {"measured": _interval(seen), "predicted": _number(_expected(_whole(rounds), alpha))}


def _expected(blocks: np.ndarray, alpha: float) -> float:
    """Where nothing was ever drafted there is no alpha, and each pass gives one token."""
    return float(np.mean([expected_tokens(0.0 if math.isnan(alpha) else alpha, int(block)) for block in blocks]))


def _speed(rounds: pd.DataFrame, alpha: float, clocks: Sequence[Clock], plains: Sequence[Plain]) -> dict[str, float | None]:
    """Tokens a second both ways after the prompt was read; costs in the time of one plain step.

    predicted: E[tokens] / (block c + 1), Leviathan et al. theorem 3.8, with c = `draft_cost` as measured; it takes a pass over
    a block for as cheap as one over a token. predicted_with_pass_cost has the measured `pass_cost` in place of that 1.
    """
    names = (
        "tokens_per_second", "plain_tokens_per_second", "measured", "predicted", "predicted_with_pass_cost",
        "draft_cost", "pass_cost",
    )  # fmt: skip
    found: dict[str, float | None] = dict.fromkeys(names)
    passes, tokens = sum(c.passes for c in clocks), sum(c.tokens for c in clocks)
    drafted, seconds = sum(c.drafted for c in clocks), sum(c.drafting + c.passing for c in clocks)
    if not passes:
        return found
    found["tokens_per_second"] = tokens / seconds
    steps, spent = sum(p.tokens for p in plains), sum(p.seconds for p in plains)
    if not steps or not len(rounds):
        return found
    plain = spent / steps
    cost = sum(c.drafting for c in clocks) / drafted / plain if drafted else 0.0
    passing = sum(c.passing for c in clocks) / passes / plain
    blocks = _whole(rounds)
    gives, drafting = _expected(blocks, alpha), float(blocks.mean()) * cost
    found |= {
        "plain_tokens_per_second": 1 / plain, "measured": tokens / seconds * plain, "draft_cost": cost,
        "pass_cost": passing, "predicted": gives / (drafting + 1), "predicted_with_pass_cost": gives / (drafting + passing),
    }  # fmt: skip
    return found


def _by_entropy(tested: pd.DataFrame) -> list[dict[str, Any]]:
    """Tested tokens by the target's entropy there, in bins of as many each."""
    from scipy.stats import rankdata

    if len(tested) < BINS:
        return []
    order = rankdata(tested["entropy"].to_numpy())
    codes = np.minimum((order - 1) * BINS // len(tested), BINS - 1).astype(int)
    named = pd.Series([QUANTILES[code] for code in codes], index=tested.index)
    rows = _groups(tested, named)
    for row in rows:
        own = tested["entropy"][named == row["group"]]
        row |= {"from": float(own.min()), "to": float(own.max())}
    return sorted(rows, key=lambda row: row["from"])


def _groups(tested: pd.DataFrame, by: pd.Series) -> list[dict[str, Any]]:
    """Acceptance of the tested tokens of each group, the largest group first."""
    rows = []
    for name, own in tested.groupby(by, sort=True):
        n = int(own["accepted"].sum())
        rows.append({
            "group": str(name), "tested": len(own), "accepted": n, **_interval(stats.wilson(n, len(own))),
            "mean_overlap": float(1 - own["tv"].mean()),
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["tested"])


def _interval(found: stats.Interval | None) -> dict[str, float | None]:
    return dict(found._asdict()) if found else dict.fromkeys(stats.Interval._fields)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
