"""A received or damaged run: whatever is in its files, reading it gives rows or one clear error, and deletes nothing else."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from probe.cli.main import app
from typer.main import get_command

import probe
from probe import store
from probe.errors import ProbeError
from probe.store import manifest
from tests.test_store import EVERY, fill

MINE = "mine.parquet"  # a file of the user's

COMMAND = get_command(app)
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 10**30, 1.5, 1e308, "", "x", "\x1b]0;x\x07\x9b31m\u202e", "../../etc/passwd", "/etc/passwd",
    [], {}, [[]], [None], {"x": None}, [{"path": "x"}], "\ud800", "a" * 5000,
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trace, a rewind of it, and a run that was cut short."""
    folder = tmp_path_factory.mktemp("whole")
    lm = probe.load("tiny:llama")
    text = "hello there. And so on. 12"
    traced = probe.trace(lm, text, generate=8, capture="z@1", attention="full", lens=True, out=folder / "t")
    probe.rewind(traced, lm=lm, to="step0", delete=True, samples=2, max_new=4, out=folder / "b")
    begun(folder / "p", resume=False)
    return {name: folder / name for name in ("t", "b", "p.partial")}


def begun(path: Path, *, resume: bool) -> None:
    """Three units of five, durable one by one."""
    with store.create(path, command="trace", arguments={"a": 1}, limits=EVERY, resume=resume, typed="x") as writer:
        fill(writer, range(3), n=6)


def readers(path: Path) -> Iterator[Callable[[], Any]]:
    """Everything that reads a run without a model."""
    yield lambda: store.check(path)
    yield lambda: store.list_runs(path.parent)
    run = store.open_run(path)
    yield lambda: (repr(run), run._repr_html_(), run.summary)
    for name in run.tables:
        yield lambda name=name: run.table(name)
        yield lambda name=name: list(run.batches(name, 3))
        for form in ("csv", "jsonl"):
            yield lambda name=name, form=form: store.export(run, name, path.parent / f"{name}.{form}")
    if "tokens" in run.tables:
        yield lambda: run.scan("tokens", prompt_id=0, branch=0)
        yield run.text
    if "activations" in run.tables:
        yield lambda: run.activation("z", 1, head=0)
        yield lambda: run.activation("pattern", 1, head=0)
        yield lambda: store.export(run, "activations", path.parent / "a.safetensors")
    for words in (["show", str(path)], ["show", str(path), "--json"], ["ls", str(path.parent)], ["tree", str(path)]):
        yield lambda words=words: shell(words)


def shell(words: list[str]) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        COMMAND.main(["runs", *words])
    assert ended.value.code in (0, 1) and "unforeseen" not in said.getvalue(), (words, said.getvalue())
    assert not any(c in said.getvalue() for c in "\x1b\x07\x9b\u202e"), said.getvalue()


def read(path: Path) -> None:
    """All of it; only stated errors may come out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            for reader in readers(path):
                try:
                    reader()
                except ProbeError:
                    continue
        except ProbeError:
            return


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Some bits flipped, an end cut off, or a stretch replaced."""
    kind, at = draw.randrange(4), draw.randrange(max(1, len(data)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + draw.randbytes(draw.randrange(1, 40)) + data[at + 20 :]
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 8))):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def replaced(draw: random.Random, paper: Any) -> Any:
    """The paper with one of its values, of any depth, made odd, or left out; its hash is right again or gone."""
    paper = copy.deepcopy(paper)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk({key: value for key, value in paper.items() if key not in ("anatomy", "versions")})
    holder, key = draw.choice([(paper, key) for key in paper] + places)
    if draw.random() < 0.15:
        del holder[key]
    else:
        holder[key] = draw.choice(ODD)
    return manifest.sealed(paper) if draw.random() < 0.5 else manifest.unsealed(paper)


def spoil(draw: random.Random, folder: Path) -> str:
    """One file of a run, made another."""
    path = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("lock", MINE)))
    if path.suffix == ".json" and draw.random() < 0.8:
        path.write_text(json.dumps(replaced(draw, json.loads(path.read_text()))))
    else:
        path.write_bytes(damaged(draw, path.read_bytes()))
    return path.name


def rounds(runs: dict[str, Path], tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        draw = random.Random(seed)
        name = draw.choice(list(runs))
        folder = tmp_path / str(seed)
        shutil.copytree(runs[name], folder / name)
        (folder / name / MINE).write_text("mine")
        try:
            spoiled = spoil(draw, folder / name)
            read(folder / name)
            if name == "p.partial":
                with contextlib.suppress(ProbeError):
                    begun(folder / "p", resume=True)
            with contextlib.suppress(ProbeError):
                store.remove(folder / name)
            assert (folder / name / MINE).read_text() == "mine"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {name}, {spoiled}") from error
        shutil.rmtree(folder)


@pytest.mark.slow
def test_many_damaged_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    rounds(runs, tmp_path, range(1000, 1150))
