"""How often the most probable of a problem's answers is the right one, by several measures. Tables in, a summary out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probe.stats import bootstrap_mean, wilson

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
    could not be scored is not counted. chance: the mean of 1 / answers. Sets of tokens have means of their own.
    """

    frame = answers.to_pandas()
    about: dict[str, Any] = {
        "answers": len(frame), "problems": int(frame["prompt_id"].nunique()), "errors": int((frame["error"] != "").sum()),
        "first": answers.select(_COLUMNS).slice(0, SHOWN).to_pylist(),
    }  # fmt: skip
    sets = frame["set"].fillna(False).astype(bool) if "set" in frame else np.zeros(len(frame), bool)
    about["sets"], frame = _sets(frame[sets]), frame[~sets]
    about["texts"] = len(frame)
    errors = frame["error"] != ""
    several = frame.groupby("prompt_id")["answer"].transform("size") > 1
    known = frame["correct"].fillna(False).astype(bool).groupby(frame["prompt_id"]).transform("any")
    whole = ~errors.groupby(frame["prompt_id"]).transform("any")
    counted = frame[several & known & whole]
    if not len(counted):
        return {**about, "counted": 0, "accuracy": []}
    sizes = counted.groupby("prompt_id")["answer"].size()
    rows = [_accuracy(counted, name, values) for name, values in _measured(counted).items() if not values.isna().any()]
    return {**about, "counted": len(sizes), "chance": float((1 / sizes).mean()), "accuracy": rows}


def _sets(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The set that is asked for, what it is held against, and the difference of both within a prompt: the mean over prompts of
    the log-prob, with a bootstrap interval if there are several."""
    scored = frame[frame["error"] == ""].sort_values(["prompt_id", "answer"], kind="stable")
    texts = list(dict.fromkeys(frame.sort_values("answer", kind="stable")["text"]))
    values = {text: scored[scored["text"] == text].set_index("prompt_id")["logprob"].astype(float) for text in texts}
    if len(texts) == 2:
        values["difference"] = (values[texts[0]] - values[texts[1]]).dropna()
    found = []
    for text, own in values.items():
        if len(own):
            mean = bootstrap_mean(own.to_numpy(), seed=0)
            several = len(own) > 1
            found.append({
                "text": text, "n": len(own), "logprob": mean.estimate, "ci_low": mean.low if several else None,
                "ci_high": mean.high if several else None,
            })  # fmt: skip
    return found


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
