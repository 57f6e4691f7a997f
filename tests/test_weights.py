"""Weights without a text: held against plain float64 computations from named parameters, and against models set by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe.cli.main import app
from typer.testing import CliRunner

import probe
from probe.anatomy.mixing import values_at
from probe.errors import BadOption, SiteAbsent
from probe.matrices.circuits import compose, factor, product_norm, readers, sign, writers
from probe.matrices.heads import HeadMaps, HeadReader
from probe.matrices.naming import gains, matrices
from probe.replaying import replay
from tests import planted

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "phi3")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: probe.load(f"tiny:{name}") for name in (*FAMILIES, "mixtral", "qwen3", "falcon", "mamba")}


def named(lm: Any, family: str, layer: int) -> dict[str, torch.Tensor]:
    """W_Q, W_K, W_V (head, d_head, d), W_O (head, d, d_head) and the gain, of parameters by their names; float64."""
    p = {k: v.double() for k, v in lm.model.named_parameters()}
    config = lm.model.config
    heads, kv = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    if family == "gpt2":
        block = f"transformer.h.{layer}"
        q, k, v = p[f"{block}.attn.c_attn.weight"].T.chunk(3)
        out, gain, centre = p[f"{block}.attn.c_proj.weight"].T, p[f"{block}.ln_1.weight"], True
    elif family == "gpt_neox":
        block = f"gpt_neox.layers.{layer}"
        fused = p[f"{block}.attention.query_key_value.weight"].unflatten(0, (heads, 3, -1))
        q, k, v = (fused[:, i].flatten(0, 1) for i in range(3))
        out, gain, centre = p[f"{block}.attention.dense.weight"], p[f"{block}.input_layernorm.weight"], True
    else:
        block = f"model.layers.{layer}"
        out, gain, centre = p[f"{block}.self_attn.o_proj.weight"], p[f"{block}.input_layernorm.weight"], False
        if family == "phi3":
            d = out.shape[1] // heads
            q, k, v = p[f"{block}.self_attn.qkv_proj.weight"].split([heads * d, kv * d, kv * d])
        else:
            q, k, v = (p[f"{block}.self_attn.{x}_proj.weight"] for x in "qkv")
        if family == "gemma2":
            gain = 1 + gain
            out = (1 + p[f"{block}.post_attention_layernorm.weight"])[:, None] * out
    folded = {}
    for name, matrix, n in (("query", q, heads), ("key", k, kv), ("value", v, kv)):
        matrix = (matrix * gain).unflatten(0, (n, -1))
        matrix = matrix - matrix.mean(-1, keepdim=True) if centre else matrix
        folded[name] = torch.stack([matrix[h * n // heads] for h in range(heads)])
    return {**folded, "out": out.unflatten(1, (heads, -1)).transpose(0, 1)}


def ends(lm: Any, family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """W_E (V, d) as it enters the stream, W_U (V, d) with the final norm's gain."""
    p = {k: v.double() for k, v in lm.model.named_parameters(remove_duplicate=False)}
    embedding, head = lm.model.get_input_embeddings().weight.double(), lm.model.lm_head.weight.double() \
        if family != "gpt_neox" else lm.model.get_output_embeddings().weight.double()  # fmt: skip
    name = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}.get(family, "model.norm")
    gain = p[f"{name}.weight"] + (family == "gemma2")
    head = head * gain
    if family in ("gpt2", "gpt_neox"):
        head = head - head.mean(-1, keepdim=True)
    return embedding * (lm.model.config.hidden_size**0.5 if family == "gemma2" else 1.0), head


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_their_signs_are_those_of_the_named_parameters(family: str, models: dict[str, Any]) -> None:
    """Every eigenvalue of the whole V x V matrix, in NumPy; grouped keys and fused matrices fall to the right heads."""
    lm = models[family]
    maps = HeadReader(lm).layer(1)
    assert isinstance(maps, HeadMaps) and not maps.absent
    wanted = named(lm, family, 1)
    for name in ("query", "key", "value"):
        torch.testing.assert_close(maps.folded(name), wanted[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps.out, wanted["out"], rtol=1e-4, atol=1e-5)
    rows = probe.weights(lm, what="heads", layers="1").table("head_circuits")
    embedding, head = ends(lm, family)
    for h, row in rows.iterrows():
        ov = (wanted["out"][h] @ wanted["value"][h]).numpy()
        qk = (wanted["query"][h].T @ wanted["key"][h]).numpy()
        for score, matrix, left in (("copying", ov, head), ("matching", qk, embedding)):
            values = np.linalg.eigvals(left.numpy() @ matrix @ embedding.numpy().T)
            assert row[score] == pytest.approx(values.real.sum() / np.abs(values).sum(), abs=2e-3)
        assert row["ov_norm"] == pytest.approx(np.linalg.norm(ov), rel=1e-4)
        assert row["qk_norm"] == pytest.approx(np.linalg.norm(qk), rel=1e-4)
        s = np.linalg.svd(qk, compute_uv=False)
        s = s[s > 1e-12 * s[0]] / s.sum()
        assert row["qk_rank"] == pytest.approx(np.exp(-(s * np.log(s)).sum()), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_composition_is_that_of_whole_matrices(family: str, models: dict[str, Any]) -> None:
    lm = models[family]
    one, two = named(lm, family, 0), named(lm, family, 2)
    found = probe.weights(lm, what="composition").table("compositions")
    for kind in "QKV":
        for head, writer in ((0, 3), (3, 1)):
            wrote = one["out"][writer] @ one["value"][writer]
            qk = two["query"][head].T @ two["key"][head]
            read = {"Q": qk.T, "K": qk, "V": two["out"][head] @ two["value"][head]}[kind]
            score = float((read @ wrote).norm() / (read.norm() * wrote.norm()))
            (row,) = found.query(
                f"kind == '{kind}' and layer == 2 and head == {head} and writer_layer == 0 and writer == {writer}"
            ).to_dict("records")
            assert row["score"] == pytest.approx(score, rel=1e-3)


def test_the_spread_of_scores_is_that_of_random_rotations() -> None:
    """Mean, variance and tail of 3000 drawn rotations of a fixed pair; the sign's too."""
    generator = torch.Generator().manual_seed(0)
    d, r = 24, 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    read, write, middle = normal(1, r, d) * torch.tensor([4.0, 2, 1, 0.5]).double()[:, None], normal(1, d, r), normal(d, d)
    turned = torch.linalg.qr(normal(3000, d, d))[0]
    found = compose(read, turned @ write)
    assert found.z.mean() == pytest.approx(0.0, abs=0.08) and found.z.std() == pytest.approx(1.0, abs=0.08)
    assert (found.p_value <= 0.05).mean() == pytest.approx(0.05, abs=0.015)
    other = torch.linalg.qr(normal(600, d, d))[0]
    signs = [sign(read[0] @ a, middle, b @ write[0]) for a, b in zip(turned[:600], other, strict=True)]
    z = np.asarray([one.z for one in signs])
    assert z.mean() == pytest.approx(0.0, abs=0.15) and z.std() == pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(product_norm(write, read), (write @ read).flatten(1).norm(dim=1))
    torch.testing.assert_close(factor(write).flatten().norm(), write.flatten().norm())


def test_random_weights_copy_and_compose_no_more_than_chance() -> None:
    """Over 20 random models: at a rate of 5 % of families of tests, none of 12 heads; p-values below 0.05 are 5 % of all."""
    p, found = [], 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(8, 8, 64, generator=generator, dtype=torch.float64) for _ in range(3))
        out = torch.randn(8, 64, 8, generator=generator, dtype=torch.float64)
        read, wrote = readers(q[4:], k[4:], v[4:], out[4:]), writers(v[:4], out[:4])
        p += [compose(one, wrote).p_value.ravel() for one in read.values()]
        found += sum(sign(value, torch.eye(64).double(), o).p_value < 0.01 for value, o in zip(v, out, strict=True))
    assert (np.concatenate(p) <= 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert found <= 5  # of 160, at 1 %


def test_the_planted_heads_are_found_and_no_others() -> None:
    lm = planted.induction().lm
    run = probe.weights(lm, what="heads,composition")
    heads = run.table("head_circuits").set_index(["layer", "head"])
    assert heads.loc[(1, 2), "copying"] > 0.9 and heads["copying_z"].idxmax() == (1, 2)
    assert (heads.drop((1, 2))["copying"].abs() < 0.5).all()
    best = run.table("compositions").sort_values("z", ascending=False).iloc[0]
    assert (best["kind"], best["writer_layer"], best["writer"], best["layer"], best["head"]) == ("K", 0, 1, 1, 2)
    assert best["q_value"] < 1e-6


def test_a_planted_edit_of_rank_one_is_found_and_nothing_else(models: dict[str, Any]) -> None:
    lm, other = models["llama"], probe.load("tiny:llama")
    edited = other.model.model.layers[1].mlp.down_proj.weight
    u, v = torch.randn(64, generator=torch.Generator().manual_seed(1)), torch.ones(96)
    with torch.no_grad():
        edited += 0.01 * torch.outer(u, v)
    run = probe.weights(lm, what="norms", against=other)
    rows = run.table("matrix_differences")
    (found,) = rows[rows["relative"] > 0].to_dict("records")
    assert (found["name"], found["role"], found["rank"]) == ("model.layers.1.mlp.down_proj.weight", "W_out", 1)
    assert found["spectral"] == pytest.approx(0.01 * float(u.norm() * v.norm()), rel=1e-4)
    assert run.summary["differ"] == 1 and found["effective_rank"] == pytest.approx(1, abs=0.01)
    apart = probe.weights(lm, what="norms", against=models["gpt2"])
    assert "not in both models" in apart.manifest["warnings"][0]


def test_matrices_have_their_norms_spectra_and_roles(models: dict[str, Any]) -> None:
    lm = models["mixtral"]
    rows = probe.weights(lm, what="matrices", top=3).table("matrices")
    p = dict(lm.model.named_parameters())
    assert len(rows) == sum(v.shape[0] if v.dim() == 3 else 1 for v in p.values() if v.dim() > 1)
    for row in rows.to_dict("records"):
        w = p[row["name"]].double().numpy()
        w = w[row["expert"]] if row["expert"] >= 0 else w
        s = np.linalg.svd(w, compute_uv=False)
        np.testing.assert_allclose(row["singular_values"], s[:3], rtol=1e-5)
        assert row["frobenius"] == pytest.approx(np.linalg.norm(w)) and row["condition"] == pytest.approx(
            s[0] / s[-1], rel=1e-4
        )
        assert row["stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2)
        assert row["effective_rank"] == pytest.approx(np.exp(-(s / s.sum() * np.log(s / s.sum())).sum()), rel=1e-5)
        assert row["sd"] == pytest.approx(w.std()) and row["max_abs"] == pytest.approx(abs(w).max())
    own = {r["name"].split("layers.0.")[1]: r["role"] for r in rows.to_dict("records") if r["layer"] == 0}
    assert own == {
        "self_attn.q_proj.weight": "W_Q", "self_attn.k_proj.weight": "W_K", "self_attn.v_proj.weight": "W_V",
        "self_attn.o_proj.weight": "W_O", "mlp.gate.weight": "router", "mlp.experts.gate_up_proj": "W_gate+W_in",
        "mlp.experts.down_proj": "W_out",
    }  # fmt: skip
    fused, _ = matrices(models["phi3"], [0])
    assert sorted(one.role for one in fused) == ["W_O", "W_QKV", "W_gate+W_in", "W_out"]
    norms = {(one.role, one.layer): one.gain for one in gains(models["gemma2"])}
    assert {role for role, layer in norms if layer == 0} == {
        "before attention", "after attention", "before MLP", "after MLP",
    }  # fmt: skip
    weight = models["gemma2"].model.model.layers[0].input_layernorm.weight
    torch.testing.assert_close(norms["before attention", 0], 1 + weight.double(), rtol=1e-5, atol=1e-5)


def test_one_layer_is_made_again_of_its_circuits() -> None:
    """Scores at each distance, by maps with that offset, give the model's own pattern; OV gives what its heads write."""
    lm = probe.load("tiny:llama")
    ids = torch.tensor([[65, 70, 66, 90]])
    lm.model.set_attn_implementation("eager")
    pattern = lm.model(ids, output_attentions=True).attentions[0][0].double()
    x = lm.model.model.layers[0].input_layernorm(lm.model.get_input_embeddings()(ids))[0].double()
    scores = torch.full((4, 4, 4), -torch.inf).double()
    lm.model.set_attn_implementation("sdpa")
    for offset in range(4):
        maps = HeadReader(lm, offset=offset).layer(0)
        assert isinstance(maps, HeadMaps)
        q = torch.einsum("nd,hed->hne", x, maps.query)
        k = torch.einsum("nd,hed->hne", x, maps.per_head("key"))
        for i in range(offset, 4):
            scores[:, i, i - offset] = maps.scaling * (q[:, i] * k[:, i - offset]).sum(-1)
    torch.testing.assert_close(scores.softmax(-1), pattern, rtol=1e-4, atol=1e-5)
    v = torch.einsum("nd,hed->hne", x, maps.per_head("value"))
    wrote = torch.einsum("hij,hje,hde->id", pattern, v, maps.out)
    tap = lm.anatomy.tap("attn_out", 0)
    real = values_at(lm.model, ids, [tap])[tap][0].double()
    torch.testing.assert_close(wrote, real, rtol=1e-4, atol=1e-5)


def test_tokens_in_heads_are_those_of_the_whole_matrices(models: dict[str, Any]) -> None:
    lm = models["llama"]
    rows = probe.weights(lm, what="tokens", tokens="Q", layers="1", heads="1.2", top=4).table("token_circuits")
    (row,) = rows.to_dict("records")
    layer, weights = lm.model.model.layers[1], named(lm, "llama", 1)
    _, head = ends(lm, "llama")
    with torch.no_grad():
        x = layer.input_layernorm(lm.model.get_input_embeddings().weight).double() / layer.input_layernorm.weight.double()
    token = lm.ids_of("Q")[0]
    score = (weights["query"][2] @ x[token]) @ (weights["key"][2] @ x.T) / 16**0.5
    logit = head @ weights["out"][2] @ weights["value"][2] @ x[token]
    assert row["attends_ids"].tolist() == score.topk(4).indices.tolist()
    np.testing.assert_allclose(row["raises"], logit.topk(4).values.numpy(), rtol=1e-3)
    assert row["lowers_ids"].tolist() == (-logit).topk(4).indices.tolist()
    assert row["own_logit"] == pytest.approx(float(logit[token]), rel=1e-3)


def test_what_is_no_linear_map_is_said(models: dict[str, Any]) -> None:
    run = probe.weights(models["qwen3"], what="heads")
    rows = run.table("head_circuits")
    assert rows["matching"].isna().all() and rows["copying"].notna().all()
    assert "no linear map" in run.manifest["warnings"][0]
    for family in ("mamba", "falcon"):
        with pytest.raises(SiteAbsent, match="no head can be read"):
            probe.weights(models[family], what="heads")
        assert "matrices" in probe.weights(models[family], layers="0").tables
    with pytest.raises(BadOption, match="nothing to look at"):
        probe.weights(models["llama"], what="everything")
    with pytest.raises(BadOption, match="--memory"):
        probe.weights(models["llama"], what="composition", memory="10kB")


def test_the_command_a_replay_and_the_model_as_it_was(models: dict[str, Any], tmp_path: Path) -> None:
    lm = models["llama"]
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    run = probe.weights(lm, what="matrices,norms,heads,composition", out=tmp_path / "w")
    assert all(torch.equal(v, before[k]) for k, v in lm.model.state_dict().items())
    again = replay(lm, run)
    for name in ("matrices", "head_circuits", "compositions"):
        assert run.table(name).drop(columns="run_id").equals(again.table(name).drop(columns="run_id"))
    shell = CliRunner()
    done = shell.invoke(app, ["weights", "tiny:llama", "--what", "heads", "--json", "--out", str(tmp_path / "c")])
    assert done.exit_code == 0 and json.loads(done.stdout)["summary"]["heads"] == 12
    plan = shell.invoke(app, ["weights", "tiny:llama", "--dry-run", "--json", "--what", "composition"])
    assert json.loads(plan.stdout)["tables"]["compositions"]["rows"] == len(run.table("compositions"))
