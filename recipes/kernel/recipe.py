"""Kernel: is a head well described as Gaussian smoothing of its keys, as popularity of keys, or as neither?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import probe

TEXTS = Path(__file__).with_name("texts.txt")
GAUSSIAN = 0.9  # share of the divergence from uniform weights that one Gaussian kernel of distance takes away
MOST = 0.5  # share of the variance of log-weights
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Of every head on every text: how well a Gaussian of |q - k| alone gives its weights, which share of the variance of its
    log-weights is similarity and which the keys' norms, and what its output is without the latter. seed: which texts come
    first."""
    order = np.random.default_rng(seed).permutation(8)[: 4 if quick else 8]
    texts = [TEXTS.read_text(encoding="utf-8").splitlines()[i] for i in sorted(order)]
    rows = 24 if quick else 64
    runs = [
        probe.heads(lm, text, kernel=True, sequences=0, rows=rows, out=out and out / f"text-{i}", progress=progress)
        for i, text in enumerate(texts)
    ]
    tables = [run.head_kernels for run in runs]  # a row a head, in the same order
    found = {
        name: np.stack([table[name] for table in tables])  # (text, head)
        for name in ("gaussian_r2", "similarity", "popularity", "covariance", "bandwidth_ratio", "output_error")
    }
    gaussian = found["gaussian_r2"] >= GAUSSIAN
    popular = ~gaussian & (found["popularity"] >= MOST) & (found["similarity"] < MOST)
    return {
        "heads": gaussian.shape[1],
        "gaussian": share(gaussian),
        "popular": share(popular),
        "neither": share(~gaussian & ~popular),
        "opposed": share((found["similarity"] > 1) & (found["popularity"] > 1)),
        "gaussian_on_all_texts": float(gaussian.all(axis=0).mean()),
        **{name: probe.student_mean(np.nanmedian(values, axis=1))._asdict() for name, values in found.items()},
        "most_gaussian": named(tables[0], found["gaussian_r2"].mean(axis=0)),
        "least_gaussian": named(tables[0], -found["gaussian_r2"].mean(axis=0)),
    }


def named(table: Any, values: np.ndarray) -> list[str]:
    """The five heads with the greatest values, as layer.head."""
    return [f"{table.layer[i]}.{table['head'][i]}" for i in np.argsort(-values)[:5]]


def share(heads: np.ndarray) -> dict[str, float]:
    """The share of heads, by text."""
    return probe.student_mean(heads.mean(axis=1))._asdict()
