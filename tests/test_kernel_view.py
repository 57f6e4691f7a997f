"""A head as a kernel smoother: the split adds up to the real scores, and its numbers are those of float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

import probe
from probe.attention_heads.kernel import nearest_gaussian, row_statistics, split, summary
from probe.attention_heads.views import LayerAttention
from probe.capturing import AttentionSpec, MemorySink, read
from probe.sites import parse_places, resolve

TEXT = "The capital of France is Paris. The capital of Italy is Rome."
FAMILIES = ("tiny:llama", "tiny:gpt2", "tiny:gemma2", "tiny:gpt_oss", "tiny:qwen3", "tiny:mistral")


def attended(lm: probe.LanguageModel, text: str) -> tuple[dict[int, LayerAttention], MemorySink, int]:
    """What each layer's view is given (as float64), and the scores and z of the same forward, as any reader sees them."""
    ids, anatomy = torch.tensor([lm.encode(text).ids]), lm.anatomy
    found: dict[int, LayerAttention] = {}
    sink = MemorySink()
    places = [one for name in ("scores@all", "z@all") for one in parse_places(name)]
    cells = resolve(places, n_layers=anatomy.n_layers, n_heads=anatomy.n_heads, has=anatomy.has)

    def keep(prompt: int, layer: int, call: Any, output: Tensor, pattern: Any) -> None:
        found[layer] = LayerAttention.of(None, prompt, layer, call, output.clone(), pattern)  # type: ignore[arg-type]

    read(lm, ids, [ids.shape[1]], sink=sink, cells=cells, attention=AttentionSpec("heads"), calls=keep)
    return found, sink, ids.shape[1]


def by_hand(one: LayerAttention, head: int, row: int, scores: np.ndarray) -> dict[str, float]:
    """The statistics of one row in float64, from distances between vectors and the scores that the model had."""
    q, k, v = (x.double().numpy() for x in (one.query[head, row], one.key[head // one.groups], one.value[head // one.groups]))
    seen = np.isfinite(scores)
    s, cap = one.scaling, one.softcap
    similarity, popularity = -s / 2 * ((q - k) ** 2).sum(-1)[seen], s / 2 * (k**2).sum(-1)[seen]
    whole = s * (k @ q)[seen]
    sink = None if one.sinks is None else float(one.sinks[head, 0])

    def softmax(x: np.ndarray, *, sink: float | None = None) -> np.ndarray:
        e = np.exp(x - x.max())
        return e / (e.sum() + (0 if sink is None else np.exp(sink - x.max())))

    w = softmax(scores[seen].astype(float))
    nearest = minimize_scalar(
        lambda t: (w * np.log(w / softmax(t * similarity))).sum(), bounds=(0, 64), method="bounded", options={"xatol": 1e-7}
    )
    even = whole - popularity + popularity.mean()
    even = cap * np.tanh(even / cap) if cap else even
    out, real = softmax(even, sink=sink) @ v[seen], one.output[row, head].double().numpy()
    return {
        "variance": whole.var(), "similarity": similarity.var(), "popularity": popularity.var(), "kl": float(nearest.fun),
        "spread": float((w * np.log(w * len(w))).sum()), "keys": float(np.exp(-(w * np.log(w)).sum())),
        "error": float(((out - real) ** 2).sum()), "norm": float((real**2).sum()),
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_view_is_what_float64_says(name: str) -> None:
    """Grouped keys, caps, sinks and windows among them: the scores are those that the capture of the model gives."""
    lm = probe.load(name)
    found, sink, n = attended(lm, TEXT)
    rows = torch.tensor([1, n // 2, n - 1])
    for layer, one in found.items():
        z = torch.stack([sink.activations["z", layer, head][0, :n] for head in range(one.n_heads)], dim=1)
        assert torch.equal(one.output, z.reshape(one.output.shape))
        some = one.at(rows)
        real = np.stack([sink.score(layer, head, n)[rows] for head in range(one.n_heads)])
        ours = some.scores(some.products()).numpy()
        assert (np.isfinite(real) == np.isfinite(ours)).all()
        np.testing.assert_allclose(ours[np.isfinite(real)], real[np.isfinite(real)], atol=1e-5, rtol=1e-5)
        statistics = row_statistics(some)
        for head in range(one.n_heads):
            for i, row in enumerate(rows.tolist()):
                expected = by_hand(one, head, row, real[head, i])
                for key, value in expected.items():
                    atol = 2e-5 * max(1.0, expected["norm"] if key == "error" else 1.0)
                    assert float(statistics[key][head, i]) == pytest.approx(value, rel=2e-3, abs=atol), (key, layer, head, row)


@pytest.mark.parametrize("name", ["tiny:gemma2", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_the_split_adds_up_to_the_scores(name: str) -> None:
    """To 1e-5 of the largest, with similarities that are distances in float64; none is above 0."""
    lm = probe.load(name)
    found, sink, n = attended(lm, TEXT)
    for layer, one in found.items():
        some = one.at(torch.arange(n))
        parts = split(some, some.products())
        key = one.per_head(one.key).double()
        distances = -one.scaling / 2 * torch.cdist(one.query.double(), key, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        size = float(distances.abs().max())
        torch.testing.assert_close(parts.similarity.double(), distances, rtol=0, atol=1e-5 * size)
        whole = distances + parts.popularity.double() + parts.of_query.double()
        capped = one.softcap * torch.tanh(whole / one.softcap) if one.softcap else whole
        real = np.stack([sink.score(layer, head, n) for head in range(one.n_heads)])
        there = np.isfinite(real)
        np.testing.assert_allclose(capped.numpy()[there], real[there], rtol=0, atol=1e-5 * size)


def test_a_gaussian_head_is_found_with_its_bandwidth() -> None:
    """Weights that are a Gaussian's have its precision and no KL; weights that grow with the distance have none."""
    similarity = -torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6
    seen = torch.ones(1, 3, 40, dtype=torch.bool)
    for precision in (0.25, 1.0, 3.0):
        weights = (precision * similarity).softmax(-1)
        found, cross = nearest_gaussian(similarity, seen, weights)
        torch.testing.assert_close(found, torch.full_like(found, precision), rtol=1e-6, atol=0)
        torch.testing.assert_close((weights * weights.log()).sum(-1) - cross, torch.zeros_like(cross), atol=1e-9, rtol=0)
    flat, _ = nearest_gaussian(similarity, seen, (-similarity).softmax(-1))
    assert (flat == 0).all()


def test_shares_add_up_and_what_cannot_be_divided_is_nan() -> None:
    lm = probe.load("tiny:llama")
    found, _, n = attended(lm, TEXT)
    one = found[1]
    rows = {name: values.double() for name, values in row_statistics(one.at(torch.arange(1, n))).items()}
    columns = summary(rows, one.scaling)
    np.testing.assert_allclose(columns["similarity"] + columns["popularity"] + columns["covariance"], 1, atol=1e-6)
    run = probe.heads(lm, TEXT, kernel=True, rows=1000, sequences=0)
    kept = run.table("head_kernels").query("layer == 1")
    for name, values in columns.items():
        np.testing.assert_allclose(kept[name].to_numpy(float), values, rtol=1e-3, atol=1e-5)
    assert (kept["rows"] == n - 1).all()
