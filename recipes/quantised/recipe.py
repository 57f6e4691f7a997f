"""Quantised: where one model in fewer bits parts from itself, by which heads and steps, and whether a rewind says the same."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pandas as pd
import torch

import probe

TEXTS, SUMS = (Path(__file__).with_name(name) for name in ("texts.txt", "sums.jsonl"))
KINDS = ("q4_1", "bf16", "q4_0", "noise")
REWOUND = {True: ("q4_0",), False: ("bf16", "q4_0")}  # by whether it is quick: the longest part
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """The model beside rounded copies, and one with noise: what they predict and attend to, and rewinds of worked sums."""
    n = 4 if quick else 8  # texts, and draws
    texts = pd.Series(TEXTS.read_text(encoding="utf-8").splitlines()).sample(n, random_state=seed).tolist()
    sums = pd.read_json(SUMS, lines=True).sample(3 if quick else 5, random_state=seed).to_dict("records")

    def keep(name: str) -> dict[str, Any]:
        return {"out": out and out / name, "progress": progress}

    def attention(of: probe.LanguageModel, name: str) -> pd.DataFrame:
        rows = probe.trace(of, texts, attention="full", **keep(f"attention-{name}")).table("attention")
        return rows.sort_values(["prompt_id", "layer", "head", "query"], ignore_index=True)

    def rewind(of: probe.LanguageModel, name: str) -> dict[str, np.ndarray]:
        """(sum,) shares of draws with the same noise that come to another result after the edit; (sum, draw) the results."""
        found = {}
        for edit in ("wrong", "swapped"):
            run = probe.rewind(
                written, to="step0", replace=f"column:{edit}", samples=n, max_new=12, answer="last-number", lm=of,
                sampling=probe.Sampling(temperature=0.6, top_p=0.95, stop=(".",), seed=seed), other_model=of is not lm,
                **keep(f"{edit}-{name}"),
            )  # fmt: skip
            found[edit] = run.effects.query("metric == 'flip_rate'").sort_values("prompt_id").difference.to_numpy()
            drawn = run.branches.query("arm == 'control'").sort_values(["prompt_id", "sample"])
        return found | {"results": drawn.outcome.astype(str).to_numpy().reshape(-1, n)}

    written = probe.trace(lm, sums, attention="none", **keep("sums"))
    own, before, heads = attention(lm, "fp32"), rewind(lm, "fp32"), {}
    result: dict[str, Any] = {"fp32": rewound(before, before)}
    for name in KINDS:
        other, size = changed(lm, name, seed)
        run = probe.compare(lm, other, texts, seed=seed, **keep(f"texts-{name}"))
        result[name] = {"weights": size, **parted(run.comparison), "largest": run.summary["largest"]}
        if name != "q4_1":
            told = probe.compare(lm, other, [one["prompt"] + one["completion"] for one in sums], **keep(f"sums-{name}"))
            heads[name] = moved(own, attention(other, name))
            result[name] |= {"attention": mean(heads[name].mean(axis=1)), "steps": by_step(told.comparison, written.steps)}
            result[name] |= rewound(rewind(other, name), before) if name in REWOUND[quick] else {}
    most = heads["q4_0"].mean().nlargest(5).index
    return result | {
        "more_attention_than_noise": mean(heads["q4_0"].mean(axis=1) / heads["noise"].mean(axis=1)),
        "same_heads_as_noise": mean(heads["q4_0"].corrwith(heads["noise"], axis=1, method="spearman")),
        "heads": {f"{at[0]}.{at[1]}": {name: mean(rows[at]) for name, rows in heads.items()} for at in most},
        "layers": {name: rows.T.groupby(level="layer").mean().mean(axis=1).tolist() for name, rows in heads.items()},
    }


def changed(lm: probe.LanguageModel, name: str, seed: int) -> tuple[probe.LanguageModel, float]:
    """A copy, under a name and a hash of its own, whose matrices but the embedding and the head are rounded, or moved by noise
    as far as Q4_0 moves them (bf16: all parameters, and it computes so); and how far all moved, in units of their norm."""
    model, noise, squares, digest = copy.deepcopy(lm.model), torch.Generator().manual_seed(seed), np.zeros(2), hashlib.sha256()
    ends = [id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings())]
    for weight in model.parameters():
        old = new = weight.data.float().cpu()
        if old.ndim == 2 and old.shape[-1] % 32 == 0 and id(weight) not in ends and name != "bf16":  # 32 weights share a scale
            kind = gguf.GGMLQuantizationType["Q4_0" if name == "noise" else name.upper()]
            new = torch.from_numpy(gguf.dequantize(gguf.quantize(old.numpy(), kind), kind)).reshape(old.shape)
            if name == "noise":
                new = old + (drawn := torch.randn(old.shape, generator=noise)) * ((new - old).norm() / drawn.norm())
        weight.data = new.to(weight.device, torch.bfloat16 if name == "bf16" else weight.dtype)
        squares += [float((one.double() ** 2).sum()) for one in (weight.data.cpu() - old, old)]
        digest.update(weight.data.cpu().view(torch.uint8).numpy().tobytes())
    known = {"files": {"weights": digest.hexdigest()}, "tokenizer_sha256": lm.identity["tokenizer_sha256"]}
    return probe.LanguageModel(model, lm.tokenizer, name=f"{lm.name} ({name})", identity=known), np.divide(*squares) ** 0.5


def parted(table: pd.DataFrame) -> dict[str, Any]:
    """Means over texts: divergence both ways, the same first choice, the rank correlation of divergence and entropy."""
    texts = [rows.dropna(subset="kl_ab").astype({"same_top": float}) for _, rows in table.groupby("prompt_id")]
    found = {name: mean(rows[name].mean() for rows in texts) for name in ("kl_ab", "kl_ba", "same_top")}
    return found | {"kl_with_entropy": mean(rows.kl_ab.rank().corr(rows.entropy_a.rank()) for rows in texts)}


def moved(own: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """(text, head) total variation between the rows of attention of two models, mean over positions but the first."""
    apart = [np.abs(x - y).sum() / 2 for x, y in zip(own.weights, other.weights, strict=True)]
    return own.assign(apart=apart)[own["query"] > 0].pivot_table("apart", "prompt_id", ["layer", "head"])


def by_step(told: pd.DataFrame, steps: pd.DataFrame) -> dict[str, Any]:
    """Of each step of the sums: divergence, mean over its tokens."""
    inside = told.merge(steps[["prompt_id", "step", "start", "end"]], on="prompt_id").query("start <= pos < end")
    return {str(step): mean(values) for step, values in inside.pivot_table("kl_ab", "prompt_id", "step").items()}


def rewound(now: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means over sums: the shares of draws that each edit flips, their difference, how far that is from the model's own, and
    (results) the share of draws without an edit that come to the result of the model's own."""
    more, own = (one["wrong"] - one["swapped"] for one in (now, before))
    same = (now["results"] == before["results"]).mean(axis=1)
    found = now | {"more_than_swapped": more, "change": more - own, "results": same}
    return {name: mean(values) for name, values in found.items()}


def mean(values: Any) -> dict[str, float]:
    return probe.student_mean(values)._asdict()
