"""`probe models …` as a user runs it: listing, fetching, removing, and what is where in a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from probe.cli.main import app
from probe.cli.models import app as models
from typer.testing import CliRunner

from probe.errors import ProbeError
from probe.language_model import home
from probe.language_model.names import ALIASES
from tests.test_language_model import save, write_gguf

Shell = Callable[..., CompletedProcess[str]]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROBE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home"


def run(*words: str) -> str:
    """Standard output of `probe models …`, in this process: a process of its own takes seconds to import torch."""
    done = CliRunner().invoke(app, ["models", *words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def as_json(*words: str) -> dict:
    return json.loads(run(*words, "--json"))


def test_list_fetch_and_remove(tmp_path: Path, own_home: Path) -> None:
    listed = {row["name"]: row for row in as_json("ls")["models"]}
    assert list(listed) == list(ALIASES) and not any(row["where"] for row in listed.values())
    pulled = as_json("pull", str(write_gguf(tmp_path / "small.gguf")))
    folder = Path(pulled["path"])
    assert folder.parent == own_home / "models" and pulled["bytes"] > 100_000
    row = next(row for row in as_json("ls")["models"] if row["name"] == folder.name)
    assert (row["where"], row["path"], row["bytes"]) == ("probe", str(folder), pulled["bytes"])
    assert folder.name in run("ls") and "smollm2" in run("ls")
    assert as_json("rm", folder.name) == {"removed": folder.name, "bytes": pulled["bytes"]}
    assert home.made_here() == {}


def test_pull_says_where_the_model_is(tmp_path: Path) -> None:
    directory = save(tmp_path / "model", "llama")
    assert run("pull", str(directory)).startswith(f"{directory}: {directory} (")


def test_show(tmp_path: Path) -> None:
    directory = save(tmp_path / "model", "llama")
    facts = as_json("show", str(directory))
    assert facts["class"] == "LlamaForCausalLM" and facts["source"] == "directory" and facts["dtype"] == "float32"
    assert facts["layers"] == 1 and facts["d_model"] == 64 and facts["heads"] == 4
    assert facts["bos"] == "<s>" and facts["eos"] == ["</s>"] and facts["causal"] is True
    assert facts["residual_error"] < 1e-4 and len(facts["files"]["model.safetensors"]) == 64
    text = run("show", str(directory))
    assert "LlamaForCausalLM" in text and "residual error" in text


def test_check_prints_what_was_found_and_what_not() -> None:
    text = run("check", "tiny:llama")
    assert "model.layers.2" in text and "self_attn" in text and "mlp" in text
    assert "residual error: " in text and "attention: causal" in text and "lm_head" in text
    anatomy = as_json("check", "tiny:llama")["anatomy"]
    assert anatomy["n_layers"] == 3 and anatomy["residual_error"] < 1e-4
    parallel = run("check", "tiny:gpt_neox")
    assert "not found" in parallel and "resid_mid" in parallel.split("not found")[1]


def test_sites_with_shapes_and_bytes() -> None:
    import probe

    lm = probe.load("tiny:llama")
    config = lm.model.config
    rows = {(row["site"], row["layer"]): row for row in as_json("sites", "tiny:llama")["sites"]}
    d_head = config.hidden_size // config.num_attention_heads
    expected = {
        ("embed", -1): (f"(pos, {config.hidden_size})", config.hidden_size),
        ("resid_post", 2): (f"(pos, {config.hidden_size})", config.hidden_size),
        ("mlp_post", 0): (f"(pos, {config.intermediate_size})", config.intermediate_size),
        ("q", 1): (f"(pos, {config.num_attention_heads}, {d_head})", config.hidden_size),
        ("k", 1): (f"(pos, {config.num_key_value_heads}, {d_head})", config.num_key_value_heads * d_head),
        ("z", 0): (f"(pos, {config.num_attention_heads}, {d_head})", config.hidden_size),
        ("pattern", 0): (f"({config.num_attention_heads}, query, key)", 0),
        ("logits", -1): (f"(pos, {config.vocab_size})", config.vocab_size),
    }
    for where, (shape, values) in expected.items():
        assert (rows[where]["shape"], rows[where]["bytes_per_token"]) == (shape, 4 * values), where
    (only,) = as_json("sites", "tiny:llama", "z@1.0..1")["sites"]
    assert only == {"site": "z", "layer": 1, "shape": f"(pos, 2, {d_head})", "bytes_per_token": 4 * 2 * d_head}
    assert "resid_post" in run("sites", "tiny:llama") and "0..2" in run("sites", "tiny:llama")


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (["rm", "smollm2"], "probe made no model 'smollm2'", "nothing yet"),
        (["rm", "../elsewhere"], "probe made no model", "nothing yet"),
        (["show", "smolm2"], "'smolm2' is not in the local cache", "did you mean 'smollm2'"),
        (["check", "."], "has no config.json", "save_pretrained"),
        (["pull", "tiny:llama"], "made in memory", "nothing to fetch"),
        (["pull", "owner/name"], "HF_HUB_OFFLINE is set", "unset"),
        (["sites", "tiny:llama", "resid_pst@0"], "resid_pst", "resid_post"),
        (["sites", "tiny:llama", "resid_post@7"], "7", "0"),
        (["show", "tiny:llama", "--dtype", "float8"], "unknown dtype 'float8'", "bfloat16"),
        (["show", "tiny:llama", "--device", "cuda:99"], "no device 'cuda:99' here", "cpu"),
    ],
)
def test_failures_are_one_line_and_a_hint(
    words: list[str], says: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["models", *words])
    assert done.exit_code == 1 and done.stdout == "", done.output
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ") and says in first
    assert second.startswith("hint: ") and hint in second


def test_the_real_command_line(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(os.urandom(100))
    done = shell("models", "show", "broken.gguf")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "is not a readable GGUF file" in done.stderr
    assert done.stderr.splitlines()[1].startswith("hint: ") and len(done.stderr.splitlines()) == 2
    assert shell("models", "ls", "--json").returncode == 0
    assert shell("models", "frobnicate").returncode == 2


def test_the_group_raises_stated_failures_for_the_shell_to_show() -> None:
    done = CliRunner().invoke(models, ["rm", "nothing"])
    assert isinstance(done.exception, ProbeError)
