"""Edits of weights: what an edit of activations does, exactly undone, in a small file that knows its model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import probe
from probe.errors import BadEdit, BadModel, ProbeError, RunError, SiteAbsent, StorageFull
from probe.interventions import applying, parse_edits, save_direction
from probe.language_model import LanguageModel, model_of
from probe.language_model.patched_weights import patched
from probe.language_model.weights_patch import load_patch
from probe.weight_edits import edit_weights, make_patch

IDS = torch.tensor([[5, 9, 200, 31, 7, 7]])
FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "mixtral", "phi3")


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {family: probe.load(f"tiny:{family}") for family in FAMILIES}


@pytest.fixture(autouse=True)
def untouched(models: dict[str, LanguageModel]) -> Any:
    """After each test every model has its weights, to the bit."""
    before = {name: {k: v.clone() for k, v in lm.model.state_dict().items()} for name, lm in models.items()}
    yield
    for name, lm in models.items():
        now = lm.model.state_dict()
        assert all(torch.equal(now[key], value) for key, value in before[name].items()), name
        assert "weights_patch" not in lm.identity


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(IDS).logits


def parameter(lm: LanguageModel, name: str) -> torch.Tensor:
    return lm.model.get_parameter(name).detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_zeroed_in_the_weights_is_the_head_zeroed_in_the_activations(
    family: str, models: dict[str, LanguageModel], tmp_path: Path
) -> None:
    lm = models[family]
    for change in ("zero", "scale:0.5"):
        with applying(lm, parse_edits(lm, [f"z@1.1={change}"])):
            wanted = logits(lm)
        file = tmp_path / "head.safetensors"
        edit_weights(lm, f"z@1.1={change}", file)
        plain = logits(lm)
        with patched(lm, file):
            found = logits(lm)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)  # sums in another order
        assert (found - plain).abs().max() > 1e-3 and file.stat().st_size < 4000


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_neuron_zeroed_in_the_weights_no_longer_writes(family: str, models: dict[str, LanguageModel], tmp_path: Path) -> None:
    lm = models[family]
    tap = lm.anatomy.site("mlp_post", 1).tap

    def silent(_: Any, args: Any) -> Any:
        value = args[0].clone()
        value[..., [3, 5, 6]] = 0
        return (value,)

    handle = lm.model.get_submodule(tap.path).register_forward_pre_hook(silent)
    wanted = logits(lm)
    handle.remove()
    with patched(lm, make_patch(lm, "mlp_post@1.n3,1.n5..6=zero")) as (patch,):
        torch.testing.assert_close(logits(lm), wanted, atol=2e-5, rtol=1e-4)
        assert sorted(patch.changes[0].index.tolist()) == [3, 5, 6] and patch.changes[0].left is None
    assert (wanted - logits(lm)).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rank_one_maps_the_key_to_the_value(family: str, tmp_path: Path) -> None:
    """In float64: W' k = v, and a key that is orthogonal in C⁻¹ keeps what it had; GPT-2 stores the transpose."""
    lm = probe.load(f"tiny:{family}")
    lm.model.double()
    path = lm.anatomy.site("mlp_post", 1).tap.path
    matrix = parameter(lm, f"{path}.weight").clone()
    matrix = matrix.T if family == "gpt2" else matrix
    d_out, d_in = matrix.shape
    torch.manual_seed(0)
    k, v, root = torch.randn(d_in).double(), torch.randn(d_out).double(), torch.randn(d_in, d_in).double()
    covariance = root @ root.T + torch.eye(d_in)
    save_file({"k": k, "v": v, "C": covariance}, tmp_path / "kv.safetensors")
    inverse = torch.linalg.inv(covariance)
    other = torch.randn(d_in).double()
    other -= k * (other @ inverse @ k) / (k @ inverse @ k)
    file = tmp_path / "patch.safetensors"
    edit_weights(lm, f"mlp_post@1=rank-one:{tmp_path / 'kv.safetensors'}", file)
    with patched(lm, file):
        now = parameter(lm, f"{path}.weight")
        now = (now.T if family == "gpt2" else now).clone()
    torch.testing.assert_close(now @ k, v, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(now @ other, matrix @ other, atol=1e-9, rtol=1e-9)
    assert torch.linalg.matrix_rank(now - matrix, atol=1e-9) == 1
    u = torch.randn(d_out).double()
    save_file({"u": u, "v": k}, tmp_path / "uv.safetensors")
    with patched(lm, make_patch(lm, f"{path}.weight=rank-one:{tmp_path / 'uv.safetensors'}")):
        now = parameter(lm, f"{path}.weight")
        torch.testing.assert_close(now.T if family == "gpt2" else now, matrix + torch.outer(u, k))


def test_edits_follow_each_other_and_scale_patterns_and_gains(models: dict[str, LanguageModel]) -> None:
    lm = models["llama"]
    name = "model.layers.0.mlp.down_proj.weight"
    before = parameter(lm, name).clone()
    with patched(lm, make_patch(lm, ["*.down_proj.weight=scale:0.5", f"{name}=scale:4"])) as (patch,):
        torch.testing.assert_close(parameter(lm, name), before * 2)
        assert len(patch.changes) == lm.anatomy.n_layers + 1 and {one.edit for one in patch.changes} == {0, 1}
    gain = parameter(lm, "model.norm.weight").clone()
    with patched(lm, make_patch(lm, "model.norm.weight=gain:3:1,4..5")):
        gain[[1, 4, 5]] *= 3
        torch.testing.assert_close(parameter(lm, "model.norm.weight"), gain)
    gemma = models["gemma2"]
    gain = 1 + parameter(gemma, "model.norm.weight").clone()  # Gemma's norms multiply by 1 + w
    with patched(gemma, make_patch(gemma, "model.norm.weight=gain:0.5")):
        torch.testing.assert_close(1 + parameter(gemma, "model.norm.weight"), gain / 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_undone_to_the_bit_also_after_an_error(dtype: str, tmp_path: Path) -> None:
    lm = probe.load("tiny:llama", dtype=dtype)
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    n = lm.anatomy.d_model
    torch.manual_seed(1)
    save_file(
        {"u": torch.randn(n), "v": torch.randn(lm.anatomy.site("z", 1).width * lm.anatomy.n_heads("z", 1))}, tmp_path / "f"
    )
    patch = make_patch(lm, ["z@0.1=zero", f"z@1=rank-one:{tmp_path / 'f'}", "*norm*=scale:0.3"])
    with pytest.raises(RuntimeError, match="in the middle"), patched(lm, patch):
        assert lm.title == "tiny:llama + edited weights" and lm.identity["weights_patch"][0]["edits"][0] == "z@0.1=zero"
        raise RuntimeError("in the middle")
    now = lm.model.state_dict()
    assert all(torch.equal(now[key], value) for key, value in before.items())
    assert lm.title == "tiny:llama" and "weights_patch" not in lm.identity


def test_a_shared_parameter_is_said(smollm2: LanguageModel) -> None:
    patch = make_patch(smollm2, "lm_head.weight=scale:2")
    assert patch.notes == ("'lm_head.weight' is also 'model.embed_tokens.weight': the edit changes both",)


def test_runs_say_their_patch_and_are_made_again_with_it(tmp_path: Path, shell: Any) -> None:
    file = tmp_path / "p.safetensors"
    edit_weights(probe.load("tiny:llama"), "z@1.1=zero", file)
    words = ("trace", "abc", "-m", "tiny:llama", "-n", "4", "--weights-patch", "p.safetensors", "--out", "r", "--no-progress")
    done = shell(*words)
    assert done.returncode == 0, done.stderr
    run = probe.open_run(tmp_path / "r")
    (said,) = run.manifest["model"]["weights_patch"]
    assert said == load_patch(file).identity and said["made_for"] == "tiny:llama" and said["edits"] == ["z@1.1=zero"]
    lm = model_of(run)
    assert torch.equal(logits(lm), logits(probe.load("tiny:llama", weights_patch=file)))
    again = probe.replay(lm, run)
    for table in ("tokens", "heads"):
        assert again.table(table).drop(columns="run_id").equals(run.table(table).drop(columns="run_id"))
    with pytest.raises(RunError, match="weights_patch differ"):
        probe.rewind(run, to="3", lm=probe.load("tiny:llama"))
    file.rename(tmp_path / "moved")
    done = shell("rewind", "r", "--to", "5", "-n", "2", "--max-new", "2", "--out", "no", "--no-progress")
    assert done.returncode == 1 and "p.safetensors' is not there" in done.stderr and "--weights-patch" in done.stderr
    done = shell(
        "rewind", "r", "--to", "5", "-n", "2", "--max-new", "2", "--weights-patch", "moved", "--out", "b", "--no-progress"
    )
    assert done.returncode == 0, done.stderr
    edit_weights(probe.load("tiny:llama"), "z@1.0=zero", file)
    with pytest.raises(RunError, match="its contents are others"):
        model_of(run)


def test_base_against_patched(models: dict[str, LanguageModel], tmp_path: Path, shell: Any) -> None:
    base = models["llama"]
    done = shell("weights", "tiny:llama", "--edit-weights", "z@1.1=zero", "-o", "p.safetensors", "--json", "--no-progress")
    assert done.returncode == 0 and json.loads(done.stdout)["edits"] == ["z@1.1=zero"], done.stderr
    words = ("compare", "tiny:llama", "tiny:llama", "abcdef", "--weights-patch-b", "p.safetensors", "--out", "c")
    done = shell(*words, "--no-progress")
    assert done.returncode == 0, done.stderr
    run = probe.open_run(tmp_path / "c")
    assert (run.summary["a"], run.summary["b"]) == ("tiny:llama", "tiny:llama + p.safetensors")
    ids = torch.tensor([base.encode("abcdef").ids])
    with torch.no_grad(), applying(base, parse_edits(base, ["z@1.1=zero"])):
        q = base.model(ids).logits[0].double().log_softmax(-1)
    with torch.no_grad():
        p = base.model(ids).logits[0].double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)[:-1]
    found = run.table("comparison").kl_ab.dropna().to_numpy()
    assert expected.max() > 1e-3 and abs(found - expected.numpy()).max() < 1e-4
    done = shell("compare", "c", "c", "--weights-patch-b", "p.safetensors")
    assert done.returncode == 1 and done.stderr.startswith("error: ")


def test_a_patch_in_memory_is_checked_as_a_file_is(models: dict[str, LanguageModel], tmp_path: Path) -> None:
    lm = models["llama"]
    patch = make_patch(lm, "z@1.1=zero")
    assert patch.sha256 == edit_weights(lm, "z@1.1=zero", tmp_path / "p").sha256 == load_patch(tmp_path / "p").sha256
    assert patch.sha256 != make_patch(lm, "z@1.2=zero").sha256
    with pytest.raises(BadModel, match="made for 'tiny:llama'"), patched(models["gemma2"], patch):
        pass
    (change,) = patch.changes
    for wrong, says in (({"index": torch.tensor([999])}, "index"), ({"factor": float("nan")}, "not numbers")):
        with pytest.raises(BadModel, match=says), patched(lm, replace(patch, changes=(replace(change, **wrong),))):
            pass
    with patched(lm, patch):
        second = make_patch(lm, "z@1.0=zero")
    with pytest.raises(BadModel, match="on top of another patch"), patched(lm, second):
        pass


def test_what_was_made_without_a_patch_is_of_another_model(models: dict[str, LanguageModel], tmp_path: Path) -> None:
    lm, file = models["llama"], tmp_path / "v.safetensors"
    run = probe.trace(lm, "abcd", capture="resid_post@1")
    vector = torch.ones(lm.anatomy.d_model)
    texts = (f"resid_post@1:last=add:{file}", "resid_post@1:last=patch:r")
    save_direction(file, lm, vector, site="resid_post", layer=1)
    assert len(parse_edits(lm, texts, runs={"r": run})) == 2
    with patched(lm, make_patch(lm, "z@1.1=zero")):
        for text in texts:
            with pytest.raises(BadEdit, match="another model, 'tiny:llama'") as caught:
                parse_edits(lm, [text], runs={"r": run})
            assert "tiny:llama + edited weights" in caught.value.hint
        save_direction(file, lm, vector, site="resid_post", layer=1)
        assert len(parse_edits(lm, texts[:1])) == 1
    with pytest.raises(BadEdit, match="'tiny:llama \\+ edited weights'"):
        parse_edits(lm, texts[:1])


def test_every_command_that_loads_a_model_takes_patches(models: dict[str, LanguageModel], tmp_path: Path, shell: Any) -> None:
    edit_weights(models["llama"], "z@1.1=zero", tmp_path / "p")
    for words in (["models", "show"], ["models", "check"], ["models", "sites"], ["selftest"]):
        done = shell(*words, "tiny:llama", "--weights-patch", "p", "--json")
        assert done.returncode == 0, done.stderr
        done = shell(*words, "tiny:gpt2", "--weights-patch", "p")
        assert done.returncode == 1 and "made for 'tiny:llama'" in done.stderr
    done = shell("weights", "tiny:llama", "--edit-weights", "z@1.1=zero", "--what", "norms", "-o", "q")
    assert done.returncode == 1 and "--what has no part in it" in done.stderr and not (tmp_path / "q").exists()


def test_patches_on_patches(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    lm = probe.load("tiny:llama")
    edit_weights(lm, "z@0.0=zero", first)
    with patched(lm, first):
        edit_weights(lm, "z@1.0=zero", second)
    both = probe.load("tiny:llama", weights_patch=[first, second])
    assert both.title == "tiny:llama + 1.safetensors + 2.safetensors"
    with applying(lm, parse_edits(lm, ["z@0.0=zero", "z@1.0=zero"])):
        torch.testing.assert_close(logits(both), logits(lm), atol=2e-5, rtol=1e-4)
    with pytest.raises(BadModel, match="on top of another patch"):
        probe.load("tiny:llama", weights_patch=second)


@pytest.mark.parametrize(("text", "kind", "match"), [
    ("z@99.0=zero", ProbeError, "99"), ("z@1.77=zero", ProbeError, "77"), ("mlp_post@1.n99999=zero", ProbeError, "99999"),
    ("model.norm.wait=zero", BadEdit, "is no parameter"), ("*.nothing=zero", BadEdit, "matches"),
    ("mlp_post@1.n3,5=zero", ProbeError, "5"), ("z@1.n1=zero", ProbeError, "no neurons"),
    ("z@1.1:last=zero", BadEdit, "positions"), ("resid_post@1=zero", BadEdit, "no column of one matrix"),
    ("z@1.1=zap", BadEdit, "unknown change"), ("z@1.1=scale", BadEdit, "does not say"),
    ("z@1.1=scale:nan", BadEdit, "not a number"),
    ("z@1.1=scale:1", BadEdit, "changes nothing"), ("z@1.1", BadEdit, "no edit of weights"),
    ("model.norm.weight=rank-one:x", BadEdit, "no matrix of a linear layer"),
    ("z@1=rank-one:gone.safetensors", BadEdit, "cannot read"),
    ("model.embed_tokens.weight=rank-one:x", BadEdit, "no matrix of a linear layer"),
    ("lm_head.weight=gain:2", BadEdit, "no gain of a norm"),
])  # fmt: skip
def test_what_cannot_be_edited_is_said(text: str, kind: type, match: str, models: dict[str, LanguageModel]) -> None:
    with pytest.raises(kind, match=match) as caught:
        make_patch(models["llama"], text)
    assert caught.value.hint


def test_what_a_family_lacks_and_what_has_no_numbers(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(SiteAbsent, match="mixture of experts"):
        make_patch(models["mixtral"], "mlp_post@1.n3=zero")
    with pytest.raises(SiteAbsent):
        make_patch(probe.load("tiny:mamba"), "z@1.0=zero")
    lm = probe.load("tiny:llama")
    _ = lm.anatomy
    module = lm.model.get_submodule(lm.anatomy.site("z", 1).tap.path)
    module.weight = torch.nn.Parameter(module.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(BadModel, match="quantised"):
        make_patch(lm, "z@1.1=zero")


def test_files_that_are_no_patch_of_the_model(
    models: dict[str, LanguageModel], tmp_path: Path, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, file = models["llama"], tmp_path / "p.safetensors"
    n = lm.anatomy.d_model
    save_file(
        {"u": torch.ones(n), "v": torch.ones(lm.anatomy.site("z", 1).width * lm.anatomy.n_heads("z", 1))}, tmp_path / "uv"
    )
    edit_weights(lm, f"z@1=rank-one:{tmp_path / 'uv'}", file)
    with pytest.raises(BadModel, match="made for 'tiny:llama'"), patched(models["gpt2"], file):
        pass
    whole = file.read_bytes()
    for cut in (0, 5, 100, len(whole) - 3):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(BadModel, match="cannot read a weights patch"):
            load_patch(tmp_path / "cut")
    with pytest.raises(BadModel, match="No such file"):
        load_patch(tmp_path / "gone")
    with pytest.raises(BadModel, match="is no weights patch"):
        load_patch(tmp_path / "uv")
    tensors = load_file(file)
    about = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["probe_weights_patch"])
    for name, wrong, says in (
        ("0.left", tensors["0.left"] * torch.nan, "not numbers"), ("0.left", tensors["0.left"][:-1], "has the shape"),
    ):  # fmt: skip
        save_file({**tensors, name: wrong.contiguous()}, tmp_path / "bad", metadata={"probe_weights_patch": json.dumps(about)})
        with pytest.raises(BadModel, match=says):
            load_patch(tmp_path / "bad")
    for key, value, says in (("version", 99, "version 99"), ("changes", [{}], "damaged"), ("edits", None, "damaged")):
        save_file(tensors, tmp_path / "bad", metadata={"probe_weights_patch": json.dumps({**about, key: value})})
        with pytest.raises(BadModel, match=says):
            load_patch(tmp_path / "bad")
    done = shell("lens", "abc", "-m", "tiny:gpt2", "--weights-patch", "p.safetensors", "--no-progress")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 2, done.stderr

    def full(*_: Any, **__: Any) -> None:
        raise StorageFull("the disk is full")

    monkeypatch.setattr("probe.durable.write_bytes", full)
    with pytest.raises(StorageFull) as caught:
        edit_weights(lm, "z@1.1=zero", tmp_path / "full")
    assert "free some space" in caught.value.hint
