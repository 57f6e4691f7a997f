"""Speculation: which tokens do cheap drafts have right, by class, entropy and place in the block, and does drafting pay?"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pandas as pd
import torch

import probe

TEXTS = Path(__file__).with_name("texts.txt")
BLOCK, GROUPS, Q4_0 = 4, 4, gguf.GGMLQuantizationType.Q4_0
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Every draft on every text at temperature 1, a run each. seed: which texts are taken, and what is drawn."""
    written = TEXTS.read_text(encoding="utf-8").splitlines()
    chosen = sorted(np.random.default_rng(seed).permutation(len(written))[: 4 if quick else 8].tolist())
    new = 11 if quick else 26  # the first of them is drawn without a draft

    def run(name: str, draft: str | probe.LanguageModel, i: int) -> tuple[pd.DataFrame, dict[str, float]]:
        """What was proposed where a whole block still fitted; speeds by the clock, and one by the processor's time."""
        ticks: dict[str, list[tuple[int, float]]] = {}

        def tick(what: str, done: int, total: int) -> None:
            ticks.setdefault(what, []).append((done, time.process_time()))
            if progress:
                progress(what, done, total)

        made = probe.speculate(
            lm, written[i].replace("\\n", "\n"), draft=draft, block=BLOCK, generate=new, temperature=1.0,
            seed=seed * len(written) + i, top=0, out=out and out / f"{name}-{i}", progress=tick,
        )  # fmt: skip
        rows = made.proposals.assign(text=i, overlap=lambda of: 1 - of.tv, hit=lambda of: of.verdict == "accepted")
        rows = rows.assign(drafted=rows.verdict != "bonus", tested=rows.accepted.notna(), kept=rows.verdict != "discarded")
        whole = (rows["round"] > 0) & (rows.pos - rows["index"] < rows.pos.min() + new - BLOCK)
        spent = {what: (after[-1][1] - after[0][1]) / max(1, after[-1][0] - after[0][0]) for what, after in ticks.items()}
        return rows[whole], {**made.summary["speed"], "by_processor": spent["plain decoding"] / spent["speculating"]}

    found = {}
    for name, draft in drafts(lm):
        tables, speeds = zip(*(run(name, draft, i) for i in chosen), strict=True)
        rows = pd.concat(tables, ignore_index=True)
        found[name] = rates(rows, pd.DataFrame(speeds, index=chosen, dtype=float)) | told(rows[rows.tested], seed)
    return found


def drafts(lm: probe.LanguageModel) -> Iterator[tuple[str, str | probe.LanguageModel]]:
    """The text, nine tenths of the layers, the model in llama.cpp's Q4_0 (unpacked), in bfloat16 and, a control, as it is."""

    def rounded(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> probe.LanguageModel:
        model = copy.deepcopy(lm.model)
        for weight in model.parameters():
            weight.data = change(weight.data)
        return probe.LanguageModel(model, lm.tokenizer, name=f"{lm.name} in {name}")

    def in_4_bits(weight: torch.Tensor) -> torch.Tensor:
        if weight.ndim != 2 or weight.shape[1] % 32:
            return weight
        return torch.from_numpy(gguf.dequantize(gguf.quantize(weight.float().cpu().numpy(), Q4_0), Q4_0)).to(weight)

    yield from {"ngram": "ngram", "layers": f"layers:{max(1, lm.anatomy.n_layers * 9 // 10)}"}.items()
    yield "q4", rounded("Q4_0", in_4_bits)
    yield "bf16", rounded("bfloat16", lambda weight: weight.to(torch.bfloat16))
    yield "itself", lm


def rates(rows: pd.DataFrame, speeds: pd.DataFrame) -> dict[str, Any]:
    """Three estimates of acceptance; tokens a pass, and by the formula with each; speed, also were drafting free."""
    alphas = {name: by_text(rows[rows[name]], "hit") for name in ("drafted", "tested")}
    alphas["overlap"] = by_text(rows[rows.tested])
    passes = rows.groupby(["text", "round"])[["drafted", "kept"]].sum()
    tokens, blocks = by_text(passes, "kept"), passes.drafted
    formula = {}
    for name, alpha in alphas.items():  # of independent tokens: the sum of alpha ** 0 to alpha ** block
        each = alpha.reindex(blocks.index, level="text")
        formula[name] = sum((blocks >= place) * each**place for place in range(BLOCK + 1)).groupby("text").mean()
    speeds = speeds.assign(free=tokens / speeds.pass_cost, missed=speeds.predicted_with_pass_cost - speeds.by_processor)
    missed = {name: own - tokens for name, own in formula.items()}
    series = {"alpha": alphas, "formula": formula, "formula_less_tokens": missed, "speed": speeds}
    return {"tokens_a_pass": mean(tokens), **{key: {name: mean(own) for name, own in of.items()} for key, of in series.items()}}


def told(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Overlap by class, place, entropy; the share of its variance that a group's mean in other texts tells, beside chance."""
    quarters = ((rows.entropy.rank() - 1) * GROUPS // max(1, len(rows))).astype(int) + 1
    chance = pd.Series(np.random.default_rng(seed).integers(GROUPS, size=len(rows)), rows.index)
    groups = {"class": rows.kind.astype(str), "place": rows["index"] + 1, "entropy": quarters, "chance": chance}
    gains: dict[str, list[float]] = {name: [] for name in groups}
    for _, own in rows.groupby("text"):
        others = rows.overlap.drop(own.index)
        for name, group in groups.items():
            guess = group[own.index].map(others.groupby(group).mean()).fillna(others.mean())
            gains[name].append(((own.overlap - others.mean()) ** 2 - (own.overlap - guess) ** 2).mean() / rows.overlap.var())
    halves = {"low_entropy_less_high": quarters <= GROUPS // 2, "first_less_later": rows["index"] == 0}
    return {
        "tested": len(rows), "variance_told": {name: mean(own) for name, own in gains.items()},
        **{f"by_{name}": {str(key): mean(by_text(own)) for key, own in rows.groupby(group)} for name, group in groups.items()},
        **{name: mean(by_text(rows[one]) - by_text(rows[~one])) for name, one in halves.items()},
    }  # fmt: skip


def by_text(rows: pd.DataFrame, column: str = "overlap") -> pd.Series:
    """Its mean over each text."""
    return rows.groupby("text")[column].mean()


def mean(values: Iterable[float]) -> dict[str, float] | None:
    """The mean over texts with its 95 % interval; of fewer than two texts none."""
    known = [value for value in values if np.isfinite(value)]
    return probe.student_mean(known)._asdict() if len(known) > 1 else None
