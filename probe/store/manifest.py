"""What a run says about itself (state, journal, manifest, README), and what each of these has to look like. Knows no rows."""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from probe import durable, tables
from probe.errors import RunError
from probe.store import layout

_PACKAGES = ("torch", "transformers", "pyarrow", "pandas", "numpy", "safetensors")
# and those that compute with a quantised model, where they are installed
_QUANTISERS = ("bitsandbytes", "torchao", "compressed-tensors")
SEAL = "xxh3_128"  # a document's key: the hash of all its other keys
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Digest(_Document):
    """How to tell that a file is as it was."""

    bytes: Count
    xxh3_128: str | None = None
    sha256: str | None = None


class FileEntry(Digest):
    """One Parquet file of a run, and where it is in it."""

    path: str
    rows: Count
    footer: str | None = None  # xxh3_128 of the Parquet footer

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if layout.table_of(path) is None:
            raise ValueError("is not the name of a table's file in the run")
        return path


class PartEntry(FileEntry):
    table: str

    @model_validator(mode="after")
    def _of_its_table(self) -> PartEntry:
        if layout.table_of(self.path) != self.table:
            raise ValueError("its path is another table's")
        return self


class TableEntry(_Document):
    rows: Count
    bytes: Count
    files: list[FileEntry] = Field(min_length=1)


class Model(_Document):
    """What the readers of a run ask of `model`."""

    name: str
    revision: str | None = None
    source: str | None = None


class Parent(_Document):
    run: str


class Arguments(_Document):
    """What the readers of a run ask of its arguments, where it has them."""

    chat: bool | None = None
    split: str | None = None
    generate: Count | None = None
    answer: str | None = None
    sampling: dict[str, bool | int | float | str | list[str] | list[int] | None] | None = None


class State(_Document):
    """What is known when a run begins."""

    schema_version: int
    run_id: str
    command: str
    typed: str
    arguments: Arguments
    resolved: dict[str, Any] = {}
    started: str
    versions: dict[str, str]
    git: dict[str, Any] | None = None
    columns: dict[str, dict[str, Any]] = {}  # extra ones of a table, and their types in words

    @field_validator("columns")
    @classmethod
    def _typed(cls, columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for table, own in columns.items():
            taken = [name.lower() for name in (*(tables.schema(table).names if table in tables.TABLES else ()), *own)]
            if len(set(taken)) != len(taken):
                raise ValueError(f"a column of '{table}' is there twice")
            for words in own.values():
                tables.type_of_words(words)
        return columns


class Manifest(State):
    ended: str
    wall_seconds: float | None
    peak_memory_bytes: Count | None
    summary: dict[str, Any]
    model: Model | None
    anatomy: dict[str, Any] | None
    warnings: list[str]
    tables: dict[str, TableEntry]
    readme: Digest | None = None
    parent: Parent | None = None

    @model_validator(mode="after")
    def _files_of_their_tables(self) -> Manifest:
        for name, table in self.tables.items():
            paths = [file.path for file in table.files]
            single = [f"{name}.parquet"]
            large = tables.TABLES[name].large if name in tables.TABLES else True
            if any(layout.table_of(path) != name for path in paths) or (not large and paths != single):
                raise ValueError(f"the files of table '{name}' are another's")
        return self


class Record(_Document):
    """One flush of a run that is being written."""

    units: list[str]
    parts: list[PartEntry]
    warnings: list[str]
    seconds: Annotated[float, Field(ge=0)]


class Removal(_Document):
    """The files of a run that is being deleted."""

    run_id: str
    files: list[str]

    @field_validator("files")
    @classmethod
    def _written(cls, files: list[str]) -> list[str]:
        if strange := [name for name in files if not layout.writes(name) and not layout.table_of(name)]:
            raise ValueError(f"{strange[0]!r} is no file that a run has")
        return files


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the hash of its other keys."""
    return {**unsealed(document), SEAL: _hash(document)}


def unsealed(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != SEAL}


def altered(document: Mapping[str, Any]) -> bool:
    """Whether a document is another than was written; those of before have no hash, and nobody can tell."""
    return SEAL in document and document[SEAL] != _hash(document)


def _hash(document: Mapping[str, Any]) -> str:
    """XXH3 of canonical JSON: sorted keys, no spaces, ASCII."""
    canonical = json.dumps(unsealed(document), sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def read(path: Path, kind: type[_Document]) -> dict[str, Any]:
    """The document in a file as plain JSON values; RunError says what is wrong with it. Its hash is not looked at."""
    return checked(layout.read_json(path), kind, path)


def checked(found: Any, kind: type[_Document], path: Path) -> dict[str, Any]:
    """The same for JSON that was read already."""
    hint = f"probe runs check {path.parent}"
    if not isinstance(found, dict):
        raise RunError(f"'{path}' is damaged: it is no {kind.__name__.lower()}", hint=hint)
    try:
        kind.model_validate(found)
    except (ValidationError, RecursionError) as error:
        raise RunError(f"'{path}' is damaged: {_first_error(error)}", hint=hint) from error
    return found


def intact(path: Path, kind: type[_Document]) -> dict[str, Any]:
    """`read`, for those who build upon it: RunError also where the document is another than was written."""
    found = read(path, kind)
    if altered(found):
        hint = f"remove it (probe runs rm {path.parent}) and start again"
        raise RunError(f"'{path}' was altered since it was written", hint=hint)
    return unsealed(found)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The journal of a run, oldest record first. RunError if one is missing, damaged or altered."""
    found = layout.records(folder)
    for number, path in enumerate(found):
        if path.name != layout.record_name(number):
            raise layout.altered(folder, f"record {number} of its journal is missing")
    return [intact(path, Record) for path in found]


def _first_error(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it goes too deep"
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def begun(
    command: str, arguments: Mapping[str, Any], resolved: Mapping[str, Any], *, run_id: str, typed: str | None
) -> dict[str, Any]:
    """What is known when a run starts."""
    if typed is None:
        typed = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv[0] else command
    return {
        "schema_version": tables.SCHEMA_VERSION,
        "run_id": run_id,
        "command": command,
        "typed": typed,
        "arguments": durable.jsonable(arguments),
        "resolved": durable.jsonable(resolved),
        "started": now(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers; read from their metadata, nothing is imported."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for key, package in (("probe", "mechprobe"), *((name, name) for name in (*_PACKAGES, *_QUANTISERS))):
        try:
            found[key] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(directory: Path) -> dict[str, Any] | None:
    """Git commit of a working directory and whether tracked files differ from it; None outside of git."""
    if not any((parent / ".git").exists() for parent in (directory, *directory.parents)):
        return None
    try:
        head = _git(directory, "rev-parse", "HEAD")
        dirty = _git(directory, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": head, "dirty": bool(dirty)}


def _git(directory: Path, *args: str) -> str:
    command = ["git", "--no-optional-locks", *args]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def slug(text: str) -> str:
    """Only the characters that break no glob, shell or file system: A-Z a-z 0-9 . _ = -"""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip("-.") or "run"
