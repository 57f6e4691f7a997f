"""Heads and neurons of a real model with grouped keys, held against NumPy on its named parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import probe

HEADS, KEYS, WIDTH, D = 9, 3, 64, 576


def of_layer(p: dict[str, np.ndarray], layer: int, head: int) -> dict[str, np.ndarray]:
    """W_QK and W_OV (d, d) of a head, the gain of the norm folded in, by its own numbers: three heads share keys and values."""
    block, kv = f"model.layers.{layer}", head // (HEADS // KEYS)
    gain = p[f"{block}.input_layernorm.weight"]
    query, key, value = (
        (p[f"{block}.self_attn.{name}_proj.weight"] * gain)[WIDTH * which : WIDTH * (which + 1)]
        for name, which in (("q", head), ("k", kv), ("v", kv))
    )
    out = p[f"{block}.self_attn.o_proj.weight"][:, WIDTH * head : WIDTH * (head + 1)]
    return {"qk": query.T @ key, "ov": out @ value, "query": query, "key": key, "value": value, "out": out}


@pytest.mark.slow
def test_circuits_and_compositions_are_those_of_whole_matrices(smollm2: Any) -> None:
    """Signs by the eigenvalues of the small matrices; norms and scores by matrices of d x d."""
    run = probe.weights(smollm2, what="heads,composition", layers="16,18")
    p = {k: v.double().numpy() for k, v in smollm2.model.named_parameters()}
    embedding, circuits = p["model.embed_tokens.weight"], run.table("head_circuits").set_index(["layer", "head"])
    same, across = embedding.T @ embedding, embedding.T @ (embedding * p["model.norm.weight"])
    for layer, head in ((18, 6), (16, 8), (16, 2)):
        own, row = of_layer(p, layer, head), circuits.loc[(layer, head)]
        for score, small in (
            ("copying", own["value"] @ across @ own["out"]), ("matching", own["key"] @ same @ own["query"].T),
        ):  # fmt: skip
            values = np.linalg.eigvals(small)
            assert row[score] == pytest.approx(values.real.sum() / np.abs(values).sum(), abs=1e-3)
        assert row["ov_norm"] == pytest.approx(np.linalg.norm(own["ov"]), rel=1e-4) and row["kv_head"] == head // 3
        assert row["qk_norm"] == pytest.approx(np.linalg.norm(own["qk"]), rel=1e-4)
    pairs = run.table("compositions").set_index(["kind", "layer", "head", "writer_layer", "writer"])
    reader, wrote = of_layer(p, 18, 6), of_layer(p, 16, 0)["ov"]
    for kind, matrix in (("Q", reader["qk"].T), ("K", reader["qk"]), ("V", reader["ov"])):
        score = np.linalg.norm(matrix @ wrote) / (np.linalg.norm(matrix) * np.linalg.norm(wrote))
        assert pairs.loc[(kind, 18, 6, 16, 0), "score"] == pytest.approx(score, rel=1e-3)
    assert len(pairs) == 3 * HEADS * HEADS


@pytest.mark.slow
def test_neurons_are_those_of_the_named_parameters(smollm2: Any) -> None:
    rows = probe.weights(smollm2, neurons="29.n7", top=5).table("neuron_weights").set_index("direction")
    p = {k: v.double().numpy() for k, v in smollm2.model.named_parameters()}
    embedding = p["model.embed_tokens.weight"]
    block = "model.layers.29"
    scale = np.sqrt((embedding**2).mean(-1, keepdims=True) + 1e-5)
    read = embedding / scale * p[f"{block}.post_attention_layernorm.weight"]
    gate, up = (p[f"{block}.mlp.{name}_proj.weight"][7] for name in ("gate", "up"))
    wrote = embedding * p["model.norm.weight"] @ p[f"{block}.mlp.down_proj.weight"][:, 7]
    for name, numbers in (("gate", read @ gate), ("in", read @ up), ("out", wrote)):
        row = rows.loc[name]
        np.testing.assert_allclose(row["up"], np.sort(numbers)[::-1][:5], rtol=1e-3)
        np.testing.assert_allclose(numbers[row["down_ids"]], np.sort(numbers)[:5], rtol=1e-3)
