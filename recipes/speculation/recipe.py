"""Speculation: which tokens do cheap drafts have right, by class, entropy and place in the block, and does it pay?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pandas as pd
import torch

import probe

TEXTS = Path(__file__).with_name("texts.txt")
BLOCK = 4
SPEEDS = ("measured", "predicted", "predicted_with_pass_cost", "draft_cost", "pass_cost")
NAMES = {"accepted/drafted": "drafted", "accepted/tested": "tested", "mean sum of min(p, q)": "overlap"}
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Every draft on every text at temperature 1, a run each. seed: which texts are taken, and what is drawn.
    A text's first token is drawn without a draft; those after it are whole blocks, if all is accepted."""
    order = np.random.default_rng(seed).permutation(12)[: 4 if quick else 6]
    texts = [TEXTS.read_text(encoding="utf-8").splitlines()[i].replace("\\n", "\n") for i in sorted(order)]
    found = {}
    for name, draft in drafts(lm).items():
        runs = [
            probe.speculate(
                lm, text, draft=draft, block=BLOCK, generate=16, temperature=1.0, seed=seed, top=0,
                out=out and out / f"{name}-{i}", progress=progress,
            )
            for i, text in enumerate(texts)
        ]  # fmt: skip
        found[name] = {**paid([run.summary for run in runs]), **where([run.proposals for run in runs], seed)}
    return found


def drafts(lm: probe.LanguageModel) -> dict[str, str | probe.LanguageModel]:
    """What followed before, the first nine tenths of the layers, the model in two coarser roundings, and the model itself."""
    layers = f"layers:{max(1, lm.anatomy.n_layers * 9 // 10)}"
    return {"ngram": "ngram", "layers": layers, "bf16": halved(lm), "q4": requantised(lm), "itself": lm}


def halved(lm: probe.LanguageModel) -> probe.LanguageModel:
    """The model in bfloat16."""
    return probe.LanguageModel(copy.deepcopy(lm.model).to(torch.bfloat16), lm.tokenizer, name=f"{lm.name} in bf16")


def requantised(lm: probe.LanguageModel) -> probe.LanguageModel:
    """The model with every matrix rounded to llama.cpp's Q4_0 and back: 16 steps in each 32 numbers of a row."""
    model, kind = copy.deepcopy(lm.model), gguf.GGMLQuantizationType.Q4_0
    for weight in model.parameters():
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            rounded = gguf.dequantize(gguf.quantize(weight.float().cpu().numpy(), kind), kind)
            weight.data.copy_(torch.from_numpy(rounded))
    return probe.LanguageModel(model, lm.tokenizer, name=f"{lm.name} in Q4_0")


def paid(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Three estimates of acceptance, tokens a pass against the formula of independent tokens, and seconds."""
    measured, formula = (
        np.array([one["tokens_per_pass"][name] for one in summaries], dtype=object) for name in ("measured", "predicted")
    )
    tokens = np.array([one["estimate"] if one else np.nan for one in measured], dtype=float)
    return {
        **{short: mean([one["acceptance"][name]["estimate"] for one in summaries]) for name, short in NAMES.items()},
        "tokens_a_pass": mean(tokens),
        "formula": mean(formula),
        "tokens_less_formula": mean(tokens - formula.astype(float)),
        **{name: mean([one["speed"][name] for one in summaries]) for name in SPEEDS},
    }


def where(tables: list[pd.DataFrame], seed: int) -> dict[str, Any]:
    """The overlap of draft and model, 1 - TV, at tested tokens: by class, by place in the block, and what the model's entropy
    takes away, beside a division into halves by chance."""
    rows = pd.concat([table.assign(text_id=i) for i, table in enumerate(tables)], ignore_index=True)
    rows = rows[rows.accepted.notna()].assign(overlap=lambda table: 1 - table.tv)
    rng = np.random.default_rng(seed)
    halves = {"entropy": rows.entropy, "chance": pd.Series(rng.random(len(rows)), rows.index)}
    differences = {}
    for name, values in halves.items():
        low = values <= values.groupby(rows.text_id).transform("median")
        by_text = [part.groupby("text_id").overlap.mean() for part in (rows[low], rows[~low])]
        differences[f"low_{name}_less_high"] = mean(by_text[0] - by_text[1])
    first = rows[rows["index"] == 0].groupby("text_id").overlap.mean()
    last = rows[rows["index"] == BLOCK - 1].groupby("text_id").overlap.mean()
    return {
        **differences,
        "by_class": {kind: mean(own.groupby("text_id").overlap.mean()) for kind, own in rows.groupby(rows.kind.astype(str))},
        "by_place": {str(place + 1): mean(own.groupby("text_id").overlap.mean()) for place, own in rows.groupby("index")},
        "last_place_less_first": mean(last - first),
        "tested_tokens": len(rows),
    }


def mean(values: Any) -> dict[str, float] | None:
    """The mean over texts with its 95 % interval; of fewer than two texts none."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return probe.student_mean(known)._asdict() if len(known) > 1 else None
