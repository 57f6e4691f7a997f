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
    assert done.returncode == 3  # some could be run
    assert "3 of 5 prompts" in done.stderr
    prompts = pd.read_parquet(tmp_path / "run" / "prompts.parquet")
    assert (prompts["error"] != "").tolist() == [False, True, False, True, True]


def test_rows_that_are_no_text_and_files_that_are_no_csv(shell, tmp_path: Path) -> None:
    long = "x" * 200_000  # more than Python's csv takes by itself; longer than the model's context
    (tmp_path / "long.csv").write_text(f'prompt\nfine\n{long}\n"a, ""b""\nc"\n')
    done = shell("trace", "--file", "long.csv", *TINY, "--out", "run", "--quiet")
    assert done.returncode == 3 and "1 of 3 prompts" in done.stderr
    assert pd.read_parquet(tmp_path / "run" / "prompts.parquet")["text"].tolist() == ["fine", long, 'a, "b"\nc']
    (tmp_path / "open.csv").write_text('prompt\nfine\n"never closed\n')
    failed(shell("trace", "--file", "open.csv", *TINY, "--out", "no"), 1, "open.csv")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    failed(shell("trace", "--file", "latin.txt", *TINY, "--out", "no"), 1, "UTF-8")
    failed(shell("trace", "-", *TINY, "--out", "no", stdin=b"caf\xe9\n"), 1, "UTF-8")
    assert not (tmp_path / "no").exists()


def test_a_model_without_attention_says_so_once(shell, tmp_path: Path) -> None:
    done = shell("trace", "hello", "--model", "tiny:mamba", "--attention", "full", "--out", "run", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["summary"]["tokens"] == 6
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: no attention recorded at layers 0..2: ")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["warnings"] == [warning[len("warning: ") :]]
    failed(shell("trace", "x", "--model", "tiny:mamba", "--capture", "pattern@all", "--out", "no"), 1, "pattern")
    failed(shell("trace", "x", "--model", "tiny:mixtral", "--capture", "mlp_post@all", "--out", "no"), 1, "no layer has")


@pytest.mark.parametrize("family", ["xlnet", "deepseek_v4", "llama"])
def test_json_has_no_infinity(shell, family: str) -> None:
    """Python reads `Infinity` and `NaN`, other readers of JSON don't."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    done = shell("models", "check", f"tiny:{family}", "--json")
    anatomy = json.loads(done.stdout, parse_constant=refuse)["anatomy"]
    assert (anatomy["readout_error"] is None) == (family != "llama")


def test_a_run_named_twice_is_removed_once(shell, tmp_path: Path) -> None:
    assert shell("trace", "x", *TINY, "--out", "run").returncode == 0
    done = shell("runs", "rm", "run", "run", "--yes")
    assert done.returncode == 0 and done.stderr == "" and not (tmp_path / "run").exists()


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


@pytest.mark.parametrize(("words", "code", "said"), BAD, ids=lambda v: " ".join(v)[:60] if isinstance(v, tuple) else None)
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
    failed(shell("steps", "run", "--branch", "3"), 1, "branch 3")


@pytest.mark.slow
def test_steps_of_a_rewind(shell) -> None:
    assert shell("trace", "Once upon", *TINY, "--generate", "12", "--out", "run").returncode == 0
    assert shell("rewind", "run", "--to", "step0", "-n", "2", "--max-new", "6", "--out", "drawn").returncode == 0
    done = shell("steps", "drawn")
    assert done.returncode == 0 and "branch" in done.stdout and not done.stderr, done.stderr
    rows = json.loads(shell("steps", "drawn", "--branch", "1", "--json").stdout)["summary"]["steps"]
    assert {row["branch"] for row in rows} == {1}


def test_an_error_is_a_document_where_json_was_asked_for(shell, tmp_path: Path) -> None:
    """One document on standard output, whatever happens; the words on standard error and the exit code are as ever."""
    for words, code in (
        (("trace", "x", "--model", "tiny:lama", "--json"), 1),
        (("trace", "x", *TINY, "--bogus", "--json"), 2),
        (("runs", "show", "nowhere", "--json"), 1),
    ):
        done = shell(*words)
        said = json.loads(done.stdout)
        assert done.returncode == code and set(said) == {"error", "hint"} and all(said.values()), done.stdout
        assert code == 2 or f"error: {said['error']}" in done.stderr
    done = shell("trace", *TINY, "--out", "run", "--", "--json")
    assert done.returncode == 0 and "logprob" in done.stdout
    done = shell("trace", "ab", *TINY, "--generate", "3", "--json", "--out", "new")
    (written,) = json.loads(done.stdout)["summary"]["completions"]
    assert written["text"] == pd.read_parquet(tmp_path / "new" / "prompts.parquet")["completion"][0]


def test_exit_codes_say_whether_anything_could_be_done(shell, tmp_path: Path) -> None:
    long = json.dumps({"prompt": "x" * 5000})
    (tmp_path / "some.jsonl").write_text(f'{{"prompt": "fine"}}\n{long}')
    (tmp_path / "none.jsonl").write_text(f"{long}\n{long}")
    done = shell("trace", "--file", "some.jsonl", *TINY, "--out", "some")
    assert done.returncode == 3 and "fine" in done.stdout and "error: the prompt has 5,0" in done.stdout
    assert shell("trace", "--file", "none.jsonl", *TINY, "--out", "none", "--quiet").returncode == 1
    assert "3 some rows failed" in " ".join(shell("--help").stdout.split())


def test_several_prompts_are_a_row_each(shell) -> None:
    done = shell("trace", "-", *TINY, "--generate", "2", "--out", "run", stdin="one\n\ntwo words\n")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["0", '"one"', "2"] in [line[:3] for line in lines] and ["2", '"two', 'words"', "2"] in [line[:4] for line in lines]
