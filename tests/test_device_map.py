"""A model that is partly kept on disk gives what it gives whole: every verb, on some families, to the bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import probe
from probe.anatomy import find
from probe.errors import BadModel, BadOption, SiteAbsent
from probe.instrument import held_bytes, in_memory, weight_of
from probe.language_model import LanguageModel
from probe.language_model.adapters import merged
from probe.language_model.weights_patch import parameter_of
from probe.matrices import plan_weights, surveying
from probe.matrices.spectra import singular_values
from probe.requests import Trace, WeightSurvey
from probe.tiny import tiny
from probe.tracing import plan_trace
from tests.test_left_as_found import PAIR
from tests.test_rewind import TEXT, written

FAMILIES = ["llama", "gpt2", "qwen3", "gemma2", "mixtral"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / request.param
    model, tokenizer = tiny(request.param)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> LanguageModel:
    return probe.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def split(folder: Path, whole: LanguageModel) -> LanguageModel:
    """A block, the embedding, the final norm and the head are on disk, the rest in memory."""
    anatomy, model = whole.anatomy, whole.model
    blocks = [layer.block for layer in anatomy.layers]
    others = [path for path, module in model.named_modules() if [*module.parameters(False), *module.buffers(False)]]
    where = dict.fromkeys([*blocks, *(p for p in others if not p.startswith(tuple(f"{b}." for b in blocks)))], "cpu")
    embedding = next(path for path, module in model.named_modules() if module is model.get_input_embeddings())
    where |= dict.fromkeys([anatomy.layers[1].block, embedding, anatomy.final_norm.path, anatomy.head], "disk")
    return probe.load(str(folder), device_map=where)


@pytest.fixture(scope="module")
def away(folder: Path) -> LanguageModel:
    """Everything is on disk."""
    return probe.load(str(folder), device_map={"": "disk"})


VERBS: dict[str, Callable[[LanguageModel, Path], Any]] = {
    "trace": lambda lm, made: probe.trace(
        lm, [TEXT, "ab"], generate=4, attention="full", capture="z@1,resid_post@all,mlp_out@1,q@1", lens=True,
        edit=["z@1.0=zero", "mlp_out@1=scale:0.5", "pattern@1.1:3..=cut:1"], temperature=1.0, seed=3,
    ),
    "lens": lambda lm, made: probe.lens(lm, TEXT, answer="a"),
    "attribute": lambda lm, made: probe.attribute(lm, TEXT, position="all"),
    "attribute by source": lambda lm, made: probe.attribute(lm, "a b c", by_source=True),
    "attribute by neuron": lambda lm, made: probe.attribute(lm, "a b c", by="neuron"),
    "heads": lambda lm, made: probe.heads(lm, TEXT, sequences=1, length=8),
    "head kernels": lambda lm, made: probe.heads(lm, TEXT, sequences=0, kernel=True),
    "compare": lambda lm, made: probe.compare(lm, lm, TEXT),
    "look": lambda lm, made: probe.look(lm, "a b c", controls=8),
    "explain": lambda lm, made: probe.explain(probe.trace(lm, "ab", generate=3), -1, lm=lm),
    "patch": lambda lm, made: probe.patch(lm, **PAIR, sites=["resid_pre", "z", "q"]),
    "patch by gradients": lambda lm, made: probe.patch(lm, **PAIR, sites=["k", "mlp_out"], method="attribution", sample=3),
    "patch a path": lambda lm, made: probe.patch(lm, **PAIR, path="z@0->q@1", edit=["mlp_out@2=scale:0.5"]),
    "sample": lambda lm, made: probe.sample(lm, TEXT, samples=3, max_new=4, temperature=1.0),
    "rewind": lambda lm, made: probe.rewind(
        written(lm, TEXT), to="step1", lm=lm, samples=2, max_new=4, replace="There are 21 apples. "
    ),
    "importance": lambda lm, made: probe.importance(written(lm, TEXT), lm=lm, method="suppression"),
    "make_direction": lambda lm, made: probe.make_direction(lm, ["a b", "a c"], ["b a", "c a"], at="resid_post@1", to=made),
    "steer": lambda lm, made: probe.steer(lm, str(made), "a b", answer="a", controls=2),
    "top": lambda lm, made: probe.top(lm, [TEXT, "a b c"], at=["resid_post@1", "z@1.0"], top=2),
    "means": lambda lm, made: probe.means(lm, [TEXT, "a b c"], at=["resid_post@1", "mlp_out@1"]),
    "speculate": lambda lm, made: probe.speculate(lm, TEXT, draft="layers:2", generate=8),
    "weights": lambda lm, made: probe.weights(lm, what="matrices,norms,heads,composition"),
    "weights by tokens": lambda lm, made: probe.weights(lm, what="heads", layers="1", tokens="a"),
    "neurons": lambda lm, made: probe.weights(lm, what="neurons", neurons="all.n3,all.n5"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_gives_the_same_tables(verb: str, whole: LanguageModel, split: LanguageModel, tmp_path: Path) -> None:
    """Or the same error, where a family does not have what is asked for."""
    made = tmp_path / "direction.safetensors"
    if verb == "steer":
        VERBS["make_direction"](split, made)  # it goes on the model, wherever that is kept
    try:
        one = VERBS[verb](whole, made)
    except (SiteAbsent, BadModel) as error:
        with pytest.raises(type(error)) as caught:
            VERBS[verb](split, made)
        assert caught.value.message == error.message
        return
    other = VERBS[verb](split, made)
    assert one.tables == other.tables
    for name in one.tables:
        frames = (run.table(name).drop(columns="run_id") for run in (one, other))
        pd.testing.assert_frame_equal(*frames, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["weights", "neurons"])
def test_weights_are_surveyed_block_by_block(
    verb: str, whole: LanguageModel, away: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tables; while a matrix is looked at, and afterwards, no block is in memory. A plan says how much ever is."""
    blocks = [away.model.get_submodule(layer.block) for layer in away.anatomy.layers]
    most = []

    def here(matrix: torch.Tensor, less: torch.Tensor | None = None) -> torch.Tensor:
        most.append(sum(any(not p.is_meta for p in block.parameters()) for block in blocks))
        return singular_values(matrix, less)

    monkeypatch.setattr(surveying, "singular_values", here)
    try:
        one = VERBS[verb](whole, tmp_path)
    except (SiteAbsent, BadModel) as error:
        with pytest.raises(type(error), match=re.escape(error.message)):
            VERBS[verb](away, tmp_path)
        return
    most.clear()
    other = VERBS[verb](away, tmp_path)
    for name in one.tables:
        frames = (run.table(name).drop(columns="run_id") for run in (one, other))
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert all(n == 0 for n in most) and bool(most) == (verb == "weights")
    assert all(parameter.is_meta for parameter in away.model.parameters())
    block, whole_size = max(4 * sum(p.numel() for p in b.parameters()) for b in blocks), held_bytes(whole.model)
    planned = plan_weights(away, WeightSurvey(what="matrices"))["weights_bytes"]
    assert block < planned < whole_size == plan_weights(whole, WeightSurvey(what="matrices"))["weights_bytes"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.accelerator.device_count() < 2, reason="one accelerator, or none")
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_gives_the_same_tables_on_several_accelerators(
    verb: str, folder: Path, split: LanguageModel, tmp_path: Path
) -> None:
    """Of a model of which half the parts are on one and half on another, but for rounding, as on the first alone."""
    assert split.loaded is not None
    parts = split.loaded["device_map"]
    spread = probe.load(str(folder), dtype="float32", device_map={part: 2 * i // len(parts) for i, part in enumerate(parts)})
    assert len(spread.identity["device"].split(",")) == 2
    one = probe.load(str(folder), dtype="float32", device_map={"": 0})
    if verb == "steer":
        VERBS["make_direction"](one, tmp_path / "direction.safetensors")
    try:
        expected = VERBS[verb](one, tmp_path / "direction.safetensors")
    except (SiteAbsent, BadModel) as error:
        with pytest.raises(type(error), match=re.escape(error.message)):
            VERBS[verb](spread, tmp_path / "direction.safetensors")
        return
    found = VERBS[verb](spread, tmp_path / "direction.safetensors")
    for name in expected.tables:
        frames = (run.table(name).drop(columns="run_id") for run in (expected, found))
        pd.testing.assert_frame_equal(*frames, rtol=1e-3, atol=1e-4)


def test_it_is_the_same_model(whole: LanguageModel, split: LanguageModel) -> None:
    """Its identity but for the place, its anatomy, found anew, and its logits; and weights are on disk again afterwards."""
    assert find(split.model).to_dict() == find(whole.model).to_dict()
    ids = torch.tensor([whole.encode(TEXT).ids])
    with torch.no_grad():
        assert torch.equal(whole.model(ids).logits, split.model(ids).logits)
    assert split.identity == {**whole.identity, "device": "cpu,disk"}
    assert split.device == whole.device
    assert all(parameter.is_meta for parameter in split.model.get_submodule(split.anatomy.layers[1].block).parameters())


def test_weights_are_read_from_where_they_are_kept(whole: LanguageModel, split: LanguageModel) -> None:
    kept = dict(split.model.named_parameters(remove_duplicate=False))
    for name, parameter in whole.model.named_parameters(remove_duplicate=False):
        assert torch.equal(weight_of(split.model, name), parameter)
    with in_memory(split.model):
        live = dict(split.model.named_parameters())
        assert live.keys() == dict(whole.model.named_parameters()).keys()
        assert all(torch.equal(live[name], parameter) for name, parameter in whole.model.named_parameters())
    after = dict(split.model.named_parameters(remove_duplicate=False))
    assert {name: p.is_meta for name, p in kept.items()} == {name: p.is_meta for name, p in after.items()}


def test_what_is_on_disk_is_not_changed(split: LanguageModel) -> None:
    name = next(name for name, parameter in split.model.named_parameters() if parameter.is_meta and parameter.dim() == 2)
    with pytest.raises(BadModel, match="kept elsewhere until it is needed") as caught:
        parameter_of(split.model, name)
    assert caught.value.hint == "leave out --device-map"


def test_an_adapter_is_not_merged_into_what_is_on_disk(split: LanguageModel, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(BadModel, match="cannot be merged into weights that are kept on disk") as caught:
        merged(split.model, tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("where", [{"model": "cpu", "lm_head": "disk"}, {"": "disk"}])
def test_a_tiny_model_is_not_spread(where: dict[str, str]) -> None:
    with pytest.raises(BadOption, match="'tiny:llama' stands on one device"):
        probe.load("tiny:llama", device_map=where)


def test_a_device_map_names_every_part(folder: Path, split: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    """And what the libraries say of weights on disk is not passed on."""
    assert split.loaded is not None
    where = split.loaded["device_map"]
    block = split.anatomy.layers[2].block
    with pytest.raises(BadModel, match=f"the device map leaves out {block}") as caught:
        probe.load(str(folder), device_map={path: place for path, place in where.items() if path != block})
    assert caught.value.hint
    probe.load(str(folder), device_map=where)
    assert not caplog.records


@pytest.mark.parametrize(("part", "hint"), [("{block}x", "did you mean '{block}'?"), ("nothing like it", "its parts: ")])
def test_a_device_map_names_nothing_else(part: str, hint: str, folder: Path, split: LanguageModel) -> None:
    assert split.loaded is not None
    block = split.anatomy.layers[2].block
    part, hint = part.format(block=block), hint.format(block=block)
    with pytest.raises(BadOption, match=f"the device map names '{part}', which the model does not have") as caught:
        probe.load(str(folder), device_map={**split.loaded["device_map"], part: "cpu"})
    assert caught.value.hint.startswith(hint)


def test_what_a_model_holds_in_memory(whole: LanguageModel, split: LanguageModel) -> None:
    """Its weights, but those on disk only as much as the largest module of them has."""
    own = {name: 4 * p.numel() for name, p in whole.model.named_parameters()}
    assert held_bytes(whole.model) == sum(own.values())
    away = {name: 4 * p.numel() for name, p in split.model.named_parameters() if p.is_meta}
    comes = held_bytes(split.model) - (sum(own.values()) - sum(away.values()))
    assert away and max(away.values()) <= comes < sum(away.values())
    plans = [plan_trace(lm, Trace(TEXT))["peak_memory_bytes"] for lm in (whole, split)]
    assert plans[0] - plans[1] == held_bytes(whole.model) - held_bytes(split.model)
