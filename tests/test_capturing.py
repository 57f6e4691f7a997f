"""What a read hands over is what plain forward hooks see, changes no logit, and leaves no hook; on families that differ."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import probe
from probe.capturing import AttentionSpec, MemorySink, read
from probe.capturing.rows import PieceMemory
from probe.errors import NonFinite, SiteAbsent
from probe.sites import Cell, parse_places

# where each family keeps what its sites are: blocks, then module and side below a block
LLAMA = {
    "attn_out": ("self_attn", "output"), "resid_mid": ("post_attention_layernorm", "input"), "mlp_out": ("mlp", "output"),
    "z": ("self_attn.o_proj", "input"), "mlp_post": ("mlp.down_proj", "input"),
}  # fmt: skip
MIXTURE = {site: where for site, where in LLAMA.items() if site != "mlp_post"}
HYBRID = {
    "attn_out": ("self_attn", "output"), "resid_mid": ("pre_ff_layernorm", "input"),
    "mlp_out": ("feed_forward", "output"), "z": ("self_attn.o_proj", "input"),
    "mlp_post": ("feed_forward.down_proj", "input"),
}  # fmt: skip
PLACES = {
    "llama": ("model.layers", LLAMA), "qwen3": ("model.layers", LLAMA),
    "mixtral": ("model.layers", MIXTURE), "gpt_oss": ("model.layers", MIXTURE),
    "gpt2": ("transformer.h", {
        "attn_out": ("attn", "output"), "resid_mid": ("ln_2", "input"), "mlp_out": ("mlp", "output"),
        "z": ("attn.c_proj", "input"), "mlp_post": ("mlp.c_proj", "input"),
    }),
    "gemma2": ("model.layers", {
        "attn_out": ("post_attention_layernorm", "output"), "resid_mid": ("pre_feedforward_layernorm", "input"),
        "mlp_out": ("post_feedforward_layernorm", "output"), "z": ("self_attn.o_proj", "input"),
        "mlp_post": ("mlp.down_proj", "input"),
    }),
    "bloom": ("transformer.h", {
        "attn_out": ("self_attention.dense", "output"), "resid_mid": ("post_attention_layernorm", "input"),
        "mlp_out": ("mlp.dense_4h_to_h", "output"), "mlp_post": ("mlp.dense_4h_to_h", "input"),
    }),
    "falcon_h1": ("model.layers", HYBRID), "smollm2": ("model.layers", LLAMA),
}  # fmt: skip
SLOW = pytest.param("smollm2", marks=pytest.mark.slow)
FAMILIES = [*(name for name in PLACES if name != "smollm2"), SLOW]
STREAM = ["resid_pre@all", "resid_mid@all", "resid_post@all", "attn_out@all", "mlp_out@all"]
LENGTHS = [40, 7, 23, 1]  # some longer than the tiny models' sliding window of 16
TOLERANCE = 2e-5  # of the largest value: products of other shapes round otherwise in fp32


@functools.lru_cache(maxsize=4)
def loaded(name: str) -> probe.LanguageModel:
    return probe.load(name if name == "smollm2" else f"tiny:{name}")


def drawn(lm: probe.LanguageModel, *shape: int) -> Tensor:
    return torch.randint(3, 250, shape, generator=torch.Generator().manual_seed(1))


def plain(lm: probe.LanguageModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return lm.model(ids).logits


def cells_of(lm: probe.LanguageModel, places: Sequence[str]) -> tuple[Cell, ...]:
    a = lm.anatomy
    return a.cells([p for text in places for p in parse_places(text)])


def capture(lm: probe.LanguageModel, ids: Tensor, places: Sequence[str], lengths: Sequence[int] = (), **more: Any) -> Any:
    sink = MemorySink()
    read(lm, ids, lengths or [ids.shape[1]] * len(ids), cells=cells_of(lm, places), sink=sink, **more)
    return sink.activations


def seen_by_hooks(model: nn.Module, ids: Tensor, wanted: dict[Any, tuple[str, str]]) -> dict[Any, Tensor]:
    """A copy of the first tensor that goes into, or out of, each of these modules."""
    seen: dict[Any, Tensor] = {}

    def first(value: Any) -> Tensor:
        return (value if isinstance(value, Tensor) else value[0]).clone()

    def hook(key: Any, side: str) -> Any:
        def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            seen[key] = first(args[0] if args else kwargs["hidden_states"])

        def after(_: nn.Module, __: Any, output: Any) -> None:
            seen[key] = first(output)

        return before if side == "input" else after

    handles = []
    for key, (path, side) in wanted.items():
        module = model.get_submodule(path)
        if side == "input":
            handles.append(module.register_forward_pre_hook(hook(key, side), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(hook(key, side)))
    plain_logits = model(ids).logits
    assert plain_logits.isfinite().all()
    for handle in handles:
        handle.remove()
    return seen


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_capturing_changes_no_logit(family: str) -> None:
    lm = loaded(family)
    ids = drawn(lm, 2, 40)
    before = plain(lm, ids)
    everything = ["logits", "final_norm", *STREAM] + [f"{s}@all" for s in ("z", "q", "pattern", "scores") if family != "bloom"]
    for spec in ("none", "topk:3", "full"):
        found = capture(lm, ids, everything, attention=AttentionSpec.parse(spec), lens=spec == "full")
        assert torch.equal(found["logits", -1, None], before)
    assert torch.equal(plain(lm, ids), before)
    assert n_hooks(lm.model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_what_plain_hooks_see(family: str) -> None:
    lm, (blocks, inner) = loaded(family), PLACES[family]
    ids, n_layers = drawn(lm, 2, 40), len(lm.model.get_submodule(blocks))
    wanted: dict[Any, tuple[str, str]] = {}
    for layer in range(n_layers):
        block = f"{blocks}.{layer}"
        wanted |= {("resid_pre", layer): (block, "input"), ("resid_post", layer): (block, "output")}
        wanted |= {(site, layer): (f"{block}.{path}", side) for site, (path, side) in inner.items()}
    with torch.no_grad():
        expected = seen_by_hooks(lm.model, ids, wanted)
    found = capture(lm, ids, STREAM + [f"{s}@all" for s in ("mlp_post",) if s in inner])
    for (site, layer), value in expected.items():
        if site == "z":
            continue
        assert torch.equal(found[site, layer, None], value), (site, layer)
    if "z" in inner:
        z = capture(lm, ids, ["z@all"])
        for layer in range(n_layers):
            heads = expected["z", layer].unflatten(-1, (lm.anatomy.n_heads("z", layer), -1))
            for head in range(heads.shape[2]):
                assert torch.equal(z["z", layer, head], heads[:, :, head]), (layer, head)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_a_sum(family: str) -> None:
    lm = loaded(family)
    found = capture(lm, drawn(lm, 1, 30), STREAM)
    n_layers = lm.anatomy.n_layers
    site = {name: [found[name, i, None] for i in range(n_layers)] for name in ("resid_pre", "resid_mid", "resid_post")}
    mlp, attn = ([found[name, i, None] for i in range(n_layers)] for name in ("mlp_out", "attn_out"))
    size = float(site["resid_post"][-1].abs().max()) * 1e-6
    for i in range(n_layers):
        torch.testing.assert_close(site["resid_mid"][i] + mlp[i], site["resid_post"][i], atol=size, rtol=1e-6)
        if i:
            assert torch.equal(site["resid_pre"][i], site["resid_post"][i - 1])
    if family == "falcon_h1":  # two mixers write side by side, and attention is only one of them
        return
    for i in range(n_layers):
        torch.testing.assert_close(site["resid_pre"][i] + attn[i], site["resid_mid"][i], atol=size, rtol=1e-6)
    total = site["resid_pre"][0].double() + sum(x.double() for x in (*attn, *mlp))
    torch.testing.assert_close(total.float(), site["resid_post"][-1], atol=3 * size, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_batch_is_each_alone(family: str) -> None:
    lm = loaded(family)
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, n in zip(ids, LENGTHS, strict=True):
        row[:n] = drawn(lm, n)
    places = [*STREAM, "logits"]
    sink, cells = MemorySink(), cells_of(lm, places)
    together = read(lm, ids, LENGTHS, cells=cells, attention=AttentionSpec.parse("summary"), lens=True, sink=sink)
    for b, n in enumerate(LENGTHS):
        own = MemorySink()
        alone = read(lm, ids[b : b + 1, :n], [n], cells=cells, attention=AttentionSpec.parse("summary"), lens=True, sink=own)
        for key, value in own.activations.items():
            close(sink.activations[key][b : b + 1, :n], value, key)
        for name, value in alone.scores[0]._asdict().items():
            if name not in ("rank", "top_ids"):  # neighbours in rank may swap where they are equal to rounding
                close(getattr(together.scores[b], name), value, name)
        for layer, card in own.summaries.items():
            for name, column in card.items():
                close(torch.tensor(sink.summaries[layer][name][b]), torch.tensor(column[0]), name)
        for (_, layer), lines in own.row_pieces.items():
            for name, column in lines.items():
                if name != "max_key":
                    close(torch.tensor(sink.row_pieces[b, layer][name]), torch.tensor(column), name)
        for layer, guess in own.guesses.items():
            for name in ("target_logprob", "entropy", "kl_to_final", "top_logprobs"):
                close(torch.tensor(sink.guesses[layer][name][b, :n]), torch.tensor(guess[name][0]), name)


def close(found: Tensor, expected: Tensor, what: object) -> None:
    size = max(1.0, float(expected.double().nan_to_num(neginf=0).abs().max()))
    torch.testing.assert_close(
        found, expected, atol=TOLERANCE * size, rtol=TOLERANCE, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "gemma2", SLOW])
def test_queries_keys_and_values_are_projections_normed_and_rotated(family: str) -> None:
    lm = loaded(family)
    ids, model = drawn(lm, 2, 20), lm.model.model
    found = capture(lm, ids, ["q@all", "k@all", "v@all"])
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
    wanted = {(s, i): (f"model.layers.{i}.self_attn.{p}", "output") for s, p in names.items() for i in range(len(model.layers))}
    with torch.no_grad():
        linear = seen_by_hooks(lm.model, ids, wanted)
        cos, sin = model.rotary_emb(linear["q", 0], torch.arange(20)[None])
        for layer, block in enumerate(model.layers):
            q, k, v = (linear[site, layer].unflatten(-1, (-1, block.self_attn.head_dim)) for site in "qkv")
            if hasattr(block.self_attn, "q_norm"):
                q, k = block.self_attn.q_norm(q), block.self_attn.k_norm(k)
            q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
            for site, expected in (("q", q), ("k", k), ("v", v.transpose(1, 2))):
                for head in range(expected.shape[1]):
                    assert torch.equal(found[site, layer, head], expected[:, head]), (site, layer, head)


def test_queries_keys_and_values_of_one_fused_projection() -> None:
    lm = loaded("gpt2")
    ids = drawn(lm, 1, 20)
    found = capture(lm, ids, ["q@1", "k@1.2", "v@1.3"])
    with torch.no_grad():
        fused = seen_by_hooks(lm.model, ids, {"qkv": ("transformer.h.1.attn.c_attn", "output")})["qkv"]
    q, k, v = (part.unflatten(-1, (4, 16)) for part in fused.chunk(3, dim=-1))
    for head in range(4):
        assert torch.equal(found["q", 1, head], q[:, :, head])
    assert torch.equal(found["k", 1, 2], k[:, :, 2]) and torch.equal(found["v", 1, 3], v[:, :, 3])
    assert len(found) == 6


def test_a_hybrid_has_attention_where_it_has_it() -> None:
    lm = loaded("jamba")
    kinds = lm.model.config.layer_types
    attends = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    assert 0 < len(attends) < len(kinds)
    sink, ids = MemorySink(), drawn(lm, 1, 20)
    read(lm, ids, [20], cells=cells_of(lm, ["q@all"]), attention=AttentionSpec.parse("heads"), sink=sink)
    assert sorted(sink.summaries) == attends and {layer for _, layer, _ in sink.activations} == set(attends)
    with pytest.raises(SiteAbsent):
        cells_of(lm, [f"q@{next(i for i in range(len(kinds)) if i not in attends)}"])


@pytest.mark.parametrize("forward", ["in_place", "scribbles"])
def test_what_a_model_overwrites_is_copied_first(forward: str) -> None:
    """Zero-copy hands over the model's own memory: where the model writes into it later, that would be another number."""
    expected = capture(loaded("llama"), drawn(loaded("llama"), 1, 24), STREAM)
    lm = probe.load("tiny:llama")
    for block in lm.model.model.layers:
        block.forward = functools.partial({"in_place": _in_place, "scribbles": _scribbles}[forward], block)
    found = capture(lm, drawn(lm, 1, 24), STREAM)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def _in_place(block: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """A decoder layer that adds to its own input."""
    hidden_states += block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)[0]
    hidden_states += block.mlp(block.post_attention_layernorm(hidden_states))
    return hidden_states


def _scribbles(block: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """One that uses the memory of its writes again."""
    write = block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)[0]
    middle = hidden_states + write
    write.zero_()
    write = block.mlp(block.post_attention_layernorm(middle))
    after = middle + write
    write.fill_(7.0)
    middle.fill_(7.0)
    return after


class Stumbles(MemorySink):
    """A sink whose disk is full after a while."""

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        if layer == 1:
            raise OSError("no space left")

    def heads(self, layer: int, columns: dict[str, Any]) -> None:
        if layer == 1:
            raise OSError("no space left")


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "falcon_h1"])
def test_nothing_is_left_behind_when_a_read_fails(family: str) -> None:
    lm = loaded(family)
    ids = drawn(lm, 1, 12)
    before = plain(lm, ids)
    spec = AttentionSpec.parse("heads")
    for cells in (cells_of(lm, ["resid_post@all"]), ()):
        with pytest.raises(OSError, match="no space left"):
            read(lm, ids, [12], cells=cells, attention=spec, sink=Stumbles())
        assert n_hooks(lm.model) == 0 and "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
    with pytest.raises(IndexError):  # the model itself fails: no such token
        read(lm, torch.full((1, 12), 10**6), [12], cells=cells_of(lm, STREAM), attention=spec, sink=MemorySink())
    assert n_hooks(lm.model) == 0 and "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
    assert torch.equal(plain(lm, ids), before)


def test_a_head_that_cuts_before_its_norm_still_tells_of_every_position() -> None:
    """Asked for the last logits only, some models norm the last position only: the other scores were lost."""
    lm = loaded("bert")
    ids = drawn(lm, 2, 17)
    for cells in ((), cells_of(lm, ["final_norm"])):
        scores = read(lm, ids, [17, 17], cells=cells, sink=MemorySink()).scores
        exact = plain(lm, ids).double().log_softmax(-1)
        for one, own in zip(scores, exact, strict=True):
            torch.testing.assert_close(one.entropy.double(), -(own.exp() * own).sum(-1), atol=1e-5, rtol=0)


def test_weights_that_are_no_numbers_are_an_error() -> None:
    lm = probe.load("tiny:llama")
    assert lm.anatomy.n_layers == 3
    lm.model.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
    with pytest.raises(NonFinite):
        read(lm, drawn(lm, 1, 9), [9], attention=AttentionSpec.parse("heads"), sink=MemorySink())
    assert n_hooks(lm.model) == 0


@pytest.mark.parametrize("family", ["granitemoehybrid", "mamba", "jamba"])
def test_a_model_that_keeps_no_cache_of_keys_is_read_too(family: str) -> None:
    """The first has no layer of attention here: with the cache that its `forward` makes, `model(ids)` itself fails."""
    lm = probe.load(f"tiny:{family}")
    ids = drawn(lm, 1, 20)
    with torch.no_grad():
        logp = lm.model(ids, use_cache=False).logits[0].double().log_softmax(-1)
    found = read(lm, ids, [20], sink=MemorySink()).scores[0].logprob
    expected = logp[:-1].gather(1, ids[0, 1:, None])[:, 0].float()
    torch.testing.assert_close(found[: len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_memory_is_taken_again_when_nobody_looks_at_it() -> None:
    memory = PieceMemory()
    lent = memory.take(100)
    place, view = lent.ctypes.data, lent[10:20]
    listed = pa.ListArray.from_arrays(pa.array([0, 10], pa.int32()), pa.array(view))
    del lent, view
    assert memory.take(100).ctypes.data != place, "an Arrow array still looks at it"
    tensor = torch.from_dlpack(listed.values)
    del listed
    assert memory.take(50).ctypes.data != place
    del tensor
    assert place in {lent.ctypes.data for lent in [memory.take(60), memory.take(60), memory.take(60)]}
    assert len(memory.take(1000)) >= 1000
