"""Fast weights: how many pairs does a head hold as a memory of fixed size, and which heads work like one?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import probe

TEXTS = Path(__file__).with_name("texts.txt")
HELD = 0.9  # share of reads whose nearest stored value is the key's own
RULES = ("sum", "delta")
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Of every head on every text, with DPFP and elu + 1 features: up to how many pairs each key brings its own value back, for
    the text's keys, keys of random directions and keys without their mean; how near the memory's reads are to the head's
    output, beside those with another text's keys and plain means of values. seed: which texts, and the random keys."""
    order = np.random.default_rng(seed).permutation(8)[: 3 if quick else 8]
    lines = [TEXTS.read_text(encoding="utf-8").splitlines()[i] for i in order]
    texts = [lm.pieces(lm.tokenizer.encode(line, add_special_tokens=False)[:128]).text for line in lines]
    runs = {
        name: probe.heads(lm, texts, memory=features, sequences=0, out=out and out / name, progress=progress)
        for name, features in (("elu", "elu"), ("dpfp", "dpfp:3"))
    }
    sites = ["q@all", "k@all", "v@all", "z@all"]
    traced = probe.trace(lm, texts, capture=sites, attention="none", top=0, out=out and out / "trace", progress=progress)
    n = 1 << int(traced.tokens.groupby("prompt_id").size().min()).bit_length() - 1  # 128, or the power of 2 that all have
    stored = {name: run.head_retrieval[run.head_retrieval.pairs <= n] for name, run in runs.items()}
    read = {name: run.head_memory[run.head_memory.pairs == n] for name, run in runs.items()}
    parts = [by_hand(traced, i, len(texts), lm.anatomy.n_layers, n, seed) for i in range(len(texts))]
    control = {name: np.stack([part[name] for part in parts]) for name in parts[0]}  # (text, kv head or head)
    error = {f"{name}_{rule}": by_text(read[name], rule, "error")[..., -1] for name in read for rule in RULES}
    error |= {name: control[name] for name in ("other", "average")}
    holds = {
        f"{name}_{rule}": longest(by_text(table, rule, "right"))
        for name, table in stored.items()
        for rule in (*RULES, "softmax")
    }
    holds |= {name: logs for name, logs in control.items() if name not in error and name != "again"}
    holds["delta_against_sum"] = holds["dpfp_delta"] - holds["dpfp_sum"]
    holds["random_against_own"] = holds["random_delta"] - holds["dpfp_delta"]
    rival = np.minimum(error["other"], error["average"])
    gain = 1 - error["dpfp_sum"] / rival
    right, rank = (by_text(stored["dpfp"], "softmax", column)[..., -1] for column in ("right", "effective_rank"))
    names = [f"{layer}.{head}" for layer, head in read["dpfp"][["layer", "head"]].drop_duplicates().to_numpy()]
    like = (error["dpfp_sum"].mean(axis=0) <= 0.5) & (gain.mean(axis=0) >= 0.1)
    return {
        "holds": {name: {key: 2**log for key, log in mean(logs.mean(axis=1)).items()} for name, logs in holds.items()},
        "right": mean(right.mean(axis=1)),
        "hash_maps": mean((right >= HELD).mean(axis=1)),
        "effective_rank": mean(np.median(rank, axis=1)),
        "error": {name: mean(np.median(values, axis=1)) for name, values in error.items()},
        "near": {name: mean((values <= 0.5).mean(axis=1)) for name, values in error.items()},
        "gain": mean(np.median(gain, axis=1)),
        "gains_a_tenth": mean((gain >= 0.1).mean(axis=1)),
        "by_hand": np.abs(control["again"] / error["dpfp_sum"] - 1).max(),
        "like_one": {names[i]: [mean(x[:, i]) for x in (error["dpfp_sum"], rival)] for i in np.flatnonzero(like)},
    }


def by_hand(traced: Any, i: int, texts: int, layers: int, n: int, seed: int) -> dict[str, np.ndarray]:
    """What no verb has, with DPFP: (kv head,) log2 of the pairs held of other keys with the same values; (head,) errors of
    reads with the keys of the text after this one, of plain means of values, and of the text's own keys again."""
    found: dict[str, list[np.ndarray]] = {}
    draw = np.random.default_rng([seed, i])
    for layer in range(layers):
        q, k, v, z = (traced.activation(s, layer, prompt_id=i)[:n].swapaxes(0, 1).astype(float) for s in "qkvz")
        other = traced.activation("k", layer, prompt_id=(i + 1) % texts)[:n].swapaxes(0, 1)
        turned = draw.standard_normal(k.shape)
        turned *= np.linalg.norm(k, axis=-1, keepdims=True) / np.linalg.norm(turned, axis=-1, keepdims=True)
        for name, x in (("random", turned), ("centred", k - k.mean(axis=1, keepdims=True))):
            for rule in RULES:
                right = [brought_back(dpfp(x), v, rule, 1 << step) for step in range(n.bit_length())]
                found.setdefault(f"{name}_{rule}", []).append(longest(np.stack(right, axis=-1)))
        k, v, other = (np.repeat(x, len(q) // len(k), axis=0) for x in (k, v, other))
        weights = {"again": dpfp(q) @ dpfp(k).mT, "other": dpfp(q) @ dpfp(other).mT, "average": np.ones((len(q), n, n))}
        for name, w in weights.items():
            reads = np.tril(w) @ v / np.tril(w).sum(axis=-1, keepdims=True).clip(1e-30)
            off, size = (np.square(x[:, n // 2 :]).sum(axis=(1, 2)) for x in (reads - z, z))
            found.setdefault(name, []).append(np.sqrt(off / size))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def mean(values: np.ndarray) -> dict[str, float]:
    return probe.student_mean(values)._asdict()


def dpfp(x: np.ndarray) -> np.ndarray:
    r = np.maximum(np.concatenate([x, -x], axis=-1), 0)
    return np.concatenate([r * np.roll(r, shift, axis=-1) for shift in (1, 2, 3)], axis=-1)


def brought_back(phi: np.ndarray, value: np.ndarray, rule: str, n: int) -> np.ndarray:
    """(kv head,) the share of the first n keys whose read has no stored value nearer than their own."""
    phi, value = phi[:, :n], value[:, :n]
    if rule == "delta":  # features of length 1; what each pair adds to the memory solves a triangular system
        phi = phi / np.linalg.norm(phi, axis=-1, keepdims=True).clip(1e-30)
        reads = phi @ phi.mT @ np.linalg.solve(np.tril(phi @ phi.mT, -1) + np.eye(n), value)
    else:
        reads = phi @ phi.mT @ value / (phi @ phi.mT).sum(axis=-1, keepdims=True).clip(1e-30)
    size, own = np.square(value).sum(axis=-1), np.square(reads).sum(axis=-1)
    far = size[:, None] - 2 * reads @ value.mT  # |reads - value|^2 - |reads|^2
    return (np.diagonal(far, axis1=1, axis2=2) <= far.min(axis=-1) + 1e-4 * (size + own)).mean(axis=-1)


def longest(right: np.ndarray) -> np.ndarray:
    """(…, step of 1, 2, 4, … pairs) -> log2 of the number of pairs up to which at least 90 % come back."""
    return np.logical_and.accumulate(right >= HELD, axis=-1).sum(axis=-1) - 1


def by_text(table: Any, rule: str, column: str) -> np.ndarray:
    """(text, head, step)."""
    wide = table[table.rule == rule].pivot(index=["prompt_id", "layer", "head"], columns="pairs", values=column)
    return wide.to_numpy().reshape(table.prompt_id.nunique(), -1, wide.shape[1])
