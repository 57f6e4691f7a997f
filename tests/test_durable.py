"""The one file writer: whole or not at all, a full disk is stated, and nothing else in the project writes files by itself."""

from __future__ import annotations

import ast
import errno
import json
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from probe import durable
from probe.errors import StorageFull

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_full_disk_is_stated_and_the_old_content_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, shared: bool
) -> None:
    path = tmp_path / "a.json"
    durable.write_json(path, {"old": 1}, shared=shared)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, call, full)
    with pytest.raises(StorageFull, match="the disk is full"):
        durable.write_json(path, {"new": 2}, shared=shared)
    assert json.loads(path.read_text()) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_is_not_there_is_stated(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="cannot write"):
        durable.write_bytes(tmp_path / "none" / "a", b"x")


def _write_often(path: str, number: int) -> None:
    for _ in range(20):
        durable.write_bytes(Path(path), bytes([number]) * 300_000, shared=True)


def test_of_several_processes_that_write_a_shared_file_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_write_often, [str(path)] * 3, range(3)))
    held = path.read_bytes()
    assert held == held[:1] * 300_000 and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_json_knows_no_nan() -> None:
    value = {"a": math.nan, "b": [math.inf, np.float32("-inf"), 0.5], 3: np.array([1, 2]), "p": Path("x"), "s": {2, 1}}
    plain = durable.jsonable(value)
    assert plain == {"a": None, "b": [None, None, 0.5], "3": [1, 2], "p": "x", "s": [1, 2]}
    assert json.dumps(plain, allow_nan=False)


@pytest.mark.slow
def test_nothing_else_writes_files() -> None:
    """No other `write_text`, `write_bytes`, `fsync` or `open` for writing in the library."""
    found = set()
    for path in sorted((ROOT / "probe").rglob("*.py")) + sorted((ROOT / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            opens = name in ("open", "fdopen") and any(set(mode) & set("wax") and len(mode) < 4 for mode in modes)
            if owner != "durable" and (name in ("write_text", "write_bytes", "write_json", "fsync") or opens):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {
        "probe/durable.py",
        "cli/printing.py",  # nowhere, where a stream is closed
        "cli/processes.py",  # nowhere, what another process says too
        "probe/answers/algebra_worker.py",  # its pipe to the process that asks
        "probe/language_model/wheel.py",  # what is inside a package, by hash, in a folder that is built as a whole
    }
