"""What a run's manifest, state and journal have to look like; whatever is read of a run has gone through here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from probe import tables
from probe.errors import RunError
from probe.store import durable, inside

SEAL = "xxh3_128"  # a paper's key: the hash of all its other keys
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Paper(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class File(_Paper):
    """One Parquet file: where it is in the run, and how to tell that it is as it was."""

    path: str
    rows: Count
    bytes: Count
    xxh3_128: str | None = None
    sha256: str | None = None

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if inside.table_of(path) is None:
            raise ValueError("is not the name of a table's file in the run")
        return path


class Part(File):
    table: str

    @model_validator(mode="after")
    def _of_its_table(self) -> Part:
        if inside.table_of(self.path) != self.table:
            raise ValueError("its path is another table's")
        return self


class Table(_Paper):
    rows: Count
    bytes: Count
    files: list[File] = Field(min_length=1)


class Model(_Paper):
    """What the readers of a run ask of `model`."""

    name: str
    revision: str | None = None
    source: str | None = None


class Parent(_Paper):
    run: str


class Arguments(_Paper):
    """What the readers of a run ask of its arguments, where it has them."""

    chat: bool | None = None
    split: str | None = None
    generate: Count | None = None
    answer: str | None = None
    sampling: dict[str, bool | int | float | str | list[str] | list[int] | None] | None = None


class State(_Paper):
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


class Manifest(State):
    ended: str
    wall_seconds: float | None
    peak_memory_bytes: Count | None
    summary: dict[str, Any]
    model: Model | None
    anatomy: dict[str, Any] | None
    warnings: list[str]
    tables: dict[str, Table]
    parent: Parent | None = None

    @model_validator(mode="after")
    def _files_of_their_tables(self) -> Manifest:
        for name, table in self.tables.items():
            paths = [file.path for file in table.files]
            single = [f"{name}.parquet"]
            large = tables.TABLES[name].large if name in tables.TABLES else True
            if any(inside.table_of(path) != name for path in paths) or (not large and paths != single):
                raise ValueError(f"the files of table '{name}' are another's")
        return self


class Record(_Paper):
    """One flush of a run that is being written."""

    units: list[str]
    parts: list[Part]
    warnings: list[str]
    seconds: Annotated[float, Field(ge=0)]


class Removal(_Paper):
    """The files of a run that is being deleted."""

    run_id: str
    files: list[str]

    @field_validator("files")
    @classmethod
    def _written(cls, files: list[str]) -> list[str]:
        if strange := [name for name in files if not inside.writes(name)]:
            raise ValueError(f"{strange[0]!r} is no file that a run has")
        return files


def sealed(paper: Mapping[str, Any]) -> dict[str, Any]:
    """The paper with the hash of its other keys."""
    return {**unsealed(paper), SEAL: _hash(paper)}


def unsealed(paper: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in paper.items() if key != SEAL}


def altered(paper: Mapping[str, Any]) -> bool:
    """Whether a paper is another than was written; those of before have no hash, and nobody can tell."""
    return SEAL in paper and paper[SEAL] != _hash(paper)


def _hash(paper: Mapping[str, Any]) -> str:
    """XXH3 of canonical JSON: sorted keys, no spaces, ASCII."""
    canonical = json.dumps(unsealed(paper), sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def read(path: Path, kind: type[_Paper]) -> dict[str, Any]:
    """The paper in a file as plain JSON values; RunError says what is wrong with it. Its hash is not looked at."""
    return checked(durable.read_json(path), kind, path)


def checked(found: Any, kind: type[_Paper], path: Path) -> dict[str, Any]:
    """The same for JSON that was read already."""
    hint = f"probe runs check {path.parent}"
    if not isinstance(found, dict):
        raise RunError(f"'{path}' is damaged: it is no {kind.__name__.lower()}", hint=hint)
    try:
        kind.model_validate(found)
    except (ValidationError, RecursionError) as error:
        raise RunError(f"'{path}' is damaged: {_said(error)}", hint=hint) from error
    return found


def intact(path: Path, kind: type[_Paper]) -> dict[str, Any]:
    """`read`, for those who build upon it: RunError also where the paper is another than was written."""
    found = read(path, kind)
    if altered(found):
        hint = f"remove it (probe runs rm {path.parent}) and start again"
        raise RunError(f"'{path}' was altered since it was written", hint=hint)
    return unsealed(found)


def _said(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it goes too deep"
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
