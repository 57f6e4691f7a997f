"""`probe trace` as a user runs it: what it prints, where it exits, and every kind of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

TINY = ("--model", "tiny:llama")


def failed(done, code: int, *words: str) -> None:
    """One `error:` line, one `hint:` line, no traceback, the given exit code."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert "Traceback" not in done.stderr
    if code == 1:
        assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert done.stdout == ""


def test_a_trace_is_a_run_that_pandas_opens(shell, tmp_path: Path) -> None:
    done = shell("trace", "Hello world", *TINY, "--generate", "4", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["command"] == "trace" and said["run"] == "run" and said["summary"]["generated"] == 4
    tokens = pd.read_parquet(tmp_path / "run" / "tokens.parquet")
    assert list(tokens["segment"]).count("completion") == 4
    assert tokens["logprob"].isna().tolist() == [True] + [False] * (len(tokens) - 1)
    assert shell("runs", "check", "run").returncode == 0


def test_words_in_a_pipe_have_no_colour_and_no_wrapping(shell) -> None:
    text = "a long line of text " * 12
    done = shell("trace", text, *TINY, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and text in done.stdout


def test_prompts_from_standard_input(shell, tmp_path: Path) -> None:
    done = shell("trace", "-", *TINY, "--out", "run", "--quiet", stdin="one\ntwo\n\nthree\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "run"
    assert pd.read_parquet(tmp_path / "run" / "prompts.parquet")["text"].tolist() == ["one", "two", "three"]


def test_a_bad_row_is_an_error_row(shell, tmp_path: Path) -> None:
    rows = [{"prompt": "fine"}, {"wrong": 1}, {"prompt": "also fine"}, {"prompt": "x" * 5000}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{torn")
    done = shell("trace", "--file", "p.jsonl", *TINY, "--out", "run")
    assert done.returncode == 1
    assert "3 of 5 prompts" in done.stderr
    prompts = pd.read_parquet(tmp_path / "run" / "prompts.parquet")
    assert (prompts["error"] != "").tolist() == [False, True, False, True, True]


BAD = [
    (("trace",), 2, "prompt"),
    (("trace", "x", "--file", "y.txt"), 2, "prompt"),
    (("trace", "x", "--model", "tiny:lama"), 1, "'llama'"),
    (("trace", "x", "--model", "smolm2"), 1, "smollm2"),
    (("trace", "x", *TINY, "--capture", "resid_pots@1"), 1, "resid_post"),
    (("trace", "x", *TINY, "--capture", "resid_post@99"), 1, "0..2"),
    (("trace", "x", *TINY, "--capture", "z@1.99"), 1, "0..3"),
    (("trace", "x", *TINY, "--capture", "resid_post@1:77"), 1, "77"),
    (("trace", "x", *TINY, "--attention", "topk:0"), 1, "topk"),
    (("trace", "x", *TINY, "--attention", "some"), 1, "summary"),
    (("trace", "x", *TINY, "--generate", "-3"), 2, "--generate"),
    (("trace", "x", *TINY, "--top", "-1"), 2, "--top"),
    (("trace", "x", *TINY, "--temperature", "-1"), 2, "--temperature"),
    (("trace", "x", *TINY, "--split", "regex:("), 1, "regex"),
    (("trace", "x", *TINY, "--device", "abacus"), 1, "abacus"),
    (("trace", "x", *TINY, "--dtype", "float8"), 1, "float8"),
    (("trace", "x", *TINY, "--store", "zip"), 1, "bf16"),
    (("trace", "x", *TINY, "--system", "be kind"), 1, "--chat"),
    (("trace", "--file", "none.jsonl", *TINY), 1, "none.jsonl"),
    (("trace", "--file", "none.xls", *TINY), 1, ".jsonl"),
    (("trace", "x" * 5000, *TINY), 1, "context"),
]


@pytest.mark.parametrize(
    ("words", "code", "said"), BAD, ids=lambda v: " ".join(v)[:60] if isinstance(v, tuple) else None
)
def test_bad_input_is_one_clear_line(shell, words: tuple[str, ...], code: int, said: str) -> None:
    failed(shell(*words), code, said)


def test_an_existing_run_is_not_overwritten(shell, tmp_path: Path) -> None:
    assert shell("trace", "x", *TINY, "--out", "run").returncode == 0
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    failed(shell("trace", "y", *TINY, "--out", "run"), 1, "run")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_dry_run_writes_nothing(shell, tmp_path: Path) -> None:
    done = shell("trace", "Hello", *TINY, "--capture", "resid_post@all", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["tables"]["activations"]["rows"] == 3 * plan["tokens"]
    assert list(tmp_path.iterdir()) == []


def test_steps_of_a_run(shell) -> None:
    assert (
        shell(
            "trace", "The first of them. The second one is longer! At last there is a third.", *TINY, "--out", "run"
        ).returncode
        == 0
    )
    done = shell("steps", "run", "--json")
    steps = json.loads(done.stdout)["summary"]["steps"]
    assert (
        "".join(s["text"] for s in steps).removeprefix("<s>")
        == "The first of them. The second one is longer! At last there is a third."
    )
    assert len(steps) == 3
    failed(shell("steps", "nowhere"), 1, "nowhere")
