"""A file of problems: what its rows say beside the prompt is in the run, typed, joinable, and there after a resume."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from probe.cli import main as program
from typer.testing import CliRunner

import probe
from probe import store
from probe.errors import BadOption, RunError
from probe.requests import FileOptions
from probe.texts import as_prompts, choices_of, columns_of, copy_prompts, expected_of, read_prompts

ROWS: list[dict[str, Any]] = [
    {"prompt": "2 + 2 =", "id": 7, "level": 1.5, "hard": False, "subject": "sums", "expect": 4, "tags": ["a", "b"],
     "meta": {"year": 2001, "who": "x"}, "mixed": "seven", "big": 2**60, "text": "own", "choices": ["3", 4]},
    {"prompt": "2 + 3 =", "id": 8, "level": 2, "hard": True, "subject": None, "expect": "5", "tags": [],
     "meta": {"year": None, "more": [1, 2]}, "mixed": 7, "big": 3, "text": "words", "choices": None},
    {"prompt": 3, "id": 9, "late": "x", "mixed": {"a": [1]}},
    {"prompt": "1 + 1 =", "id": 10, "expect": 2.0, "TEXT_given": 1, "Prompt_ID": "q1"},
]  # fmt: skip
TYPES = {
    "id": pa.int64(), "level": pa.float64(), "hard": pa.bool_(), "subject": pa.string(), "tags": pa.list_(pa.string()),
    "meta": pa.struct([("year", pa.int64()), ("who", pa.string()), ("more", pa.list_(pa.int64()))]), "mixed": pa.string(),
    "big": pa.int64(), "text_given": pa.string(), "late": pa.string(), "TEXT_given_given": pa.int64(),
    "Prompt_ID_given": pa.string(),
}  # fmt: skip


@pytest.fixture(scope="module")
def lm() -> Any:
    return probe.load("tiny:llama")


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_column_is_in_the_table_with_its_type(lm: Any, tmp_path: Path) -> None:
    run = probe.trace(lm, jsonl(tmp_path / "p.jsonl", ROWS), attention="none", out=tmp_path / "r")
    assert dict(run.extra("prompts")) == TYPES
    found = run.scan("prompts").to_pylist()
    assert [row["expect"] for row in found] == ["4", "5", None, "2.0"]
    assert [row["choices"] for row in found] == [["3", "4"], None, None, None]
    assert [row["mixed"] for row in found] == ["seven", "7", '{"a": [1]}', None]
    assert found[0]["meta"] == {"year": 2001, "who": "x", "more": None} and found[1]["meta"]["more"] == [1, 2]
    assert [row["big"] for row in found[:2]] == [2**60, 3] and [row["level"] for row in found[:2]] == [1.5, 2.0]
    assert [row["text"] for row in found] == ["2 + 2 =", "2 + 3 =", "", "1 + 1 ="]
    assert [row["text_given"] for row in found] == ["own", "words", None, None] and found[3]["Prompt_ID_given"] == "q1"
    assert "int" in found[2]["error"] and found[2]["id"] == 9 and found[2]["late"] == "x"
    assert (expected_of(run, 0), choices_of(run, 0), expected_of(run, 2), choices_of(run, 2)) == ("4", ["3", "4"], None, None)
    assert store.check(tmp_path / "r") == []


@pytest.mark.parametrize("reader", ["pandas", "polars", "duckdb", "datasets"])
def test_the_file_opens_in_every_reader(lm: Any, reader: str, tmp_path: Path) -> None:
    module = pytest.importorskip(reader)
    probe.trace(lm, jsonl(tmp_path / "p.jsonl", ROWS), attention="none", out=tmp_path / "r")
    file = tmp_path / "r" / "prompts.parquet"
    rows = pq.read_table(file).to_pylist()
    if reader == "duckdb":
        found = module.sql(f"select id, meta, choices from '{file}' order by prompt_id").fetchall()
        assert found[:2] == [tuple(row[name] for name in ("id", "meta", "choices")) for row in rows[:2]]
        assert module.sql(f"select count(*) from '{file}' where hard and level > 1").fetchall() == [(1,)]
        return
    if reader == "datasets":
        table = module.load_dataset(str(tmp_path / "r"), "prompts", cache_dir=str(tmp_path / "cache"))["train"]
    else:
        table = module.read_parquet(file)
    columns = {name: list(table[name]) for name in ("id", "meta", "choices", "level")}
    assert columns["id"] == [7, 8, 9, 10] and columns["level"][:2] == [1.5, 2.0]
    assert list(columns["choices"][0]) == ["3", "4"] and columns["choices"][1] is None
    assert columns["meta"][0] == rows[0]["meta"] and list(columns["meta"][1]["more"]) == [1, 2]


def test_it_joins_by_prompt_id(lm: Any, tmp_path: Path) -> None:
    run = probe.trace(lm, jsonl(tmp_path / "p.jsonl", ROWS), attention="none", out=None)
    joined = run.tokens.merge(run.prompts, on="prompt_id", suffixes=("", "_p"))
    assert set(joined["id"]) == {7, 8, 10} and set(joined[joined["prompt_id"] == 1]["tags"].map(len)) == {0}


def test_columns_of_a_csv_are_read_as_numbers_where_all_are() -> None:
    text = (
        "prompt,n,x,code,flag,note,choices,expect\n"
        'a,1,0.5,007,true,,"[""yes"", ""no""]",3\nb,,1e3,12,False,hi,,\n"c",-3,7,1,TRUE,4,"[1, 2]",007\nd,2\n'
    )
    found = read_prompts(io.BytesIO(text.encode()), kind="csv")
    kinds = {"n": pa.int64(), "x": pa.float64(), "code": pa.string(), "flag": pa.bool_(), "note": pa.string()}
    assert columns_of(found).types == kinds
    assert [p.columns.get("n") for p in found] == [1, None, -3, 2]
    assert [p.columns.get("x") for p in found] == [0.5, 1000.0, 7.0, None]
    assert [p.columns.get("code") for p in found] == ["007", "12", "1", None]
    assert [p.columns.get("note") for p in found] == ["", "hi", "4", None]
    assert [p.choices for p in found] == [["yes", "no"], None, ["1", "2"], None]
    assert [p.expect for p in found] == ["3", None, "007", None]


def test_parquet_columns_keep_their_types(tmp_path: Path) -> None:
    table = pa.table({
        "messages": [[{"role": "user", "content": "a"}]] * 2, "level": pa.array([1, None], pa.int8()),
        "score": pa.array([0.5, 1.0], pa.float32()), "raw": [b"ab", b"\xff"], "choices": [["x"], ["y", "z"]],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "p.parquet")
    found = read_prompts(tmp_path / "p.parquet")
    assert columns_of(found).types == {"level": pa.int64(), "score": pa.float64(), "raw": pa.string()}
    assert [p.columns for p in found] == [{"level": 1, "score": 0.5, "raw": "ab"}, {"level": None, "score": 1.0, "raw": "/w=="}]
    assert [p.choices for p in found] == [["x"], ["y", "z"]]


def test_another_column_of_answers(lm: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": 4, "expect": "no"}, {"prompt": "b", "answer": 5}]
    run = probe.trace(lm, jsonl(tmp_path / "p.jsonl", rows), expect_column="answer", attention="none", out=None)
    assert run.prompts["expect"].tolist() == ["4", "5"] and run.prompts["answer"].tolist() == [4, 5]
    assert run.prompts["expect_given"].tolist()[0] == "no"
    with pytest.raises(BadOption, match="no column 'label' with answers") as caught:
        as_prompts(tmp_path / "p.jsonl", FileOptions(expect_column="label"))
    assert "answer, expect" in caught.value.hint
    with pytest.raises(BadOption, match="lines of text"):
        read_prompts(io.BytesIO(b"a\nb"), kind="txt", expect_column="answer")


def test_choices_that_are_none_are_an_error_row() -> None:
    rows = [{"prompt": "a", "choices": "yes or no"}, {"prompt": "b", "choices": {"text": ["x", "y"], "label": ["A", "B"]}}]
    found = as_prompts([*rows, {"prompt": "c", "choices": [None]}, {"prompt": "d"}])
    assert [bool(p.error) for p in found] == [True, False, True, False] and found[1].choices == ["x", "y"]
    assert "yes or no" in found[0].error and found[0].columns == {"choices_given": "yes or no"}


def test_objects_of_many_names_and_deep_ones_are_json() -> None:
    wide = {f"k{i}": i for i in range(100)}
    deep: Any = 1
    for _ in range(12):
        deep = [deep]
    rows = [{"prompt": "a", "wide": wide, "deep": deep, "none": {}, "twice": {"a": 1, "A": 2}, "huge": 2**70}]
    found = as_prompts(rows)
    types = columns_of(found).types
    assert {name for name, kind in types.items() if kind == pa.string()} == {"wide", "none", "twice", "huge"}
    assert json.loads(found[0].columns["wide"]) == wide and found[0].columns["huge"] == str(2**70)
    kind: Any = types["deep"]
    while pa.types.is_list(kind):
        kind = kind.value_type
    assert kind == pa.string()


def test_a_resumed_run_has_the_same_columns(lm: Any, tmp_path: Path) -> None:
    """Stopped after its first batch: the schema is in its state, and rows of other columns are refused."""
    path = jsonl(tmp_path / "p.jsonl", ROWS)
    whole = probe.trace(lm, path, attention="none", batch_tokens=8, out=tmp_path / "whole")

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.trace(lm, path, attention="none", batch_tokens=8, out=tmp_path / "r", progress=stop)
    assert json.loads((tmp_path / "r.partial" / "state.json").read_text())["columns"]["prompts"]["id"] == "int"
    jsonl(path, [{**row, "id": str(row["id"])} for row in ROWS])
    with pytest.raises(RunError, match="prompts_sha256"):
        probe.trace(lm, path, attention="none", batch_tokens=8, out=tmp_path / "r", resume=True)
    jsonl(path, ROWS)
    run = probe.trace(lm, path, attention="none", batch_tokens=8, out=tmp_path / "r", resume=True)
    for table in ("prompts", "tokens"):
        mine, theirs = (one.table_arrow(table).drop_columns(["run_id"]) for one in (run, whole))
        assert mine.equals(theirs) and mine.schema.equals(theirs.schema)
    assert store.check(tmp_path / "r") == []


def test_columns_come_before_rows(tmp_path: Path) -> None:
    writer = store.create(tmp_path / "r", command="trace", arguments={})
    with writer.unit("a"):
        writer.write("prompts", {"prompt_id": [0], "text": ["a"]})
    with pytest.raises(RunError, match="of no file"):
        writer.extend("prompts", {"id": pa.int64()})
    writer.close()
    writer = store.create(tmp_path / "r", command="trace", arguments={}, resume=True)
    with pytest.raises(RunError, match="of no file"):
        writer.extend("prompts", {"id": pa.int64()})
    writer.extend("prompts", {})
    writer.close()


def test_a_manifest_with_a_column_twice_is_damaged(lm: Any, tmp_path: Path) -> None:
    probe.trace(lm, jsonl(tmp_path / "p.jsonl", ROWS), attention="none", out=tmp_path / "r")
    about = json.loads((tmp_path / "r" / "manifest.json").read_text())
    for columns in ({"Text": "int"}, {"x": "complex"}, {"x": {"struct": {}}}):
        (tmp_path / "r" / "manifest.json").write_text(json.dumps({**about, "columns": {"prompts": columns}}))
        with pytest.raises(RunError, match="damaged"):
            store.open_run(tmp_path / "r")


def test_rows_travel_to_a_run_that_is_made_of_it(lm: Any, tmp_path: Path) -> None:
    source = probe.trace(lm, jsonl(tmp_path / "p.jsonl", ROWS), attention="none", out=None)
    for path in (None, tmp_path / "made"):
        writer = store.create(path, command="rewind", arguments={})
        with writer.unit("1"):
            copy_prompts(source, writer, [1, 3])
        with writer.unit("2"):
            copy_prompts(source, writer, [0])
        made = writer.finish(summary={})
        mine = made.table_arrow("prompts").drop_columns(["run_id"])
        assert mine.equals(source.scan("prompts", prompt_id=[0, 1, 3]).drop_columns(["run_id"]))
        assert made.extra("prompts") == source.extra("prompts")


def test_rewinding_carries_them_along(lm: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a b c", "id": "x1", "expect": "4"}]
    run = probe.trace(lm, jsonl(tmp_path / "p.jsonl", rows), generate=8, attention="none", out=tmp_path / "r")
    done = probe.rewind(run, lm=lm, to="-1", split="token", samples=2, max_new=4, out=tmp_path / "w")
    assert done.prompts["id"].tolist() == ["x1"] and expected_of(done, 0) == "4"


@pytest.mark.parametrize("command", ["trace", "speculate", "compare", "steer"])
def test_every_command_that_reads_a_file_keeps_them(lm: Any, command: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "a b c", "id": "x1", "expect": 4}, {"prompt": "d e f", "id": "x2"}])
    if command == "compare":
        run = probe.compare(lm, lm, path, out=tmp_path / "r")
    elif command == "speculate":
        run = probe.speculate(lm, path, generate=2, draft="ngram", out=tmp_path / "r")
    elif command == "trace":
        run = probe.trace(lm, path, out=tmp_path / "r")
    else:
        made = tmp_path / "v.safetensors"
        probe.make_direction(lm, positive=["good"], negative=["bad"], at="resid_post@1", to=made)
        run = probe.steer(lm, made, path, strengths=(0.0, 1.0), answer=" x", controls=1, out=tmp_path / "r")
    assert run.prompts["id"].tolist() == ["x1", "x2"] and run.prompts["expect"].tolist()[0] == "4"


def test_exports_hold_them(lm: Any, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "z", 'a "quoted", name': "é"}]
    run = probe.trace(lm, jsonl(tmp_path / "p.jsonl", rows), attention="none", out=tmp_path / "r")
    for suffix in ("csv", "jsonl", "parquet"):
        assert store.export(run, "prompts", tmp_path / f"x.{suffix}") == 5
    with (tmp_path / "x.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert json.loads(read[0]["choices"]) == ["3", "4"] and json.loads(read[0]["meta"])["year"] == 2001
    assert read[4]['a "quoted", name'] == "é" and read[1]["choices"] == ""
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines[0]["tags"] == ["a", "b"] and lines[2]["mixed"] == '{"a": [1]}'
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == run.scan("prompts").to_pylist()


@pytest.mark.parametrize("form", ["file", "table"])
def test_a_replay_has_them(lm: Any, form: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [row for row in ROWS if isinstance(row["prompt"], str)])
    given = path if form == "file" else read_prompts(path)
    run = probe.trace(lm, given, attention="none", out=tmp_path / "r")
    again = probe.replay(lm, run)
    mine, theirs = (one.table_arrow("prompts").drop_columns(["run_id"]) for one in (again, run))
    assert mine.equals(theirs)


def test_the_command_says_and_keeps_them(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "a b", "right": "4", "id": 1}, {"prompt": "c d", "right": "5", "id": 2}])
    asked = ["trace", "-f", str(path), "--expect-column", "right", "-m", "tiny:llama", "-o", str(tmp_path / "r"), "-q"]
    assert CliRunner().invoke(program.app, asked).exit_code == 0
    assert store.open_run(tmp_path / "r").prompts["expect"].tolist() == ["4", "5"]
    wrong = CliRunner().invoke(program.app, ["trace", "a b", "--expect-column", "right", "-m", "tiny:llama"])
    assert wrong.exit_code == 2 and "--expect-column" in wrong.output
