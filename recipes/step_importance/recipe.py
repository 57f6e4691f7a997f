"""Step importance: do the ways to say which step of a solution matters agree, and more than with headroom or with its place?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from itertools import combinations_with_replacement, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import probe

PROBLEMS = Path(__file__).with_name("problems.jsonl")
DRAWN: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "stop": ("\n",), "answer": "last-number"}
METHODS = ("resampling_tv", "counterfactual_tv", "suppression", "rescore", "early-answer", "receiver")
RIVALS = ("headroom", "position", "length")
Progress = Callable[[str, int, int], None] | None
Steps = dict[str, np.ndarray]  # (step,) of every step but the last, which says the answer


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Rank correlations over the steps of a solution, means over problems: of methods with each other, and with the entropy of
    the outcome before a step, its place and its length. Both sides of each come from other draws. seed: seeds the draws."""
    given = problems(lm)
    chosen, screening = [row for row in given if row.get("quick")], dict[str, Any](chosen="as they are")
    with tempfile.TemporaryDirectory() as folder:

        def written(rows: list[dict[str, Any]], *columns: str) -> Path:
            lines = [json.dumps({name: row[name] for name in columns}) for row in rows]
            (file := Path(folder, f"{len(columns)}.jsonl")).write_text("\n".join(lines))
            return file

        def kept(name: str, **asked: Any) -> dict[str, Any]:
            return {**asked, "out": out and out / name, "progress": progress}

        if not quick:
            asked = kept("screening", samples=6, max_new=48, seed=seed, **DRAWN)
            shares = probe.sample(lm, written(given, "prompt", "expect"), **asked).sampled.sort_values("prompt_id").accuracy
            between = [row for row, share in zip(given, shares, strict=True) if 0.25 <= share <= 0.75]
            screening |= {"candidates": len(given), "candidates_right": over(shares), "between": len(between)}
            if len(between) > 1:  # else the model knows nothing, or everything
                chosen, screening["chosen"] = between[:16], "screened"
        texts = probe.trace(lm, written(chosen, "prompt", "expect", "completion"), attention="none", **kept("texts"))
        asked = kept("importance", samples=8 if quick else 16, seed=seed + 1000, **DRAWN)  # its draws did not choose
        run = probe.importance(texts, lm=lm, method="all", **asked)
        looks = probe.importance(texts, lm=lm, method="receiver", split="token", **kept("receivers"))
    found = [of_problem(run, looks, prompt) for prompt in sorted(run.importance.prompt_id.unique())]
    pairs = combinations_with_replacement((*METHODS, *RIVALS), 2)
    rivals = {name: [correlation(one, METHODS[0], name) for one in found] for name in RIVALS}
    others = [float(np.nanmean([correlation(one, METHODS[0], name) for name in METHODS[2:]])) for one in found]
    known = run.covariates.rename(columns={"coefficient": "estimate", "ci_low": "low", "ci_high": "high"}).set_index("term")
    known = known[(known.method == METHODS[0]) & (known.design == "covariates")]
    return {
        **screening, "problems": len(found), "right": over((one[0]["right"][0] + one[1]["right"][0]) / 2 for one in found),
        "agreement": {f"{a}__{b}".replace("-", "_"): over(correlation(one, a, b) for one in found) for a, b in pairs},
        "others": over(others),
        "more_than_others": {name: over(a - b for a, b in zip(rivals[name], others, strict=True)) for name in RIVALS},
        "covariates": known[["estimate", "low", "high", "partial_r2"]].to_dict("index"),
        "by_step": {name: [over((one[0][name][i] + one[1][name][i]) / 2 for one in found) for i in range(4)]
                    for name in (*METHODS, "headroom", "right")},
    }  # fmt: skip


def problems(lm: probe.LanguageModel) -> list[dict[str, Any]]:
    """Problems behind worked examples of their family: three, or one where tokens are characters and no more have room."""
    rows = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()]
    examples = json.loads(Path(__file__).with_name("examples.json").read_text(encoding="utf-8"))
    n = 3 if len(lm.tokenizer.encode(rows[0]["prompt"])) < 60 else 1
    return [{**row, "prompt": "".join(examples[row["family"]][:n]) + row["prompt"]} for row in rows]


def of_problem(run: probe.Run, looks: probe.Run, prompt: int) -> tuple[Steps, Steps]:
    """What methods and rivals say of the steps of one solution: by even draws, and by odd ones."""
    tables = (run.steps, run.importance, run.branches, looks.steps, looks.importance)
    steps, rows, draws, tokens, seen = (table[table.prompt_id == prompt] for table in tables)
    n = len(steps) - 1
    found = {name: rows[rows.method == name].set_index("step").estimate.abs() for name in METHODS[1:5]}
    owner = dict(zip(tokens.step, np.searchsorted(steps.start, tokens.start, side="right") - 1, strict=True))
    found["receiver"] = seen.estimate.groupby(seen.step.map(owner)).mean()
    fixed = {name: one.reindex(range(n)).to_numpy(float) for name, one in found.items()}
    fixed |= {"position": np.arange(n, dtype=float), "length": (steps.end - steps.start).to_numpy(float)[:n]}
    right = str(draws[draws.arm == "original"].outcome.iloc[0])
    halves = [fixed | of_draws(draws[draws["sample"] % 2 == half], n, right) for half in (0, 1)]
    return halves[0], halves[1]


def of_draws(draws: pd.DataFrame, n: int, right: str) -> Steps:
    """Before each step the entropy of the outcome and how often it is right; its total variation to that with the step, less
    its mean over all swaps within pairs: 0 on average where nothing differs, whatever the entropy."""
    draws = draws.sort_values("sample").astype({"outcome": str, "arm": str})
    arms = [pd.get_dummies(draws.outcome, dtype=float)[draws.arm == f"boundary-{i}"] for i in range(n + 1)]  # (sample, class)
    swaps = np.array(list(product((1, -1), repeat=len(arms[0]))))
    moved = [np.abs(swaps @ (p.to_numpy() - q.to_numpy())).sum(axis=1) / 2 / len(p) for p, q in pairwise(arms)]
    return {
        "headroom": np.array([-(p[p > 0] * np.log(p[p > 0])).sum() for p in (one.mean() for one in arms[:n])]),
        "right": np.array([one.mean().get(right, 0.0) for one in arms[:n]]),
        "resampling_tv": np.array([one[0] - one.mean() for one in moved]),
    }


def correlation(one: tuple[Steps, Steps], a: str, b: str) -> float:
    """Spearman's, of one half of the draws with the other, mean of both ways. 0 where one says the same of all steps, and so
    ranks nothing; NaN of fewer than three steps."""
    found = []
    for x, y in ((one[0][a], one[1][b]), (one[1][a], one[0][b])):
        known = ~(np.isnan(x) | np.isnan(y))
        x, y = (pd.Series(values[known]).round(9).rank() for values in (x, y))
        found.append(np.nan if known.sum() < 3 else x.corr(y) if x.nunique() > 1 and y.nunique() > 1 else 0.0)
    return float(np.mean(found))


def over(values: Iterable[float]) -> dict[str, float]:
    """The mean over problems, of those that have a value, with its 95 % interval, Student's t."""
    known = [value for value in values if not np.isnan(value)]
    return (probe.student_mean(known)._asdict() if len(known) > 1 else {}) | {"problems": len(known)}
