"""A model that two processes of torchrun share gives what it gives whole: sites, edits, tokens, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from probe.cli import processes as started
from probe.cli.main import app
from typer.testing import CliRunner

import probe
from probe.errors import BadModel, BadOption
from probe.fitting import halving
from probe.language_model.spreading import check_split
from probe.tiny import tiny
from tests import two_processes

COMMANDS = {
    "read": ["trace", "a b c", "--generate", "4", "--temperature", "1", "--seed", "3", "--attention", "full", "--lens",
             "--capture", "z@all", "--capture", "q@1", "--capture", "mlp_post@0", "--capture", "resid_post@all"],
    "edited": ["trace", "a b c", "--generate", "4", "--edit", "z@1.3=zero", "--edit", "k@0.1=scale:0.5",
               "--edit", "mlp_post@2.n90=zero", "--edit", "pattern@1.2:3..=cut:1", "--capture", "resid_post@2"],
    "patched": ["patch", "--clean", "2 + 3 =", "--corrupt", "2 + 4 =", "--answer", "5", "--against", "6",
                "--sites", "z,resid_pre"],
}  # fmt: skip
FAMILIES = {"llama": ["read", "edited", "patched"], "gemma2": ["read"]}  # this one has grouped keys, and a cap of scores


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Every table but for rounding, tokens that are drawn included; one of the processes speaks. What needs whole weights, or
    would have the two go through other forwards, is refused."""
    wholes: dict[str, probe.Run] = {}
    commands = []
    for family, names in FAMILIES.items():
        model, tokenizer = tiny(family)
        for part in (model, tokenizer):
            part.save_pretrained(tmp_path / family)
        for name in names:
            alone, both = tmp_path / f"{family}-{name}", tmp_path / f"{family}-{name}-2"
            words = [*COMMANDS[name], "--model", str(tmp_path / family)]
            assert CliRunner().invoke(app, [*words, "--out", str(alone)]).exit_code == 0
            wholes[str(both)] = probe.open_run(alone)
            commands.append([*words, "--out", str(both), "--tp-plan", "auto"])
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", two_processes.__name__]
    asked = json.dumps([commands, str(tmp_path / "llama")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*words, asked], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    for path, whole in wholes.items():
        assert ended.stdout.count(f"run: {path}") == 1
        _check_alike(whole, probe.open_run(path))
    assert (tmp_path / "llama.safetensors").is_file()
    told = json.loads(ended.stdout.splitlines()[-1])
    lm = probe.load(str(tmp_path / "llama"))
    with torch.no_grad():
        expected = lm.model(torch.tensor([lm.encode("a b c").ids])).logits
    torch.testing.assert_close(torch.tensor(told.pop("forward")), expected, rtol=1e-5, atol=1e-5)
    assert told.keys() == two_processes.REFUSED.keys()
    assert all(message and "\n" not in message and hint for message, hint in told.values())
    assert not Path("never written").exists()


def _check_alike(one: probe.Run, other: probe.Run) -> None:
    assert one.tables == other.tables
    assert other.manifest["model"] == {**one.manifest["model"], "tp_size": 2}
    for name in one.tables:
        frames = (run.table(name).drop(columns="run_id") for run in (one, other))
        pd.testing.assert_frame_equal(*frames, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tp_plan": "all"}, "unknown tensor-parallel plan 'all'"),
        ({"tp_plan": "auto"}, "this one is alone"),
        ({"tp_plan": "auto", "device_map": "auto"}, "both a tensor-parallel plan and a device"),
        ({"tp_plan": "auto", "device": "cpu"}, "both a tensor-parallel plan and a device"),
        ({"tp_plan": "auto", "weights_patch": "x"}, "nothing is put on weights that several processes share"),
    ],
)
def test_a_plan_is_for_several_processes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message) as caught:
        probe.load("tiny:llama", **given)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("family", "processes", "message"),
    [
        ("gpt2", 2, "transformers has no tensor-parallel plan for 'it'"),
        ("llama", 3, "the 4 heads of model.layers.0.self_attn.q_proj cannot be cut into 3 equal parts"),
        ("gemma2", 4, "the 2 heads of model.layers.0.self_attn.k_proj cannot be cut into 4 equal parts"),
        ("olmo2", 5, "the 96 columns of model.layers.0.mlp.gate_proj cannot be cut into 5 equal parts"),
    ],
)
def test_what_cannot_be_split_in_equal_parts_is_refused(
    family: str, processes: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(BadModel) as caught:
        check_split("it", tiny(family)[0])
    assert caught.value.message.startswith(message) and caught.value.hint


def test_nothing_is_halved_where_processes_share_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would wait for what this one does not compute."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    def run(_: list[int]) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(BadModel, match="a batch does not fit into the memory of one of several processes"):
        list(halving([1, 2], run, what="a batch", hint="fewer"))


def test_another_process_speaks_only_where_it_fails_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(started, "PATIENCE", 0.0)
    wrong = ["trace", "a", "--tp-plan", "all"]
    for number, words, code, expected in (
        ("1", ["trace", "--tp-plan=auto", "--help"], 0, ""),
        ("1", wrong, 1, "process 1: error: unknown tensor-parallel plan 'all'\nhint: "),
        ("0", wrong, 1, "error: unknown tensor-parallel plan 'all'\nhint: "),
        ("1", [*wrong[:2], "--", "--tp-plan"], 2, "error: "),
    ):
        monkeypatch.setenv("RANK", number)
        with pytest.raises(SystemExit) as end:
            app(words)
        said = capsys.readouterr()
        assert (end.value.code, said.out) == (code, "")
        assert said.err.startswith(expected) and bool(said.err) == bool(expected)
