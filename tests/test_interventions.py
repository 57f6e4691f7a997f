"""Edits do what plain hooks, changed weights and plain masks do; those that change nothing change no bit; none remains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import probe
from probe.capturing import MemorySink, read
from probe.decoding import Sampling, decode
from probe.decoding.caches import held, slot
from probe.errors import BadEdit, BadPlace, OutOfRange, ProbeError, SiteAbsent
from probe.interventions import (
    Add,
    Cut,
    Edit,
    Mean,
    Noise,
    Patch,
    Project,
    Resample,
    Scale,
    Zero,
    applying,
    cells,
    load_direction,
    locate_edits,
    parse_edits,
    save_direction,
)  # fmt: skip
from probe.interventions.experts import ExpertEdit
from probe.language_model.stepping import cache_support
from probe.registries.edit_operations import OPERATIONS, Operation, edit_help
from probe.sites import Cell, Positions
from probe.tiny import tiny

# blocks; below a block: what writes for the attention, for the MLP, and the projection of the heads
PLACES = {
    "llama": ("model.layers", "self_attn", "mlp", "self_attn.o_proj"),
    "qwen3": ("model.layers", "self_attn", "mlp", "self_attn.o_proj"),
    "mixtral": ("model.layers", "self_attn", "mlp", "self_attn.o_proj"),
    "gpt_oss": ("model.layers", "self_attn", "mlp", "self_attn.o_proj"),
    "gpt2": ("transformer.h", "attn", "mlp", "attn.c_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp", "attention.dense"),
    "gemma2": ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj"),
    "falcon_h1": ("model.layers", "self_attn", "feed_forward", "self_attn.o_proj"),
    "jamba": ("model.layers", ("mamba", "self_attn", "mamba"), "feed_forward", "self_attn.o_proj"),
    "bloom": ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h", None),
}
FAMILIES = list(PLACES)

HEADS = [family for family in FAMILIES if PLACES[family][3]]
LAYER = 1  # has attention in each of them
N = 24  # more than the tiny models' sliding window of 16
CLOSE = {"rtol": 1e-4, "atol": 2e-5}  # sums in another order, in fp32


@functools.cache
def loaded(family: str) -> probe.LanguageModel:
    return probe.load(f"tiny:{family}")


def drawn(rows: int = 1, n: int = N, seed: int = 1) -> Tensor:
    return torch.randint(3, 250, (rows, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(lm: probe.LanguageModel, ids: Tensor, **more: Any) -> Tensor:
    return lm.model(ids, **more).logits


def edited(lm: probe.LanguageModel, ids: Tensor, edits: Sequence[Edit], *, text: Any = None) -> Tensor:
    with applying(lm, edits, ids=text) as applied:
        found = logits(lm, ids)
    assert not applied.untouched()
    return found


def cell(lm: probe.LanguageModel, place: str) -> Cell:
    (found,) = cells(lm, place)
    return found


def module(family: str, part: str, layer: int = LAYER) -> nn.Module:
    blocks, attn, mlp, heads = PLACES[family]
    attn = attn if isinstance(attn, str) else attn[layer]
    name = {"block": "", "attn_out": attn, "mlp_out": mlp, "heads": heads}[part]
    return loaded(family).model.get_submodule(f"{blocks}.{layer}.{name}".rstrip("."))


@contextmanager
def hooked(target: nn.Module, change: Callable[[Tensor], Tensor], *, side: str = "output") -> Iterator[None]:
    """A plain hook that changes the first tensor that goes into, or comes out of, a module."""

    def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

    handle = (
        target.register_forward_hook(after) if side == "output" else target.register_forward_pre_hook(before, with_kwargs=True)
    )
    try:
        yield
    finally:
        handle.remove()


def captured(lm: probe.LanguageModel, ids: Tensor, *wanted: Cell) -> dict[Any, Tensor]:
    sink = MemorySink()
    read(lm, ids, [ids.shape[1]] * len(ids), cells=wanted, sink=sink)
    return sink.activations


def value_of(lm: probe.LanguageModel, ids: Tensor, one: Cell) -> Tensor:
    """(batch, pos, [head,] d) of a cell."""
    found = captured(lm, ids, one)
    if one.heads is None:
        return found[one.site, one.layer, None]
    return torch.stack([found[one.site, one.layer, head] for head in one.heads], dim=2)


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def changeable(lm: probe.LanguageModel) -> list[Cell]:
    """One cell of each site that the model has, but for patterns."""
    names = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "z", "q", "k", "v")
    found = [cell(lm, f"{s}@{LAYER}" if s != "embed" else s) for s in names if lm.anatomy.has(s, LAYER)]
    return [*found, *cells(lm, "final_norm"), *cells(lm, "logits")]


# ---- what an edit is, against plain hooks and changed weights


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
def test_zero_is_a_plain_hook_that_zeroes_the_module(family: str, site: str) -> None:
    lm, ids = loaded(family), drawn(2)
    with hooked(module(family, site), torch.zeros_like):
        expected = logits(lm, ids)
    assert torch.equal(edited(lm, ids, [Zero(cell(lm, f"{site}@{LAYER}"))]), expected)
    assert not torch.equal(expected, logits(lm, ids))


@pytest.mark.parametrize("family", HEADS)
def test_a_head_zeroed_is_its_columns_of_the_projection_zeroed(family: str) -> None:
    lm, ids, projection = loaded(family), drawn(2), module(family, "heads")
    d_head = lm.anatomy.layers[LAYER].d_head
    weight, kept = projection.weight, projection.weight.clone()
    transposed = type(projection).__name__ == "Conv1D"
    columns = weight[2 * d_head : 3 * d_head] if transposed else weight[:, 2 * d_head : 3 * d_head]
    with torch.no_grad():
        columns.zero_()
    expected = logits(lm, ids)
    with torch.no_grad():
        weight.copy_(kept)
    torch.testing.assert_close(edited(lm, ids, [Zero(cell(lm, f"z@{LAYER}.2"))]), expected, **CLOSE)
    assert not torch.allclose(expected, logits(lm, ids), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_add_is_a_plain_hook_before_the_block(family: str) -> None:
    lm, ids = loaded(family), drawn(2)
    vector = torch.randn(lm.anatomy.d_model, generator=torch.Generator().manual_seed(3))

    def at_four(x: Tensor) -> Tensor:
        return torch.cat([x[:, :4], x[:, 4:5] + 1.5 * vector, x[:, 5:]], dim=1)

    with hooked(module(family, "block"), at_four, side="input"):
        expected = logits(lm, ids)
    found = edited(lm, ids, [Add(cell(lm, f"resid_pre@{LAYER}:4"), vector, 1.5)])
    torch.testing.assert_close(found, expected, **CLOSE)
    # an expert that is given other rows beside these may add their products in another order
    torch.testing.assert_close(found[:, :4], logits(lm, ids)[:, :4], **CLOSE)
    before = edited(lm, ids, [Add(cell(lm, f"resid_post@{LAYER - 1}:4"), vector, 1.5)])
    assert torch.equal(before, found), "resid_post of a layer is resid_pre of the next"


@pytest.mark.parametrize("family", FAMILIES)
def test_without_any_write_only_the_embedding_is_left(family: str) -> None:
    lm, ids = loaded(family), drawn(2)
    edits = [Zero(c) for site in ("attn_out", "mlp_out") for c in cells(lm, f"{site}@all")]
    last = lm.anatomy.n_layers - 1
    first, end = Cell("resid_pre", 0, None, Positions()), Cell("resid_post", last, None, Positions())
    with applying(lm, edits), silent_mamba(lm, family):
        seen = captured(lm, ids, first, end)
    torch.testing.assert_close(seen["resid_post", last, None], seen["resid_pre", 0, None], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["beam", "minicpm3", "doge"])
def test_without_any_write_only_the_carried_embedding_is_left(family: str) -> None:
    """What a block multiplies its input by, a number or vectors of weights, is all that it still does."""
    lm, ids = loaded(family), drawn(2)
    edits = [Zero(c) for site in ("attn_out", "mlp_out") for c in cells(lm, f"{site}@all")]
    last = lm.anatomy.n_layers - 1
    with applying(lm, edits):
        seen = captured(lm, ids, *cells(lm, "resid_pre@0"), *cells(lm, f"resid_post@{last}"))
    expected = seen["resid_pre", 0, None]
    if family == "beam":  # its carries 0.577, 0.775 and 0.845 are sqrt(1/3), sqrt(3/5) and sqrt(5/7)
        expected = expected / 7**0.5
    if family == "doge":
        for layer in lm.model.model.layers:
            expected = expected * layer.input_residual * layer.post_attention_residual
    torch.testing.assert_close(seen["resid_post", last, None], expected, rtol=0, atol=1e-6)


@contextmanager
def silent_mamba(lm: probe.LanguageModel, family: str) -> Iterator[None]:
    """The third writer of this family is no site: a plain hook takes it out."""
    if family != "falcon_h1":
        yield
        return
    with ExitStack() as hooks:
        for block in lm.model.model.layers:
            hooks.enter_context(hooked(block.mamba, torch.zeros_like))
        yield


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt_neox"])
def test_an_edit_between_attention_and_mlp_reaches_both_readers(family: str) -> None:
    """resid_mid + v is what it would be had the attention written v more; zero is what it would be with −resid_pre."""
    lm, ids = loaded(family), drawn(2)
    vector = torch.randn(lm.anatomy.d_model, generator=torch.Generator().manual_seed(4))
    with hooked(module(family, "attn_out"), lambda x: x + vector):
        expected = logits(lm, ids)
    found = edited(lm, ids, [Add(cell(lm, f"resid_mid@{LAYER}"), vector)])
    torch.testing.assert_close(found, expected, **CLOSE)
    middle = cell(lm, f"resid_mid@{LAYER}:3")
    with applying(lm, [Patch(middle, vector[None])]):
        post, mlp = (value_of(lm, ids, cell(lm, f"{s}@{LAYER}"))[:, 3] for s in ("resid_post", "mlp_out"))
    torch.testing.assert_close(post - mlp, vector.expand_as(post), rtol=0, atol=1e-5)


def test_a_block_without_a_middle_says_why() -> None:
    with pytest.raises(SiteAbsent, match="no layer"):
        cells(loaded("gpt_neox"), "resid_mid@all")
    with (
        pytest.raises(SiteAbsent, match="doesn't come after the attention"),
        applying(loaded("gpt_neox"), [Zero(Cell("resid_mid", 0, None, Positions()))]),
    ):
        pass


def test_a_block_that_adds_to_another_copy_refuses_an_edit_in_its_middle() -> None:
    """The norm reads one tensor and the sum another of equal values: a change of the first would be half a change."""
    model, tokenizer = tiny("llama")

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        middle = hidden_states + mixed
        return middle.clone() + self.mlp(self.post_attention_layernorm(middle))

    for layer in model.model.layers:
        layer.forward = functools.partial(forward, layer)
    lm = probe.LanguageModel(model, tokenizer, name="copies")
    assert lm.anatomy.has("resid_mid", 1)
    plain = logits(lm, drawn())
    with pytest.raises(SiteAbsent, match="another copy"), applying(lm, [Zero(cell(lm, "resid_mid@1"))]):
        pass
    assert torch.equal(logits(lm, drawn()), plain)


@pytest.mark.parametrize("factor", [0.22, 0.5])
def test_a_write_is_what_the_block_adds_coefficient_included(factor: float) -> None:
    """resid_post = resid_pre + 0.22 attn + 0.22 mlp: a patch of attn_out by v puts v, not 0.22 v, into the stream."""
    model, tokenizer = tiny("granite", residual_multiplier=factor)
    lm, ids = probe.LanguageModel(model, tokenizer, name="granite"), drawn(2)
    assert lm.anatomy.layers[1].writes[0].coefficient == pytest.approx(factor, rel=1e-3)
    attn = cell(lm, "attn_out@1")
    vector = torch.randn(64, generator=torch.Generator().manual_seed(5))
    with applying(lm, [Mean(attn, vector)]):
        seen = captured(lm, ids, cell(lm, "resid_pre@1"), cell(lm, "resid_mid@1"))
    added = seen["resid_mid", 1, None] - seen["resid_pre", 1, None]
    torch.testing.assert_close(added, vector.expand_as(added), rtol=0, atol=1e-5)
    itself = value_of(lm, ids, attn)
    assert torch.equal(edited(lm, ids, [Patch(attn, itself)]), logits(lm, ids))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_project_leaves_nothing_along_the_direction(family: str) -> None:
    lm, ids = loaded(family), drawn(2)
    vector = torch.randn(lm.anatomy.d_model, generator=torch.Generator().manual_seed(6))
    post = cell(lm, f"resid_post@{LAYER}")
    plain = value_of(lm, ids, post)
    with applying(lm, [Project(post, vector)]):
        left = value_of(lm, ids, post)
    unit = vector / vector.norm()
    assert float((left @ unit).abs().max()) < 1e-5 * float(left.norm(dim=-1).max())
    torch.testing.assert_close(plain - left, (plain @ unit)[..., None] * unit, rtol=0, atol=1e-5)


def test_per_head_vectors_go_to_their_heads() -> None:
    lm, ids = loaded("llama"), drawn(2)
    some = cell(lm, f"z@{LAYER}.1,{LAYER}.3:5")
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(7))
    with applying(lm, [Mean(some, vectors)]):
        seen = value_of(lm, ids, cell(lm, f"z@{LAYER}"))
    plain = value_of(lm, ids, cell(lm, f"z@{LAYER}"))
    assert torch.equal(seen[:, 5, [1, 3]], vectors.expand(2, 2, 16))
    assert torch.equal(seen[:, 5, [0, 2]], plain[:, 5, [0, 2]]) and torch.equal(seen[:, 6:], plain[:, 6:])


# ---- what changes nothing


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_changes_nothing_changes_no_bit(family: str) -> None:
    lm, ids = loaded(family), drawn(2)
    plain = logits(lm, ids)
    for one in changeable(lm):
        own = value_of(lm, ids, one)
        vector = torch.randn(own.shape[-1], generator=torch.Generator().manual_seed(8))
        for edit in (Patch(one, own), Scale(one, 1.0), Add(one, vector, 0.0), Noise(one, 0.0)):
            assert torch.equal(edited(lm, ids, [edit]), plain), str(edit)
    assert n_hooks(lm.model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_that_is_changed_has_an_effect(family: str) -> None:
    lm, ids = loaded(family), drawn(2)
    plain = logits(lm, ids)
    for one in changeable(lm):
        found = edited(lm, ids, [Noise(replace_positions(one, "6"), 1.0)])
        assert not torch.allclose(found[:, 6:], plain[:, 6:], **CLOSE), one
        # an expert that is given other rows beside these may add their products in another order
        torch.testing.assert_close(found[:, :6], plain[:, :6], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_changes_nothing_changes_no_bit_in_half_precision_either(family: str) -> None:
    model, tokenizer = tiny(family)
    lm, ids = probe.LanguageModel(model.to(torch.bfloat16), tokenizer, name="half"), drawn(2)
    plain = logits(lm, ids)
    for one in changeable(lm):
        own = value_of(lm, ids, one).float()
        for edit in (Patch(one, own), Scale(one, 1.0), Noise(one, 0.0), Add(one, torch.ones(own.shape[-1]), 0.0)):
            assert torch.equal(edited(lm, ids, [edit]), plain), str(edit)


def test_a_cut_of_edges_that_are_not_there_changes_no_bit() -> None:
    """A window of 16 hides them already: that cannot be told from the words, but from the mask."""
    lm, ids = loaded("gemma2"), drawn(2)
    plain = logits(lm, ids)
    with applying(lm, [Cut(cell(lm, "pattern@0.0:20.."), Positions(("0..2",)))]) as applied:
        assert torch.equal(logits(lm, ids), plain)
    assert applied.untouched() == applied.edits


def replace_positions(one: Cell, *parts: str) -> Cell:
    return one._replace(positions=Positions(parts))


def test_a_text_that_the_model_pads_itself_is_read_and_changed_at_its_own_tokens() -> None:
    """reformer pads on the right to a multiple of its chunks: sites are those of the tokens, and what pads stays."""
    lm, ids = probe.load("tiny:reformer"), torch.arange(5, 42)[None]
    seen: list[Tensor] = []
    first = lm.model.get_submodule(lm.anatomy.layers[0].block)
    given = first.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append({**dict(enumerate(args)), **kwargs}[lm.anatomy.tap("resid_pre", 0).key]),
        with_kwargs=True,
    )
    sink, cells_read = MemorySink(), [Cell("embed", -1, None, Positions()), Cell("resid_pre", 0, None, Positions())]
    read(lm, ids, [37], cells=cells_read, sink=sink)
    plain = seen[-1]
    assert plain.shape[1] == 48
    for site in sink.activations.values():
        assert torch.equal(site, plain[:, :37])
    with applying(lm, [Zero(cell(lm, "embed:36"))], ids=ids[0].tolist()):
        lm.model(ids)
    given.remove()
    wanted = plain.clone()
    wanted[:, 36] = 0.0
    assert torch.equal(seen[-1], wanted)


def test_edits_are_undone_when_the_forward_fails() -> None:
    lm, ids = loaded("llama"), drawn()
    plain = logits(lm, ids)
    edits = [Zero(cell(lm, "resid_mid@1")), Zero(cell(lm, "z@1.0")), Zero(cell(lm, "q@2"))]

    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("in the middle")

    for place in (module("llama", "mlp_out", 0), module("llama", "mlp_out", 2)):
        with pytest.raises(RuntimeError, match="in the middle"), applying(lm, edits), hooked(place, fail):
            logits(lm, ids)
        assert n_hooks(lm.model) == 0 and "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
        assert torch.equal(logits(lm, ids), plain)
    with applying(lm, edits) as applied:
        with pytest.raises(RuntimeError, match="in the middle"), hooked(place, fail):
            logits(lm, ids)
        assert torch.equal(logits(lm, ids), edited(lm, ids, edits)) and not applied.untouched()


def test_an_edit_is_never_written_into_what_the_caller_holds() -> None:
    lm, ids = loaded("llama"), drawn()
    embeds = lm.model.get_input_embeddings()(ids)
    kept = embeds.clone()
    with torch.no_grad(), applying(lm, [Zero(cell(lm, "resid_pre@0")), Scale(cell(lm, "resid_mid@0"), 2.0)]):
        lm.model(inputs_embeds=embeds)
    assert torch.equal(embeds, kept)


# ---- order, rows


def test_edits_of_one_tensor_are_made_in_the_order_given() -> None:
    lm, ids = loaded("llama"), drawn()
    vector = torch.randn(64, generator=torch.Generator().manual_seed(9))
    for first, second in (("resid_post@0", "resid_pre@1"), ("resid_pre@1", "resid_post@0"), ("z@1.2", "z@1.2")):
        v = vector[: lm.width(*(("z", 1) if first[0] == "z" else ("resid_pre", 1)))]
        zero_first = edited(lm, ids, [Zero(cell(lm, first)), Add(cell(lm, second), v)])
        add_first = edited(lm, ids, [Add(cell(lm, first), v), Zero(cell(lm, second))])
        assert torch.equal(add_first, edited(lm, ids, [Zero(cell(lm, first))]))
        assert torch.equal(zero_first, edited(lm, ids, [Mean(cell(lm, first), v)]))
    with applying(lm, [Zero(cell(lm, "resid_pre@1"))]):  # inner contexts come after outer ones
        nested = edited(lm, ids, [Add(cell(lm, "resid_pre@1"), vector)])
    assert torch.equal(nested, edited(lm, ids, [Mean(cell(lm, "resid_pre@1"), vector)]))


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "falcon_h1", "bloom"])
def test_edits_of_single_rows_are_those_edits_one_by_one(family: str) -> None:
    lm = loaded(family)
    ids = drawn(1).repeat(4, 1)
    other = drawn(4, seed=2)
    post = cell(lm, f"resid_post@{LAYER}:3..5")
    values = value_of(lm, other, cell(lm, f"resid_post@{LAYER}"))[:, 3:6]
    together = edited(lm, ids, [Patch(post, values)])
    for row in range(4):
        alone = edited(lm, ids[:1], [Patch(post, values[row])])
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)
    edits: list[Edit] = [
        Zero(cell(lm, f"mlp_out@{LAYER}:4"), rows=(1,)),
        Patch(post, values[2:4], rows=(3, 2)),
        Noise(cell(lm, "embed:2"), 1.0, rows=(2,)),
    ]
    mixed = edited(lm, ids, edits)
    plain = logits(lm, ids)
    assert torch.equal(mixed[0], plain[0]) and not torch.equal(mixed[1], plain[1])
    torch.testing.assert_close(mixed[1:2], edited(lm, ids[:1], [replace(edits[0], rows=None)]), **CLOSE)
    torch.testing.assert_close(mixed[3:], edited(lm, ids[:1], [Patch(post, values[2])]), **CLOSE)
    both = [Patch(post, values[3]), replace(edits[2], rows=None)]
    torch.testing.assert_close(mixed[2:3], edited(lm, ids[:1], both), **CLOSE)


def test_noise_and_resampling_are_functions_of_seed_and_position() -> None:
    lm, ids = loaded("llama"), drawn(2)
    post = cell(lm, "resid_post@1")
    one, again, other = (edited(lm, ids, [Noise(post, 0.5, seed)]) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.allclose(one, other)
    with applying(lm, [Noise(post, 0.5)]):
        noisy = value_of(lm, ids, post)
    noise = noisy - plain_output("llama", ids)
    torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=1e-5)  # of the position, not of the row
    assert 0.45 < float(noise[0].std()) < 0.55 and abs(float(noise[0].mean())) < 0.05
    some = edited(lm, ids, [Noise(cell(lm, "z@1.2"), 0.5), Noise(cell(lm, "z@1.0,1.1"), 0.5)])
    torch.testing.assert_close(some, edited(lm, ids, [Noise(cell(lm, "z@1.0..2"), 0.5)]), **CLOSE)
    pool = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    with applying(lm, [Resample(post, pool)]):
        seen = value_of(lm, ids, post)
    matches = (seen[0][:, None] == pool).all(-1)
    assert bool((matches.sum(-1) == 1).all()) and len(set(matches.int().argmax(-1).tolist())) > 10


def plain_output(family: str, ids: Tensor) -> Tensor:
    """What the block gives, by a plain hook."""
    seen: list[Tensor] = []
    handle = module(family, "block").register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    logits(loaded(family), ids)
    handle.remove()
    return seen[0]


# ---- inside the attention call


@pytest.fixture(params=["sdpa", "eager"])
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


def with_attention(family: str, implementation: str) -> probe.LanguageModel:
    lm = loaded(family)
    model, tokenizer = tiny(family)
    model.set_attn_implementation(implementation)
    return probe.LanguageModel(model, tokenizer, name=lm.name)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "gpt2", "gpt_neox"])
def test_a_cut_everywhere_is_a_plain_additive_mask(family: str, implementation: str) -> None:
    """Against a plain eager forward that is given the whole mask (batch, 1, query, key) by hand."""
    lm, ids = with_attention(family, implementation), drawn(2, 14)
    eager = with_attention(family, "eager").model
    visible = torch.ones(14, 14, dtype=torch.bool).tril()
    visible[5:10, 2:4] = False
    mask = torch.zeros(2, 1, 14, 14).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = eager(ids, attention_mask=mask).logits
    edits = [Cut(one, Positions(("2..3",))) for one in cells(lm, "pattern@all:5..9")]
    found = edited(lm, ids, edits)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(found, logits(lm, ids), atol=1e-3)
    assert torch.equal(found, edited(lm, ids, [replace(e, cell=e.cell._replace(site="scores")) for e in edits]))


def by_hand(call: Any, head: int, visible: Tensor) -> Tensor:
    """z (batch, query, d) of one head from what an attention function was given, in float64, with sinks and cap."""
    group = call.query.shape[1] // call.key.shape[1]
    query, key, value = (t.double() for t in (call.query[:, head], call.key[:, head // group], call.value[:, head // group]))
    scores = query @ key.transpose(1, 2) * call.scaling
    if call.softcap:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = scores.masked_fill(~visible, -torch.inf)
    sink = scores.new_full((*scores.shape[:2], 1), -torch.inf if call.sinks is None else float(call.sinks[head]))
    return torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1] @ value


@pytest.mark.parametrize("family", HEADS)
def test_a_cut_of_one_head_is_its_pattern_by_hand(family: str) -> None:
    """Windows, sinks and caps stay what they are; other heads do not change."""
    from probe.instrument import attending

    lm, ids, calls = loaded(family), drawn(2), {}
    path = lm.anatomy.layers[LAYER].attention
    with attending(lm.model, lambda where, call, _: calls.__setitem__(where, call)):
        plain = value_of(lm, ids, cell(lm, f"z@{LAYER}"))
    mask = calls[path].mask
    seen = torch.ones(N, N, dtype=torch.bool).tril()
    if mask is not None:
        seen = seen & (mask if mask.dtype == torch.bool else mask > -1e30)[0, 0]
    visible = seen.clone()
    visible[7:, [4, 6]] = False
    with applying(lm, [Cut(cell(lm, f"pattern@{LAYER}.2:7.."), Positions(("4", "6")))]):
        found = value_of(lm, ids, cell(lm, f"z@{LAYER}"))
    expected = by_hand(calls[path], 2, visible)
    torch.testing.assert_close(plain[:, :, 2].double(), by_hand(calls[path], 2, seen), **CLOSE)
    torch.testing.assert_close(found[:, :, 2].double(), expected, **CLOSE)
    others = [0, 1, 3]
    torch.testing.assert_close(found[:, :, others], plain[:, :, others], **CLOSE)
    assert not torch.allclose(found[:, 7:, 2], plain[:, 7:, 2], atol=1e-3)


def test_a_query_left_with_no_key_reads_nothing(implementation: str) -> None:
    for family in ("llama", "gpt_oss"):
        if (family, implementation) == ("gpt_oss", "sdpa"):
            continue
        lm, ids = with_attention(family, implementation), drawn(2)
        with applying(lm, [Cut(cell(lm, "pattern@1.2"), Positions(("0",)))]):
            z = value_of(lm, ids, cell(lm, "z@1"))
        assert not z[:, 0, 2].any() and bool(z[:, 1:, 2].any(-1).all()) and bool(z[:, 0, 1].any())
        everything = edited(lm, ids, [Cut(cell(lm, "pattern@1.2"), Positions())])
        torch.testing.assert_close(everything, edited(lm, ids, [Zero(cell(lm, "z@1.2"))]), **CLOSE)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss", "gemma2"])
def test_keys_and_values_are_those_of_the_call(family: str) -> None:
    """A zero value at one position is that edge's share gone; a cut then renormalises. v of a kv head feeds its group."""
    lm, ids = loaded(family), drawn(2, 12)
    n_kv = lm.anatomy.n_heads("v", LAYER)
    group = lm.anatomy.n_heads("z", LAYER) // n_kv
    z = cell(lm, f"z@{LAYER}")
    plain = value_of(lm, ids, z)
    with applying(lm, [Zero(cell(lm, f"v@{LAYER}.1:3"))]):
        found = value_of(lm, ids, z)
    changed = (found - plain).abs().amax((0, 1, 3)) > 1e-6
    assert changed.tolist() == [head // group == 1 for head in range(group * n_kv)]
    assert torch.equal(found[:, :3], plain[:, :3])
    with applying(lm, [Zero(cell(lm, f"q@{LAYER}"))]):  # no query prefers a key: the last sees the mean, sinks aside
        even = value_of(lm, ids, z)[:, -1, 0]
    value = value_of(lm, ids, cell(lm, f"v@{LAYER}"))[:, :, 0].mean(1)
    if family != "gpt_oss":
        torch.testing.assert_close(even, value, **CLOSE)


def test_an_attention_that_takes_no_mask_refuses_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention is told lengths, not edges."""
    lm = with_attention("llama", "sdpa")
    cut = Cut(cell(lm, "pattern@0:5"), Positions(("2",)))
    cache_support(lm)  # is tried once a model, by forwards of its own

    def unmasked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the edit comes before the function")

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_9", unmasked)
    lm.model.config._attn_implementation = "flash_attention_9"
    with applying(lm, [cut], start=0), pytest.raises(BadEdit, match="'flash_attention_9' takes no mask"):
        lm.model.model.layers[0].self_attn(
            torch.zeros(1, 6, 64), position_embeddings=(torch.ones(1, 6, 16), torch.zeros(1, 6, 16)), attention_mask=None
        )


# ---- positions: decode loops, offsets, padding


def everything(lm: probe.LanguageModel) -> list[Edit]:
    """Edits of every site, at positions of the prompt, of what follows, and of both."""
    vector = torch.randn(lm.anatomy.d_model, generator=torch.Generator().manual_seed(1))
    edits: list[Edit] = [
        Noise(cell(lm, "embed:3,17"), 0.3),
        Add(cell(lm, "resid_pre@0:9.."), vector, 0.2),
        Project(cell(lm, "resid_post@1:5,20"), vector),
        Noise(cell(lm, "final_norm:15..16"), 0.2),
        Add(cell(lm, "logits:16"), torch.ones(lm.width("logits")), 3.0),
    ]
    if lm.anatomy.has("attn_out", 2):
        edits.append(Zero(cell(lm, "attn_out@2:8..18")))
    if lm.anatomy.has("mlp_out", 1):
        edits.append(Scale(cell(lm, "mlp_out@1:11"), -1.0))
    if lm.anatomy.has("resid_mid", 1):
        edits.append(Scale(cell(lm, "resid_mid@1:6,14"), 0.5))
    if lm.anatomy.has("mlp_post", 2):
        edits.append(Scale(cell(lm, "mlp_post@2:2,19"), 0.3))
    if lm.anatomy.has("q", 1):
        edits += [
            Scale(cell(lm, "z@1.1:4,13"), 2.0), Scale(cell(lm, "q@1.0:16"), 0.1), Zero(cell(lm, "v@1.1:10")),
            Noise(cell(lm, "k@1.0:7"), 1.0), Cut(cell(lm, "pattern@1.3:14.."), Positions(("9..12",))),
            Cut(cell(lm, "pattern@1.0..1:15"), Positions(("prompt",))),
        ]  # fmt: skip
    return edits


def in_steps(lm: probe.LanguageModel, ids: Tensor, n_prompt: int) -> Tensor:
    """Logits of a prefill and of one token at a time, from the model's own cache."""
    found, inputs = [], ids[:, :n_prompt]
    more: dict[str, Any] = {}
    with torch.no_grad():
        for t in range(n_prompt, ids.shape[1] + 1):
            output = lm.model(inputs, use_cache=True, **more)
            found.append(output.logits)
            more, inputs = {slot(lm.model): held(output)}, ids[:, t : t + 1]
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("family", [*FAMILIES, "mamba"])
def test_a_cached_decode_loop_is_edited_like_one_forward(family: str) -> None:
    lm, ids = loaded(family), drawn(2)
    edits = locate_edits(lm, everything(lm), ids=ids[0, :10], longest=N)
    with applying(lm, edits) as applied:
        whole = logits(lm, ids)
        assert not applied.untouched()
    with applying(lm, edits) as applied:
        steps = in_steps(lm, ids, 10)
        assert not applied.untouched()
    torch.testing.assert_close(steps, whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(in_steps(lm, ids, 10), logits(lm, ids), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(whole, logits(lm, ids), atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "gpt_oss"])
def test_rows_padded_on_the_left_are_edited_at_their_own_positions(family: str) -> None:
    """The decoding engine pads and drops rows; each row must get what it gets alone."""
    lm = loaded(family)
    prompts = [drawn(1, n, seed=n)[0].tolist() for n in (14, 9, 12)]
    vector = torch.randn(lm.anatomy.d_model, generator=torch.Generator().manual_seed(1))
    edits = [
        Add(cell(lm, "resid_post@0:last"), vector, 2.0),  # at 13, 8 and 11
        Scale(cell(lm, "k@1.0:3"), -1.0),
        Cut(cell(lm, "pattern@1.1:completion"), Positions(("1..4",))),
        Noise(cell(lm, "mlp_out@1:10.."), 0.5),
    ]
    settled = locate_edits(lm, edits, ids=prompts, longest=20)
    assert sorted(e.rows or () for e in settled if isinstance(e, Add)) == [(0,), (1,), (2,)]
    with applying(lm, settled):
        together = [c.ids for c in decode(lm, prompts, max_new=6, sampling=Sampling())]
    plain = [c.ids for c in decode(lm, prompts, max_new=6, sampling=Sampling())]
    for row, prompt in enumerate(prompts):
        with applying(lm, edits, ids=prompt, longest=20):
            (alone,) = decode(lm, [prompt], max_new=6, sampling=Sampling())
            text = torch.tensor([[*prompt, *alone.ids]])
            read_again = logits(lm, text)[0, len(prompt) - 1 : -1].argmax(-1).tolist()
        assert together[row] == alone.ids == read_again
    assert together != plain


def test_start_says_where_a_forward_begins() -> None:
    lm, ids = loaded("llama"), drawn(2, 6)
    zero = Zero(cell(lm, "mlp_out@1:103"))
    with applying(lm, [zero], start=100) as applied:
        found = logits(lm, ids)
        applied.start = [100, 101]
        ragged = logits(lm, ids)
    here = edited(lm, ids, [Zero(cell(lm, "mlp_out@1:3"))])
    assert torch.equal(found, here)
    assert torch.equal(ragged[0], here[0])
    assert torch.equal(ragged[1], edited(lm, ids, [Zero(cell(lm, "mlp_out@1:2"))])[1])
    with applying(lm, [zero]) as applied:
        logits(lm, ids)
    assert applied.untouched() == applied.edits
    block = lm.model.model.layers[1].mlp
    x = torch.randn(2, 6, 64)
    with applying(lm, [zero]), pytest.raises(BadEdit, match="only a part of the model"):
        block(x)
    with applying(lm, [zero], start=100):
        assert not block(x)[:, 3].any()


def test_rows_that_left_the_batch_keep_their_names() -> None:
    lm, ids = loaded("llama"), drawn(3)
    edits = [Zero(cell(lm, "mlp_out@1"), rows=(2,)), Patch(cell(lm, "embed:4"), torch.randn(3, 1, 64))]
    whole = edited(lm, ids, edits)
    with applying(lm, edits) as applied:
        applied.rows = [2, 0]
        torch.testing.assert_close(logits(lm, ids[[2, 0]]), whole[[2, 0]], **CLOSE)
        with pytest.raises(BadEdit, match="a batch of 3 rows has 2 names"):
            logits(lm, ids)


def test_rows_that_leave_a_decode_loop_unnamed_are_not_edited_as_others() -> None:
    lm, ids = loaded("llama"), drawn(3)
    edits: list[Edit] = [Scale(cell(lm, f"mlp_out@1:{N - 1}"), row - 1.5, rows=(row,)) for row in range(3)]
    whole = edited(lm, ids, edits)[[0, 2], -1:]
    for named in (False, True):
        with torch.no_grad(), applying(lm, edits) as applied:
            cache = held(lm.model(ids[:, :-1], use_cache=True))
            cache.batch_select_indices(torch.tensor([0, 2]))
            if named:
                applied.rows = [0, 2]
                found = logits(lm, ids[[0, 2], -1:], **{slot(lm.model): cache})
                torch.testing.assert_close(found, whole, **CLOSE)
            else:
                with pytest.raises(BadEdit, match="1 rows left the batch"):
                    logits(lm, ids[[0, 2], -1:], **{slot(lm.model): cache})


def test_a_sweep_in_one_batch_is_the_sweep_one_by_one() -> None:
    """Row i is patched at position i: the patching sweep of activation patching, in one forward."""
    lm, clean, corrupt = loaded("llama"), drawn(1, 8), drawn(1, 8, seed=2)
    values = value_of(lm, clean, cell(lm, "resid_pre@1"))[0]
    sweep = [Patch(cell(lm, f"resid_pre@1:{p}"), values[p : p + 1], rows=(p,)) for p in range(8)]
    together = edited(lm, corrupt.repeat(8, 1), sweep)
    for p in range(8):
        with hooked(
            module("llama", "block", 0), lambda x, p=p: torch.cat([x[:, :p], values[None, p : p + 1], x[:, p + 1 :]], 1)
        ):
            torch.testing.assert_close(together[p : p + 1], logits(lm, corrupt), **CLOSE)


def test_only_the_last_logits_are_edited_where_only_they_are_made() -> None:
    lm, ids = loaded("llama"), drawn(2)
    edits = [Scale(cell(lm, f"logits:{N - 1}"), 2.0), Scale(cell(lm, "final_norm:4"), 2.0)]
    with applying(lm, edits):
        few = logits(lm, ids, logits_to_keep=1)
    torch.testing.assert_close(few, logits(lm, ids, logits_to_keep=1) * 2)


def test_gradients_flow_through_edits() -> None:
    lm, ids = loaded("llama"), drawn()
    vector = torch.zeros(64, requires_grad=True)
    for place in ("resid_mid@1:3", "attn_out@1:3"):
        with applying(lm, [Add(cell(lm, place), vector)]):
            (slope,) = torch.autograd.grad(lm.model(ids).logits[0, -1, 7], vector)
        with torch.inference_mode(), applying(lm, [Noise(cell(lm, place), 0.1), Resample(cell(lm, place), torch.ones(3, 64))]):
            lm.model(ids)  # what it leaves in memory must not be of inference mode
        pool = torch.ones(3, 64, requires_grad=True)
        with applying(lm, [Resample(cell(lm, place), pool), Noise(cell(lm, place), 0.1)]):
            lm.model(ids).logits.sum().backward()
        assert pool.grad is not None and bool(pool.grad.any())
        step = 1e-2 * torch.randn(64, generator=torch.Generator().manual_seed(2))
        there, back = (edited(lm, ids, [Add(cell(lm, place), s * step)])[0, -1, 7] for s in (1, -1))
        assert float(slope @ step) == pytest.approx(float(there - back) / 2, rel=2e-2)


# ---- from text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probe.Run:
    places = ["resid_post@all", "z@all", "attn_out@1", "mlp_out@1", "q@1", "k@1", "v@1", "embed"]
    out = tmp_path_factory.mktemp("runs") / "clean"
    return probe.trace(loaded("llama"), "The king of France is old.", capture=places, generate=4, out=out)


def ids_of(run: probe.Run, prompt: int = 0) -> Tensor:
    return torch.tensor([run.scan("tokens", columns=["token_id"], prompt_id=prompt)["token_id"].to_pylist()])


def test_a_run_patched_into_itself_is_nothing_and_into_another_text_is_its_values(run: probe.Run) -> None:
    lm, ids = loaded("llama"), ids_of(run)
    plain = logits(lm, ids)
    for place in ("resid_post@all", "z@1", "attn_out@1", "q@1", "k@1", "v@1", "embed", "z@0.1,2.3:4..7"):
        edits = parse_edits(lm, [f"{place}=patch:{run.path}"])
        assert torch.equal(edited(lm, ids, edits, text=ids[0]), plain), place
    other = drawn(1, 12)
    (last,) = parse_edits(lm, ["resid_post@1:last=patch:CLEAN"], runs={"CLEAN": run})
    with applying(lm, [last], ids=other[0]):
        seen = value_of(lm, other, cell(lm, "resid_post@1"))
    vector = run.activation("resid_post", 1)[-1]
    assert torch.equal(seen[0, 11], torch.from_numpy(vector.copy()))
    (few,) = parse_edits(lm, ["resid_post@1:3..5=patch:CLEAN"], runs={"CLEAN": run})
    longer = edited(lm, other, [few], text=other[0])
    with hooked(module("llama", "block"), lambda x: torch.cat([x[:, :3], few.values[None], x[:, 6:]], dim=1)):  # type: ignore[attr-defined]
        assert torch.equal(longer, logits(lm, other))


def test_means_and_draws_are_of_the_whole_run(run: probe.Run) -> None:
    lm = loaded("llama")
    mean, heads, drawn_ = parse_edits(lm, ["mlp_out@1=mean:R", "z@1.2,1.0=mean:R", "z@1.2=resample:R:5"], runs={"R": run})
    assert isinstance(mean, Mean) and isinstance(heads, Mean) and isinstance(drawn_, Resample)
    expected = torch.from_numpy(run.activation("mlp_out", 1).copy()).double().mean(0)
    torch.testing.assert_close(mean.vector.double(), expected, rtol=0, atol=1e-6)
    for row, head in enumerate((0, 2)):
        own = torch.from_numpy(run.activation("z", 1, head=head).copy()).double().mean(0)
        torch.testing.assert_close(heads.vector[row].double(), own, rtol=0, atol=1e-6)
    assert torch.equal(drawn_.pool[:, 0], torch.from_numpy(run.activation("z", 1, head=2).copy())) and drawn_.seed == 5


def test_every_form_of_an_edit_is_read(tmp_path: Path) -> None:
    lm = loaded("llama")
    path = tmp_path / "v.safetensors"
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    save_direction(path, lm, vector, site="resid_post", layer=1, made="at random")
    texts = [
        "z@1.3=zero", f"resid_post@1:-1=add:{path}:4.0", f"resid_post@1=add:{path}:-0.5", f"resid_post@all=project:{path}",
        "resid_post@0=noise:3.0", "resid_post@0=noise:0.5:7", "pattern@1.3:20..=cut:10..15", "mlp_out@0..1=scale:0.5",
        "scores@L1H2:tok=x=cut:tok=a,3", "blocks.2.hook_resid_pre=zero",
    ]  # fmt: skip
    edits = parse_edits(lm, texts, seed=3)
    kinds = [Zero, Add, Add, *[Project] * 3, Noise, Noise, Cut, Scale, Scale, Cut, Zero]
    assert [type(edit) for edit in edits] == kinds
    adds = [edit for edit in edits if isinstance(edit, Add)]
    assert [edit.strength for edit in adds] == [4.0, -0.5] and torch.equal(adds[0].vector, vector)
    assert [edit.seed for edit in edits if isinstance(edit, Noise)] == [3, 7]
    cuts = [edit for edit in edits if isinstance(edit, Cut)]
    assert cuts[0].cell == Cell("pattern", 1, (3,), Positions(("20..",))) and cuts[0].keys == Positions(("10..15",))
    assert cuts[1].keys == Positions(("tok=a", "3"))
    assert str(cuts[0]) == "pattern@1.3:20..=cut:10..15"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resid_post@1=patch", "does not say what to patch"),
        ("resid_post@1=zero:3", "says too much"),
        ("resid_post@1=zap", "unknown change 'zap'"),
        ("resid_post@1=scale:1.0", "scale:1 changes nothing"),
        ("resid_post@1=scale:x", "'scale:x' is not a number"),
        ("resid_post@1=scale:nan", "not a number"),
        ("resid_post@1=noise:-1", "negative"),
        ("resid_post@1=cut:3", "takes edges out of a pattern"),
        ("pattern@1.0=zero", "'zero' cannot change 'pattern'"),
        ("pattern@1.0=cut:x", "cannot read"),
        ("resid_post@9=zero", "no layer 9"),
        ("z@1.9=zero", "no head 9"),
        ("resid_post@1=add:nowhere.safetensors:2", "cannot read a direction"),
        ("resid_post@1=patch:nowhere", "there is no run"),
        ("resid_post@1", "is not an edit"),
    ],
)
def test_what_is_no_edit_says_why(text: str, says: str) -> None:
    with pytest.raises(ProbeError, match=says) as raised:
        parse_edits(loaded("llama"), [text])
    assert raised.value.hint and "\n" not in raised.value.message


def test_an_edit_that_could_have_no_effect_is_refused(run: probe.Run) -> None:
    lm, ids = loaded("llama"), drawn(1, 10)[0]

    def refused(error: type[ProbeError], says: str, *texts: str, **text: Any) -> None:
        with pytest.raises(error, match=says) as raised:
            locate_edits(lm, parse_edits(lm, texts, runs={"R": run}), **({"ids": ids} | text))
        assert raised.value.hint

    refused(OutOfRange, "no position 10", "embed:10=zero")
    refused(OutOfRange, "no position 12", "embed:12..=zero")
    refused(OutOfRange, "no position", "embed:-11=zero")
    refused(OutOfRange, "no completion", "embed:completion=zero")
    refused(BadPlace, "no token is 'Paris'", "embed:tok=Paris=zero")
    refused(OutOfRange, "step", "embed:step3=zero")
    refused(BadEdit, "without a text", "embed:last=zero", ids=None)
    refused(BadEdit, "do not see keys from 7", "pattern@1.0:3..6=cut:7..9")
    refused(BadEdit, "means 10 positions, and there are values for 31", "resid_post@1=patch:R")
    locate_edits(lm, parse_edits(lm, ["embed:12..=zero", "embed:15=zero", "embed:completion=zero"]), ids=ids, longest=16)
    locate_edits(lm, parse_edits(lm, ["resid_post@1=patch:R"], runs={"R": run}), ids=ids, longest=40)
    assert locate_edits(lm, parse_edits(lm, ["embed:-3..=zero"]), ids=ids)[0].absolute == ((7, 8, 9), None)


def test_edits_that_do_not_fit_the_model_are_refused(run: probe.Run) -> None:
    lm, gpt2, bloom = loaded("llama"), loaded("gpt2"), loaded("bloom")
    with pytest.raises(BadEdit, match=r"'R' is a run of another model, 'tiny:llama'"):
        parse_edits(gpt2, ["resid_post@1=patch:R"], runs={"R": run})
    with pytest.raises(SiteAbsent, match=r"no 'z'|has 'z'"):
        parse_edits(bloom, ["z@1.0=zero"])
    with (
        pytest.raises(SiteAbsent, match="layer 1 has no 'pattern': its attention"),
        applying(bloom, [Cut(Cell("pattern", 1, None, Positions()), Positions(("0",)))]),
    ):
        pass
    with pytest.raises(BadEdit, match="the vector of resid_post@1=add has 16 values, and resid_post@1 has 64"):
        locate_edits(lm, [Add(cell(lm, "resid_post@1"), torch.ones(16))])
    with pytest.raises(BadEdit, match="has 64 values, and z@1 has 16 a head"):
        locate_edits(lm, [Mean(cell(lm, "z@1.0"), torch.ones(64))])
    with pytest.raises(BadEdit, match="shape"):
        locate_edits(lm, [Mean(cell(lm, "z@1.0"), torch.ones(2, 16))])
    with pytest.raises(BadEdit, match="not numbers"):
        Add(cell(lm, "resid_post@1"), torch.tensor([1.0, float("nan")]))
    with pytest.raises(BadEdit, match="no direction"):
        Project(cell(lm, "resid_post@1"), torch.zeros(64))
    with pytest.raises(ProbeError, match="was not captured at layer"):
        parse_edits(lm, ["mlp_out@2=patch:R"], runs={"R": run})


# ---- directions


def test_a_direction_keeps_what_it_is(tmp_path: Path) -> None:
    lm, path = loaded("llama"), tmp_path / "v.safetensors"
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    saved = save_direction(path, lm, vector, site="resid_post", layer=1, made="mean(pos) - mean(neg)")
    found = load_direction(path, lm=lm)
    assert torch.equal(found.vector, vector) and found.norm == saved.norm == pytest.approx(float(vector.norm()))
    assert (found.site, found.layer, found.head, found.made) == ("resid_post", 1, None, "mean(pos) - mean(neg)")
    assert found.model["name"] == "tiny:llama" and found.model["files"] == lm.identity["files"]
    with pytest.raises(BadEdit, match="made with another model, 'tiny:llama'"):
        load_direction(path, lm=loaded("qwen3"))
    with pytest.raises(BadEdit, match="shape"):
        save_direction(path, lm, torch.ones(63), site="resid_post", layer=1)
    with pytest.raises(BadEdit, match="not numbers"):
        save_direction(path, lm, torch.full((64,), torch.nan), site="resid_post", layer=1)
    assert torch.equal(load_direction(path).vector, vector), "a refused vector leaves the file as it was"


def test_a_direction_of_another_program_is_one_vector(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"v": torch.ones(1, 64, dtype=torch.bfloat16)}, path)
    assert torch.equal(load_direction(path, lm=loaded("llama")).vector, torch.ones(64))
    save_file({"v": torch.ones(64), "w": torch.ones(64)}, path)
    with pytest.raises(BadEdit, match="2 tensors"):
        load_direction(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(BadEdit, match="cannot read"):
        load_direction(path)


def test_an_edit_says_all_its_numbers() -> None:
    """Runs keep edits as text: two that differ in size alone were the same to a resume."""
    texts = ["mlp_out@1=scale:0.5", "resid_post@1:2=noise:3.0:4", "z@0.1=zero", "pattern@1.1:5..=cut:1..2"]
    assert [str(edit) for text in texts for edit in parse_edits(loaded("llama"), [text])] == texts


@dataclass(frozen=True, eq=False)
class Twice(Edit):
    """An operation of the test's own."""

    op: ClassVar[str] = "twice"

    def change(self, value, at):
        return value * 2


def make_twice(opened, cell, args):
    return Twice(cell)


def test_an_operation_is_one_row_and_one_class(monkeypatch) -> None:
    """A row in the registry: it is parsed, refused with too many arguments, named in hints and in the help of `--edit`."""
    monkeypatch.setitem(OPERATIONS, "twice", Operation("twice", "h ← 2h", f"{__name__}:make_twice"))
    lm = probe.load("tiny:llama")
    ids = torch.tensor([lm.encode("a b c").ids])
    logits = {}
    for text in ("mlp_out@1=twice", "mlp_out@1=scale:2"):
        with torch.no_grad(), applying(lm, parse_edits(lm, [text])):
            logits[text] = lm.model(ids).logits
    assert torch.equal(*logits.values()) and "twice" in edit_help()
    with pytest.raises(BadEdit, match="says too much"):
        parse_edits(lm, ["mlp_out@1=twice:3"])
    with pytest.raises(BadEdit) as caught:
        parse_edits(lm, ["mlp_out@1=twize"])
    assert "did you mean 'twice'" in caught.value.hint


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_row_of_the_operations_is_a_class_of_that_name(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation.name == name and name in {kind.op for kind in (*Edit.__subclasses__(), *ExpertEdit.__subclasses__())}
    assert callable(resolve_name(operation.make)) and 0 <= operation.least <= operation.most
