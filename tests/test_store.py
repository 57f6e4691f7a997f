"""The store: what goes in comes out, in every reader; a run is whole or not there; nothing of others is touched."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from safetensors.numpy import load_file
from typer.testing import CliRunner

from probe import durable, store, tables
from probe.errors import BadOption, ProbeError, RunError, StorageFull
from probe.store import columns, layout, manifest, parquet, sorting

RNG = np.random.default_rng(0)
EVERY = store.Limits(bytes=1)  # a flush after every unit
ARGUMENTS = {"model": "tiny", "seed": 0}


def tokens(prompt_id: int, n: int) -> dict[str, Any]:
    words = [f"w{i % 3}" for i in range(n)]
    ends = np.cumsum([len(word) for word in words])
    return {
        "prompt_id": prompt_id, "branch": 0, "pos": np.arange(n), "token_id": np.arange(n) + 7, "token": words,
        "text_start": ends - [len(word) for word in words], "text_end": ends,
        "segment": ["prompt"] * (n - 1) + ["completion"],
        "step": [None] * (n - 1) + [0], "logprob": np.linspace(-3, 0, n), "top_ids": np.arange(2 * n).reshape(n, 2),
        "top_logprobs": -np.ones((n, 2), np.float32),
    }  # fmt: skip


def vector(prompt_id: int, layer: int, n: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng([prompt_id, layer, n]).standard_normal((n, width)).astype(np.float32)


def acts(prompt_id: int, layer: int, n: int, **more: Any) -> dict[str, Any]:
    values = vector(prompt_id, layer, n)
    base = {"prompt_id": prompt_id, "branch": 0, "site": "resid_post", "layer": layer, "head": -1, "pos": np.arange(n)}
    return {**base, "vector": values, "norm": np.linalg.norm(values, axis=1), **more}


def fill(writer: store.Writer, units: range | list[int], *, n: int = 300) -> None:
    for unit in units:
        if writer.done(str(unit)):
            continue
        with writer.unit(str(unit)):
            prompt_id = 50 - unit  # the order of writing is not the order of the keys
            writer.write("prompts", {"prompt_id": prompt_id, "text": f"text {unit}", "n_tokens": 4})
            writer.write("tokens", tokens(prompt_id, 4 + unit))
            for layer in range(3):
                writer.write("activations", acts(prompt_id, layer, n if unit % 2 else 5))
            rows = {"prompt_id": prompt_id, "branch": 0, "layer": 0, "head": 1, "query": np.arange(3)}
            weights = [[1.0], [0.25, 0.75], [0.5, 0.25, 0.25]]
            writer.write("attention", {**rows, "weights": weights, "kept_mass": 1.0})


def make(path: Path | None, *, units: int = 5, limits: store.Limits | None = None, run_id: str = "r") -> store.Run:
    with store.create(path, command="trace", arguments=ARGUMENTS, run_id=run_id, limits=limits) as writer:
        fill(writer, range(units))
        return writer.finish(summary={"n": units}, model={"name": "tiny"}, anatomy={}, seed=0)


def rows(run: store.Run, name: str) -> list[dict[str, Any]]:
    return run.table_arrow(name).to_pylist()


def same(a: store.Run, b: store.Run) -> None:
    assert a.tables == b.tables
    for name in a.tables:
        assert rows(a, name) == rows(b, name), name


# --- values ---------------------------------------------------------------------------------------------------------


def test_bf16_rounds_as_torch_does_and_keeps_what_is_not_finite() -> None:
    bits = RNG.integers(0, 2**32, 100_000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4e38], np.float32)])
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(columns.round_bf16(values), expected)


@pytest.mark.parametrize("how", ["exact", "bf16"])
def test_vectors_come_back_as_they_were(tmp_path: Path, how: str) -> None:
    values = RNG.standard_normal((700, 24)).astype(np.float32) * 1e4
    values[3, :4] = [np.nan, np.inf, -np.inf, -0.0]
    place = {"prompt_id": 0, "branch": 0, "site": "mlp_out", "head": -1, "pos": np.arange(700)}
    with store.create(tmp_path / "r", command="trace", arguments={}) as writer, writer.unit("0"):
        writer.write("activations", {**place, "layer": 2, "vector": torch.from_numpy(values)}, store=how)
        writer.write("activations", {**place, "layer": 3, "vector": values[:, :7]}, store=how)  # not contiguous
    with store.create(tmp_path / "r", command="trace", arguments={}, resume=True) as writer:
        run = writer.finish(summary={})
    expected = values if how == "exact" else torch.from_numpy(values).bfloat16().float().numpy()
    got = run.activation("mlp_out", 2)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)
    assert how == "bf16" or np.array_equal(got.view(np.uint32), expected.view(np.uint32))  # every bit, -0.0 and NaN too
    np.testing.assert_array_equal(run.activation("mlp_out", 3), expected[:, :7])


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", ["activations", "attention", "scores"])
def test_every_reader_shows_the_numbers_that_were_written(tmp_path: Path, name: str, plain: bool) -> None:
    """Ragged, empty and null lists, null numbers and words, many pages and groups: pyarrow, DuckDB and polars agree."""
    schema = tables.schema(name)
    path = tmp_path / "x.parquet"
    written = []
    file = parquet.FileWriter(path, schema, plain=plain)
    for n, widest in ((1, 3), (9, 1), (257, 40), (24, 60_000), (8, 0)):
        table = pa.Table.from_arrays([random_column(field.type, n, widest) for field in schema], schema=schema)
        written.append(table.slice(1) if n == 257 else table)
        file.write(written[-1])
    file.seal()
    durable.settle(path)
    expected = pa.concat_tables(written)
    with pq.ParquetFile(path, page_checksum_verification=True) as opened:
        assert opened.schema_arrow.equals(schema, check_metadata=True)
        assert expected.num_rows == opened.metadata.num_rows
        assert cells(opened.read()) == cells(expected)
    assert cells(duckdb.sql(f"from '{path}'").to_arrow_table()) == cells(expected)
    assert cells(pl.read_parquet(path).to_arrow()) == cells(expected)
    values = pd.read_parquet(path).select_dtypes(object)  # columns of arrays: numbers, not objects or bytes
    shown = [cell for column in values for cell in values[column] if isinstance(cell, np.ndarray)]
    assert shown and {cell.dtype.kind for cell in shown} <= {"f", "i"}


@pytest.mark.parametrize(("how", "codec", "encoding"), [
    ("exact", "UNCOMPRESSED", "PLAIN"), ("bf16", "ZSTD", "BYTE_STREAM_SPLIT"),
])  # fmt: skip
def test_exact_vectors_lie_plain_and_rounded_ones_are_packed(tmp_path: Path, how: str, codec: str, encoding: str) -> None:
    with store.create(tmp_path / "r", command="trace", arguments={}) as writer:
        with writer.unit("0"):
            writer.write("activations", acts(0, 0, 300), store=how)
        writer.finish(summary={})
    group = pq.read_metadata(tmp_path / "r" / "activations" / "part-00000.parquet").row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    vectors = columns["vector.list.element"]
    assert (vectors.compression, vectors.is_stats_set) == (codec, False) and encoding in vectors.encodings
    assert columns["layer"].statistics.max == 0 and columns["pos"].statistics.max == 299  # what `scan` skips by
    assert all(column.has_offset_index for column in columns.values())


def random_column(type: pa.DataType, n: int, widest: int) -> pa.Array:
    missing = RNG.random(n) < 0.2
    if pa.types.is_list(type):
        cells = [None if no else 1000 * RNG.standard_normal(RNG.integers(0, widest + 1)) for no in missing]
        whole = pa.types.is_integer(type.value_type)
        return pa.array([None if cell is None else cell.astype(int) if whole else cell for cell in cells], type)
    if pa.types.is_dictionary(type):
        words = [None if no else f"word{RNG.integers(0, 5)}" for no in missing]
        return pa.array(words, pa.string()).dictionary_encode().cast(type)
    if pa.types.is_floating(type):
        return pa.array(RNG.standard_normal(n).astype(np.float32), mask=missing)
    return pa.array(RNG.integers(-5, 300, n), mask=missing).cast(type)


def cells(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows, whatever the reader's types are called."""
    found = []
    for column in table.columns:
        found.append([np.float32(c).tobytes() if isinstance(c, (float, list)) else c for c in column.to_pylist()])
    return list(zip(*found, strict=True))


def test_an_integer_that_does_not_fit_is_not_wrapped() -> None:
    with pytest.raises(pa.ArrowInvalid):
        columns.build("tokens", {"pos": np.array([2**40])}, run_id="r", store="exact", copy=False)


@pytest.mark.parametrize(("place", "n"), [(None, 4), ("r", 4), (None, 900), ("r", 900)])
def test_a_buffer_that_is_used_again_does_not_change_what_was_written(tmp_path: Path, place: str | None, n: int) -> None:
    buffer = np.ones((n, 800), np.float32)
    with store.create(place and tmp_path / place, command="trace", arguments={}) as writer:
        for unit in range(2):
            with writer.unit(str(unit)):
                writer.write("activations", {**acts(unit, 0, n), "vector": buffer})
                buffer += 1
        run = writer.finish(summary={})
    assert run.activation("resid_post", 0, prompt_id=0).max() == 1
    assert run.activation("resid_post", 0, prompt_id=1).max() == 2


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [None, EVERY, store.Limits(seconds=0), store.Limits(bytes=40_000, part_groups=2)])
def test_disk_and_memory_hold_the_same(tmp_path: Path, limits: store.Limits | None) -> None:
    run, memory = make(tmp_path / "r", limits=limits), make(None)
    same(run, memory)
    assert store.check(run.path or "") == []
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [
        "README.md", "activations", "attention", "manifest.json", "prompts.parquet", "tokens.parquet",
    ]  # fmt: skip
    assert not (tmp_path / "r.partial").exists()
    assert [row["prompt_id"] for row in rows(run, "prompts")] == [46, 47, 48, 49, 50]
    for unit in (0, 1):
        n = 300 if unit else 5
        for source in (run, memory):
            got = source.activation("resid_post", 1, prompt_id=50 - unit)
            np.testing.assert_array_equal(got, vector(50 - unit, 1, n))


def test_manifest_says_what_was_done(tmp_path: Path) -> None:
    arguments = {"x": np.int64(3), "p": tmp_path}
    with store.create(tmp_path / "r", command="trace", arguments=arguments, typed="probe t") as w:
        with w.unit("0"):
            w.write("tokens", tokens(0, 3))
        w.warn("beware")
        w.warn("beware")
        summary = {"nan": float("nan"), "n": np.float32(2)}
        run = w.finish(summary=summary, model={"name": "m"}, anatomy={"e": 0.0}, parent={"run": "p"})
    about = json.loads((tmp_path / "r/manifest.json").read_text())
    assert about == run.manifest
    assert about["arguments"] == {"x": 3, "p": str(tmp_path)}
    assert about["typed"] == "probe t" and about["command"] == "trace" and about["warnings"] == ["beware"]
    assert run.summary == {"nan": None, "n": 2.0} and about["parent"] == {"run": "p"} and about["model"] == {"name": "m"}
    assert about["versions"]["pyarrow"] == pa.__version__ and about["wall_seconds"] >= 0
    assert about["peak_memory_bytes"] > 1e6
    file = about["tables"]["tokens"]["files"][0]
    assert (
        file["path"] == "tokens.parquet"
        and file["rows"] == 3
        and file["xxh3_128"] == xxhash.xxh3_128_hexdigest((tmp_path / "r/tokens.parquet").read_bytes())
    )


def test_the_same_run_twice_has_the_same_bytes(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    assert a.manifest["tables"] == b.manifest["tables"]
    c = make(tmp_path / "c", limits=EVERY)
    for name in ("tokens", "prompts"):  # compacted: however often it was flushed
        assert c.manifest["tables"][name] == a.manifest["tables"][name]


def test_every_table_opens_in_every_reader_and_says_its_units(tmp_path: Path) -> None:
    run = make(tmp_path / "r", limits=EVERY)
    for name in run.tables:
        where = tmp_path / "r" / (name if tables.TABLES[name].large else f"{name}.parquet")
        glob = f"{where}/*.parquet" if where.is_dir() else str(where)
        expected = run.manifest["tables"][name]["rows"]
        frame = pd.read_parquet(where)
        assert len(frame) == expected == len(pl.read_parquet(glob))
        assert duckdb.sql(f"select count(*), min(run_id) from '{glob}'").fetchall() == [(expected, "r")]
        first = where if where.is_file() else next(where.iterdir())
        assert pd.read_parquet(first).attrs["probe"]["table"] == name
        assert run.table(name).attrs["probe"]["units"]["run_id"]
        if name != "attention":  # which is a method: one row of a pattern
            pd.testing.assert_frame_equal(getattr(run, name), run.table(name))


def test_a_glob_over_runs_concatenates(tmp_path: Path) -> None:
    make(tmp_path / "a", run_id="one")
    make(tmp_path / "b", run_id="two", units=2)
    query = f"select run_id, count(*) from '{tmp_path}/*/prompts.parquet' group by 1 order by 1"
    assert duckdb.sql(query).fetchall() == [("one", 5), ("two", 2)]
    assert pl.read_parquet(f"{tmp_path}/*/activations/*.parquet")["run_id"].n_unique() == 2
    both = pd.concat([pd.read_parquet(path) for path in sorted(tmp_path.glob("*/tokens.parquet"))])
    assert set(both["run_id"]) == {"one", "two"}


def test_readme_names_every_table_for_datasets(tmp_path: Path) -> None:
    make(tmp_path / "r")
    text = (tmp_path / "r/README.md").read_text()
    header = text.split("---")[1]
    assert re.findall(r"config_name: (\w+)\n  data_files: (\S+)", header) == [
        ("activations", "activations/*.parquet"), ("attention", "attention/*.parquet"),
        ("prompts", "prompts.parquet"), ("tokens", "tokens.parquet"),
    ]  # fmt: skip


def test_empty_tables_are_tables(tmp_path: Path) -> None:
    for path in (tmp_path / "r", None):
        with store.create(path, command="trace", arguments={}) as writer:
            with writer.unit("0"):
                writer.write("steps", {"prompt_id": np.zeros(0, np.int32), "text": []})
                writer.write("activations", {"pos": np.zeros(0, np.int32), "vector": np.zeros((0, 4), np.float32)})
            run = writer.finish(summary={})
        assert len(run.steps) == 0 and len(run.activations) == 0 and "text" in run.steps.columns


def test_a_failed_unit_leaves_no_rows_and_the_others_stay(tmp_path: Path) -> None:
    for path in (tmp_path / "r", tmp_path / "s", None):
        limits = EVERY if path and path.name == "s" else store.Limits(part_groups=2)
        with store.create(path, command="trace", arguments={}, run_id="r", limits=limits) as writer:
            fill(writer, [0, 1])
            for n in (600, 3):
                with pytest.raises(ZeroDivisionError), writer.unit("bad"):
                    writer.write("prompts", {"prompt_id": 999})
                    for layer in range(4):
                        writer.write("activations", acts(999, layer, n))
                    raise ZeroDivisionError
            fill(writer, [2, 3, 4])
            run = writer.finish(summary={})
        same(run, make(None))
        if path:
            assert store.check(path) == []


def test_read_gives_the_rows_so_far_of_all_sessions(tmp_path: Path) -> None:
    with store.create(tmp_path / "r", command="trace", arguments={}, limits=EVERY) as writer:
        fill(writer, [0])
    with store.create(tmp_path / "r", command="trace", arguments={}, resume=True) as writer:
        fill(writer, [0, 1])
        assert writer.read("prompts")["prompt_id"].to_pylist() == [49, 50]
        writer.finish(summary={})
    with store.create(tmp_path / "r", command="trace", arguments={}, resume=True) as writer:
        assert writer.done("anything") and writer.read("prompts").num_rows == 2
        assert writer.finish(summary={"ignored": 1}).summary == {}


def test_rows_of_a_prompt_are_looked_for_in_the_parts_that_can_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parts there are: of each other one the footer is read, once."""
    opened, footers = list[str](), list[str]()
    read_table, read_metadata = pq.read_table, pq.read_metadata
    monkeypatch.setattr(pq, "read_table", lambda path, **more: opened.append(path.name) or read_table(path, **more))
    monkeypatch.setattr(pq, "read_metadata", lambda path, **more: footers.append(path.name) or read_metadata(path, **more))
    with store.create(tmp_path / "r", command="trace", arguments={}, limits=EVERY) as writer:
        fill(writer, range(9))
        for unit in range(9):
            assert writer.read("tokens", prompt_id=50 - unit)["prompt_id"].to_pylist() == [50 - unit] * (4 + unit)
            assert writer.read("tokens", prompt_id=60 + unit).num_rows == 0
        assert opened == [f"part-{unit:05d}.parquet" for unit in range(9)] and len(footers) == 9
        fill(writer, range(10))
        opened.clear()
        assert writer.read("tokens", prompt_id=41).num_rows == 13 and opened == ["part-00009.parquet"] and len(footers) == 10


@pytest.mark.parametrize("apart", [0, 4, 5])
def test_sorting_parts_is_sorting_them(apart: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the same prompts, of some, and of none: the last, as a trace writes them, are not sorted again."""
    monkeypatch.setattr(sorting, "CHUNK", 37)
    monkeypatch.setattr(sorting, "_BATCH", 10)
    paths, everything = [], []
    for part in range(4):
        n = int(RNG.integers(1, 90))
        prompts = RNG.integers(0, 5, n) + apart * part
        table = columns.build(
            "tokens",
            {"prompt_id": prompts, "pos": RNG.integers(0, 9, n), "token_id": np.arange(n) + 100 * part},
            run_id="r", store="exact", copy=True,
        )  # fmt: skip
        everything.append(sorting.sort(table, tables.TABLES["tokens"].keys))
        paths.append(tmp_path / f"{part}.parquet")
        pq.write_table(everything[-1], paths[-1])
    expected = sorting.sort(pa.concat_tables(everything), tables.TABLES["tokens"].keys).to_pylist()
    if apart == 5:
        monkeypatch.delattr(sorting, "_mixed")
    merged = pa.concat_tables(sorting.merged(paths, tables.TABLES["tokens"].keys))
    assert merged.to_pylist() == expected


def test_merging_many_parts_takes_the_memory_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of a part is let go of when it is behind: with a hundred thousand prompts there are many."""
    monkeypatch.setattr(sorting, "CHUNK", 4_000)
    paths = []
    for i in range(16):
        paths.append(tmp_path / f"{i}.parquet")
        pq.write_table(pa.table({"key": np.arange(20_000) + 20_000 * i, "value": np.random.rand(20_000)}), paths[-1])
    held = []
    for rows in sorting.merged(paths, ["key"]):
        held.append(pa.total_allocated_bytes())
        assert rows.num_rows == 4_000
    assert max(held[-20:]) < max(held[:20]) + paths[0].stat().st_size / 2


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads() -> store.Run:
    writer = store.create(None, command="trace", arguments={})
    with writer.unit("0"):
        halves = {"token": ["<b>", "é", "é"], "text_start": [0, 3, 3], "text_end": [3, 4, 4]}
        writer.write("tokens", {**tokens(0, 3), **halves})
        for head in range(2):
            writer.write("activations", {**acts(0, 1, 3), "site": "z", "head": head, "pos": [2, 0, 1]})
        writer.write("activations", acts(0, 4, 3))
        rows = {"prompt_id": 0, "branch": 0, "layer": 1, "head": 1}
        writer.write("attention", {**rows, "query": [0, 1], "weights": [[1.0], [0.25, 0.75]]})
        writer.write("attention", {**rows, "query": 2, "keys": [[0, 2]], "weights": [[0.5, 0.25]]})
        writer.write("scores", {**rows, "query": [0, 1], "scores": [[3.0], [1.0, 2.0]]})
    return writer.finish(summary={"text": "<script>alert(1)</script>"})


def test_activation_of_a_head_sorted_by_position(heads: store.Run) -> None:
    np.testing.assert_array_equal(heads.activation("z", 1, head=1), vector(0, 1, 3)[[1, 2, 0]])


def test_patterns_and_scores_are_square(heads: store.Run) -> None:
    pattern = heads.activation("pattern", 1, head=1)
    np.testing.assert_array_equal(pattern, [[1, 0, 0], [0.25, 0.75, 0], [0.5, 0, 0.25]])
    np.testing.assert_array_equal(heads.activation("scores", 1, head=1), [[3, -np.inf], [1, 2]])


@pytest.mark.parametrize(
    ("ask", "hint"),
    [
        ({"site": "resid_pst", "layer": 4}, "did you mean 'resid_post'? captured: resid_post, z"),
        ({"site": "resid_post", "layer": 9}, "captured at: 4"),
        ({"site": "z", "layer": 1, "head": 7}, "heads: 0, 1"),
        ({"site": "resid_post", "layer": 4, "head": 0}, "heads: none: leave head out"),
        ({"site": "resid_post", "layer": 4, "prompt_id": 3}, ""),
        ({"site": "pattern", "layer": 1}, "give head="),
        ({"site": "pattern", "layer": 3, "head": 0}, ""),
    ],
)
def test_what_was_not_captured_is_said(heads: store.Run, ask: dict[str, Any], hint: str) -> None:
    with pytest.raises(RunError) as error:
        heads.activation(**ask)
    assert error.value.hint == hint


def test_names_that_do_not_exist_are_answered_with_those_that_do(heads: store.Run) -> None:
    with pytest.raises(AttributeError, match="did you mean 'tokens'"):
        heads.token  # noqa: B018
    with pytest.raises(RunError, match="no table 'lens'"):
        heads.table("lens")
    with pytest.raises(RunError, match="no column 'nope'"):
        heads.scan("tokens", nope=1)
    assert "tokens" in dir(heads)


def test_text_and_representations(heads: store.Run) -> None:
    assert heads.text() == "<b>é"  # the last two tokens are halves of one character
    assert "tokens 3" in repr(heads)
    page = heads._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_scan_reads_only_the_row_groups_that_can_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "r")
    touched: list[int] = []
    whole = pq.ParquetFile.read_row_groups
    noted = lambda self, groups, **kw: touched.extend(groups) or whole(self, groups, **kw)  # noqa: E731
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    found = run.scan("activations", columns=["pos", "layer"], layer=2, prompt_id=[47, 49])
    assert found.num_rows == 600 and pc.unique(found["layer"]).to_pylist() == [2]
    assert len(touched) == 2


# --- damage -----------------------------------------------------------------------------------------------------------


def test_check_finds_flipped_bits_torn_missing_and_extra_files(tmp_path: Path) -> None:
    run = tmp_path / "r"
    make(run)
    part = run / "activations/part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    (run / "tokens.parquet").write_bytes((run / "tokens.parquet").read_bytes()[:-9])
    (run / "prompts.parquet").unlink()
    (run / "notes.txt").write_text("mine")
    problems = store.check(run)
    assert [problem.split(":")[0] for problem in problems] == [
        "activations/part-00000.parquet", "prompts.parquet", "tokens.parquet", "notes.txt",
    ]  # fmt: skip
    said = [re.findall(r": (\w+)", problem)[0] for problem in problems]
    assert said == ["altered", "missing", "torn", "extra"]
    opened = store.open_run(run)
    for name, what in (("prompts", "is missing"), ("tokens", "is damaged"), ("activations", "is damaged")):
        with pytest.raises(RunError, match=what):
            opened.table(name)


def test_a_run_of_before_is_checked_by_the_hash_it_has(tmp_path: Path) -> None:
    make(tmp_path / "r")
    manifest = tmp_path / "r/manifest.json"
    about = json.loads(manifest.read_text())
    for table in about["tables"].values():
        for file in table["files"]:
            del file["xxh3_128"]
            file["sha256"] = hashlib.sha256((tmp_path / "r" / file["path"]).read_bytes()).hexdigest()
    del about["xxh3_128"], about["readme"]  # of the manifest itself
    manifest.write_text(json.dumps(about))
    assert store.check(tmp_path / "r") == []
    assert store.open_run(tmp_path / "r").run_id == "r"
    tokens = tmp_path / "r/tokens.parquet"
    tokens.write_bytes(tokens.read_bytes()[::-1])
    assert store.check(tmp_path / "r") == ["tokens.parquet: altered: its sha256 is another"]


def test_what_is_not_a_whole_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run"):
        store.open_run(tmp_path / "none")
    with pytest.raises(RunError, match="is not a run"):
        store.open_run(tmp_path)
    with store.create(tmp_path / "r", command="trace", arguments={}, limits=EVERY) as writer:
        fill(writer, [0, 1])
    for name in ("r", "r.partial"):
        with pytest.raises(RunError, match="unfinished") as error:
            store.open_run(tmp_path / name)
        assert "--resume" in error.value.hint
    (problem,) = store.check(tmp_path / "r.partial")
    assert problem == "unfinished: 2 units are done; the same command with --resume completes it"
    make(tmp_path / "s")
    (tmp_path / "s/manifest.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        store.open_run(tmp_path / "s")
    assert [run.status for run in store.list_runs(tmp_path)] == ["damaged", "partial"]


# --- in the way -------------------------------------------------------------------------------------------------------


def start(path: Path, **more: Any) -> store.Writer:
    return store.create(path, **{"command": "trace", "arguments": ARGUMENTS, "limits": EVERY, **more})


def test_an_existing_out_is_never_written(tmp_path: Path) -> None:
    make(tmp_path / "r")
    (tmp_path / "f").write_text("mine")
    (tmp_path / "d").mkdir()
    (tmp_path / "e.partial").mkdir()
    (tmp_path / "e.partial/mine").write_text("mine")
    for name in ("r", "f", "d", "e"):
        with pytest.raises(RunError, match="cannot write") as error:
            start(tmp_path / name)
        assert "choose another --out" in error.value.hint
    with pytest.raises(RunError, match="cannot write"):
        start(tmp_path / "d", resume=True)
    assert (tmp_path / "f").read_text() == (tmp_path / "e.partial/mine").read_text() == "mine"


def test_a_partial_run_is_resumed_only_when_asked_and_with_the_same_arguments(tmp_path: Path) -> None:
    with start(tmp_path / "r") as writer:
        fill(writer, [0])
        run_id = writer.run_id
    with pytest.raises(RunError, match="begun and not finished") as error:
        start(tmp_path / "r")
    assert "--resume" in error.value.hint
    with pytest.raises(RunError, match=r"made with seed = 0, not 1"):
        start(tmp_path / "r", resume=True, arguments={**ARGUMENTS, "seed": 1})
    with pytest.raises(RunError, match="command"):
        start(tmp_path / "r", resume=True, command="rewind")
    with start(tmp_path / "r", resume=True) as writer:
        assert writer.run_id == run_id and writer.done("0") and not writer.done("1") and writer.units_done == 1
        fill(writer, range(5))
        run = writer.finish(summary={})
    assert set(run.tokens["run_id"]) == {run_id}
    with pytest.raises(RunError, match=r"made with model = 'tiny', not None \(and seed\)"):
        start(tmp_path / "r", resume=True, arguments={})


def test_a_run_in_which_nothing_was_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), start(tmp_path / "r") as writer, writer.unit("0"):
        writer.write("activations", acts(0, 0, 400))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_is_finished_is_kept_when_something_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), start(tmp_path / "r", limits=None) as writer:
        fill(writer, [0, 1])
        with writer.unit("2"):
            writer.write("activations", acts(48, 0, 400))
            raise KeyboardInterrupt
    assert sorted(p.suffix for p in (tmp_path / "r.partial").rglob("*") if p.is_file() and p.name != "lock") == [
        ".json", ".json", ".parquet", ".parquet", ".parquet", ".parquet",
    ]  # fmt: skip
    with start(tmp_path / "r", resume=True, run_id="other") as writer:
        assert writer.done("0") and writer.done("1") and not writer.done("2")
        fill(writer, range(5))
        run = writer.finish(summary={})
    assert len(run.prompts) == 5 and store.check(tmp_path / "r") == []
    np.testing.assert_array_equal(run.activation("resid_post", 2, prompt_id=49), vector(49, 2, 300))


def test_two_writers_of_one_run_are_refused(tmp_path: Path) -> None:
    with start(tmp_path / "r") as writer:
        fill(writer, [0])
        for resume in (False, True):
            with pytest.raises(RunError, match="locked"):
                start(tmp_path / "r", resume=resume)
        assert [run.status for run in store.list_runs(tmp_path)] == ["running"]
        with pytest.raises(RunError, match="written by another"):
            store.remove(tmp_path / "r.partial")
        writer.finish(summary={})
    assert [run.status for run in store.list_runs(tmp_path)] == ["whole"]


@pytest.mark.skipif(os.name == "nt", reason="no such folders there")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file/r", Path("/proc/r")):
        with pytest.raises(StorageFull, match="cannot write"):
            start(place)
        with pytest.raises(StorageFull, match="cannot write"):
            store.fresh_path("trace", root=place)


def _reserve(root: str) -> str:
    return str(store.fresh_path("trace", root=Path(root), word="The [capital]"))


def test_fresh_paths_are_unique_and_safe(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(_reserve, [str(tmp_path / "runs")] * 12))
    assert len(set(found)) == 12
    for path in found:
        assert re.fullmatch(r"\d{8}-\d{6}-trace-[A-Za-z0-9._=-]+", Path(path).name)
    assert any(path.endswith("-the-capital") for path in found)
    with start(Path(found[0])) as writer:  # a reserved path is free for who reserved it
        fill(writer, [0])
        assert writer.finish(summary={}).run_id == Path(found[0]).name


def test_remove_touches_only_runs(tmp_path: Path) -> None:
    make(tmp_path / "r")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/manifest.json").write_text('{"name": "someone else\'s"}')
    (tmp_path / "link").symlink_to(tmp_path / "r")
    for name in ("docs", "link", "none", "."):
        with pytest.raises(RunError, match="is not a run"):
            store.remove(tmp_path / name)
    (tmp_path / "r/figure.png").write_bytes(b"mine")
    kept = {"figure.png", "mine.parquet", "tokens/mine.parquet", "journal/notes.txt", "x.tmp"}
    for name in kept:
        (tmp_path / "r" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "r" / name).write_bytes(b"mine")
    assert set(store.remove(tmp_path / "r")) == kept
    assert {p.relative_to(tmp_path / "r").as_posix() for p in (tmp_path / "r").rglob("*") if p.is_file()} == kept
    shutil.rmtree(tmp_path / "r")
    with start(tmp_path / "p") as writer:
        fill(writer, [0])
    store.remove(tmp_path / "p.partial")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["docs", "link"]


def test_a_removal_that_was_killed_leaves_no_run_and_the_next_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files go one by one: after any of them, the folder is no run any more, and what is not of it stays."""
    real = layout.clear

    def dies(folder: Path, names: Any) -> None:
        for name in names:
            if done == []:
                raise KeyboardInterrupt
            done.pop()
            real(folder, [name])

    for kills in range(8):
        path = tmp_path / str(kills)
        make(path, units=2)
        (path / "mine.parquet").write_text("mine")
        done = [None] * kills
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(layout, "clear", dies)
            store.remove(path)
        assert [run.status for run in store.list_runs(tmp_path)] == ["removing"]
        if kills:
            with pytest.raises(RunError, match="not a run"):
                store.open_run(path)
        assert store.remove(path) == ["mine.parquet"]
        assert [p.name for p in path.iterdir()] == ["mine.parquet"] and store.list_runs(tmp_path) == []


def test_resuming_keeps_what_is_not_of_the_run(tmp_path: Path) -> None:
    with start(tmp_path / "r") as writer:
        fill(writer, [0, 1])
    mine = {"tokens/mine.parquet", "journal/notes.txt", "notes.md", "mine.tmp", "activations/x.parquet.tmp"}
    for name in mine:
        (tmp_path / "r.partial" / name).write_text("mine")
    torn = tmp_path / "r.partial/tokens/part-00002.parquet.tmp"  # what a killed writer leaves
    torn.write_text("torn")
    with start(tmp_path / "r", resume=True) as writer:
        assert not torn.exists()
        fill(writer, range(5))
        writer.finish(summary={})
    assert {problem.split(":")[0] for problem in store.check(tmp_path / "r")} == mine
    assert all((tmp_path / "r" / name).read_text() == "mine" for name in mine)


@pytest.mark.parametrize("name", ["tokens/part-00000.parquet", "state.json", "journal/000001.json"])
def test_a_flipped_bit_of_a_partial_run_is_not_built_upon(tmp_path: Path, name: str) -> None:
    with start(tmp_path / "r", typed="command as typed") as writer:
        fill(writer, [0, 1])
    path = tmp_path / "r.partial" / name
    data = bytearray(path.read_bytes())
    at = data.index(b"typed") + 11 if name == "state.json" else len(data) // 2
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"altered|damaged"):
        start(tmp_path / "r", resume=True, typed="command as typed")
    assert store.check(tmp_path / "r.partial")


@pytest.mark.skipif(os.name == "nt", reason="no such files there")
@pytest.mark.parametrize("kind", ["link", "pipe", "linked folder", "parent", "absolute"])
def test_the_files_of_a_received_run_are_its_own(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "r")
    make(tmp_path / "other", run_id="s")
    part = tmp_path / "r/activations/part-00000.parquet"
    if kind in ("parent", "absolute"):
        other = tmp_path / "other/tokens.parquet"
        about = json.loads((tmp_path / "r/manifest.json").read_text())
        about["tables"]["tokens"]["files"][0]["path"] = str(other) if kind == "absolute" else "../other/tokens.parquet"
        (tmp_path / "r/manifest.json").write_text(json.dumps(manifest.sealed(about)))
        with pytest.raises(RunError, match="not the name of a table's file"):
            store.open_run(tmp_path / "r")
        assert store.check(tmp_path / "r") != [] and store.list_runs(tmp_path)[0].status == "damaged"
        return
    if kind == "linked folder":
        shutil.rmtree(part.parent)
        part.parent.symlink_to(tmp_path / "other/activations")
    else:
        part.unlink()
        os.mkfifo(part) if kind == "pipe" else part.symlink_to(tmp_path / "other/activations/part-00000.parquet")
    with pytest.raises(RunError, match="leads elsewhere"):
        store.open_run(tmp_path / "r").table("activations")
    assert any(problem.startswith("activations") for problem in store.check(tmp_path / "r"))
    store.remove(tmp_path / "r")
    assert store.check(tmp_path / "other") == []


def test_names_that_no_file_system_takes(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        for call in (store.open_run, store.check, store.remove, store.list_runs, lambda path: start(Path(path))):
            with pytest.raises(ProbeError):
                assert call(tmp_path / name) == []
                raise RunError("a list of none is right, too")
    for name in (".", "/", ".."):
        with pytest.raises(RunError):
            store.open_run(name)
        with pytest.raises(RunError):
            start(Path(name))


# --- export -----------------------------------------------------------------------------------------------------------


def test_exports_say_the_same(tmp_path: Path) -> None:
    run = make(tmp_path / "r", limits=EVERY)
    expected = rows(run, "tokens")
    assert store.export(run, "tokens", tmp_path / "t.csv") == len(expected)
    frame = pd.read_csv(tmp_path / "t.csv")
    assert frame["token"].tolist() == [row["token"] for row in expected]
    assert [json.loads(cell) for cell in frame["top_ids"]] == [row["top_ids"] for row in expected]
    assert frame["logprob"].astype(np.float32).tolist() == [row["logprob"] for row in expected]
    store.export(run, "tokens", tmp_path / "t.jsonl")
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()] == expected
    store.export(run, "activations", tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == rows(run, "activations")
    store.export(run, "activations", tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(tensors["resid_post.2.p49.b0"], vector(49, 2, 300))
    assert tensors["resid_post.2.p49.b0.pos"].tolist() == list(range(300)) and len(tensors) == 30


def test_exports_of_numbers_that_are_not_finite(tmp_path: Path) -> None:
    writer = store.create(None, command="trace", arguments={})
    with writer.unit("0"):
        odd = np.array([[np.nan, np.inf, -np.inf, 0.1]], np.float32)
        writer.write("activations", {**acts(0, 0, 1), "vector": odd, "norm": np.array([np.nan], np.float32)})
    run = writer.finish(summary={})
    store.export(run, "activations", tmp_path / "a.csv")
    strict = {"parse_constant": lambda word: pytest.fail(f"{word} is no JSON")}
    frame = pd.read_csv(tmp_path / "a.csv")
    expected = [None, None, None, pytest.approx(0.1)]
    assert json.loads(frame["vector"][0], **strict) == expected and np.isnan(frame["norm"][0])
    store.export(run, "activations", tmp_path / "a.jsonl")
    row = json.loads((tmp_path / "a.jsonl").read_text(), **strict)
    assert row["vector"] == expected and row["norm"] is None
    store.export(run, "activations", tmp_path / "a.parquet")
    np.testing.assert_array_equal(pq.read_table(tmp_path / "a.parquet")["vector"][0].as_py(), odd[0])


def test_exports_refuse(tmp_path: Path) -> None:
    run = make(None)
    (tmp_path / "t.csv").write_text("mine")
    for table, name, error in (
        ("tokens", "t.csv", "exists"), ("tokens", "t.xls", "cannot export"), ("lens", "l.csv", "no table 'lens'"),
        ("tokens", "t.safetensors", "safetensors holds activations"),
    ):  # fmt: skip
        with pytest.raises(ProbeError, match=error):
            store.export(run, table, tmp_path / name)
    with pytest.raises(BadOption):
        store.export(run, "tokens", tmp_path / "noend")
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


# --- probe runs -------------------------------------------------------------------------------------------------------


def shell(*words: str) -> Any:
    from probe.cli.runs import app

    return CliRunner().invoke(app, [str(word) for word in words])


def test_runs_ls_show_check_export_rm(tmp_path: Path) -> None:
    run = tmp_path / "runs/r"
    make(run)
    with start(tmp_path / "runs/p") as writer:
        fill(writer, [0, 1])
    done = shell("ls", tmp_path / "runs")
    assert done.exit_code == 0 and "\x1b" not in done.stdout
    assert "partial, 2 units" in done.stdout and "whole" in done.stdout
    listed = json.loads(shell("ls", tmp_path / "runs", "--json").stdout)["summary"]["runs"]
    assert {entry["status"] for entry in listed} == {"partial", "whole"}
    assert "activations" in shell("show", run).stdout
    assert json.loads(shell("show", run, "--json").stdout)["summary"] == {"n": 5}
    assert shell("check", run).exit_code == 0
    assert shell("check", tmp_path / "runs/p.partial").exit_code == 1
    assert shell("export", run, "tokens", tmp_path / "t.csv").exit_code == 0
    refused = shell("rm", run)  # CliRunner's stdin is no terminal
    assert isinstance(refused.exception, BadOption) and refused.exception.hint == "add --yes" and run.exists()
    assert shell("rm", run, tmp_path / "runs/p.partial", "--yes").exit_code == 0
    assert list((tmp_path / "runs").iterdir()) == []
    assert isinstance(shell("ls", tmp_path / "none").exception, RunError)
    assert shell("ls", tmp_path / "runs").exit_code == 0


@pytest.mark.skipif(
    sys.platform != "linux", reason="getrusage of Linux begins with the memory of the process that started this one"
)
def test_peak_memory_is_of_this_process() -> None:
    held = bytearray(1_500_000_000)
    held[::4096] = b"1" * len(held[::4096])
    words = [sys.executable, "-c", "from probe.memory import peak_memory; print(peak_memory())"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert 10_000_000 < int(done.stdout) < len(held) // 2
