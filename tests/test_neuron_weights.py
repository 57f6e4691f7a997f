"""What neurons read and write by their weights: against plain float64 formulas, a neuron set by hand, and random weights."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe.cli.main import app
from torch import Tensor
from typer.testing import CliRunner

import probe
from probe.errors import BadOption, OutOfRange, SiteAbsent
from probe.matrices.memory import neurons_at_once
from probe.reporting.panels import sequence_views

FAMILIES = ("llama", "gpt2", "phi3", "gemma2")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: probe.load(f"tiny:{name}") for name in FAMILIES}


@pytest.fixture(scope="module")
def tables(models: dict[str, Any]) -> dict[str, Any]:
    return {name: probe.weights(lm, what="neurons", top=4).table("neuron_weights") for name, lm in models.items()}


@torch.no_grad()
def formula(lm: Any, family: str, layer: int) -> dict[str, Tensor]:
    """By names of parameters, float64: what gate and in give at every token's embedding (V, neuron), the logits that a neuron
    writes (V, neuron), and their directions in the stream, a row a neuron."""
    p = {k: v.double() for k, v in lm.model.named_parameters(remove_duplicate=False)}
    e = lm.model.get_input_embeddings().weight.double() * (lm.anatomy.d_model**0.5 if family == "gemma2" else 1.0)
    if family == "gpt2":
        b = f"transformer.h.{layer}"
        mean, variance = e.mean(-1, keepdim=True), e.var(-1, keepdim=True, correction=0)
        x = (e - mean) / (variance + 1e-5).sqrt() * p[f"{b}.ln_2.weight"] + p[f"{b}.ln_2.bias"]
        w_in, gain = p[f"{b}.mlp.c_fc.weight"].T, p[f"{b}.ln_2.weight"]
        out, final = p[f"{b}.mlp.c_proj.weight"].T, p["transformer.ln_f.weight"]
        u = p["lm_head.weight"] * final
        u, folded = u - u.mean(-1, keepdim=True), w_in * gain
        return {
            "in": x @ w_in.T + p[f"{b}.mlp.c_fc.bias"], "out": u @ out, "d_out": out.T,
            "d_in": folded - folded.mean(-1, keepdim=True), "e": e - mean, "u": u,
        }  # fmt: skip
    b, one = f"model.layers.{layer}", float(family == "gemma2")
    norm = "pre_feedforward_layernorm" if family == "gemma2" else "post_attention_layernorm"
    gain = one + p[f"{b}.{norm}.weight"]
    x = e / (e.square().mean(-1, keepdim=True) + lm.model.config.rms_norm_eps).sqrt() * gain
    if family == "phi3":
        gate, up = p[f"{b}.mlp.gate_up_proj.weight"].chunk(2)
    else:
        gate, up = p[f"{b}.mlp.gate_proj.weight"], p[f"{b}.mlp.up_proj.weight"]
    out = p[f"{b}.mlp.down_proj.weight"]
    if family == "gemma2":
        out = (1 + p[f"{b}.post_feedforward_layernorm.weight"])[:, None] * out
    u = p["lm_head.weight"] * (one + p["model.norm.weight"])
    return {
        "gate": x @ gate.T, "in": x @ up.T, "out": u @ out, "d_gate": gate * gain, "d_in": up * gain, "d_out": out.T, "e": e,
        "u": u,
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_directions_and_their_tokens_are_those_of_the_named_parameters(
    family: str, models: dict[str, Any], tables: dict[str, Any]
) -> None:
    """Fused and transposed matrices, a norm that centres, a norm behind the MLP and a factor of the embedding."""
    wanted, rows = formula(models[family], family, 1), tables[family].query("layer == 1")
    names = ["gate", "in", "out"] if "gate" in wanted else ["in", "out"]
    n = models[family].anatomy.n_units("mlp_post", 1)
    assert len(rows) == len(names) * n
    for name in names:
        own = rows[rows["direction"] == name].sort_values("neuron")
        numbers, directions = wanted[name], wanted[f"d_{name}"]
        np.testing.assert_allclose(own["norm"], directions.norm(dim=-1), rtol=1e-4)
        for end, signed in (("up", numbers), ("down", -numbers)):
            best = signed.T.topk(4, dim=-1)
            np.testing.assert_allclose(np.stack(own[end]), (best.values if end == "up" else -best.values), rtol=1e-3, atol=1e-5)
            there = numbers.T.gather(-1, torch.from_numpy(np.stack(own[f"{end}_ids"])).long())
            np.testing.assert_allclose(np.stack(own[end]), there, rtol=1e-3, atol=1e-5)
        ends = wanted["u" if name == "out" else "e"]
        cosines = torch.nn.functional.normalize(directions) @ torch.nn.functional.normalize(ends).T
        most = cosines.gather(-1, cosines.abs().argmax(-1, keepdim=True))[:, 0]
        np.testing.assert_allclose(own["cosine"], most, rtol=1e-3)
        if name == "out":
            assert own["with_out"].isna().all()
        else:
            between = torch.nn.functional.cosine_similarity(directions, wanted["d_out"])
            np.testing.assert_allclose(own["with_out"], between, atol=1e-4)


def test_random_weights_lie_along_no_token(tables: dict[str, Any]) -> None:
    """At q = 0.05 none of 4,000 directions; a p-value, which is a bound, is not below 0.05 more often than in 5 % of them."""
    for family, lm_rows in tables.items():
        p = lm_rows["p_value"].to_numpy()
        assert (p <= 0.05).mean() <= 0.06, family
        assert probe.stats.q_values(p).min() > 0.05, family


def test_a_neuron_set_by_hand_is_found_and_no_other() -> None:
    lm = probe.load("tiny:llama")
    key, value = lm.ids_of("K")[0], lm.ids_of("w")[0]
    layer = lm.model.model.layers[1]
    with torch.no_grad():
        e, u = lm.model.get_input_embeddings().weight[key], lm.model.lm_head.weight[value] * lm.model.model.norm.weight
        layer.mlp.gate_proj.weight[7] = e / layer.post_attention_layernorm.weight
        layer.mlp.down_proj.weight[:, 7] = -u
    run = probe.weights(lm, neurons="all.nall", top=2)
    assert run.summary["along_tokens"] == 2 and run.summary["neurons"] == 3 * 96
    gate, out = sorted(run.summary["along_most"][:2], key=lambda row: row["direction"])
    assert (gate["layer"], gate["neuron"], gate["direction"], gate["up_token"]) == (1, 7, "gate", "K")
    assert (out["layer"], out["neuron"], out["direction"], out["down_token"]) == (1, 7, "out", "w")
    assert gate["cosine"] == pytest.approx(1, abs=1e-5) and out["cosine"] == pytest.approx(-1, abs=1e-5)


def test_some_neurons_in_little_memory_are_those_of_all(models: dict[str, Any], tables: dict[str, Any]) -> None:
    lm = models["llama"]
    little = 600_000
    assert 1 < neurons_at_once(lm, little) < 38
    some = probe.weights(lm, what="neurons", neurons="1.n3..40,2.n-1", top=4, memory=little).table("neuron_weights")
    whole = tables["llama"].query("(layer == 1 and 3 <= neuron <= 40) or (layer == 2 and neuron == 95)")
    for column in ("layer", "neuron", "direction", "up_token"):
        assert some[column].tolist() == whole[column].tolist()
    np.testing.assert_allclose(some["cosine"], whole["cosine"], rtol=1e-5)
    with pytest.raises(BadOption, match=r"--memory is 0\.0004 GB"):
        probe.weights(lm, what="neurons", memory="400kB")
    with pytest.raises(OutOfRange, match=r"no neuron 96"):
        probe.weights(lm, neurons="1.n96")
    with pytest.raises(BadOption, match="none of the --layers 0"):
        probe.weights(lm, neurons="1.n3", layers="0")
    with pytest.raises(BadOption, match="--heads names heads"):
        probe.weights(lm, neurons="1.n3", heads="1.2")
    with pytest.raises(SiteAbsent, match=r"layer 0\.\.2: .* mixture of experts"):
        probe.weights(probe.load("tiny:mixtral"), what="neurons")


def test_the_command_says_what_lies_along_tokens(tmp_path: Path) -> None:
    shell, words = CliRunner(), ["weights", "tiny:llama", "--no-progress"]
    done = shell.invoke(app, [*words, "--neurons", "1.n10..12", "--what", "norms", "--out", str(tmp_path / "w")])
    assert done.exit_code == 0 and "3 neurons: 0 of 9 directions" in done.stdout
    assert set(probe.open_run(tmp_path / "w").tables) == {"prompts", "norm_gains", "neuron_weights"}
    done = shell.invoke(app, [*words, "--what", "neurons", "--dry-run", "--json"])
    assert json.loads(done.stdout)["tables"] == {"neuron_weights": {"rows": 864, "bytes": 864 * 250}}


LOOKS = "matrices,norms,heads,composition,tokens,neurons"


@pytest.fixture(scope="module")
def whole(models: dict[str, Any]) -> Any:
    return probe.weights(models["llama"], what=LOOKS, tokens="ab", memory="20MB")


@pytest.mark.parametrize(
    "moment", ["heads 2", *(pytest.param(one, marks=pytest.mark.slow) for one in ("matrices 9", "neurons 2"))]
)
def test_killed_and_resumed_it_has_the_same_tables(moment: str, models: dict[str, Any], whole: Any, tmp_path: Path) -> None:
    lm, memory = models["llama"], "20MB"

    def kill(what: str, done: int, _: int) -> None:
        if f"{what} {done}" == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        probe.weights(lm, what=LOOKS, tokens="ab", memory=memory, out=tmp_path / "w", progress=kill)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL and not (tmp_path / "w").exists()
    said: list[str] = []
    run = probe.weights(
        lm, what=LOOKS, tokens="ab", memory=memory, out=tmp_path / "w", resume=True, progress=lambda what, *_: said.append(what)
    )
    assert run.tables == whole.tables and {"matrices", "heads", "neurons"} <= set(said)
    for name in run.tables:
        assert run.table(name).drop(columns="run_id").equals(whole.table(name).drop(columns="run_id")), name
    assert run.summary == whole.summary


def test_the_page_has_compositions_by_head_spectra_and_neurons(whole: Any) -> None:
    (view,) = sequence_views(whole)
    panels = {panel.name: panel for panel in view.panels}
    rows = whole.table("compositions")
    one = rows.query("kind == 'K' and layer == 2 and head == 1 and writer_layer == 0 and writer == 3").iloc[0]
    heads = panels["composition-heads"].frame
    (cell,) = heads.query("layer == 2 and head == 1 and writer_layer == 0 and writer == 3").to_dict("records")
    assert cell["K"] == one["z"] and panels["composition-heads"].rows.labels[cell["pair"]] == "0.3"
    layers = panels["composition-layers"].frame
    assert layers["V"].max() == rows.query("kind == 'V'")["z"].max() and len(layers) == 3
    spectra, matrices = panels["spectra"].frame, whole.table("matrices").set_index("name")
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_allclose(spectra[spectra["name"] == name]["singular_value"], matrices.loc[name, "singular_values"])
    assert panels["neurons"].frame["p_value"].is_monotonic_increasing
    assert len(panels["neurons-by-layer"].frame) == 9
