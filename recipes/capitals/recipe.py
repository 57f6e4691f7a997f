"""Capitals: along which way does "Paris" come to the end of "The capital of France is"?"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import probe

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo", "Russia": "Moscow", "Egypt": "Cairo",
    "Greece": "Athens", "Austria": "Vienna", "Ireland": "Dublin", "England": "London", "Norway": "Oslo", "Cuba": "Havana",
}  # fmt: skip
WINDOW = 5  # layers in which attention is cut together
Progress = Callable[[str, int, int], None] | None


def text(country: str) -> str:
    """Ends with the country's last token and one more."""
    return f"The capital of {country} is"


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Activation patching between countries, at the country and at the last token, by layer; then what the answer loses where
    the last token does not see the country, in a few layers at a time."""
    countries = random.Random(seed).sample(list(CAPITALS), 4 if quick else len(CAPITALS))
    space = " " * (len(lm.tokenizer.encode(" Paris", add_special_tokens=False)) == 1)  # part of the answer's token, or of none
    pairs = [
        {"clean": text(a), "corrupt": text(b), "answer": space + CAPITALS[a], "against": space + CAPITALS[b]}
        for a, b in zip(countries, countries[1:] + countries[:1], strict=True)
    ]
    sweep = probe.patch(
        lm, pairs=pairs, sites=["resid_pre"], positions="-2,-1", align="ends", out=out and out / "patch", progress=progress
    ).patch_means
    by_place = {
        name: sweep[sweep.pos == pos].set_index("layer") for name, pos in zip(("last", "country"), ends(sweep), strict=True)
    }
    effects = {name: {str(layer): interval(row) for layer, row in rows.iterrows()} for name, rows in by_place.items()}
    last = by_place["last"].effect

    def answered(name: str, edit: str | None = None) -> np.ndarray:
        """(country,) log-prob of the capital."""
        edits = [edit] if edit else []
        answers = [space + CAPITALS[country] for country in countries]
        run = probe.trace(
            lm, [text(country) for country in countries], answers=answers, edit=edits, attention="none", top=0,
            out=out and out / name, progress=progress,
        )  # fmt: skip
        found = run.answers.pivot(index="prompt_id", columns="text", values="logprob")
        return np.asarray([found[answer].iloc[i] for i, answer in enumerate(answers)])

    plain, n = answered("plain"), lm.anatomy.n_layers
    windows = [(first, min(first + WINDOW, n) - 1) for first in range(0, n, WINDOW)]
    lost = {
        f"{first}-{end}": probe.student_mean(plain - answered(f"cut-{first}", f"pattern@{first}..{end}:-1=cut:-2"))._asdict()
        for first, end in windows
    }
    costs = {name: found["estimate"] for name, found in lost.items()}
    return {
        "logprob": probe.student_mean(plain)._asdict(),
        "known": float(np.mean(plain > np.log(0.5))),
        "country": effects["country"],
        "last": effects["last"],
        "moves_at_layer": int(last[last > 0.5].index.min()) if (last > 0.5).any() else None,
        "late_at_last": effects["last"][str(n - 1)],
        "early_at_country": effects["country"]["0"],
        "cut": lost,
        "cut_everywhere": probe.student_mean(plain - answered("cut-all", "pattern@all:-1=cut:-2"))._asdict(),
        "most_needed": max(costs, key=lambda name: costs[name]),
    }


def ends(sweep: Any) -> tuple[int, int]:
    """The positions of the last token and of the one before it, as the table has them."""
    return max(sweep.pos), max(sweep.pos) - 1


def interval(row: Any) -> dict[str, float]:
    """A cell's mean effect over pairs."""
    return {"value": row.effect, "low": row.ci_low, "high": row.ci_high}
