"""How often the most probable of a problem's answers is the right one, by several measures. Tables in, a summary out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probe.stats import wilson

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MEASURES = ("total", "per_token", "per_character", "per_byte", "calibrated")
SHOWN = 100  # answers in a summary; the table has all
_COLUMNS = [
    "prompt_id",
    "answer",
    "text",
    "tokens",
    "logprob",
    "per_token",
    "per_character",
    "per_byte",
    "calibrated",
    "correct",
]


def answers_summary(answers: pa.Table) -> dict[str, Any]:
    """Of the table `answers`: how many there are, the first of them, and the accuracy over the problems with several answers
    of which one is known to be right.

    A problem's choice is the answer with the largest measure; the first of equals (as lm-eval has it, whose acc is `total`,
    and acc_norm `per_character`). With Wilson's 95 % interval, each problem counted once. A problem of which an answer
    could not be scored is not counted. chance: the mean of 1 / answers.
    """

    frame = answers.to_pandas()
    errors = frame["error"] != ""
    about: dict[str, Any] = {
        "answers": len(frame), "problems": int(frame["prompt_id"].nunique()), "errors": int(errors.sum()),
        "first": answers.select(_COLUMNS).slice(0, SHOWN).to_pylist(),
    }  # fmt: skip
    several = frame.groupby("prompt_id")["answer"].transform("size") > 1
    known = frame["correct"].fillna(False).astype(bool).groupby(frame["prompt_id"]).transform("any")
    whole = ~errors.groupby(frame["prompt_id"]).transform("any")
    counted = frame[several & known & whole]
    if not len(counted):
        return {**about, "counted": 0, "accuracy": []}
    sizes = counted.groupby("prompt_id")["answer"].size()
    rows = [_accuracy(counted, name, values) for name, values in _measured(counted).items() if not values.isna().any()]
    return {**about, "counted": len(sizes), "chance": float((1 / sizes).mean()), "accuracy": rows}


def _measured(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """What is compared within a problem: all its answers from the same token of the prompt on."""
    joint = frame["logprob"] + frame["before"]
    by = {"total": 1, "per_token": frame["tokens"], "per_character": frame["characters"], "per_byte": frame["bytes"]}
    return {**{name: joint / length for name, length in by.items()}, "calibrated": frame["calibrated"].astype(float)}


def _accuracy(frame: pd.DataFrame, name: str, values: pd.Series) -> dict[str, Any]:
    chosen = values.groupby(frame["prompt_id"]).idxmax()
    right, n = int(frame.loc[chosen, "correct"].astype(bool).sum()), len(chosen)
    found = wilson(right, n)
    return {"by": name, "right": right, "n": n, "accuracy": found.estimate, "ci_low": found.low, "ci_high": found.high}
