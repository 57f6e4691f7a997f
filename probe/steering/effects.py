"""From the rows of a scan to one line a strength: effect with interval, the controls' spread, the cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probe.stats import bootstrap_mean


def strengths_of(
    rows: Sequence[dict[str, Any]], scale: Sequence[float], controls: int, *, seed: int
) -> list[dict[str, Any]]:
    """One row a strength. `effect` is the mean over prompts of value - value at 0, with a bootstrap interval over prompts (none
    for a single one); `control_*` are mean, least and greatest of the same over random directions; `p_value` is the share
    of directions, the one in question among them, whose effect is at least as large either way (add-one).
    """
    prompts = sorted({row["prompt_id"] for row in rows})
    at = {(row["prompt_id"], row["control"], row["strength"]): row for row in rows}
    found = []
    for strength in scale:
        effects = np.zeros((controls + 1, len(prompts)))
        for number in range(controls + 1):
            for i, prompt in enumerate(prompts):
                start = at[prompt, 0, 0.0]["value"]
                effects[number, i] = at[prompt, number if strength else 0, strength]["value"] - start
        means = effects.mean(axis=1)
        interval = bootstrap_mean(effects[0], seed=seed) if len(prompts) > 1 else None
        own = [at[prompt, 0, strength] for prompt in prompts]
        found.append({
            "strength": strength, "value": float(np.mean([row["value"] for row in own])), "effect": float(means[0]),
            "ci_low": interval.low if interval else None, "ci_high": interval.high if interval else None,
            "control_mean": float(means[1:].mean()), "control_low": float(means[1:].min()),
            "control_high": float(means[1:].max()),
            "p_value": float((1 + (np.abs(means[1:]) >= abs(means[0])).sum()) / (controls + 1)),
            "kl": _mean([row["kl"] for row in own]), "lost": _mean([row["lost"] for row in own]), "n": len(prompts),
        })  # fmt: skip
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
