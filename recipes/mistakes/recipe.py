"""Mistakes: how much of its reasoning an answer needs, and whether a wrong number in it is repaired or carried on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

import probe

PROBLEMS = Path(__file__).with_name("problems.jsonl")
STUB, STOP = "Answer:", ("\n\n",)
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Early answers after each line of a right reasoning; the same with a wrong number in a line, or dots in its place, from
    where the model goes on greedily; what comes of the wrong number: the right answer, or the one that follows from it."""
    problems = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()]
    problems = problems[: 3 if quick else 8]
    how: dict[str, Any] = {"seed": seed, "progress": progress, "split": "line"}

    def keep(name: str) -> Path | None:
        return out and out / name

    run = probe.trace(lm, problems, attention="none", top=0, out=keep("trace"), **how)
    how |= {"lm": lm, "answer": "last-number"}
    early = probe.importance(run, method="early-answer", stub=STUB, out=keep("early-answer"), **how)
    widths = [(own.end - own.start).tolist() for _, own in run.steps.groupby("prompt_id")]
    rows = [
        {**problem, "completion": "".join(" ..." * (n - 1) + "\n" for n in own)}
        for problem, own in zip(problems, widths, strict=True)
    ]
    dotted = probe.trace(lm, rows, attention="none", top=0, out=keep("dotted"), seed=seed, progress=progress, split="line")
    dots = probe.importance(dotted, method="early-answer", stub=STUB, out=keep("dots"), **how)
    how |= {"to": "all", "samples": 1, "temperature": 0, "max_new": 45, "stop": STOP}
    wrong = probe.rewind(run, numbers=True, out=keep("numbers"), **how)
    areas: dict[str, dict[str, Any]] = {}
    for name, made, curve in (
        ("early_answer", early, "early-answer"),
        ("dots", dots, "early-answer"),
        ("mistakes", wrong, "numbers"),
    ):
        for row in made.summary["over_problems"]["areas"]:
            if row["curve"] == curve:
                ends = [row["area_over_curve"] if row[end] is None else row[end] for end in ("ci_low", "ci_high")]
                areas.setdefault(name, {})[row["along"]] = {"value": row["area_over_curve"], "low": ends[0], "high": ends[1]}
    found = arms(wrong, problems)
    edited, kept = (found[found.arm == arm] for arm in ("edited", "control"))
    sums = edited[edited.step > 0]
    return {
        "problems": len(problems), "top1_agreement": mean(run.prompts.top1_agreement), "areas": areas,
        "early_answer": asked(early), "dots": asked(dots),
        "kept": by_problem(kept, "right"), "right_in_spite": by_problem(edited, "right"), "used": by_problem(edited, "used"),
        "lost": mean(edited.groupby("prompt_id").right.mean() - kept.groupby("prompt_id").right.mean()),
        "sums": {name: by_problem(sums, name) for name in ("right", "used", "follows")},
        "by_line": {
            str(int(step)): {name: mean(own[name]) for name in ("right", "used", "follows")}
            for step, own in edited.groupby("step")
        },
        "kept_by_line": {str(int(step)): mean(own.right) for step, own in kept.groupby("step")},
    }  # fmt: skip


def asked(run: probe.Run) -> dict[str, dict[str, float]]:
    """By how many lines there were, how often the right answer was given when it was asked for."""
    found = run.early_answers.pivot(index="prompt_id", columns="boundary", values="match").astype(float)
    return {str(lines): mean(found[lines]) for lines in found}


def arms(run: probe.Run, problems: list[dict[str, str]]) -> pd.DataFrame:
    """A row a continuation: is its answer `right`; does it write the last number of its edited line again (`used`); and is its
    answer the one that `follows` from that number: every line adds to the one before, so the answer is off by as much."""
    rows = run.branches[run.branches.arm.isin(["control", "edited"])].copy()
    used, follows = [], []
    for row in rows.itertuples():
        problem = problems[row.prompt_id]
        written = run.text(row.prompt_id, row.branch)[: -len(row.text) or None]  # what the edit put in
        planted = re.findall(r"\d+", written)[-1:] or [""]
        was = re.findall(r"\d+", problem["completion"].split("\n")[int(row.step)])[-1]
        used.append(bool(planted[0]) and planted[0] in re.findall(r"\d+", row.text))
        follows.append(bool(planted[0]) and row.outcome == str(int(problem["expect"]) + int(planted[0]) - int(was)))
    right = rows.outcome.astype(str) == [problems[i]["expect"] for i in rows.prompt_id]
    found = {"right": right, "used": pd.Series(used, rows.index), "follows": pd.Series(follows, rows.index)}
    return rows.assign(arm=rows.arm.astype(str), **{name: own.astype(float) for name, own in found.items()})


def by_problem(rows: pd.DataFrame, name: str) -> dict[str, float]:
    """The mean over problems of the share of a problem's lines."""
    return mean(rows.groupby("prompt_id")[name].mean())


def mean(values: pd.Series) -> dict[str, float]:
    """Over problems, with the interval of Student's t."""
    return probe.student_mean(values)._asdict()
