"""What goes wrong on a user's machine: each is one clear line and a hint, and nothing half-written looks whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import probe
from tests.test_cli_trace import TINY, failed

ROOT = Path(__file__).parents[1]
PROMPTS = "\n".join(f"prompt number {i} " + "word " * 60 for i in range(400))


def started(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    """The real command line, running; stopped for sure by `reap`."""
    return subprocess.Popen(
        [sys.executable, "-m", "probe", *words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(condition, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):  # two minutes: on a busy machine imports alone take half of one
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("it never came to that")


@pytest.fixture
def long_run(tmp_path: Path):
    """A trace of many prompts, at work on `run`."""
    (tmp_path / "p.txt").write_text(PROMPTS)
    process = started(
        tmp_path, "trace", "--file", "p.txt", *TINY, "--out", "run", "--batch-tokens", "80", "--attention", "summary"
    )
    until(lambda: (tmp_path / "run.partial").exists(), process)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(long_run, shell, tmp_path: Path) -> None:
    time.sleep(1.5)
    long_run.send_signal(signal.SIGINT)
    _, said = long_run.communicate(timeout=60)
    assert long_run.returncode == 130 and "Traceback" not in said, said
    assert not (tmp_path / "run").exists() and (tmp_path / "run.partial").is_dir()
    failed(shell("runs", "show", "run"), 1, "run")
    words = ("--file", "p.txt", *TINY, "--out", "run", "--batch-tokens", "80", "--attention", "summary")
    failed(shell("trace", *words), 1, "--resume")
    assert shell("trace", *words, "--resume", "--quiet").returncode == 0
    assert shell("runs", "check", "run").returncode == 0
    assert pd.read_parquet(tmp_path / "run" / "prompts.parquet")["prompt_id"].tolist() == list(range(400))


@pytest.mark.slow
def test_kill_9_and_resume_give_the_tables_of_a_run_that_was_left_alone(long_run, shell, tmp_path: Path) -> None:
    time.sleep(1.0)
    long_run.kill()
    long_run.communicate()
    assert long_run.returncode == -signal.SIGKILL and not (tmp_path / "run").exists()
    words = ("trace", "--file", "p.txt", *TINY, "--batch-tokens", "80", "--attention", "summary", "--quiet")
    assert shell(*words, "--out", "run", "--resume").returncode == 0
    assert shell(*words, "--out", "alone").returncode == 0
    for table in ("tokens", "heads", "attention_rows", "steps", "prompts"):
        got, want = (pd.read_parquet(next(tmp_path.glob(f"{name}/{table}*"))) for name in ("run", "alone"))
        pd.testing.assert_frame_equal(got.drop(columns="run_id"), want.drop(columns="run_id"), check_exact=True)


def test_two_processes_never_share_a_run(long_run, shell) -> None:
    words = ("--file", "p.txt", *TINY, "--out", "run", "--batch-tokens", "80", "--attention", "summary")
    failed(shell("trace", *words, "--resume"), 1, "run")


@pytest.mark.slow
def test_no_room_on_the_disk(tmp_path: Path) -> None:
    """A limit on the size of a file stands for a full disk: the write that does not fit fails the same way."""
    words = f"trace '{'word ' * 90}' --model tiny:llama --capture resid_post@all --out run"
    line = f"ulimit -f 24; exec {sys.executable} -m probe {words}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    failed(done, 1, "run")
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be(shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    failed(shell("trace", "x", *TINY, "--out", "file/run"), 1, "file")
    failed(shell("trace", "x", *TINY, "--out", "file"), 1, "file")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A tiny model as a local directory."""
    path = tmp_path_factory.mktemp("models") / "own"
    lm = probe.load("tiny:llama")
    lm.model.save_pretrained(path)
    lm.tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
def test_a_local_directory_is_a_model(shell, directory: Path) -> None:
    said = json.loads(shell("trace", "hello", "--model", str(directory), "--json").stdout)
    assert said["summary"]["tokens"] > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [("model.norm", float("nan")), ("model.norm", float("inf")), ("model.layers.1.mlp.down_proj", float("nan"))],
)
def test_logits_that_are_no_numbers(shell, directory: Path, tmp_path: Path, name: str, value: float) -> None:
    """Refused before anything is written; where a NaN begins is said."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(directory, tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights[f"{name}.weight"] = torch.full_like(weights[f"{name}.weight"], value)
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    where = [] if value == float("inf") else [f"first NaN comes out of '{name}'"]
    failed(shell("trace", "hello", "--model", "nan", "--out", "run"), 1, "finite", *where)
    assert not (tmp_path / "run").exists()
    failed(shell("trace", "hello", "--model", "nan", "--generate", "3", "--out", "run"), 1, "finite")


def test_a_directory_that_is_no_model(shell, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    failed(shell("trace", "x", "--model", "empty"), 1, "empty")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03\x00\x00\x00 and nothing more")
    failed(shell("trace", "x", "--model", "torn.gguf"), 1, "torn.gguf")


@pytest.mark.slow
def test_an_empty_prompt_where_there_is_no_bos(shell) -> None:
    failed(shell("trace", "", "--model", "smollm2"), 1, "empty")


@pytest.mark.slow
def test_tokens_that_are_parts_of_a_character_and_tags(shell, tmp_path: Path) -> None:
    text = "A </script> 𝄞 🧑‍🚀 naïve"
    assert shell("trace", text, "--out", "run").returncode == 0
    tokens = pd.read_parquet(tmp_path / "run" / "tokens.parquet")
    run = probe.open_run(tmp_path / "run")
    assert run.text() == text and (tokens["text_start"] <= tokens["text_end"]).all()
    assert (tokens["token"] == "").any()  # a token that ends no character


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_where_words_cannot_go_is_one_line(unbuffered: str, tmp_path: Path) -> None:
    """A full disk takes no words, nor what Python still holds when it ends; a closed standard output wants none."""

    def run(redirected: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
        line = f"{sys.executable} -m probe tables {redirected}"
        return subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)

    full, document, closed = run("> /dev/full"), run("--json > /dev/full"), run(">&-")
    wanted = "error: cannot write to standard output: No space left on device\nhint: what was finished is kept\n"
    assert (full.returncode, full.stderr) == (1, wanted) == (document.returncode, document.stderr)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_a_number_that_no_table_holds_is_one_line(shell) -> None:
    done = shell("trace", "hi", *TINY, "--generate", str(10**30))
    failed(done, 1, f"error: '{10**30}' is no number for --generate")


@pytest.mark.slow
def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    line = f"{sys.executable} -m probe trace 'hello there' --model tiny:llama --out run | head -c 1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
