"""What a run gives without unnesting: arrays of all heads, a row of a pattern, flat tables, and tables on standard output."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from probe.cli.main import app
from typer.testing import CliRunner

import probe
from probe.errors import BadOption, RunError
from probe.store import export

TEXT = "Alice has 3 apples and 4 pears"


@pytest.fixture(scope="module")
def lm() -> Any:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def full(lm: Any, tmp_path_factory: pytest.TempPathFactory) -> probe.Run:
    out = tmp_path_factory.mktemp("runs") / "full"
    return probe.trace(lm, [TEXT, "b"], capture=["z@all", "q@1.0,1.2", "scores@1"], attention="full", out=out)


@pytest.fixture(scope="module")
def some(lm: Any) -> probe.Run:
    return probe.trace(lm, TEXT, capture=["z@1.0:last", "z@1.1:0..3", "k@0.1:2,last"], attention="topk:3")


def test_all_heads_are_one_array(full: probe.Run, lm: Any) -> None:
    z = full.activation("z", 1)
    n = len(full.tokens.query("prompt_id == 0"))
    assert z.shape == (n, lm.model.config.num_attention_heads, lm.model.config.head_dim)
    for head in range(z.shape[1]):
        np.testing.assert_array_equal(z[:, head], full.activation("z", 1, head=head))
    np.testing.assert_array_equal(full.activation("q", 1)[:, 1], full.activation("q", 1, head=2))
    assert full.activation("z", 0, prompt_id=1).shape[0] == len(full.tokens.query("prompt_id == 1")) < n


def test_heads_of_other_positions_are_no_array(some: probe.Run) -> None:
    with pytest.raises(RunError, match="'z' at layer 1 were captured at different positions"):
        some.activation("z", 1)
    assert some.activation("k", 0).shape[:2] == (2, 1)
    with pytest.raises(RunError, match="not captured of head 3") as caught:
        some.activation("z", 1, head=3)
    assert "0, 1" in caught.value.hint


def test_a_row_of_a_pattern(full: probe.Run, some: probe.Run, lm: Any) -> None:
    pattern = full.activation("pattern", 1, head=2)
    tokens = full.tokens.query("prompt_id == 0")["token"].tolist()
    row = full.attention(1, 2, 5)
    assert list(row.columns) == ["key", "token", "weight"]
    assert row["key"].tolist() == list(range(6)) and row["token"].tolist() == tokens[:6]
    np.testing.assert_array_equal(row["weight"], pattern[5, :6])
    pd.testing.assert_frame_equal(full.attention(1, 2, -1), full.attention(1, 2, len(tokens) - 1))
    kept = some.attention(1, 2, 5)
    best = sorted(np.argsort(-pattern[5, :6], kind="stable")[:3])
    assert kept["key"].tolist() == best and kept["token"].tolist() == [tokens[i] for i in best]
    np.testing.assert_allclose(kept["weight"], pattern[5, best], rtol=1e-6)
    assert full.attention(0, 0, 0, prompt_id=1)["weight"].tolist() == [1.0]
    for wrong in ({"layer": 9, "head": 0, "query": 0}, {"layer": 0, "head": 0, "query": 99}):
        with pytest.raises(RunError, match="holds no 'attention' of"):
            full.attention(**wrong)
    with pytest.raises(RunError, match="holds no 'attention'") as caught:
        probe.trace(lm, "a", attention="none").attention(0, 0, 0)
    assert "--attention full" in caught.value.hint


@pytest.mark.parametrize("table", ["attention", "scores"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_flat_table_has_a_row_a_query_and_key(full: probe.Run, table: str, kind: str, tmp_path: Path) -> None:
    rows = export(full, table, tmp_path / f"flat.{kind}", flat=True)
    read: dict[str, Any] = {
        "csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True), "parquet": pd.read_parquet
    }  # fmt: skip
    flat = read[kind](tmp_path / f"flat.{kind}")
    value = {"attention": "weight", "scores": "score"}[table]
    assert list(flat.columns) == ["run_id", "prompt_id", "branch", "layer", "head", "query", "key", value]
    site = {"attention": "pattern", "scores": "scores"}[table]
    dense = full.activation(site, 1, head=3)
    mine = flat.query("prompt_id == 0 and layer == 1 and head == 3")
    assert len(flat) == rows and len(mine) == np.tril(np.ones_like(dense)).sum()
    np.testing.assert_allclose(mine[value], dense[mine["query"], mine["key"]], rtol=1e-6)


def test_a_flat_table_of_the_kept_keys(some: probe.Run, tmp_path: Path) -> None:
    export(some, "attention", tmp_path / "flat.parquet", flat=True)
    flat = pd.read_parquet(tmp_path / "flat.parquet")
    for query in (0, 1, 5, 11):
        mine = flat.query(f"layer == 0 and head == 1 and query == {query}").sort_values("key", ignore_index=True)
        pd.testing.assert_frame_equal(
            mine[["key", "weight"]], some.attention(0, 1, query)[["key", "weight"]], check_dtype=False
        )
    with pytest.raises(BadOption, match="'tokens' cannot be laid flat"):
        export(some, "tokens", tmp_path / "x.csv", flat=True)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_stream_gets_what_a_file_gets(full: probe.Run, kind: str, tmp_path: Path) -> None:
    for table, flat in (("tokens", False), ("attention", True)):
        file, stream = tmp_path / f"{table}.{kind}", io.BytesIO()
        assert export(full, table, file, flat=flat) == export(full, table, stream, format=kind, flat=flat)
        if kind == "parquet":
            assert pq.read_table(file).equals(pq.read_table(io.BytesIO(stream.getvalue())))
        else:
            assert stream.getvalue() == file.read_bytes()


def shell(*words: str, **more: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen([sys.executable, "-m", "probe", *words], **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("-",), (), ("-", "--format", "parquet")], ids=str)
def test_standard_output_holds_the_table_alone(full: probe.Run, words: tuple[str, ...], tmp_path: Path) -> None:
    out, err = shell("runs", "export", str(full.path), "tokens", *words).communicate()
    kind = "parquet" if words[-1:] == ("parquet",) else "csv"
    export(full, "tokens", tmp_path / f"t.{kind}")
    if kind == "parquet":
        assert pq.read_table(io.BytesIO(out)).equals(pq.read_table(tmp_path / "t.parquet"))
    else:
        assert out == (tmp_path / "t.csv").read_bytes()
    assert err == b""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_reader_that_goes_away_is_no_trouble(full: probe.Run, kind: str) -> None:
    going = shell("runs", "export", str(full.path), "attention", "-", "--format", kind, "--flat")
    assert going.stdout is not None and going.stderr is not None
    going.stdout.close()
    assert going.stderr.read() == b"" and going.wait() == 1


def test_what_standard_output_cannot_hold(full: probe.Run) -> None:
    run = CliRunner().invoke
    for words, said in (
        (["tokens", "-", "--json"], "leave out --json"), (["tokens", "--newick"], "only --newick or --json"),
        (["activations", "-", "--format", "safetensors"], "written to a file"), (["tokens", "-", "--format", "xml"], "'xml'"),
        (["tokens", "-", "--flat"], "cannot be laid flat"), (["token", "-"], "no table 'token'"),
    ):  # fmt: skip
        done = run(app, ["runs", "export", str(full.path), *words])
        assert done.exit_code in (1, 2) and said in done.stderr and ("--json" in words or done.stdout == "")


def test_the_flat_export_of_the_command(full: probe.Run) -> None:
    out = CliRunner().invoke(app, ["runs", "export", str(full.path), "attention", "--flat", "--format", "jsonl"]).stdout
    first = json.loads(out.splitlines()[0])
    assert {"query", "key", "weight"} <= first.keys() and first["weight"] == pytest.approx(1.0)
