"""Models in few bits: what the library computes is what is read, edited and continued; what they cannot be asked is said."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import probe
from probe.capturing.logits import _Projection
from probe.errors import BadModel, BadOption, RunError
from probe.instrument import held_bytes
from probe.interventions.directions import is_same_model
from probe.language_model import LanguageModel, model_of
from probe.laws import laws
from probe.registries.quantizations import QUANTIZATIONS
from probe.tiny import tiny, tokenizer

bitsandbytes = pytest.importorskip("bitsandbytes")
torchao = pytest.importorskip("torchao.quantization")
pytest.importorskip("compressed_tensors")

IDS = torch.tensor([[256, 5, 9, 20, 33, 7, 8, 101, 44, 60]])
STORED = ("bnb-int8", "bnb-nf4", "torchao-int8", "W4A16", "W8A8")  # the last two of compressed-tensors
# activations are rounded to 8 bits too: a last digit that differs may tip one over, and what is checked bit for bit still holds
ROUNDED = {"bnb-int8", "torchao-int8-dynamic", "W8A8"}
TIPPED = {
    "a text is the same alone and in a batch", "a shared prefix is the whole text's",
    "a rollout is the same alone, in a batch, in another order", "greedy decoding is what reading says",
    "greedy speculation is what reading says", "suppressing a span is deleting it with its positions kept",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose widths are multiples of 64, as the kernels for 4 bits want them, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("quantised") / "llama"
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=259, bos_token_id=256, eos_token_id=257, max_position_embeddings=512,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1 + 0.15 * noise)
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def config_of(name: str) -> Any:
    """What a user of transformers writes for a name of `--quantize`."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name == "torchao-int4":
        return TorchAoConfig(torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.PerGroup(32)))
    kinds = {"": "Int8WeightOnly", "-dynamic": "Int8DynamicActivationInt8Weight"}
    if name.startswith("torchao-int8"):
        return TorchAoConfig(getattr(torchao, f"{kinds[name.removeprefix('torchao-int8')]}Config")())
    if name == "torchao-float8":
        return TorchAoConfig(torchao.Float8WeightOnlyConfig())
    if name == "bnb-int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=name.removeprefix("bnb-"))


def loaded(path: Path, **options: Any) -> LanguageModel:
    """Without the warnings that texts depend on each other, which have tests of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return probe.load(str(path), **options)


def plainly(path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def compressed(source: Path, path: Path, scheme: str) -> None:
    """What llm-compressor writes for round-to-nearest, by the library that it writes with."""
    from compressed_tensors import quantization as by
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    model, group = plainly(source), by.preset_name_to_scheme(scheme, ["Linear"])
    assert group.weights is not None
    if group.weights.group_size:
        group.weights.group_size = 32
    by.apply_quantization_config(model, by.QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"]))
    for module in model.modules():
        if (own := getattr(module, "quantization_scheme", None)) is not None:
            size = own.weights.group_size or module.weight.shape[1]
            parts = module.weight.data.unflatten(-1, (-1, size))
            module.weight_scale.data = calculate_qparams(parts.amin(-1), parts.amax(-1), own.weights)[0]
            module.quantization_status = by.QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(path)
    compressor.update_config(str(path))


@pytest.fixture(scope="module")
def stored(folder: Path) -> dict[str, Path]:
    """Checkpoints that are quantised, by how."""
    found = {}
    for name in STORED:
        found[name] = path = folder.parent / name
        if name in QUANTIZATIONS:
            plainly(folder, quantization_config=config_of(name)).save_pretrained(path)  # before it has run
        else:
            compressed(folder, path, name)
        tokenizer().save_pretrained(path)
    return found


@pytest.fixture(scope="module")
def load(folder: Path) -> Any:
    """Loads by a name of `--quantize`, once."""

    return cache(lambda name=None: loaded(folder, quantize=name))


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_it_computes_what_transformers_computes(folder: Path, load: Any, name: str) -> None:
    lm, plain = load(name), load()
    expected = logits(plainly(folder, quantization_config=config_of(name)))
    assert torch.equal(logits(lm.model), expected) and not torch.equal(expected, logits(plain.model))
    assert lm.identity["quantize"] == name and lm.title == f"{folder} + {name}" and lm.dtype == torch.float32
    assert lm.identity["parameters"] == plain.identity["parameters"]
    assert lm.identity["files"] == plain.identity["files"] and not is_same_model(lm.identity, plain.identity)
    assert held_bytes(lm.model) < 0.6 * held_bytes(plain.model)
    json.dumps(lm.identity)


@pytest.mark.parametrize("name", STORED)
def test_a_stored_one_loads_like_any_other(stored: dict[str, Path], name: str, capfd: pytest.CaptureFixture[str]) -> None:
    lm = loaded(stored[name])
    assert capfd.readouterr() == ("", "")  # the libraries say and draw nothing
    assert torch.equal(logits(lm.model), logits(plainly(stored[name])))
    assert lm.identity["quantisation"].startswith(("bitsandbytes ", "torchao ", "compressed-tensors "))
    assert "quantize" not in lm.identity
    with pytest.raises(BadOption, match="is quantised already"):
        probe.load(str(stored[name]), quantize="torchao-int8")
    _check_laws(lm, name)


def test_laws_hold(load: Any) -> None:
    _check_laws(load("torchao-int4"), "torchao-int4")


def _check_laws(lm: LanguageModel, name: str) -> None:
    tips = name in ROUNDED or name == "bnb-nf4"  # which some processors compute in bfloat16, and others do not
    for law in laws(lm):
        if not tips or law.name not in TIPPED:
            assert law.holds, law


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_gradient_is_right_or_refused(load: Any, name: str, tmp_path: Path) -> None:
    """torch gives zeros, and says nothing, where rounding has no backward or a kernel none."""

    def gradient(lm: LanguageModel) -> torch.Tensor:
        given = lm.model.get_input_embeddings()(IDS).detach().requires_grad_(True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.autograd.grad(lm.model(inputs_embeds=given).logits[0, -1, 3], given)[0].flatten()

    lm = load(name)
    right = float(torch.cosine_similarity(gradient(lm), gradient(load()), dim=0)) > 0.5
    assert right == (lm.gradients_lost_in is None), name
    pair = {"clean": "abcd", "corrupt": "abcx", "answer": "e", "against": "f", "method": "attribution", "sites": "resid_pre"}
    if right:
        probe.patch(lm, **pair, out=tmp_path / "run")
    else:
        with pytest.raises(BadModel, match=r"gives no gradients: they are lost in .*_proj, which is quantised"):
            probe.patch(lm, **pair, out=tmp_path / "run")


@pytest.mark.parametrize("name", ["bnb-int8", "bnb-nf4", "torchao-int8", "torchao-int8-dynamic"])
@pytest.mark.parametrize("by", [None, "neuron"])
def test_a_logit_is_taken_apart_as_far_as_layers_are_linear(load: Any, name: str, by: str | None, tmp_path: Path) -> None:
    lm = load(name)
    if by and (name in ROUNDED or lm.gradients_lost_in):
        with pytest.raises(probe.ProbeError, match="no MLP can be taken apart"):
            probe.attribute(lm, "abcd", by=by, out=tmp_path / "run")
        return
    run = probe.attribute(lm, "abcd", by=by, out=tmp_path / "run")
    if by is None and name != "bnb-nf4":  # which some processors compute in bfloat16, and others do not
        assert (run.attribution["head"].max() >= 0) == (name not in ROUNDED)
    assert abs(run.summary["positions"][-1]["residual"]) < 1e-4


@pytest.mark.parametrize("name", ["W4A16", "torchao-int8", "bnb-int8"])
def test_weights_are_refused_and_gains_are_not(stored: dict[str, Path], name: str, tmp_path: Path) -> None:
    lm = loaded(stored[name])
    before = logits(lm.model)
    with pytest.raises(BadModel, match=r"the weights of .* are quantised \(.*\): probe weights needs them as numbers"):
        probe.weights(lm, out=tmp_path / "run")
    for edit in ("model.layers.0.mlp.down_proj.weight=zero", "z@1.2=zero"):
        with pytest.raises(probe.ProbeError, match="is quantised"):
            probe.edit_weights(lm, edit, tmp_path / "patch")
    with pytest.raises(BadModel, match="an adapter that is merged in needs them as numbers"):
        loaded(stored[name], adapter=tmp_path)
    assert torch.equal(logits(lm.model), before)
    probe.edit_weights(lm, "model.norm.weight=scale:0.5", tmp_path / "patch")  # that one is a number
    assert torch.equal(logits(loaded(stored[name], weights_patch=tmp_path / "patch").model), 0.5 * before)


def test_a_patch_for_the_float_model_is_for_no_other(folder: Path, load: Any, tmp_path: Path) -> None:
    probe.edit_weights(load(), "z@1.2=zero", tmp_path / "patch")
    with pytest.raises(BadModel, match="quantize differ"):
        probe.load(str(folder), quantize="torchao-int8", weights_patch=tmp_path / "patch")


def test_a_run_is_of_the_quantised_model(folder: Path, load: Any, tmp_path: Path, shell: Any) -> None:
    words = ("trace", "abc", "-m", str(folder), "-n", "4", "--quantize", "torchao-int8", "--out", "r", "--no-progress")
    assert shell(*words).returncode == 0
    run = probe.open_run(tmp_path / "r")
    assert run.manifest["model"]["quantize"] == "torchao-int8"
    assert torch.equal(logits(model_of(run).model), logits(load("torchao-int8").model))
    done = shell("rewind", "r", "--to", "4", "-n", "2", "--max-new", "2", "--out", "back", "--no-progress")
    assert done.returncode == 0, done.stderr
    with pytest.raises(RunError, match="quantize differ"):
        probe.rewind(run, to="4", lm=load())
    done = shell("compare", str(folder), str(folder), "abcdef", "--quantize-b", "torchao-int8", "--out", "c", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert probe.open_run(tmp_path / "c").summary["b"] == f"{folder} + torchao-int8"
    done = shell("trace", "abc", "-m", str(folder), "--quantize", "bnb")
    assert (done.returncode, done.stdout) == (1, "") and "there are bnb-int8, bnb-nf4" in done.stderr


def test_a_head_of_wrapped_weights_is_called() -> None:
    head = nn.Linear(64, 128, bias=False)
    torchao.quantize_(head, torchao.Int8WeightOnlyConfig())
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(_Projection(head)(hidden), head(hidden))


def test_rows_of_llm_int8_depend_on_each_other(folder: Path, load: Any) -> None:
    """A channel in which one token of a call is an outlier is computed in 16 bits for all of them; the user is told."""
    lm, layer = load("bnb-int8"), load("bnb-int8").model.model.layers[0].mlp.down_proj
    rows = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    rows[1, 7] = 50.0
    with torch.no_grad():
        assert not torch.equal(layer(rows)[0], layer(rows[:1])[0]) and torch.equal(layer(rows[:1])[0], layer(rows[[0, 0]])[0])
    with pytest.warns(UserWarning, match="depends, within that rounding, on what is computed with it"):
        assert torch.equal(logits(probe.load(str(folder), quantize="bnb-int8").model), logits(lm.model))


def test_four_bits_in_bfloat16_are_told(folder: Path) -> None:
    """On a processor with AVX512-BF16 one row is summed otherwise than many: on SmolLM2 a text is 0.08 nats off in a batch."""
    from bitsandbytes.functional import has_avx512bf16

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        probe.load(str(folder), quantize="bnb-nf4")
    assert any("in bfloat16 on this processor" in str(one.message) for one in told) == has_avx512bf16()


def test_what_cannot_be_is_said_in_one_line(stored: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method, said in {
        "gptq": "optimum",
        "awq": "gptqmodel",
        "eetq": "kernels",
        "nonsense": "is quantised by .nonsense., which",
    }.items():
        path = tmp_path / method
        shutil.copytree(stored["W8A8"], path)
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
        (path / "config.json").write_text(json.dumps(config))
        with pytest.raises(BadModel, match=said) as refused:
            probe.load(str(path))
        assert "\n" not in refused.value.message
    with pytest.raises(BadOption, match="unknown quantisation 'bnb-nf'") as refused:
        probe.load("tiny:llama", quantize="bnb-nf")
    assert refused.value.hint.startswith("did you mean 'bnb-nf4'? there are bnb-int8, ")
    with pytest.raises(BadOption, match="not kept on disk"):
        probe.load("tiny:llama", quantize="bnb-nf4", device_map={"": "cpu", "lm_head": "disk"})
    monkeypatch.setattr("probe.language_model.quantization.find_spec", lambda name: None)
    for model, options in (("tiny:llama", {"quantize": "bnb-nf4"}), (str(stored["W8A8"]), {})):
        with pytest.raises(BadOption, match=r"needs the .* package") as refused:
            probe.load(model, **options)
        assert refused.value.hint.startswith("pip install 'mechprobe[")


def test_a_tiny_model_is_quantised_too() -> None:
    lm = probe.load("tiny:llama", quantize="torchao-int8")
    assert 0 < (logits(lm.model) - logits(tiny("llama")[0])).abs().max() < 0.2
    assert lm.identity["files"] == probe.load("tiny:llama").identity["files"]
