"""Induction: which heads copy what followed the same token before, and what does the model lose without them?"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import probe

HEADS = 3  # how many are zeroed together
LENGTH = 30  # words of a text, before they are repeated
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Induction scores of all heads; log-probs of the second half of repeated random words: as the model is, without its
    strongest induction heads, and without as many others."""
    heads = probe.heads(
        lm, sequences=4 if quick else 16, length=LENGTH, seed=seed, out=out and out / "heads", progress=progress
    )
    kinds = heads.head_kinds.sort_values("induction", ascending=False)
    strongest = [(int(row.layer), int(row.head)) for row in kinds.head(HEADS).itertuples()]
    texts = repeated_words(lm, n=4 if quick else 16, seed=seed)

    def second_half(name: str, ablated: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """(text,) mean log-prob of the repeated words, where these heads write nothing."""
        edit = [f"z@{layer}.{head}=zero" for layer, head in ablated]
        run = probe.trace(lm, texts, edit=edit, attention="none", top=0, out=out and out / name, progress=progress)
        rows = run.tokens.merge(run.prompts[["prompt_id", "n_tokens"]], on="prompt_id")
        halves = {"first": rows[rows.pos < rows.n_tokens / 2], "second": rows[rows.pos >= rows.n_tokens / 2]}
        by_text = {half: found.groupby("prompt_id").logprob.mean().to_numpy() for half, found in halves.items()}
        first_half[name] = by_text["first"]
        return by_text["second"]

    first_half: dict[str, np.ndarray] = {}
    plain = second_half("plain")
    without = second_half("without-induction", strongest)
    others = controls(kinds, n=3 if quick else 8, seed=seed)
    random_heads = [second_half(f"without-random-{i}", chosen) for i, chosen in enumerate(others)]
    return {
        "strongest": [f"{layer}.{head}" for layer, head in strongest],
        "score": scores(heads),
        "top_score": scores(heads)[f"{strongest[0][0]}.{strongest[0][1]}"],
        "first_half": probe.student_mean(first_half["plain"])._asdict(),
        "second_half": probe.student_mean(plain)._asdict(),
        "repeating_helps": probe.student_mean(plain - first_half["plain"])._asdict(),
        "lost": probe.student_mean(plain - without)._asdict(),
        "lost_on_first_half": probe.student_mean(first_half["plain"] - first_half["without-induction"])._asdict(),
        "lost_at_random": probe.student_mean(
            np.mean(plain - np.stack(random_heads), axis=1)
        )._asdict(),  # over the draws of heads
        "lost_more_than_random": probe.student_mean(np.mean(random_heads, axis=0) - without)._asdict(),
    }


def scores(heads: probe.Run) -> dict[str, dict[str, float]]:
    """ "layer.head" -> the mean induction score over sequences, with its interval."""
    rows = heads.head_means[(heads.head_means.statistic == "induction") & (heads.head_means.input == "repeated")]
    return {f"{r.layer}.{r.head}": {"value": r.mean, "low": r.low, "high": r.high} for r in rows.itertuples(name="Row")}


def controls(kinds: Any, *, n: int, seed: int) -> list[list[tuple[int, int]]]:
    """As many other heads, n times: of those layers, and no induction heads."""
    layers = set(kinds.head(HEADS).layer)
    rest = kinds.iloc[HEADS:]
    rest = rest[rest.layer.isin(layers) & (rest.induction < 0.2)]
    pairs = [(int(layer), int(head)) for layer, head in rest[["layer", "head"]].to_numpy()]
    draw = random.Random(seed)
    return [draw.sample(pairs, min(HEADS, len(pairs))) for _ in range(n)]


def repeated_words(lm: probe.LanguageModel, *, n: int, seed: int) -> list[str]:
    """Texts of random words of one token each, said twice; of single letters where the tokenizer has no such words."""
    encode, decode = lm.tokenizer.encode, lm.tokenizer.decode
    words = [decode([i]) for i in range(len(lm.tokenizer))]
    words = [w for w in words if w[:1] == " " and w[1:].isascii() and w[1:].isalpha()]
    words = [w for w in words if len(encode(w, add_special_tokens=False)) == 1]
    if len(words) < LENGTH:
        words = list("abcdefghijklmnopqrstuvwxyz")
    draw = random.Random(seed)
    return [2 * "".join(draw.choices(words, k=LENGTH)) for _ in range(n)]
