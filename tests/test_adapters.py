"""Adapters of the peft library: merged they are peft's own forward, named in the manifest, and there when a run is reopened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import probe
from probe.errors import BadModel, BadOption, ProbeError, RunError
from probe.language_model import model_of
from probe.tiny import tiny

IDS = torch.tensor([[5, 9, 200, 31, 7, 7]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA of tiny:llama with random weights."""
    return lora(tmp_path / "lora")


def lora(directory: Path, *, seed: int = 0, **config: Any) -> Path:
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(
        tiny("llama")[0], peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **config)
    )
    adapted.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"], "lora_alpha": 16}])
def test_a_merged_adapter_is_pefts_own_forward(tmp_path: Path, config: dict[str, Any]) -> None:
    directory = lora(tmp_path / "lora", **config)
    lm = probe.load("tiny:llama", adapter=str(directory))
    apart = peft.PeftModel.from_pretrained(tiny("llama")[0], directory).eval()
    torch.testing.assert_close(logits(lm.model), logits(apart), atol=1e-5, rtol=1e-4)  # fp32: x(W + BA) for xW + xBA
    assert (logits(lm.model) - logits(probe.load("tiny:llama").model)).abs().max() > 0.1
    assert type(lm.model).__name__ == "LlamaForCausalLM" and lm.title == "tiny:llama + lora"


@pytest.mark.slow
def test_a_run_says_its_adapter_and_is_reopened_with_it(adapter: Path, tmp_path: Path, shell: Any) -> None:
    words = ("trace", "abc", "-m", "tiny:llama", "-n", "6", "--adapter", "./lora", "--out", "r", "--no-progress")
    assert shell(*words).returncode == 0
    run = probe.open_run(tmp_path / "r")
    said = run.manifest["model"]["adapter"]
    assert said["path"] == str(adapter) and said["kind"] == "LORA"
    assert set(said["files"]) == {"adapter_model.safetensors", "adapter_config.json"}
    again = model_of(run)
    assert torch.equal(logits(again.model), logits(probe.load("tiny:llama", adapter=adapter).model))
    done = shell("rewind", "r", "--to", "5", "-n", "2", "--max-new", "2", "--out", "back", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "back" / "manifest.json").read_text())["model"]["adapter"] == said
    lora(adapter, seed=1)  # another one in its place
    done = shell("rewind", "r", "--to", "5", "-n", "2", "--max-new", "2", "--out", "no", "--no-progress")
    assert done.returncode == 1 and "adapter differ" in done.stderr
    with pytest.raises(RunError):
        probe.rewind(run, to="5", lm=probe.load("tiny:llama"))


def test_base_against_adapted(adapter: Path, tmp_path: Path, shell: Any) -> None:
    done = shell("compare", "tiny:llama", "tiny:llama", "abcdef", "--adapter-b", "lora", "--out", "c", "--no-progress")
    assert done.returncode == 0, done.stderr
    run = probe.open_run(tmp_path / "c")
    assert (run.summary["a"], run.summary["b"]) == ("tiny:llama", "tiny:llama + lora")
    base, adapted = probe.load("tiny:llama"), probe.load("tiny:llama", adapter=adapter)
    ids = torch.tensor([base.encode("abcdef").ids])
    with torch.no_grad():
        p, q = (lm.model(ids).logits[0].double().log_softmax(-1) for lm in (base, adapted))
    expected = (p.exp() * (p - q)).sum(-1)[:-1]
    found = run.table("comparison").kl_ab.dropna().to_numpy()
    assert abs(found - expected.numpy()[-len(found) :]).max() < 1e-4
    done = shell("compare", "c", "c", "--adapter-b", "lora")
    assert done.returncode == 1 and done.stderr.startswith("error: ")


def test_directories_that_hold_no_adapter_of_the_model(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadModel, match=r"is no adapter: it has no adapter_config.json"):
        probe.load("tiny:llama", adapter=tmp_path / "empty")
    with pytest.raises(BadModel, match="is no adapter"):
        probe.load("tiny:llama", adapter="")
    with pytest.raises(ProbeError):
        probe.load("tiny:gpt2", adapter=adapter)
    model = peft.get_peft_model(tiny("llama")[0], peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    model.save_pretrained(tmp_path / "prompt")
    with pytest.raises(BadModel, match="PROMPT_TUNING, which changes no weights"):
        probe.load("tiny:llama", adapter=tmp_path / "prompt")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj", "k_proj"]}))
    with pytest.raises(BadModel, match="does not fit the model"):
        probe.load("tiny:llama", adapter=adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(BadModel, match="has no adapter_model"):
        probe.load("tiny:llama", adapter=adapter)


def test_without_the_package_it_is_said(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(BadOption, match="needs the peft package") as caught:
        probe.load("tiny:llama", adapter=adapter)
    assert "mechprobe[peft]" in caught.value.hint
