"""Where prompts come from: a text, messages, or a file of many; knows formats, not tokens."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from probe.errors import BadPrompt

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
Messages = list[dict[str, str]]


class Prompt(NamedTuple):
    """One input: `content` is a text or chat messages; `error` says why it could not even be read."""

    prompt_id: int
    content: str | Messages
    error: str = ""

    @property
    def text(self) -> str:
        """The prompt as given: messages as JSON."""
        return self.content if isinstance(self.content, str) else json.dumps(self.content, ensure_ascii=False)


def as_prompts(given: Any) -> list[Prompt]:
    """A text, a list of messages, a path to a file (`Path`), or a sequence of texts, message lists and prompts."""
    if isinstance(given, Path):
        return read_prompts(given)
    if isinstance(given, str) or _is_chat(given):
        return [Prompt(0, given)]
    prompts = [content if isinstance(content, Prompt) else _checked(i, content) for i, content in enumerate(given)]
    if not prompts:
        raise BadPrompt("no prompts given", hint="give at least one text")
    return prompts


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file: `.txt` one a line; else the column `prompt` (text) or `messages` (chat). A bad row keeps its place.

    Raises `BadPrompt` if the file cannot be read, has another ending, has neither column, or holds no prompt.
    """
    if path.suffix not in FORMATS:
        raise BadPrompt(f"'{path}' is not a prompt file", hint=f"endings that are understood: {', '.join(FORMATS)}")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return _from_rows(pq.read_table(path).to_pylist(), path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        what = "whole" if path.suffix == ".parquet" else "UTF-8 text"
        raise BadPrompt(f"cannot read '{path}': {error}", hint=f"is it there, and is it {what}?") from error
    return parse_prompts(text, path.suffix, origin=str(path))


def parse_prompts(text: str, kind: str = ".txt", *, origin: str = "standard input") -> list[Prompt]:
    """Prompts in the text of a file of that kind (`.txt`, `.jsonl`, `.csv`)."""
    if kind == ".jsonl":
        return _from_rows((_json(line) for line in text.split("\n") if line.strip()), origin)
    if kind == ".csv":
        return _from_rows(_csv(text, origin), origin)
    # only \n ends a line: a prompt may hold any other separator of str.splitlines
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    prompts = [Prompt(i, line) for i, line in enumerate(line for line in lines if line.strip())]
    if not prompts:
        raise BadPrompt(f"no prompt in {origin}", hint="one prompt a line")
    return prompts


def read_stream(stream: BinaryIO, origin: str = "standard input") -> list[Prompt]:
    """Prompts of a stream of UTF-8 text, one a line."""
    try:
        return parse_prompts(stream.read().decode("utf-8-sig"), origin=origin)
    except UnicodeDecodeError as error:
        raise BadPrompt(f"cannot read {origin}: {error}", hint="is it UTF-8 text?") from error


def _csv(text: str, origin: object) -> list[dict[str, str]]:
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise BadPrompt(f"'{origin}' is not CSV: {error}", hint="is a quote left open?") from error


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return BadPrompt(f"not JSON: {error}")


def _from_rows(rows: Iterable[Any], origin: object) -> list[Prompt]:
    prompts = []
    for i, row in enumerate(rows):
        if isinstance(row, BadPrompt):
            prompts.append(Prompt(i, "", row.message))
        elif not isinstance(row, dict) or ("prompt" not in row and "messages" not in row):
            found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            prompts.append(Prompt(i, "", f"no column 'prompt' or 'messages' (found: {found})"))
        else:
            content = row.get("messages") if row.get("messages") is not None else row.get("prompt")
            prompts.append(_checked(i, _parsed_messages(content) if row.get("messages") is not None else content))
    if not prompts:
        raise BadPrompt(f"no prompt in '{origin}'", hint="a column 'prompt' or 'messages', and at least one row")
    if all(p.error for p in prompts):
        raise BadPrompt(
            f"no usable prompt in '{origin}': {prompts[0].error}", hint="name the column 'prompt' or 'messages'"
        )
    return prompts


def _parsed_messages(content: Any) -> Any:
    """A CSV holds messages as JSON text."""
    if isinstance(content, str):
        parsed = _json(content)
        return content if isinstance(parsed, BadPrompt) else parsed
    return content


def _checked(i: int, content: Any) -> Prompt:
    if isinstance(content, str):
        return Prompt(i, content)
    if _is_chat(content):
        return Prompt(i, [{str(k): v for k, v in message.items() if v is not None} for message in content])
    return Prompt(
        i, "", f"a prompt is a text or a list of messages with 'role' and 'content', not {type(content).__name__}"
    )


def _is_chat(content: Any) -> bool:
    return (
        isinstance(content, Sequence)
        and not isinstance(content, str)
        and len(content) > 0
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in content)
    )
