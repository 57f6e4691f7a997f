"""Greater-than: does the model know that what began in 1732 ended later in the 1700s, and where does it read the year?"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import probe

NOUNS = ("war", "trial", "reign", "siege", "voyage", "drought", "famine", "campaign", "plague", "strike", "trip", "dispute")
DIGITS = [str(digit) for digit in range(10)]
LOW, HIGH = 3, 7  # the decades of the two texts that are patched into each other
Progress = Callable[[str, int, int], None] | None


def text(noun: str, decade: int, year: int) -> str:
    """What has to go on with a digit: of a decade that is not before the first."""
    return f"The {noun} lasted from the year 17{decade}{year} to the year 17"


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Probability of later and of earlier decades, beside the same of another text's year; then activation patching between
    two decades: what carries the year, and through which heads it comes to the last token."""
    draw = random.Random(seed)
    nouns = draw.sample(NOUNS, 4 if quick else len(NOUNS))
    decades = (2, 5, 7) if quick else tuple(range(1, 9))
    asked = [(noun, decade) for noun in nouns for decade in decades]
    texts = [text(noun, decade, draw.randrange(1, 9)) for noun, decade in asked]
    run = probe.trace(lm, texts, answers=DIGITS, attention="none", top=0, out=out and out / "digits", progress=progress)
    found = run.answers.pivot(index="prompt_id", columns="text", values="logprob")[DIGITS]
    prob = np.exp(found.to_numpy())  # (text, digit)
    later = {decade: np.arange(10) > decade for decade in decades}
    earlier = {decade: np.arange(10) < decade for decade in decades}

    def by_noun(sets: Callable[[int], list[np.ndarray]]) -> np.ndarray:
        """(noun,) mean over texts of what these digits have together; the sets of one text are averaged."""
        rows = [np.mean([row[some].sum() for some in sets(decade)]) for (_, decade), row in zip(asked, prob, strict=True)]
        return np.reshape(rows, (len(nouns), len(decades))).mean(axis=1)

    others = {decade: [one for one in decades if one != decade] for decade in decades}
    real = by_noun(lambda decade: [later[decade]]) - by_noun(lambda decade: [earlier[decade]])
    swapped = by_noun(lambda decade: [later[one] for one in others[decade]]) - by_noun(
        lambda decade: [earlier[one] for one in others[decade]]
    )
    return {
        "later": probe.student_mean(by_noun(lambda decade: [later[decade]]))._asdict(),
        "same": probe.student_mean(by_noun(lambda decade: [np.arange(10) == decade]))._asdict(),
        "earlier": probe.student_mean(by_noun(lambda decade: [earlier[decade]]))._asdict(),
        "later_less_earlier": probe.student_mean(real)._asdict(),
        "with_another_year": probe.student_mean(swapped)._asdict(),
        "due_to_the_year": probe.student_mean(real - swapped)._asdict(),
        **patched(lm, nouns[: 2 if quick else 8], out=out, progress=progress),
    }


def patched(lm: probe.LanguageModel, nouns: list[str], *, out: Path | None, progress: Progress) -> dict[str, Any]:
    """How much of (digits from HIGH on - digits from LOW to HIGH - 1) comes back with the other text's activations."""
    pairs = [{"clean": text(noun, HIGH, 2), "corrupt": text(noun, LOW, 2)} for noun in nouns]
    sets = {"answer_set": "|".join(DIGITS[HIGH:]), "against_set": "|".join(DIGITS[LOW:HIGH])}
    asked: dict[str, Any] = {"pairs": pairs, **sets, "align": "right", "progress": progress}
    heads = probe.patch(lm, sites=["z"], positions="last", out=out and out / "heads", **asked).patch_means
    last = probe.patch(lm, sites=["resid_pre"], positions="last", out=out and out / "last", **asked).patch_means
    best = heads.sort_values("effect", ascending=False)
    arrived = last[last.effect > 0.5].layer
    return {
        "head": {f"{r.layer}.{r.head}": interval(r) for r in heads.itertuples(name="Row")},
        "strongest": [f"{r.layer}.{r.head}" for r in best.head(5).itertuples(name="Row")],
        "strongest_effect": interval(next(best.itertuples(name="Row"))),
        "at_last_token": {str(r.layer): interval(r) for r in last.itertuples(name="Row")},
        "arrives_at_layer": int(arrived.min()) if len(arrived) else None,
    }


def interval(row: Any) -> dict[str, float]:
    """A cell's mean effect over pairs."""
    return {"value": row.effect, "low": row.ci_low, "high": row.ci_high}
