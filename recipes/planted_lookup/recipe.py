"""Planted lookup: five facts, one asked for, so that the step that matters is known: which methods put it first."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

import probe

NAMES = ("Alice", "Bob", "Carol", "David", "Emma", "Frank")
THINGS = ("piano", "violin", "drum", "flute", "guitar", "trumpet")
FACTS, PROMPT = 5, "Facts:\n"
SPLIT = r"regex:\.| is the"  # the facts, the question, and its answer as a step of its own
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Of each method the share of texts in which the fact that is asked for comes first, with Wilson's interval; and, where
    another fact of the same text is asked for, the share in which that other one does, and in which the first still does."""
    texts, how = drawn(random.Random(seed), 6 if quick else 24), {"seed": seed, "progress": progress}
    asked, other = (np.array([text[which] for text in texts]) for which in ("asked", "other"))
    few = len(texts) // 2  # of which another fact is asked for
    scores = scored(lm, texts, "asked", out and out / "asked", how)
    again = scored(lm, texts[:few], "other", out and out / "other", how)
    heads, others, at = scores.pop("heads"), again.pop("heads"), (np.arange(len(texts)), asked)
    even = at[0] % 2 == 0  # a head is chosen on one half, by hits, then by share of weight; judged on the other
    looked = {head: (own.argmax(axis=1) == asked) + own[at] / own.sum(axis=1) / 100 for head, own in heads.items()}
    best = [max(looked, key={head: own[half].mean() for head, own in looked.items()}.__getitem__) for half in (even, ~even)]
    for kind, by in ((scores, heads), (again, others)):
        kind["attention_one_head"] = np.where(even[: len(by[best[0]]), None], by[best[1]], by[best[0]])
    return {
        "texts": len(texts), "chance": 1 / FACTS, "heads": best,
        "methods": {name: compared(values, asked, again[name], other[:few]) for name, values in scores.items()},
        "nats": {name: probe.student_mean(own[at])._asdict() for name, own in scores.items() if name.startswith("rescoring")},
        "deletion": deleted(lm, texts, out and out / "deleted", how),
    }  # fmt: skip


def drawn(draw: random.Random, n: int) -> list[dict[str, Any]]:
    """Five facts in random order, and what follows when one of them is asked for, and when another one is."""
    texts = []
    for _ in range(n):
        names, things, two = draw.sample(NAMES, FACTS), draw.sample(THINGS, FACTS), draw.sample(range(FACTS), 2)
        text: dict[str, Any] = {"facts": [f"{a} plays the {b}." for a, b in zip(names, things, strict=True)]}
        for which, step in zip(("asked", "other"), two, strict=True):
            text |= {which: step, f"{which}_text": f" So the instrument that {names[step]} plays is the {things[step]}."}
        texts.append(text)
    return texts


def scored(lm: probe.LanguageModel, texts: list[dict[str, Any]], which: str, out: Path | None, how: Any) -> dict[str, Any]:
    """(text, fact) scores by each method; and `heads`, the same of each head's attention from the question."""
    rows = [{"prompt": PROMPT, "completion": " ".join(text["facts"]) + text[f"{which}_text"]} for text in texts]
    run = probe.trace(lm, rows, attention="full", top=0, split=SPLIT, out=out and out / "trace", **how)
    found = probe.importance(run, lm=lm, method="rescore,suppression", split=SPLIT, out=out and out / "importance", **how)
    of = {kind: by_fact(own, "step", "estimate") for kind, own in found.importance.groupby("method", observed=True)}
    links = found.dependence.groupby(["method", "target"], observed=True)
    to = {kind: by_fact(own, "source", "value") for kind, own in links}  # nats a token
    tokens = found.steps[found.steps.step == FACTS].sort_values("prompt_id").eval("end - start").to_numpy()
    question, heads = to["rescore", FACTS] * tokens[:, None], looks(run)
    return {
        "rescoring": question + of["rescore"], "rescoring_question": question,
        "rescoring_answer": of["rescore"], "suppression": of["suppression"],
        "suppression_answer": to["suppression", FACTS + 1],
        "attention": np.mean(list(heads.values()), axis=0), "heads": heads,
    }  # fmt: skip


def looks(run: probe.Run) -> dict[str, np.ndarray]:
    """Of each head: (text, fact) mean weight of the question's tokens on the tokens of a fact."""
    found: dict[str, list[list[float]]] = {}
    for i, steps in run.steps.sort_values("step").groupby("prompt_id"):
        edges = list(zip(steps.start, steps.end, strict=True))
        rows = run.scan("attention", prompt_id=i, query=list(range(*edges[FACTS]))).to_pandas()
        for (layer, head), own in rows.groupby(["layer", "head"]):
            weights = [float(np.mean([row[start:end].mean() for row in own.weights])) for start, end in edges[:FACTS]]
            found.setdefault(f"{layer}.{head}", []).append(weights)
    return {head: np.array(weights) for head, weights in found.items()}


def deleted(lm: probe.LanguageModel, texts: list[dict[str, Any]], out: Path | None, how: Any) -> dict[str, Any]:
    """How often the model names the right thing, greedily: with all facts, without the one asked for, without another."""
    prompts, right = [], []
    for text in texts:
        question, answer = text["asked_text"].rsplit(" ", 1)
        for left_out in (None, text["asked"], text["other"]):
            kept = [fact for step, fact in enumerate(text["facts"]) if step != left_out]
            prompts.append(PROMPT + " ".join(kept) + question)
            right.append(answer)
    run = probe.trace(lm, prompts, generate=2, temperature=0, attention="none", top=0, out=out, **how)
    said = [one.strip()[:3] for one in run.prompts.completion]
    found = np.array([bool(one) and word.startswith(one) for one, word in zip(said, right, strict=True)]).reshape(-1, 3)
    return dict(zip(("right", "right_without_it", "right_without_another"), map(share, found.T), strict=True))


def compared(scores: np.ndarray, asked: np.ndarray, again: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Which fact comes first of (text, fact) scores, and of those where another one is asked for, of the first texts."""
    first, then, own = scores.argmax(axis=1), again.argmax(axis=1), scores[np.arange(len(asked)), asked]
    return {
        "first": share(first == asked), "another_asked": share(then == other), "still_first": share(then == asked[: len(then)]),
        "mean_rank": probe.student_mean(1 + (scores > own[:, None]).sum(axis=1))._asdict(),
        "by_place": np.bincount(np.r_[first, then], minlength=FACTS).tolist(),
    }  # fmt: skip


def by_fact(rows: Any, step: str, value: str) -> np.ndarray:
    """(text, fact) of rows with a prompt and a step each."""
    return rows.pivot(index="prompt_id", columns=step, values=value).to_numpy()[:, :FACTS]


def share(of: np.ndarray) -> dict[str, float]:
    """How many of these are true, with Wilson's interval."""
    low, high = binomtest(int(of.sum()), len(of)).proportion_ci(method="wilson")
    return {"value": float(of.mean()), "low": low, "high": high}
