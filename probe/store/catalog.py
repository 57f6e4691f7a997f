"""The runs in a folder: list, check by hash, remove. Reads manifests and journals, no rows."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from probe.errors import RunError
from probe.store import durable, manifest
from probe.store.journal import FOLDER, STATE
from probe.store.run import read_manifest

PARTIAL, REMOVING = ".partial", ".removing"


class Listed(NamedTuple):
    """One run of a folder. `status`: whole, partial, running (a living process writes it) or damaged."""

    path: Path
    status: str
    run_id: str
    command: str
    started: str
    rows: int
    bytes: int
    units: int | None  # finished units of a partial run


def list_runs(root: Path | str = "runs") -> list[Listed]:
    """The runs right under a folder, oldest first; other folders are passed over."""
    root = Path(root)
    if not root.is_dir():
        return []
    found = [describe(path) for path in sorted(root.iterdir()) if path.is_dir() and is_run(path)]
    return sorted(found, key=lambda run: (run.started, run.path.name))


def is_run(path: Path) -> bool:
    """Whether a folder is a run, whole or not, by the files that only a run has."""
    for name in (manifest.NAME, STATE):
        if (path / name).is_file():
            try:
                about = durable.read_json(path / name)
            except RunError:
                return path.suffix == PARTIAL or (path / "README.md").is_file()
            return isinstance(about, dict) and {"run_id", "schema_version", "command"} <= set(about)
    return False


def describe(path: Path) -> Listed:
    """What a run's own papers say."""
    try:
        about = _papers(path)
        if path.suffix == PARTIAL:
            records = _records(path)
            parts = [part for record in records for part in record["parts"]]
            units = sum(len(record["units"]) for record in records)
            status = "running" if durable.locked(path) else "partial"
        else:
            parts, units, status = list(about["tables"].values()), None, "whole"
        rows, size = sum(p["rows"] for p in parts), sum(p["bytes"] for p in parts)
        return Listed(path, status, about["run_id"], about["command"], about["started"], rows, size, units)
    except (RunError, KeyError, TypeError):
        return Listed(path, "damaged", path.name, "", "", 0, 0, None)


def check(path: Path | str) -> list[str]:
    """What is wrong with a run, file by file: missing, torn, altered, extra. Nothing: []. Reads every byte."""
    path = Path(path)
    problems = []
    if path.suffix == PARTIAL and path.is_dir() and is_run(path):
        records = _records(path)
        units = sum(len(record["units"]) for record in records)
        problems.append(f"unfinished: {units} units are done; the same command with --resume completes it")
        files = [part for record in records for part in record["parts"]]
        ours = {STATE, durable.Lock.NAME, manifest.NAME, "README.md"}
        ours |= {p.relative_to(path).as_posix() for p in (path / FOLDER).glob("*.json")}
    else:
        files = [file for table in read_manifest(path)["tables"].values() for file in table["files"]]
        ours = {manifest.NAME, "README.md", durable.Lock.NAME, STATE}
    problems += [f"{file['path']}: {what}" for file in files if (what := _wrong(path / file["path"], file))]
    extra = sorted(set(_inside(path)) - {file["path"] for file in files} - ours)
    return problems + [f"{name}: extra, not of this run" for name in extra]


def remove(path: Path | str) -> None:
    """Delete a run, whole or partial. Refuses what is no run, is being written, or holds files of someone else."""
    path = Path(path)
    if path.is_symlink() or not path.is_dir() or not is_run(path):
        raise RunError(f"'{path}' is not a run; nothing was removed", hint="probe runs ls shows those there are")
    if durable.locked(path):
        raise RunError(f"'{path}' is being written by another process", hint="stop it first")
    foreign = [name for name in _inside(path) if not _known(name)]
    if foreign:
        hint = "move them away, or delete the folder yourself"
        raise RunError(f"'{path}' holds files that are not the run's: {', '.join(foreign[:3])}", hint=hint)
    gone = path.with_name(path.name + REMOVING)
    with durable.stated(path):
        path.rename(gone)  # a kill from here on leaves nothing that looks whole
        shutil.rmtree(gone)


def _known(inside: str) -> bool:
    """Names that a writer makes."""
    name = inside.rsplit("/", 1)[-1]
    top = inside in (manifest.NAME, STATE, "README.md", durable.Lock.NAME)
    return top or name.endswith((".parquet", durable.TEMPORARY)) or inside.startswith(f"{FOLDER}/")


def _papers(path: Path) -> Mapping[str, Any]:
    found = read_manifest(path) if path.suffix != PARTIAL else durable.read_json(path / STATE)
    assert isinstance(found, dict)
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    return [durable.read_json(record) for record in sorted((path / FOLDER).glob("*.json"))]


def _inside(path: Path) -> Iterator[str]:
    found: Iterable[Path] = sorted(path.rglob("*"))
    return (p.relative_to(path).as_posix() for p in found if not p.is_dir())


def _wrong(path: Path, file: Mapping[str, Any]) -> str:
    """What a file has against its record; empty if nothing."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != file["bytes"]:
        return f"{'torn' if size < file['bytes'] else 'altered'}: {size} bytes, not {file['bytes']}"
    with path.open("rb") as opened:
        name, digest = (
            ("xxh3_128", xxhash.xxh3_128) if "xxh3_128" in file else ("sha256", hashlib.sha256)
        )  # of older runs
        found = hashlib.file_digest(opened, digest).hexdigest()
    return "" if found == file[name] else f"altered: its {name} is another"
