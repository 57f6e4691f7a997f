"""Runs of every schema open, scan and export; what is newer is passed over; the rows of every export match the header.

`tests/golden/vN-VERB` is a run that the code of schema version N wrote.
"""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from probe.cli import main as program
from typer.testing import CliRunner

from probe import store, tables
from probe.errors import RunError
from probe.store import manifest
from tests.test_store import make

GOLDEN = Path(__file__).parent / "golden"
RUNS = sorted(path.name for path in GOLDEN.iterdir())


def version(name: str) -> int:
    return int(name[1 : name.index("-")])


def written(path: Path, name: str) -> pa.Table:
    """A table of a run as pyarrow alone reads its files."""
    files = sorted((path / name).glob("*.parquet")) or [path / f"{name}.parquet"]
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def test_every_schema_version_has_a_golden_run() -> None:
    assert {version(name) for name in RUNS} == set(range(1, tables.SCHEMA_VERSION + 1))
    since = [column.since for table in tables.TABLES.values() for column in table.columns]
    assert max(since) == tables.SCHEMA_VERSION and min(since) == 1


@pytest.mark.parametrize("name", RUNS)
def test_a_column_says_since_when_it_is_there(name: str) -> None:
    """The files of a version have the columns that say so, in their order and type: who adds one raises the version."""
    assert json.loads((GOLDEN / name / "manifest.json").read_text())["schema_version"] == version(name)
    for table in store.open_run(GOLDEN / name).tables:
        promised = [c for c in (tables.RUN, *tables.TABLES[table].columns) if c.since <= version(name)]
        found = written(GOLDEN / name, table).schema
        assert [(field.name, field.type) for field in found] == [(c.name, c.type) for c in promised], table


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_every_schema_opens(name: str) -> None:
    """Every table has today's columns; those of before hold what is in the file, the others typed nulls."""
    assert store.check(GOLDEN / name) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = store.open_run(GOLDEN / name)
        assert "tokens" in run.tables and any(text in run.text() for text in ("The cat sat.", "John saw Mary"))
        for table in run.tables:
            raw, read = written(GOLDEN / name, table), run.table_arrow(table)
            assert read.schema.equals(tables.schema(table), check_metadata=False)
            assert pa.concat_tables(list(run.batches(table, rows=3))).equals(read)
            for field in read.schema:
                if field.name in raw.column_names:
                    assert read[field.name].to_pylist() == raw[field.name].to_pylist(), (table, field.name)
                else:
                    assert read[field.name].null_count == read.num_rows > 0
            assert len(run.table(table)) == raw.num_rows == run.manifest["tables"][table]["rows"]
        assert run.scan("tokens", columns=["pos", "template"], pos=[0, 2], prompt_id=0).to_pylist()[1]["pos"] == 2
        if "activations" in run.tables:
            vectors = np.stack(written(GOLDEN / name, "activations")["vector"].to_numpy())
            np.testing.assert_array_equal(run.activation("resid_post", 1), vectors)
    shown = CliRunner().invoke(program.app, ["runs", "show", str(GOLDEN / name)])
    assert shown.exit_code == 0 and run.run_id in shown.output


def headed(run: store.Run, folder: Path) -> None:
    """The law: every row of every export has a value under each name of the header, and the header is today's columns."""
    for table in run.tables:
        names, n = tables.schema(table).names, run.table_arrow(table).num_rows
        for kind in ("csv", "jsonl", "parquet"):
            assert store.export(run, table, folder / f"{table}.{kind}") == n
        with (folder / f"{table}.csv").open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert header == names and [len(row) for row in rows] == [len(names)] * n
        objects = [json.loads(line) for line in (folder / f"{table}.jsonl").read_text("utf-8").splitlines()]
        assert [list(row) for row in objects] == [names] * n
        again = pq.read_table(folder / f"{table}.parquet")
        assert again.schema.equals(tables.schema(table)) and again.num_rows == n
        for i, name in enumerate(names):  # a number stands under its own name
            if pa.types.is_integer(again.schema.field(name).type):
                values = again[name].to_pylist()
                assert [int(row[i]) if row[i] else None for row in rows] == values == [row[name] for row in objects]


@pytest.mark.parametrize("name", RUNS)
def test_rows_of_every_export_match_the_header(name: str, tmp_path: Path) -> None:
    headed(store.open_run(GOLDEN / name), tmp_path)


@pytest.mark.parametrize("disk", [True, False])
def test_rows_of_exports_match_the_header_where_prompts_failed(disk: bool, tmp_path: Path) -> None:
    """A prompt that failed has few columns; a text holds newlines, quotes and commas."""
    with store.create(tmp_path / "r" if disk else None, command="trace", arguments={}) as writer:
        with writer.unit("0"):
            writer.write("prompts", {"prompt_id": 0, "text": 'a, "b"\n\tc', "error": "the prompt is too\nlong"})
        with writer.unit("1"):
            writer.write("prompts", {"prompt_id": 1, "text": "fine", "rendered": "fine", "n_tokens": 1, "error": ""})
            writer.write("tokens", {"prompt_id": 1, "pos": [0], "top_ids": [None], "top_logprobs": [[np.nan, -np.inf]]})
        headed(writer.finish(summary={}), tmp_path)


def altered(path: Path, change: Any) -> None:
    """Change a run's manifest as a writer of it would have written it."""
    about = json.loads((path / "manifest.json").read_text())
    change(about)
    (path / "manifest.json").write_text(json.dumps(manifest.sealed(about)))


def replaced(path: Path, table: pa.Table) -> None:
    """Put other rows into the tokens' file."""
    pq.write_table(table, path / "tokens.parquet")
    entry = {"path": "tokens.parquet", "rows": table.num_rows, **fingerprint(path / "tokens.parquet")}
    altered(path, lambda about: about["tables"]["tokens"].update(files=[entry], bytes=entry["bytes"]))


def fingerprint(path: Path) -> dict[str, Any]:
    import xxhash

    return {"bytes": path.stat().st_size, "xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes())}


def test_what_a_later_schema_has_is_passed_over_with_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "r"
    before = make(path)
    tokens = before.table_arrow("tokens")
    replaced(path, tokens.append_column("colour", pa.array(["red"] * tokens.num_rows)))
    (path / "pictures").mkdir()
    pq.write_table(pa.table({"pixel": [1, 2]}), path / "pictures/part-00000.parquet")
    files = [{"path": "pictures/part-00000.parquet", "rows": 2, **fingerprint(path / "pictures/part-00000.parquet")}]
    altered(path, lambda about: about["tables"].update(pictures={"rows": 2, "bytes": files[0]["bytes"], "files": files}))
    altered(path, lambda about: about.update(schema_version=tables.SCHEMA_VERSION + 1, mood="good"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = store.open_run(path)
        assert "pictures" not in run.tables and "pictures" not in repr(run) + run._facts_html()
        assert run.table_arrow("tokens").equals(tokens) and list(run.tokens.columns) == tokens.column_names
        headed(run, tmp_path)
    assert len(caught) == 1 and "passed over: its pictures" in str(caught[0].message)
    assert store.check(path) == [] and store.list_runs(tmp_path)[0].status == "whole"
    now = tables.SCHEMA_VERSION
    with pytest.raises(RunError, match=f"made with schema_version {now + 1}, not {now}"):
        store.create(path, command="trace", arguments=run.manifest["arguments"], resume=True, run_id="r")
    assert store.remove(path) == [] and not path.exists()


def test_a_column_that_nothing_explains_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    tokens = make(tmp_path / "r").table_arrow("tokens")
    replaced(tmp_path / "r", tokens.append_column("mine", pa.array([1] * tokens.num_rows)))
    run = store.open_run(tmp_path / "r")
    with pytest.warns(UserWarning, match="does not know, and they are passed over: mine") as caught:
        assert run.table_arrow("tokens").equals(tokens)
        assert run.scan("tokens", pos=0).num_rows == 5
    assert len(caught) == 1


def test_another_name_in_the_place_of_a_column_is_damage(tmp_path: Path) -> None:
    """In a run of any schema: a flipped bit in a name must not empty a column."""
    for name, column in (("r", "entropy"), ("v1-trace", "entropy")):
        shutil.copytree(GOLDEN / name, tmp_path / name) if name in RUNS else make(tmp_path / name)
        tokens = written(tmp_path / name, "tokens")
        replaced(tmp_path / name, tokens.rename_columns([n if n != column else "entrofy" for n in tokens.column_names]))
        with pytest.raises(RunError, match="damaged"):
            store.open_run(tmp_path / name).table("tokens")


def test_a_schema_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    make(tmp_path / "r")
    altered(tmp_path / "r", lambda about: about.update(schema_version=99, tables=[]))
    with pytest.raises(RunError, match=f"has schema 99, which this probe cannot read: it knows {tables.SCHEMA_VERSION}"):
        store.open_run(tmp_path / "r")
