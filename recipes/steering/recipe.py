"""Steering: what a sentiment direction does to opinions, what it costs, and when it does nothing."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import probe

UNRELATED = Path(__file__).with_name("texts.txt")
GOOD = ("great", "lovely", "brilliant", "superb", "excellent", "charming", "delightful", "splendid")  # of these it is made
BAD = ("bad", "boring", "dreadful", "stupid", "miserable", "nasty", "ugly", "pathetic")
PRAISE = ("good", "wonderful", "perfect", "beautiful", "fantastic", "nice", "amazing", "pleasant")  # these are measured
BLAME = ("awful", "terrible", "horrible", "poor", "disappointing", "dull", "unpleasant", "wrong")
MADE_OF = ("What a {} film! I {} it.", "This is a {} song, and everyone {} it.", "They stayed at a {} hotel and {} it.")
VERBS = (("loved", "enjoyed", "liked"), ("hated", "disliked", "avoided"))
FRAMES = ("My opinion of the {}: it was", "We tried the {} yesterday, and it was", "People who know the {} say that it is")
THINGS = ("soup", "museum", "train", "garden", "book", "restaurant", "game", "phone", "teacher", "beach", "market", "coat")
STRENGTHS = (-4.0, -2.0, 1.0, 2.0, 4.0)
SIZE = 0.4  # of the mean norm of the stream: the dose at which layers are compared
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """A direction of opinions, added to others of other words: by strength, beside random directions and directions of the same
    texts with mixed labels; the same after texts without an opinion; and directions of other layers."""
    draw, n_layers = random.Random(seed), lm.anatomy.n_layers
    good, bad = (
        [text.format(word, verb) for word in draw.sample(words, 6) for text, verb in zip(MADE_OF, verbs, strict=True)]
        for words, verbs in zip((GOOD, BAD), VERBS, strict=True)
    )
    opinions = [FRAMES[i % len(FRAMES)].format(thing) for i, thing in enumerate(draw.sample(THINGS, 4 if quick else 10))]
    unrelated = UNRELATED.read_text(encoding="utf-8").splitlines()[: 4 if quick else 6]
    praise, blame = words_of(lm, PRAISE), words_of(lm, BLAME)
    main, controls = int(0.4 * n_layers), 5 if quick else 10

    def make(name: str, positive: list[str], negative: list[str], layer: int) -> tuple[Path, dict[str, Any]]:
        """A direction's file, and what is known of it."""
        to, place = Path(folder, f"{name}.safetensors"), f"resid_post@{layer}"
        return to, probe.make_direction(lm, positive, negative, at=place, to=to, seed=seed, out=keep(f"made-{name}")).summary

    def scan(name: str, of: Path, prompts: list[str], strengths: Sequence[float], controls: int = 1) -> pd.DataFrame:
        """The table `steering`, with `effect`, value less that at strength 0 of its prompt, and its size."""
        rows = probe.steer(
            lm, of, prompts, strengths=strengths, controls=controls, answer_set=praise, against_set=blame, seed=seed,
            out=keep(name), progress=progress,
        ).steering  # fmt: skip
        effect = rows.value - rows.prompt_id.map(rows[rows.strength == 0].set_index("prompt_id").value)
        return rows.assign(effect=effect, size=effect.abs())

    def keep(name: str) -> Path | None:
        return out and out / name

    with tempfile.TemporaryDirectory() as folder:
        direction, about = make("sentiment", good, bad, main)
        dose = scan("opinions", direction, opinions, STRENGTHS, controls)
        aside = scan("unrelated", direction, unrelated, STRENGTHS, controls)
        mixed = []
        for i in range(2 if quick else 6):
            halves = [draw.sample(own, len(own)) for own in (good, bad)]
            left, right = ([one for own in halves for one in own[side::2]] for side in (0, 1))
            of, its = make(f"mixed-{i}", left, right, main)
            mixed.append(of_itself(scan(f"mixed-{i}", of, opinions, [2 * about["norm"] / its["norm"]]), "effect"))
        layers = {}
        for layer in sorted({*range(0, n_layers, 12 if quick else 6), n_layers - 1}):
            of, its = make(f"layer-{layer}", good, bad, layer)
            found = scan(f"layer-{layer}", of, opinions, [size := SIZE / its["relative_norm"]], controls // 2)
            layers[str(layer)] = {**both(found, size), "left_out_accuracy": its["accuracy"]}
    effect, others = of_itself(dose, "effect", 2.0), np.abs(mixed).mean(axis=0)
    return {
        "layer": main, "relative_norm": about["relative_norm"], "left_out_accuracy": about["accuracy"],
        "opinions": {f"{strength:g}": both(dose, strength) for strength in STRENGTHS},
        "unrelated": {f"{strength:g}": both(aside, strength) for strength in STRENGTHS},
        "mixed": mean(others), "mixed_each": [found.mean() for found in mixed], "more_than_mixed": mean(effect - others),
        "more_than_random": mean(effect - of_random(dose, "size", 2.0)), "layers": layers,
    }  # fmt: skip


def words_of(lm: probe.LanguageModel, words: Sequence[str]) -> str:
    """Single tokens: the words, or, of a tokenizer of characters, what they begin with."""
    single = [len(lm.tokenizer.encode(f" {word}", add_special_tokens=False)) == 1 for word in words]
    return "|".join(f" {word}" if whole else word[0] for word, whole in zip(words, single, strict=True))


def of_itself(rows: pd.DataFrame, column: str, strength: float | None = None) -> np.ndarray:
    """(prompt,) of the direction, at its one strength if none is named."""
    own = rows[(rows.control == 0) & ((rows.strength != 0) if strength is None else (rows.strength == strength))]
    return own.sort_values("prompt_id")[column].to_numpy()


def of_random(rows: pd.DataFrame, column: str, strength: float) -> np.ndarray:
    """(prompt,) mean over the random directions."""
    return rows[(rows.control > 0) & (rows.strength == strength)].groupby("prompt_id")[column].mean().to_numpy()


def both(rows: pd.DataFrame, strength: float) -> dict[str, dict[str, float]]:
    """Effect and costs at a strength, beside size of effect and costs of random directions of the same norm."""
    own = {name: mean(of_itself(rows, name, strength)) for name in ("effect", "kl", "lost")}
    return own | {f"random_{name}": mean(of_random(rows, name, strength)) for name in ("size", "kl", "lost")}


def mean(by_prompt: np.ndarray) -> dict[str, float]:
    """Over prompts, with its interval."""
    return probe.student_mean(by_prompt)._asdict()
