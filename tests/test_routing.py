"""Mixtures of experts: routers found by structure, what they choose against each family's formula, loads over a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats as reference
import torch
from probe.cli.traced import show_trace
from torch import Tensor

import probe
from probe.anatomy import Anatomy, verify
from probe.interventions import applying, parse_edits
from probe.laws import TEXT, reading
from tests.test_panels import panels, same_as_the_table

IDS = [256, *TEXT.encode()][:14]


def softmax_first(logits: Tensor, k: int, gate: Any, forced: Tensor) -> tuple[Tensor, Tensor]:
    """Mixtral, Qwen: the softmax of all, the largest of it, which may be made to add up to 1."""
    p = logits.softmax(-1)
    chosen = (p + forced).topk(k).indices
    weights = p.gather(-1, chosen)
    return chosen, weights / weights.sum(-1, keepdim=True) if getattr(gate, "norm_topk_prob", True) else weights


def largest_first(logits: Tensor, k: int, gate: Any, forced: Tensor) -> tuple[Tensor, Tensor]:
    """gpt-oss, Granite: the largest logits, and the softmax of those."""
    chosen = (logits + forced).topk(k).indices
    return chosen, logits.gather(-1, chosen).softmax(-1)


def sigmoid(logits: Tensor, k: int, gate: Any, forced: Tensor) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3 with one group: sigmoids, chosen with a correction that is no part of the weight, scaled at the end."""
    assert gate.num_group == 1
    scores = logits.sigmoid()
    out = torch.zeros_like(scores).masked_fill(logits.isneginf(), -torch.inf)  # a sigmoid of 0 could still be chosen
    chosen = (scores + gate.e_score_correction_bias + forced + out).topk(k).indices
    weights = scores.gather(-1, chosen)
    return chosen, gate.routed_scaling_factor * weights / weights.sum(-1, keepdim=True)


Rule = Callable[[Tensor, int, Any, Tensor], tuple[Tensor, Tensor]]
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
    chosen, wanted = RULES[family](logits, experts.shape[-1], gate, torch.zeros_like(logits))
    found = torch.zeros_like(logits).scatter(-1, experts, weights.double())
    torch.testing.assert_close(found, torch.zeros_like(logits).scatter(-1, chosen, wanted), rtol=1e-5, atol=1e-6)
    assert bool((weights.diff(dim=-1) <= 0).all())
    p = logits.softmax(-1)
    torch.testing.assert_close(entropy.double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-5)
    assert Anatomy.from_dict(lm.anatomy.to_dict()) == lm.anatomy and verify(lm.model, lm.anatomy) == []
    assert reading.capturing_changes_nothing(lm, IDS) == 0 and reading.no_hook_is_left(lm, IDS) == 0


def test_a_choice_outside_the_router_is_read_and_weighed() -> None:
    """DBRX: its experts stand in one matrix, and its block takes the largest of what the router's module gives."""
    lm = probe.load("tiny:dbrx")
    layer = lm.anatomy.n_layers - 1
    block = lm.model.get_submodule(lm.anatomy.layers[layer].block)
    sink, _ = reading.captured(lm, [IDS], [f"router@{layer}", f"mlp_out@{layer}"])
    logits, (experts, weights, _) = sink.activations["router", layer, None][0], (one[0] for one in sink.routed[layer])
    top = logits.softmax(-1).topk(experts.shape[-1])
    assert torch.equal(experts, top.indices)
    torch.testing.assert_close(
        weights, top.values / top.values.norm(p=block.ffn.moe_normalize_expert_weights, dim=-1, keepdim=True)
    )
    with (
        pytest.raises(probe.ProbeError, match="takes no largest few"),
        applying(lm, parse_edits(lm, [f"router@{layer}.e0=ablate"])),
    ):
        pass
    with torch.no_grad(), applying(lm, parse_edits(lm, [f"router@{layer}=weigh:0.5"]), ids=IDS):
        half, _ = reading.captured(lm, [IDS], [f"mlp_out@{layer}"])
    torch.testing.assert_close(2 * half.activations["mlp_out", layer, None], sink.activations["mlp_out", layer, None])


@pytest.mark.parametrize(
    ("family", "why"), [("llama", "is handed each token's experts"), ("llama4_text", "is handed each token's experts"),
                        ("deepseek_v3", "is handed each token's experts")],
)  # fmt: skip
def test_a_layer_without_routed_experts_says_so(family: str, why: str) -> None:
    """The first layers of DeepSeek-V3 are dense."""
    with pytest.raises(probe.ProbeError, match=why):
        probe.load(f"tiny:{family}").anatomy.tap("router", 0)


def test_the_load_of_a_file_is_counted_from_its_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        by_text = [[expert in e for e in one.experts] for one in alone]
        without = [np.mean(np.concatenate(by_text[:i] + by_text[i + 1 :])) for i in range(3)]
        error = np.sqrt(2 / 3 * ((np.array(without) - np.mean(without)) ** 2).sum())  # jackknife over texts
        assert row.share == pytest.approx(np.mean(np.concatenate(by_text)))
        assert (row.low, row.high) == pytest.approx(np.clip(row.share + error * reference.t.ppf((0.025, 0.975), 2), 0, 1))
        own = [w for e, ws in zip(rows.experts, rows.weights, strict=True) for n, w in zip(e, ws, strict=True) if n == expert]
        assert row.mean_weight == pytest.approx(np.mean(own), abs=1e-6)
    balance = run.table("expert_balance").iloc[0]
    p = counts / counts.sum()
    assert balance.entropy == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum())
    assert balance.max_over_mean == counts.max() / counts.mean() and balance.uniform_entropy == np.log(4)
    random = np.random.default_rng(0)  # two of four experts a token, by lot
    drawn = np.array(
        [np.bincount(random.random((len(rows), 4)).argsort(axis=1)[:, :2].ravel(), minlength=4) for _ in range(4000)]
    )
    assert balance.even_max_over_mean == pytest.approx((drawn.max(axis=1) / drawn.mean(axis=1)).mean(), rel=0.02)
    assert balance.even_entropy == pytest.approx(reference.entropy(drawn, axis=1).mean(), rel=0.002)
    shown = panels(run, int(rows.prompt_id[0]))
    for name in ("routing", "routing-of-token", "expert-loads", "expert-load", "expert-balance"):
        same_as_the_table(run, shown[name])
    route, first = shown["routing"].frame.iloc[-1], rows[rows.prompt_id == rows.prompt_id[0]].iloc[-1]
    assert route.chosen == " ".join(map(str, first.experts)) and route.first == str(first.experts[0])
    assert [float(one.split(":")[1]) for one in route.weighed.split()] == pytest.approx(list(first.weights), abs=0.0051)
    assert shown["expert-loads"].frame.relative.tolist() == (load.share / 0.5).tolist()
    show_trace(run, quiet=False)
    said = capsys.readouterr().out
    assert f"load of experts over {len(rows)} tokens of 3 texts" in said
    assert f"{counts.argmax()}: {counts.max() / len(rows):.1%} of the tokens" in said
    told = run.manifest["summary"]["experts"][0]
    assert told["most"] == int(counts.argmax()) and (told["texts"], told["tokens"]) == (3, len(rows))


EDITS = ((1, "ablate"), (1, "force"), (2, "ablate"), (1, "weigh:0.5"))  # of how many experts, and what becomes of them


def by_hand(family: str, experts: list[int], op: str, start: int) -> Callable[..., Any]:
    """A plain hook on the gate that computes its choice anew, by the family's rule, for tokens from `start` on."""
    name, *rest = op.split(":")
    factor = float(rest[0]) if rest else 1.0

    def hook(gate: Any, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, chosen = (one.clone() for one in output)
        forced = torch.zeros_like(logits)
        if name == "ablate":
            logits[start:, experts] = -torch.inf
        elif name == "force":
            forced[start:, experts] = 100.0
        new_chosen, new_weights = RULES[family](logits, chosen.shape[-1], gate, forced)
        if name == "weigh":
            new_weights[start:] *= torch.where(torch.isin(new_chosen[start:], torch.tensor(experts)), factor, 1.0)
        return logits, new_weights.to(weights.dtype), new_chosen

    return hook


@pytest.mark.parametrize("family", RULES)
def test_experts_that_are_ablated_forced_or_weighed_are_what_a_plain_hook_makes(family: str) -> None:
    lm = probe.load(f"tiny:{family}")
    layer = lm.anatomy.n_layers - 1
    gate = lm.model.get_submodule(lm.anatomy.tap("router", layer).path)
    plain, ids = reading.plain(lm, IDS), IDS
    sink, _ = reading.captured(lm, [ids], [f"router@{layer}"])
    counts = torch.bincount(sink.routed[layer][0][0, 3:].flatten(), minlength=4)
    sometimes = [e for e in range(4) if 0 < counts[e] < len(ids) - 3]
    for n, op in EDITS:
        experts = sometimes[:n]
        edits = parse_edits(lm, [f"router@{','.join(f'{layer}.e{one}' for one in experts)}:3..={op}"])
        handle = gate.register_forward_hook(by_hand(family, experts, op, 3))
        wanted = reading.plain(lm, ids)
        handle.remove()
        with torch.no_grad(), applying(lm, edits, ids=ids) as applied:
            found = reading.plain(lm, ids)
            sink, _ = reading.captured(lm, [ids], [f"router@{layer}"])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[:3], plain[:3])  # experts take other rows together: sums round otherwise
        assert float((found - plain).abs().max()) > 1e-4 and applied.untouched() == ()
        there = (sink.routed[layer][0][0, 3:] == sometimes[0]).any(-1)
        assert bool(there.all()) if "force" in op else bool(there.any()) != ("ablate" in op)
    assert torch.equal(reading.plain(lm, IDS), plain) and reading.no_hook_is_left(lm, IDS) == 0


def mixture(lm: Any, layer: int, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The routed and the shared experts' parts of the block's MLP on x (token, d_model), anew and in float64.

    weights (token, expert), 0 where an expert is not chosen."""
    mlp = lm.model.get_submodule(f"{lm.anatomy.layers[layer].block}.mlp")

    def gated(up: Tensor, down: Tensor) -> Tensor:
        gate, up = (x @ up.double().T).chunk(2, dim=-1)
        return (gate * gate.sigmoid() * up) @ down.double().T

    experts = mlp.experts
    routed = sum(weights[:, [e]] * gated(experts.gate_up_proj[e], experts.down_proj[e]) for e in range(weights.shape[1]))
    shared = getattr(mlp, "shared_experts", None) or getattr(mlp, "shared_expert", None)
    if shared is None:
        return routed, torch.zeros_like(routed)
    own = gated(torch.cat([shared.gate_proj.weight, shared.up_proj.weight]), shared.down_proj.weight)
    return routed, own * (x @ mlp.shared_expert_gate.weight.double().T).sigmoid() if hasattr(mlp, "shared_expert_gate") else own


MIXTURES = ("mixtral", "qwen2_moe", "deepseek_v3")
SHARED = MIXTURES[1:]


@pytest.mark.parametrize("family", MIXTURES)
def test_a_block_with_edited_experts_is_the_block_computed_anew(family: str) -> None:
    """In float64, from the block's input: the router, its choice, the experts, what every token has besides."""
    lm = probe.load(f"tiny:{family}")
    layer, sites = lm.anatomy.n_layers - 1, ["mlp_out", *(("routed_out", "shared_out") if family in SHARED else ())]
    gate = lm.model.get_submodule(lm.anatomy.tap("router", layer).path)
    for op in ("", "ablate", "force", "weigh:0.5"):
        given: list[Tensor] = []
        handle = gate.register_forward_pre_hook(lambda _m, args, given=given: given.append(args[0].double()))
        edits = parse_edits(lm, [f"router@{layer}.e1={op}"] if op else [])
        with torch.no_grad(), applying(lm, edits, ids=IDS):
            sink, _ = reading.captured(lm, [IDS], [f"{site}@{layer}" for site in sites])
        handle.remove()
        with torch.no_grad():
            x = given[-1].reshape(len(IDS), -1)
            logits = x @ gate.weight.double().T
            own = torch.arange(4) == 1
            forced = torch.where(own, 100.0, 0.0) if op == "force" else torch.zeros(4)
            cut = logits.masked_fill(own, -torch.inf) if op == "ablate" else logits
            k = lm.anatomy.layers[layer].experts.n_chosen
            chosen, weights = RULES[family](cut, k, gate, forced.double())
            dense = torch.zeros_like(logits).scatter(-1, chosen, weights) * torch.where(own & (op[:5] == "weigh"), 0.5, 1.0)
            routed, shared = mixture(lm, layer, x, dense)
        parts = {"mlp_out": routed + shared, "routed_out": routed, "shared_out": shared}
        for site in sites:
            torch.testing.assert_close(sink.activations[site, layer, None][0].double(), parts[site], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [*SHARED, "minimax_m3_vl_text"])
def test_routed_and_shared_experts_are_changed_apart(family: str) -> None:
    """Against plain hooks on the modules that compute them; both at once, in one context and in one within the other. The last
    family multiplies what its routed experts give by a number."""
    lm = probe.load(f"tiny:{family}")
    layer, plain = lm.anatomy.n_layers - 1, reading.plain(lm, IDS)
    mlp = f"{lm.anatomy.layers[layer].block}.mlp"
    modules = {"routed_out": f"{mlp}.experts", "shared_out": f"{mlp}.shared_expert{'' if family == 'qwen2_moe' else 's'}"}
    whole = reading.captured(lm, [IDS], [f"{site}@{layer}" for site in ("mlp_out", *modules)])[0].activations
    routed, shared = (whole[site, layer, None] for site in modules)
    torch.testing.assert_close(routed + shared, whole["mlp_out", layer, None], rtol=0, atol=1e-6)
    tap = lm.anatomy.tap("shared_out", layer)
    assert (tap.times != 1.0) == (family == "minimax_m3_vl_text") and Anatomy.from_dict(lm.anatomy.to_dict()) == lm.anatomy
    edits = {site: parse_edits(lm, [f"{site}@{layer}:3..=scale:0.5"]) for site in modules}

    def halve(_m: Any, _a: Any, output: Tensor) -> Tensor:
        rows = output.clone()
        rows.view(len(IDS), -1)[3:] *= 0.5
        return rows

    for wanted in (["routed_out"], ["shared_out"], ["routed_out", "shared_out"], ["shared_out", "routed_out"]):
        handles = [lm.model.get_submodule(modules[site]).register_forward_hook(halve) for site in wanted]
        by_hand = reading.plain(lm, IDS)
        for handle in handles:
            handle.remove()
        with torch.no_grad(), applying(lm, [one for site in wanted for one in edits[site]], ids=IDS):
            together = reading.plain(lm, IDS)
        with torch.no_grad(), applying(lm, edits[wanted[0]], ids=IDS), applying(lm, edits[wanted[-1]], ids=IDS):
            nested = reading.plain(lm, IDS) if len(wanted) > 1 else together
        for found in (together, nested):
            torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=2e-6)
            assert torch.equal(found[:3], plain[:3]) and float((found - plain).abs().max()) > 1e-4
    assert torch.equal(reading.plain(lm, IDS), plain) and reading.no_hook_is_left(lm, IDS) == 0


@pytest.mark.parametrize("family", [*SHARED, "minimax_m3_vl_text"])
def test_shares_of_a_write_sum_to_it_in_attribution_and_in_slopes(family: str, tmp_path: Path) -> None:
    lm = probe.load(f"tiny:{family}")
    layer = lm.anatomy.n_layers - 1
    shared = parse_edits(lm, [f"shared_out@{layer}=zero"])
    run = probe.attribute(lm, "abcdef Mary gh", answer="J", against="M", out=tmp_path / "a")
    parts = run.table("attribution").set_index(["component", "layer"]).contribution
    last = reading.plain(lm, list(lm.encode("abcdef Mary gh").ids))[-1]
    answer, against = lm.tokenizer.convert_tokens_to_ids(["J", "M"])
    assert abs(parts.sum() - float(last[answer] - last[against])) < 1e-4
    with applying(lm, shared, ids=lm.encode("abcdef Mary gh").ids):
        without = probe.attribute(lm, "abcdef Mary gh", answer="J", against="M", out=tmp_path / "b").table("attribution")
    gone = without.set_index(["component", "layer"]).contribution
    assert abs(gone["mlp_shared", layer]) < 1e-6 < abs(parts["mlp_shared", layer])
    with applying(lm, parse_edits(lm, [f"routed_out@{layer}=zero"]), ids=lm.encode("abcdef Mary gh").ids):
        without = probe.attribute(lm, "abcdef Mary gh", answer="J", against="M", out=tmp_path / "d").table("attribution")
    gone = without.set_index(["component", "layer"]).contribution
    assert gone["mlp_routed", layer] == 0.0 != parts["mlp_routed", layer]
    patched = probe.patch(
        lm, clean="abcdef Mary gh", corrupt="abXdef John gh", answer="J", against="M", metric="logit-diff",
        method="attribution", sites="mlp_out,routed_out,shared_out", out=tmp_path / "c",
    ).table("patches")  # fmt: skip
    slopes = patched.pivot_table(index=["layer", "pos"], columns="site", values="change").dropna()
    assert len(slopes) and float(slopes["mlp_out"].abs().max()) > 1e-5
    np.testing.assert_allclose(slopes["routed_out"] + slopes["shared_out"], slopes["mlp_out"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "why"), [("mixtral", "all of what the MLP writes"), ("llama", "handed each token's experts")]
)
def test_a_model_without_shared_experts_is_not_offered_them(family: str, why: str) -> None:
    lm = probe.load(f"tiny:{family}")
    for site in ("routed_out", "shared_out"):
        with pytest.raises(probe.ProbeError, match=why):
            lm.anatomy.tap(site, 1)


def test_they_hold_while_a_model_decodes(tmp_path: Path) -> None:
    """What a plain hook on the gate makes the model say greedily, token by token, each from a whole forward."""
    lm = probe.load("tiny:mixtral")
    run = probe.trace(
        lm, "abcdef Mary gh", generate=6, edit="router@1.e0=ablate", capture="router@1", out=tmp_path / "run",
        sampling=probe.Sampling(temperature=0.0),
    )  # fmt: skip
    ids = list(lm.encode("abcdef Mary gh").ids)
    handle = lm.model.get_submodule(lm.anatomy.tap("router", 1).path).register_forward_hook(
        by_hand("mixtral", [0], "ablate", 0)
    )
    for _ in range(6):
        ids.append(int(reading.plain(lm, ids)[-1].argmax()))
    handle.remove()
    assert run.table("tokens").token_id.tolist() == ids
    assert not any(0 in row for row in run.table("routing").experts)
    assert run.table("expert_load").set_index("expert").tokens[0] == 0


@pytest.mark.parametrize(
    ("edit", "what"),
    [("router@1.e9=ablate", "no expert 9"), ("router@1.e0..2=ablate", "leaves 1 experts"), ("router@1=ablate", "leaves 0"),
     ("router@1.e0..2=force", "only 2 are"), ("router@1.e1=weigh:1", "changes nothing"),
     ("router@1=zero", "cannot change 'router'"), ("z@1=ablate", "cannot change 'z'"), ("mlp_out@1.e1=ablate", "no expert"),
     ("router@1=ablate:1", "says too much"), ("router@1.e1=weigh", "does not say what")],
)  # fmt: skip
def test_an_edit_that_cannot_be_is_refused(edit: str, what: str) -> None:
    with pytest.raises(probe.ProbeError, match=what):
        parse_edits(probe.load("tiny:mixtral"), [edit])


@pytest.mark.parametrize("text", ["router@1.e0..1=ablate", "router@1.e0,1.e2:3..=weigh:0.5", "router@-1.e-1=force"])
def test_an_edit_reads_as_it_is_written(text: str) -> None:
    lm = probe.load("tiny:mixtral")
    (edit,) = parse_edits(lm, [text])
    (again,) = parse_edits(lm, [str(edit)])
    assert edit.cell == again.cell and str(again) == str(edit) == text.replace("-1.e-1", "2.e3")


def planted() -> Any:
    """Mixtral by hand: layer 1 sends tokens of even id to expert 2 first, whose output is what makes them say token 65."""
    lm = probe.load("tiny:mixtral")
    d = lm.anatomy.d_model
    with torch.no_grad():
        embedding = lm.model.get_input_embeddings().weight
        embedding[:, :2] = 0.0
        embedding[0::2, 0] = 8.0  # channel 0: an even id; channel 1: what expert 2 writes, and the head reads
        head = lm.model.get_output_embeddings().weight
        head[:, :2] = 0.0
        head[65, 1] = 8.0
        for layer in lm.anatomy.layers:
            block = lm.model.get_submodule(layer.block)
            block.self_attn.o_proj.weight[:2] = 0.0
            block.mlp.experts.down_proj[:, :2] = 0.0
        block = lm.model.get_submodule(lm.anatomy.layers[1].block)
        block.mlp.gate.weight[2] = 0.0
        block.mlp.gate.weight[2, 0] = 20.0
        experts = block.mlp.experts
        inner = experts.down_proj.shape[-1]
        experts.gate_up_proj[2, 0], experts.gate_up_proj[2, inner] = 0.0, 0.0
        experts.gate_up_proj[2, 0, 0], experts.gate_up_proj[2, inner, 0] = 4.0, 4.0
        experts.down_proj[2] = 0.0
        experts.down_proj[2, 1, 0] = 4.0
    assert d == embedding.shape[1]
    return lm


def test_a_planted_expert_is_found_by_where_tokens_go_and_what_its_absence_does(tmp_path: Path) -> None:
    """The even tokens go to expert 2 of layer 1; without it, and without no other, they no longer say token 65."""
    lm = planted()
    run = probe.trace(lm, "abcdefghij", capture="router@1", out=tmp_path / "run")
    ids, rows = run.table("tokens").token_id.to_numpy(), run.table("routing")
    first = np.array([row[0] for row in rows.experts])
    assert set(first[ids % 2 == 0]) == {2} and 2 not in set(first[ids % 2 == 1])
    even = torch.from_numpy(np.flatnonzero(ids % 2 == 0))

    def says(edits: list[str]) -> float:
        with torch.no_grad(), applying(lm, parse_edits(lm, edits), ids=list(ids)):
            return float((reading.plain(lm, list(ids))[even].argmax(-1) == 65).float().mean())

    assert says([]) == 1.0
    lost = {(layer, e): 1.0 - says([f"router@{layer}.e{e}=ablate"]) for layer in range(3) for e in range(4)}
    assert lost.pop((1, 2)) == 1.0 and set(lost.values()) == {0.0}
