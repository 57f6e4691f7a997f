"""What single neurons wrote towards a logit: by plain torch in float64, as parts of the MLP's write, and planted ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.errors import BadOption, SiteAbsent
from probe.interventions import Zero, applying, cells
from tests.planted import lookup
from tests.test_neurons import hidden

TEXT = "The capital of France"
SLOW = pytest.param("smollm2", marks=pytest.mark.slow)


def direct(lm: probe.LanguageModel, family: str, layer: int) -> Tensor:
    """(neuron,): post · (gain of the norm behind the last matrix and of the final norm) · W_out · (row of a − row of b)."""
    ids, model = lm.encode(TEXT).ids, lm.model
    seen: dict[str, Tensor] = {}
    body = getattr(model, "model", None) or model.transformer
    norm = body.ln_f if family == "gpt2" else body.norm
    handle = norm.register_forward_hook(lambda _, args, __: seen.update(x=args[0][0, -1]))
    post = hidden(lm, ids, layer)[0][-1]
    handle.remove()
    a, b = (lm.ids_of(text)[0] for text in "ab")
    row, x = model.lm_head.weight[a] - model.lm_head.weight[b], seen["x"]
    if family == "gpt2":
        u = norm.weight * row
        u = (u - u.mean()) / ((x - x.mean()).pow(2).mean() + norm.eps).sqrt()
        return post * (body.h[layer].mlp.c_proj.weight @ u)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    own = 1 + norm.weight if family == "gemma2" else norm.weight
    u, block = row * own / (x.pow(2).mean() + eps).sqrt(), body.layers[layer]
    if family == "gemma2":  # its last norm stands between the matrix and the stream
        after, out = block.post_feedforward_layernorm, block.mlp.down_proj(post)
        u = u * (1 + after.weight) / (out.pow(2).mean() + after.eps).sqrt()
    return post * (block.mlp.down_proj.weight.T @ u)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", SLOW])
def test_a_neurons_part_is_what_its_row_writes(family: str) -> None:
    lm = probe.load(family if family == "smollm2" else f"tiny:{family}")
    lm.model.double()
    run = probe.attribute(lm, TEXT, answer="a", against="b", by="neuron", top=7)
    rows, n_layers = run.attribution, lm.anatomy.n_layers
    for layer in {0, n_layers - 1}:
        with torch.no_grad():
            wanted = direct(lm, family, layer).numpy()
        own = rows[(rows["layer"] == layer) & (rows["neuron"] >= 0)].set_index("neuron")["contribution"]
        assert set(own.index) == set(np.argsort(-np.abs(wanted))[:7])
        np.testing.assert_allclose(own, wanted[own.index], rtol=1e-6, atol=1e-9)
        rest = rows[(rows["layer"] == layer) & (rows["component"] == "mlp_others")]["contribution"].item()
        assert rest == pytest.approx(wanted.sum() - own.sum(), abs=1e-7)
    assert abs(run.summary["positions"][0]["residual"]) < 1e-7


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi3", "gpt_neox", "cohere", "opt"])
def test_neurons_sum_to_what_their_mlp_wrote(family: str) -> None:
    lm = probe.load(f"tiny:{family}")
    how: dict[str, Any] = {"answer": "a", "position": "1,last"}
    whole, apart = (probe.attribute(lm, TEXT, **how, **by) for by in ({}, {"by": "neuron", "top": 3}))
    parts = apart.attribution.assign(
        part=apart.attribution["component"].astype(str).replace({"mlp_others": "mlp", "mlp_bias": "mlp"})
    )
    keys = ["pos", "part", "layer", "head"]
    summed = parts.groupby(keys)["contribution"].sum()
    wanted = whole.attribution.assign(part=whole.attribution["component"].astype(str)).set_index(keys)["contribution"]
    np.testing.assert_allclose(summed.sort_index(), wanted.sort_index(), atol=2e-5)
    assert (parts.groupby(["pos", "layer"])["neuron"].agg(lambda own: (own >= 0).sum()).drop(-1, level=1) == 3).all()
    assert abs(apart.summary["positions"][-1]["residual"]) < 3e-5
    width = lm.width("mlp_post", 0)
    every = probe.attribute(lm, TEXT, answer="a", by="neuron", top=10**6).attribution
    assert (every["neuron"] >= 0).sum() == width * lm.anatomy.n_layers and "mlp_others" not in set(every["component"])


def test_what_has_no_neurons_says_why() -> None:
    with pytest.raises(SiteAbsent, match="no MLP can be taken apart"):
        probe.attribute(probe.load("tiny:mixtral"), TEXT, by="neuron")
    lm = probe.load("tiny:llama")
    for what, words in (
        ({"by": "head"}, "unknown part"),
        ({"top": 3}, "--by neuron"),
        ({"by": "neuron", "top": 0}, "counts from 1"),
    ):
        with pytest.raises(BadOption) as told:
            probe.attribute(lm, TEXT, **what)
        assert words in f"{told.value} {told.value.hint}"


def test_the_planted_fact_is_one_neuron() -> None:
    """Zeroed, or by what it wrote: Mary's neuron holds all of the difference, and no other holds any."""
    circuit = lookup()
    lm, ids = circuit.lm, circuit.ids(circuit.clean)
    whole = circuit.difference(ids)
    lost = {}
    for layer in range(lm.anatomy.n_layers):
        for neuron in range(lm.width("mlp_post", layer)):
            (cell,) = cells(lm, f"mlp_post@{layer}.n{neuron}")
            with applying(lm, [Zero(cell)], ids=ids):
                lost[layer, neuron] = 1 - circuit.difference(ids) / whole
    assert lost.pop((1, 0)) == pytest.approx(1, abs=0.02) and max(map(abs, lost.values())) < 0.01
    run = probe.attribute(lm, circuit.clean, answer=circuit.answer, against=circuit.against, by="neuron", top=64)
    own = run.attribution[run.attribution["neuron"] >= 0].set_index(["layer", "neuron"])["contribution"] / whole
    assert len(own) == 3 * 64 and own.pop((1, 0)) == pytest.approx(1, abs=0.02) and own.abs().max() < 0.01
