"""NAME: what is asked, in one line.

`measure` computes it with the public names of `probe` and returns a dict; `expected.json` names the values that are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import probe

TEXTS = ["The capital of France is Paris.", "Two and two are four.", "Snow is white and coal is black.", "Birds can fly."]


def measure(
    lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Callable[[str, int, int], None] | None
) -> dict[str, Any]:
    """Nats a token that these texts lose when an attention layer writes nothing; as an example of a measurement.

    quick: small settings, within a minute. seed: seeds what is drawn. out: a folder that keeps the runs, or None.
    """
    texts = TEXTS[:3] if quick else TEXTS
    layer = int(np.random.default_rng(seed).integers(lm.anatomy.n_layers))
    plain = probe.trace(lm, texts, out=out and out / "plain", progress=progress)
    ablated = probe.trace(lm, texts, edit=f"attn_out@{layer}=zero", out=out and out / "ablated", progress=progress)
    by_text = [run.tokens.groupby("prompt_id").logprob.mean() for run in (plain, ablated)]
    return {"layer": layer, "lost": probe.student_mean(by_text[0] - by_text[1])._asdict()}
