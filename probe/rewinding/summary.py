"""The totals of a rewind: what was changed, what came out in each arm, and whether that is resolved."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe import answers, stats
from probe.rewinding.effects import labels
from probe.texts import Trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.rewinding.preparing import Plan


def summarize(
    lm: LanguageModel, plan: Plan, branches: pa.Table, rows: list[dict[str, Any]],
    scored: tuple[np.ndarray, np.ndarray] | None, far: dict[str, Any] | None, n: int,
) -> dict[str, Any]:  # fmt: skip
    """JSON-able; probabilities are shares of samples, log-probs and entropies are in nats."""
    original, arms = plan.original, plan.arms
    shares = {arm.name: _arm(branches, arm.name, None if arm.name == "before" else n) for arm in plan.named}
    before = next((arm.name for arm in plan.named if arm.prefix == arms.before), None)
    headline = next((row for row in rows if row["metric"] == "share" and row["outcome"] == plan.reference), None)
    return {
        "step": plan.target.step, "position": plan.target.start, "mid_token": plan.target.mid_token, "edit": plan.what,
        "old": _text(lm, original.ids[: plan.target.start], arms.old or original.ids[plan.target.start : plan.target.end]),
        "new": _text(lm, arms.before, arms.new), "same_length": len(arms.old) == len(arms.new), "samples": n,
        "max_new": plan.drawing.max_new, "answers": plan.drawing.how, "reference": plan.reference,
        "expected": plan.expected, "arms": shares, "headroom": shares[before]["entropy"] if before else None,
        "rules": _rules(branches, n),
        "difference": headline, "resolution": _resolution(branches, plan.reference, n, plan.until) if headline else None,
        "effects": rows, "off_policy": far, "rescored": _rescored(lm, original, len(arms.control), scored),
        "sampling": {**asdict(plan.drawing.sampling), "stop": list(plan.drawing.sampling.stop)},
        "examples": _examples(branches, n), "no_answer": _no_answer(shares),
    }  # fmt: skip


def _text(lm: LanguageModel, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
    """What ids read as after a prefix."""
    window = list(before[-8:])
    return lm.pieces([*window, *ids]).text[len(lm.pieces(window).text) :]


def _arm(branches: pa.Table, arm: str, n: int | None) -> dict[str, Any]:
    found = labels(branches, arm, n)
    counts = Counter(found)
    own = branches.filter(pc.equal(branches["arm"].cast(pa.string()), arm)).sort_by("sample")
    outcomes = []
    for outcome, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        interval = stats.wilson(count, len(found))
        outcomes.append(
            {
                "outcome": outcome,
                "count": count,
                "share": count / len(found),
                "low": interval.low,
                "high": interval.high,
            }
        )
    return {
        "n": len(found), "outcomes": outcomes, "entropy": float(stats.entropy(np.asarray(list(counts.values())))),
        "tokens": float(np.mean(own["n_tokens"].to_numpy()[: len(found)])), "cut_off": counts[answers.TRUNCATED],
    }  # fmt: skip


def _resolution(branches: pa.Table, reference: str, n: int, until: float | None) -> str:
    """Whether the paired difference in P(reference) is told from zero."""
    control, edited = (np.asarray(labels(branches, arm, n)) == reference for arm in ("control", "edited"))
    return stats.resolution(control, edited, target=until)


def _rescored(
    lm: LanguageModel, original: Trajectory, first: int, scored: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any] | None:
    if scored is None or not len(scored[0]):
        return None
    difference = (scored[1] - scored[0]).astype(np.float64)
    worst = int(difference.argmin())
    begin, end = original.offsets[first + worst]
    token = lm.label(original.ids[first + worst], original.text[begin:end])
    return {
        "tokens": len(difference), "logprob": float(scored[0].sum(dtype=np.float64)),
        "logprob_edited": float(scored[1].sum(dtype=np.float64)), "difference": float(difference.sum()),
        "most_changed": {"pos": first + worst, "token": token, "difference": float(difference[worst])},
    }  # fmt: skip


def _examples(branches: pa.Table, n: int) -> dict[str, Any]:
    """One continuation of each arm: the first sample whose outcome differs between them, else the first."""
    arms = {name: labels(branches, name, n) for name in ("control", "edited")}
    pairs = list(zip(arms["control"], arms["edited"], strict=False))
    sample = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
    chosen = branches.filter(pc.equal(branches["sample"], sample)).to_pylist()
    return {
        row["arm"]: {"sample": sample, "text": row["text"], "outcome": row["outcome"]}
        for row in chosen
        if row["arm"] in arms
    }


def _rules(branches: pa.Table, n: int) -> dict[str, int]:
    """How often each rule found the answer of a drawn continuation, the commonest first."""
    drawn = branches.filter(pc.and_(pc.greater_equal(branches["sample"], 0), pc.less(branches["sample"], n)))
    return dict(Counter(rule for rule in drawn["rule"].cast(pa.string()).to_pylist() if rule).most_common())


def _no_answer(shares: dict[str, Any]) -> bool:
    """Whether no continuation at all gave an answer."""
    silent = {answers.NONE, answers.TRUNCATED}
    return all(row["outcome"] in silent for arm in shares.values() for row in arm["outcomes"])
