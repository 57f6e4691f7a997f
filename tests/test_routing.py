"""Mixtures of experts: routers found by structure, what they choose against each family's formula, loads over a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.anatomy import Anatomy, verify
from probe.laws import TEXT, reading
from probe.stats.intervals import wilson

IDS = [256, *TEXT.encode()][:14]


def softmax_first(logits: Tensor, k: int, gate: Any) -> tuple[Tensor, Tensor]:
    """Mixtral, Qwen: the softmax of all, the largest of it, which may be made to add up to 1."""
    weights, chosen = logits.softmax(-1).topk(k)
    return chosen, weights / weights.sum(-1, keepdim=True) if getattr(gate, "norm_topk_prob", True) else weights


def largest_first(logits: Tensor, k: int, gate: Any) -> tuple[Tensor, Tensor]:
    """gpt-oss, Granite: the largest logits, and the softmax of those."""
    largest, chosen = logits.topk(k)
    return chosen, largest.softmax(-1)


def sigmoid(logits: Tensor, k: int, gate: Any) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3 with one group: sigmoids, chosen with a correction that is no part of the weight, scaled at the end."""
    assert gate.num_group == 1
    scores = logits.sigmoid()
    chosen = (scores + gate.e_score_correction_bias).topk(k).indices
    weights = scores.gather(-1, chosen)
    return chosen, gate.routed_scaling_factor * weights / weights.sum(-1, keepdim=True)


Rule = Callable[[Tensor, int, Any], tuple[Tensor, Tensor]]
RULES: dict[str, Rule] = {
    "mixtral": softmax_first, "qwen2_moe": softmax_first, "qwen3_moe": softmax_first, "olmoe": softmax_first,
    "gpt_oss": largest_first, "granitemoe": largest_first, "deepseek_v3": sigmoid,
}  # fmt: skip


@pytest.mark.parametrize("family", RULES)
def test_what_is_chosen_is_what_the_family_computes(family: str) -> None:
    """From the gate's own input and weights, in float64; experts are sets, their weights go with them."""
    lm = probe.load(f"tiny:{family}")
    layer = lm.anatomy.n_layers - 1
    gate = lm.model.get_submodule(lm.anatomy.tap("router", layer).path)
    given: list[Tensor] = []
    handle = gate.register_forward_pre_hook(
        lambda _m, args: given.append(args[0].detach().double().reshape(-1, lm.anatomy.d_model))
    )
    sink, _ = reading.captured(lm, [IDS], [f"router@{layer}"])
    handle.remove()
    x = next(one for one in given if len(one) == len(IDS))
    logits = x @ gate.weight.double().T + (gate.bias.double() if getattr(gate, "bias", None) is not None else 0.0)
    torch.testing.assert_close(sink.activations["router", layer, None][0].double(), logits, rtol=1e-5, atol=1e-5)
    experts, weights, entropy = (one[0] for one in sink.routed[layer])
    chosen, wanted = RULES[family](logits, experts.shape[-1], gate)
    found = torch.zeros_like(logits).scatter(-1, experts, weights.double())
    torch.testing.assert_close(found, torch.zeros_like(logits).scatter(-1, chosen, wanted), rtol=1e-5, atol=1e-6)
    assert bool((weights.diff(dim=-1) <= 0).all())
    p = logits.softmax(-1)
    torch.testing.assert_close(entropy.double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-5)
    assert Anatomy.from_dict(lm.anatomy.to_dict()) == lm.anatomy and verify(lm.model, lm.anatomy) == []
    assert reading.capturing_changes_nothing(lm, IDS) == 0 and reading.no_hook_is_left(lm, IDS) == 0


@pytest.mark.parametrize(
    ("family", "why"), [("llama", "is handed each token's experts"), ("llama4_text", "is handed each token's experts"),
                        ("deepseek_v3", "is handed each token's experts")],
)  # fmt: skip
def test_a_layer_without_routed_experts_says_so(family: str, why: str) -> None:
    """The first layers of DeepSeek-V3 are dense."""
    with pytest.raises(probe.ProbeError, match=why):
        probe.load(f"tiny:{family}").anatomy.tap("router", 0)


def test_the_load_of_a_file_is_counted_from_its_tokens(tmp_path: Path) -> None:
    """Padding counts for nothing: the same rows as text by text; positions that were not asked for are left out."""
    lm = probe.load("tiny:mixtral")
    texts = ["abcdef Mary gh", "xy", "The quick brown fox"]
    run = probe.trace(lm, texts, capture="router@1:1..", out=tmp_path / "all")
    rows = run.table("routing")
    alone = [
        probe.trace(lm, one, capture="router@1:1..", out=tmp_path / f"r{i}").table("routing") for i, one in enumerate(texts)
    ]
    assert [list(e) for e in rows.experts] == [list(e) for one in alone for e in one.experts]
    assert rows.pos.min() == 1 and len(rows) == sum(len(lm.encode(one).ids) - 1 for one in texts)
    counts = np.bincount(np.concatenate(list(rows.experts)), minlength=4)
    load = run.table("expert_load").set_index("expert")
    assert load.tokens.tolist() == counts.tolist() and set(load.of) == {len(rows)} and set(load.uniform) == {0.5}
    for expert, row in load.iterrows():
        assert (row.share, row.low, row.high) == wilson(counts[int(expert)], len(rows))
        own = [w for e, ws in zip(rows.experts, rows.weights, strict=True) for n, w in zip(e, ws, strict=True) if n == expert]
        assert row.mean_weight == pytest.approx(np.mean(own), abs=1e-6)
    assert run.manifest["summary"]["experts"][0]["most"] == int(counts.argmax())
