"""`probe speculate` as a user runs it: the marked text, one JSON document, and every kind of bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from tests.test_cli_trace import failed

TINY = ("--model", "tiny:llama")


def test_the_marked_text_is_what_the_tables_say(shell, tmp_path: Path) -> None:
    done = shell("speculate", "ab ab ab", *TINY, "--draft", "ngram", "-n", "12", "--out", "run", "--no-plain")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    text = done.stdout.split("\n(accepted as it is")[0]
    without = re.sub(r"\[-.*?-\]", "", text, flags=re.DOTALL)
    plain = re.sub(r"\{[+=](.*?)[+=]\}", r"\1", without, flags=re.DOTALL)
    tokens, proposals = (pd.read_parquet(tmp_path / "run" / f"{t}.parquet") for t in ("tokens", "proposals"))
    printed = "".join(t if t.isprintable() or t in "\n\t" else t.encode("unicode_escape").decode() for t in tokens["token"])
    assert plain == printed
    assert text.count("[-") == (proposals["verdict"] == "rejected").sum()
    assert "accepted/drafted" in done.stdout and "speed-up" not in done.stdout
    assert shell("runs", "check", "run").returncode == 0


def test_json_is_one_document_and_a_file_is_many_prompts(shell, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one one one\ntwo two\n")
    words = ("--file", "p.txt", *TINY, "--draft", "tiny:llama", "--block", "adaptive", "-n", "9", "-t", "1")
    done = shell("speculate", *words, "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["command"] == "speculate" and said["summary"]["prompts"] == 2
    assert said["summary"]["acceptance"]["accepted/tested"]["estimate"] == 1.0
    assert said["summary"]["speed"]["plain_tokens_per_second"] > 0


def test_a_plan_writes_nothing(shell, tmp_path: Path) -> None:
    done = shell("speculate", "ab", *TINY, "--draft", "layers:1", "-n", "8", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "target passes at most: 8" in done.stdout and list(tmp_path.iterdir()) == []


def test_bad_input_is_said_in_a_line(shell) -> None:
    failed(shell("speculate", "ab", *TINY, "--draft", "layers:9"), 1, "3 blocks, not 9", "layers:1 to layers:3")
    failed(shell("speculate", "ab", *TINY, "--draft", "smollm2"), 1, "vocabularies", "49,152", "layers:N and ngram")
    failed(shell("speculate", "ab", *TINY, "--draft", "ngram", "--block", "few"), 1, "block length 'few'")
    failed(shell("speculate", "ab", *TINY), 2, "--draft")
