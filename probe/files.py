"""Rows of a file or a stream that a user gives, in whatever form: by its content, its ending, or as told. Knows no prompts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from probe.errors import BadOption, BadPrompt

FORMATS = ("txt", "jsonl", "json", "csv", "tsv", "parquet")
SAME = {"ndjson": "jsonl", "text": "txt", "pq": "parquet"}
ENDINGS = f"formats: {', '.join(f'.{name}' for name in FORMATS)}; --format names one"
LOOKED_AT = 20  # lines that are tried as JSON where nothing says what a text is


class FileRow(NamedTuple):
    """One row: its number in the file, blank ones counted, and its value (a line, or columns) or why it has none."""

    number: int
    value: Any
    error: str = ""


def read_rows(
    source: Path | BinaryIO, *, columns: Collection[str], kind: str | None = None, origin: str = "standard input"
) -> tuple[str, Iterable[FileRow]]:
    """What kind of file it is (one of FORMATS), and its rows without the blank ones, which keep their numbers; once.

    columns: names of which one at least must be a column, for a text without an ending to be taken for a table.
    Raises `BadPrompt` where nothing can be read, `BadOption` for a format that is unknown.
    """
    if kind is not None and kind not in FORMATS:
        raise BadOption(f"unknown format '{kind}'", hint=f"there are {', '.join(FORMATS)}")
    try:
        data = source.read_bytes() if isinstance(source, Path) else source.read()
    except (OSError, ValueError) as error:
        raise BadPrompt(f"cannot read '{source}': {error}", hint=f"is it there? {ENDINGS}") from error
    suffix = source.suffix.lower().removeprefix(".") if isinstance(source, Path) else ""
    ending = SAME.get(suffix, suffix)
    if kind == "parquet" or (kind is None and (data[:4] == b"PAR1" or ending == "parquet")):
        return "parquet", _parquet(data, origin)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadPrompt(f"cannot read '{origin}': {error}", hint=f"is it UTF-8 text? {ENDINGS}") from error
    del data  # a large file is not held twice
    kind = kind or (ending if ending in FORMATS and ending != "txt" else _kind(text, columns, table=ending != "txt"))
    return kind, _READERS[kind](text, origin)


def _kind(text: str, columns: Collection[str], *, table: bool) -> str:
    """What a text is whose ending does not say it: JSON or JSON lines with such a column, CSV if it may be, else lines."""
    first = text.lstrip()[:1]
    if first == "[" or (first == "{" and "\n" in text.strip()):
        whole = _parsed(text)
        if isinstance(whole, dict) or (isinstance(whole, list) and whole and all(isinstance(x, dict) for x in whole)):
            return "json"
    lines = list(islice((line for line in _split(text) if line.strip()), LOOKED_AT))
    objects = [found for line in lines if isinstance(found := _parsed(line), dict)]
    named = any(not found.keys().isdisjoint(columns) for found in objects)
    if objects and (named or len(objects) == len(lines)):
        return "jsonl"
    if table and lines:
        for kind, delimiter in (("csv", ","), ("tsv", "\t")):
            if not set(next(csv.reader([lines[0]], delimiter=delimiter), [])).isdisjoint(columns):
                return kind
    return "txt"


def _parsed(text: str) -> Any:
    """What a text means as JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _split(text: str) -> Iterator[str]:
    """The lines one at a time; only a newline ends one: a text may hold any other separator of str.splitlines."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _lines(text: str, origin: str) -> Iterable[FileRow]:
    lines = (line.removesuffix("\r") for line in _split(text))
    return (FileRow(i, line) for i, line in enumerate(lines) if line.strip())


def _json_lines(text: str, origin: str) -> Iterable[FileRow]:
    for i, line in enumerate(_split(text)):
        if line.strip():
            try:
                yield FileRow(i, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield FileRow(i, None, f"not JSON: {error}")


def _json(text: str, origin: str) -> Iterable[FileRow]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadPrompt(f"'{origin}' is not JSON: {error}", hint="one object a line is --format jsonl") from error
    return [FileRow(i, value) for i, value in enumerate(found if isinstance(found, list) else [found])]


def _csv(text: str, origin: str, delimiter: str = ",") -> Iterable[FileRow]:
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise BadPrompt(f"'{origin}' is not CSV: {error}", hint="is a quote left open?") from error
    while records and not records[0]:
        del records[0]
    names = records[0] if records else []
    # a row that is too short has no value in its last columns
    return [FileRow(i, dict(zip(names, fields, strict=False))) for i, fields in enumerate(records[1:]) if fields]


def _tsv(text: str, origin: str) -> Iterable[FileRow]:
    return _csv(text, origin, "\t")


def _parquet(data: bytes, origin: str) -> list[FileRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadPrompt(f"cannot read '{origin}': {error}", hint="is it there, and is it whole?") from error
    return [FileRow(i, value) for i, value in enumerate(table.to_pylist())]


_READERS = {"txt": _lines, "jsonl": _json_lines, "json": _json, "csv": _csv, "tsv": _tsv}
