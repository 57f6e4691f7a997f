"""What the anatomy claims of a model, checked with hooks and sums of this file's own on transformers' own classes."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probe.anatomy import Anatomy, Tap, cached_find, find, verify
from probe.anatomy import finding as finding_module
from probe.anatomy import tape as tape_module
from probe.errors import OutOfRange, SiteAbsent
from probe.instrument import AttentionCall, attending
from probe.tiny import tiny

IDS = torch.tensor([[5, 77, 130, 21, 9, 200, 33, 148, 61, 250, 17]])
SCALED = {"residual_multiplier": 0.22, "logits_scaling": 8.0, "embedding_multiplier": 12.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "gpt2": {}, "gpt_neox": {}, "gemma2": {}, "gemma3_text": {}, "cohere": {}, "granite": SCALED, "phi": {},
    "falcon": {}, "bloom": {}, "mixtral": {}, "qwen3": {}, "olmo2": {}, "mamba": {"residual_in_fp32": False}, "jamba": {},
    "falcon_h1": {}, "gpt_oss": {}, "deepseek_v3": {}, "minicpm3": {}, "doge": {}, "gpt_neox_japanese": {}, "roberta": {},
    "hrm_text": {},
}  # fmt: skip
PARALLEL = {"gpt_neox", "cohere", "phi", "falcon"}
every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def built(family: str) -> tuple[nn.Module, Anatomy, nn.Module]:
    """The tiny model in float32, its anatomy, and the same weights in float64. Not to be changed."""
    model, _ = tiny(family, layers=4, **FAMILIES.get(family, {}))
    double = copy.deepcopy(model).double()
    if double._can_set_experts_implementation():
        double.set_experts_implementation("eager")  # the grouped one has no float64
    return model, find(model), double


def run(
    model: nn.Module, taps: set[Tap], *, edits: dict[Tap, Callable[[Tensor], Tensor]] | None = None, ids: Tensor = IDS
) -> dict[Tap, Tensor]:
    """One forward with this test's own hooks: what went through each tap, after `edits`. "logits" is Tap("", …)."""
    seen: dict[Tap, Tensor] = {}
    calls: Counter[tuple[str, str]] = Counter()
    edits = edits or {}

    def take(side: str, path: str, get: Callable[[Any], Any], put: Callable[[Any, Tensor], None]) -> None:
        visit = calls[path, side]
        calls[path, side] += 1
        for tap in taps | set(edits):
            if (tap.path, tap.side) == (path, side) and tap.call in (None, visit):
                assert tap not in seen, f"{tap} is passed twice and says not which"
                if tap in edits:
                    put(tap.key, edits[tap](get(tap.key)))
                seen[tap] = get(tap.key).detach().clone()

    def before(path: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
            take("input", path, given.__getitem__, given.__setitem__)
            return tuple(given[i] for i in range(len(args))), {k: given[k] for k in kwargs}

        return hook

    def after(path: str) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            get = (lambda key: output) if isinstance(output, Tensor) else (lambda key: output[key])
            take("output", path, get, lambda key, new: get(key).copy_(new))

        return hook

    handles = []
    for path in {tap.path for tap in taps | set(edits)}:
        module = model.get_submodule(path)
        handles += [module.register_forward_pre_hook(before(path), with_kwargs=True)]
        handles += [module.register_forward_hook(after(path))]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    return float((one - other).abs().max()) <= tolerance * float(other.pow(2).mean().sqrt())


def gained(x: Tensor, names: tuple[str, ...], model: nn.Module) -> Tensor:
    for name in names:
        x = x * model.get_parameter(name).flatten()
    return x


@every_family
def test_what_leaves_a_layer_enters_the_next_and_the_embedding_enters_the_first(family: str) -> None:
    _, anatomy, model = built(family)
    pre = [anatomy.tap("resid_pre", i) for i in range(anatomy.n_layers)]
    post = [anatomy.tap("resid_post", i) for i in range(anatomy.n_layers)]
    seen = run(model, {*pre, *post, anatomy.tap("embed")})
    assert anatomy.n_layers == 4
    assert torch.equal(seen[anatomy.tap("embed")], seen[pre[0]])
    for i in range(3):
        assert torch.equal(seen[post[i]], seen[pre[i + 1]])
        assert not torch.equal(seen[pre[i]], seen[post[i]])
    assert {x.shape for x in seen.values()} == {(1, IDS.shape[1], anatomy.d_model)}


@every_family
def test_the_stream_is_the_embedding_and_all_writes(family: str) -> None:
    """resid = carry * gains * resid + sum of coefficient * gains * write (+ offset), from embed to the last layer."""
    _, anatomy, model = built(family)
    writes = {write.tap for layer in anatomy.layers for write in layer.writes}
    seen = run(model, {anatomy.tap("embed"), *(anatomy.tap("resid_post", i) for i in range(4)), *writes})
    resid = seen[anatomy.tap("embed")]
    assert resid.dtype == torch.float64
    for i, layer in enumerate(anatomy.layers):
        resid = layer.carry * gained(resid.double(), layer.carry_gains, model)
        for write in layer.writes:
            part = seen[write.tap].double().reshape(resid.shape)
            resid = resid + write.coefficient * gained(part, write.gains, model)
        if layer.offset:
            resid = resid + model.get_parameter(layer.offset).flatten()
        assert close(resid, seen[anatomy.tap("resid_post", i)]), layer.equation


@every_family
def test_the_last_stream_through_norm_and_head_is_the_logits(family: str) -> None:
    _, anatomy, model = built(family)
    last, logits = anatomy.tap("resid_post", -1), anatomy.tap("logits")
    seen = run(model, {last, logits})
    assert anatomy.readout_exact and anatomy.head is not None
    x = seen[last]
    with torch.no_grad():
        if anatomy.has("final_norm"):
            x = model.get_submodule(anatomy.tap("final_norm").path)(x)
        x = model.get_submodule(anatomy.head)(x) * anatomy.readout.scale
    if anatomy.readout.cap is not None:
        x = anatomy.readout.cap * torch.tanh(x / anatomy.readout.cap)
    assert close(x, seen[logits], 1e-9 if seen[logits].dtype == torch.float64 else 1e-6)  # some give float32 whatever they are
    assert seen[logits].shape[-1] == anatomy.d_vocab


@every_family
def test_the_middle_is_before_the_mlp_and_after_the_attention(family: str) -> None:
    _, anatomy, model = built(family)
    found = [i for i in range(4) if anatomy.has("resid_mid", i)]
    if family in PARALLEL or family in {"mamba", "roberta"}:
        assert not found
        return
    assert found == [0, 1, 2, 3]
    for i in found:
        layer = anatomy.layers[i]
        mid, mlp, post = (anatomy.tap(site, i) for site in ("resid_mid", "mlp_out", "resid_post"))
        seen = run(model, {mid, mlp, post})
        (write,) = (w for w in layer.writes if w.kind == "mlp")
        if not layer.carry_gains:
            total = seen[mid] + write.coefficient * seen[mlp].reshape(seen[mid].shape)
            assert close(total, seen[post])
        else:  # a gain per channel: the same one at all positions
            gain = (seen[post] - gained(seen[mlp], write.gains, model)) / seen[mid]
            assert close(gain[0, 1:], gain[0, :1].expand_as(gain[0, 1:]), 1e-6)


@every_family
def test_attention_mixes_positions_and_the_mlp_does_not(family: str) -> None:
    """A change of resid_mid at one position changes mlp_out there alone; one of resid_pre changes attn_out later too."""
    _, anatomy, model = built(family)

    def bend(x: Tensor) -> Tensor:
        bent = x.clone()
        bent[0, 4] += torch.linspace(-2, 3, x.shape[-1], dtype=x.dtype)
        return bent

    def changed(source: Tap, target: Tap) -> list[int]:
        width = anatomy.d_model
        one, other = (run(model, {target}, edits=e)[target].reshape(-1, width) for e in ({}, {source: bend}))
        return ((one - other).abs().amax(-1) > 1e-9 * one.abs().max()).nonzero().flatten().tolist()

    for i in range(4):
        if anatomy.has("resid_mid", i):
            assert changed(anatomy.tap("resid_mid", i), anatomy.tap("mlp_out", i)) == [4]
        if anatomy.has("attn_out", i):
            where = changed(anatomy.tap("resid_pre", i), anatomy.tap("attn_out", i))
            assert where[0] == 4 and len(where) > 1


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "mixtral", "gemma2", "gemma3_text", "cohere", "olmo2", "phi", "granite", "gpt_oss"]
)
def test_a_head_of_z_is_that_head(family: str) -> None:
    """Another query projection of one head changes that head's slice of z, and no other."""
    _, anatomy, model = built(family)
    model, layer, head = copy.deepcopy(model), 2, 1
    tap, width = anatomy.tap("z", layer), anatomy.layers[layer].d_head
    before = run(model, {tap})[tap]
    with torch.no_grad():
        model.get_submodule(f"{anatomy.layers[layer].attention}.q_proj").weight[head * width : (head + 1) * width] += 0.3
    change = (run(model, {tap})[tap] - before).abs().reshape(IDS.shape[1], anatomy.n_heads("z", layer), width)
    if family == "olmo2":  # one norm over all heads' queries
        assert change[:, head].max() > 2 * change[:, [0, 2, 3]].max()
    else:
        assert change.amax((0, 2)).nonzero().flatten().tolist() == [head]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen3", "gemma2", "gpt_oss", "gpt_neox", "deepseek_v3"])
def test_numbers_are_those_of_the_config(family: str) -> None:
    model, anatomy, _ = built(family)
    config = model.config
    assert (anatomy.d_model, anatomy.d_vocab, anatomy.n_layers) == (
        config.hidden_size, config.vocab_size, config.num_hidden_layers,
    )  # fmt: skip
    for site in ("q", "z", "pattern", "scores"):
        assert anatomy.n_heads(site, 1) == config.num_attention_heads
    for site in ("k", "v"):
        assert anatomy.n_heads(site) == getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert anatomy.n_heads("resid_mid") == anatomy.n_heads("attn_out", 0) == 0
    assert anatomy.causal


EQUATIONS = {
    "llama": "resid_post = resid_pre + self_attn + mlp",
    "gemma2": "resid_post = resid_pre + post_attention_layernorm + post_feedforward_layernorm",
    "minicpm3": "resid_post = resid_pre + 0.7 self_attn + 0.7 mlp",
    "falcon_h1": "resid_post = resid_pre + mamba + self_attn + feed_forward",
    "gpt_neox_japanese": "resid_post = resid_pre + attention + mlp + attention.dense_bias",
    "mamba": "resid_post = resid_pre + mixer",
    "roberta": "resid_post = output (nothing of resid_pre is carried around it)",
}


@every_family
def test_a_width_is_that_of_the_tensor(family: str) -> None:
    """Counted in a text of another length than that with which the anatomy was found."""
    model, anatomy, _ = built(family)
    where = {(site, -1): tap for site, tap in anatomy.taps.items()}
    where |= {(site, i): tap for i, layer in enumerate(anatomy.layers) for site, tap in layer.taps.items()}
    seen = run(model, set(where.values()), ids=IDS[:, :4])
    for (site, layer), tap in where.items():
        found = anatomy.site(site, layer)
        values = found.by_head(found.positions_first(seen[tap]).reshape(4, -1))
        assert values.numel() == 4 * found.width * (found.n_heads or 1), (site, layer)
    calls: dict[tuple[str, int], AttentionCall] = {}
    with torch.no_grad(), attending(model, lambda path, call, _: calls.update({(path, call.visit): call})):
        model(IDS)
    for site, field in (("q", "query"), ("k", "key"), ("v", "value")):
        for layer in range(anatomy.n_layers):
            if anatomy.has(site, layer):
                found = anatomy.site(site, layer)
                tensor = getattr(calls[found.call], field)
                assert (found.n_heads, found.width) == (tensor.shape[1], tensor.shape[3])


@pytest.mark.parametrize("family", EQUATIONS)
def test_the_last_layers_equation_in_words(family: str) -> None:
    assert built(family)[1].layers[-1].equation == EQUATIONS[family]


def test_scales_and_caps_between_head_and_logits() -> None:
    assert built("gemma2")[1].readout == (1.0, 30.0)
    assert built("cohere")[1].readout == (0.0625, None)
    assert built("granite")[1].readout == (0.125, None)
    assert built("minicpm3")[1].readout.scale == pytest.approx(built("minicpm3")[0].config.dim_model_base / 64)
    # granite's residual multiplier stands outside its parts
    assert {w.coefficient for layer in built("granite")[1].layers for w in layer.writes} == {0.22}


def test_a_hybrids_layers_differ() -> None:
    _, anatomy, _ = built("jamba")
    assert [anatomy.has("pattern", i) for i in range(4)] == [False, True, False, True]
    assert [anatomy.n_heads("z", i) for i in range(4)] == [0, 4, 0, 4]
    with pytest.raises(SiteAbsent, match=r"layer 0 has no 'z': .*registry") as caught:
        anatomy.tap("z", 0)
    assert "attn_out" in caught.value.hint and "pattern" not in caught.value.hint


def test_layers_and_sites_that_are_not_there_are_clear_errors() -> None:
    _, anatomy, _ = built("phi")
    assert anatomy.tap("resid_post", -1) == anatomy.tap("resid_post", 3)
    for call in (anatomy.tap, anatomy.has, anatomy.n_heads, anatomy.reason):
        with pytest.raises(OutOfRange, match="there is no layer 4") as caught:
            call("z", 4)
        assert caught.value.hint == "layers 0 to 3"
    with pytest.raises(OutOfRange):
        anatomy.tap("resid_post", -5)
    with pytest.raises(SiteAbsent, match="layer 2 has no 'resid_mid': no module reads"):
        anatomy.tap("resid_mid", 2)
    assert not anatomy.has("resid_mid", 2) and not anatomy.has("nonsense", 2)
    with pytest.raises(SiteAbsent, match="nonsense"):
        anatomy.tap("nonsense")
    _, anatomy, _ = built("roberta")
    assert not anatomy.has("final_norm")
    with pytest.raises(SiteAbsent, match="no 'final_norm': the head reads the last resid_post as it is"):
        anatomy.tap("final_norm")
    with pytest.raises(SiteAbsent, match="ends with a norm"):
        anatomy.tap("attn_out", 0)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("xlm", "no chain of sibling modules hands"),
        ("xlnet", r"tensors of shape \(13, 1, 64\) for 13 tokens, not \(batch, pos, d_model\)"),
        ("cpmant", "for 13 tokens, not"),
        ("gemma3n_text", "4 residual streams, not one"),
    ],
)
def test_a_model_without_a_chain_of_blocks_says_why(family: str, why: str) -> None:
    _, anatomy, _ = built(family)
    assert anatomy.n_layers == 0 and not anatomy.readout_exact
    for call in (anatomy.tap, anatomy.has):
        with pytest.raises(SiteAbsent, match=why):
            call("resid_post", 0)
    assert anatomy.has("logits") and not anatomy.has("embed")
    with pytest.raises(SiteAbsent, match="no 'embed'"):
        anatomy.tap("embed")


@pytest.mark.slow
def test_attention_over_something_else_than_the_texts_positions_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """inkling2 attends over its blocks at each position: its "heads" would be as many as there are tokens."""
    model, _ = tiny("inkling2_text")
    anatomy = find(model)
    assert {layer.n_heads for layer in anatomy.layers} <= {0, 4}
    monkeypatch.setattr(tape_module, "N_TOKENS", (17,))
    again = find(model)
    assert [(la.taps, la.n_heads, la.n_kv_heads) for la in anatomy.layers] == [
        (la.taps, la.n_heads, la.n_kv_heads) for la in again.layers
    ]


def test_the_number_of_tokens_is_no_size_of_the_model() -> None:
    assert tape_module.n_tokens(tiny("llama")[0]) == 13
    assert tape_module.n_tokens(tiny("llama", intermediate_size=13)[0]) == 11


def test_blocks_that_are_no_part_of_the_stream_are_named() -> None:
    """hrm_text loops over two stacks: the stream that ends in the logits is the last visit of one of them."""
    _, anatomy, _ = built("hrm_text")
    assert all(layer.block.startswith("model.H_module.layers.") for layer in anatomy.layers)
    assert {layer.attention for layer in anatomy.layers} == {f"{layer.block}.self_attn" for layer in anatomy.layers}
    assert {tap.call for layer in anatomy.layers for tap in layer.taps.values()} == {1}
    assert "'model.L_module.layers' (24 calls), 'model.H_module.layers' (4 calls)" in anatomy.absent["elsewhere"]
    assert "elsewhere" not in built("llama")[1].absent


def test_several_streams_hide_the_sum_but_not_the_attention() -> None:
    _, anatomy, _ = built("deepseek_v4")
    assert anatomy.n_layers == 4 and not anatomy.readout_exact
    with pytest.raises(SiteAbsent, match="4 residual streams, not one") as caught:
        anatomy.tap("resid_post", 1)
    assert "pattern" in caught.value.hint
    assert anatomy.has("pattern", 1) and anatomy.n_heads("pattern", 1) == 4


def test_a_model_that_reads_ahead_is_not_causal() -> None:
    from transformers import BertConfig, BertLMHeadModel

    def bert(is_decoder: bool) -> nn.Module:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            is_decoder=is_decoder,
        )  # fmt: skip
        return BertLMHeadModel(config).eval()

    assert find(bert(True)).causal
    looking = find(bert(False))
    assert not looking.causal and looking.n_layers == 2 and looking.readout_exact


def test_finding_leaves_the_model_as_it_was() -> None:
    model, _, _ = built("jamba")
    weights = {name: p.clone() for name, p in model.state_dict().items()}
    with torch.no_grad():
        logits = model(IDS).logits
        found = find(model)
        assert torch.equal(model(IDS).logits, logits)
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0
    assert find(model) == found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "phi", "minicpm3", "granite"])
def test_other_precisions_have_the_same_anatomy(family: str, dtype: torch.dtype) -> None:
    model, anatomy, double = built(family)
    other = find(copy.deepcopy(model if dtype != torch.float64 else double).to(dtype))
    assert other.readout_exact and other.readout == anatomy.readout
    for one, two in zip(other.layers, anatomy.layers, strict=True):
        assert (one.equation, one.taps, one.attention, one.writes) == (two.equation, two.taps, two.attention, two.writes)


def test_small_logits_do_not_hide_a_cap_in_few_bits() -> None:
    """In bfloat16 a cap of 30 on logits below 3 is less than rounding: gemma2 lost it until the head was made loud."""
    model, _, _ = built("gemma2")
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert run(half, {Tap("", "output", "logits")})[Tap("", "output", "logits")].abs().max() < 10
    assert find(half).readout == (1.0, 30.0)


@pytest.mark.parametrize("family", ["bloom", "dbrx", "rwkv", "minimax"])
def test_rounding_is_no_coefficient(family: str) -> None:
    """In bfloat16 sums such as `0.0001 resid_pre + resid_mid + mlp` fitted, with carries that were nothing but noise."""
    model, anatomy, _ = built(family)
    found = find(copy.deepcopy(model).to(torch.bfloat16))
    assert [layer.equation for layer in found.layers] == [layer.equation for layer in anatomy.layers]


def test_a_cast_on_the_way_to_the_logits_is_told() -> None:
    half = copy.deepcopy(tiny("mamba")[0]).to(torch.bfloat16)
    anatomy = find(half)
    assert anatomy.has("resid_post", 1) and not anatomy.readout_exact
    assert "cast to another precision before 'lm_head'" in anatomy.absent["final_norm"]


@every_family
def test_an_anatomy_survives_json_and_holds_on_its_model(family: str) -> None:
    model, anatomy, double = built(family)
    assert Anatomy.from_dict(json.loads(json.dumps(anatomy.to_dict()))) == anatomy
    assert verify(model, anatomy) == [] and verify(double, anatomy) == []


def test_verify_tells_what_does_not_hold() -> None:
    model, anatomy, _ = built("llama")
    wrong = anatomy.to_dict()
    wrong["layers"][1]["writes"][0][1] = 0.9
    wrong["readout"] = [2.0, None]
    problems = verify(model, Anatomy.from_dict(wrong))
    assert len(problems) == 2
    assert problems[0].startswith("layer 1: resid_post = resid_pre + self_attn + mlp is off by")
    assert problems[1].startswith("logits are not the readout")
    assert "not where it was" in verify(built("gpt2")[0], anatomy)[0]


def test_the_cache_is_used_checked_and_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, anatomy, _ = built("gemma2")
    assert cached_find(model, None) == cached_find(model, tmp_path) == anatomy
    (kept,) = tmp_path.glob("*.json")
    searches: list[nn.Module] = []

    def search(model: nn.Module) -> Anatomy:
        searches.append(model)
        return find(model)

    monkeypatch.setattr(finding_module, "find", search)
    assert cached_find(model, tmp_path) == anatomy and not searches
    wrong = anatomy.to_dict()
    wrong["layers"][0]["taps"]["resid_post"][0] = wrong["layers"][1]["taps"]["resid_post"][0]
    for text in ("", "{}", "[1]", kept.read_text()[:100], json.dumps(wrong)):
        kept.write_text(text)
        searches.clear()
        assert cached_find(model, tmp_path) == anatomy and len(searches) == 1
        assert Anatomy.from_dict(json.loads(kept.read_text())) == anatomy
    other, _ = tiny("gemma2", layers=4, seed=1)
    assert cached_find(other, tmp_path) and len(searches) == 1  # other weights, same anatomy
    cached_find(tiny("gemma2", layers=2)[0], tmp_path)
    assert len(searches) == 2 and len(list(tmp_path.glob("*.json"))) == 2
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert cached_find(model, in_the_way) == anatomy


def test_zeroed_weights_leave_nothing_behind(tmp_path: Path) -> None:
    """An anatomy that lacks something because of a model's weights is not kept for others of its class and config."""
    model = tiny("llama")[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    cached_find(model, tmp_path)
    whole = cached_find(tiny("llama")[0], tmp_path)
    assert whole.readout_exact and all(len(layer.writes) == 2 for layer in whole.layers)
