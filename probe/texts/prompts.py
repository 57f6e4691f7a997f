"""Where prompts come from: a text, messages, or a file of many; knows columns and messages, not formats or tokens."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

from probe.errors import BadOption, BadPrompt
from probe.files import FileRow, read_rows
from probe.language_model.chat import joined

NAMES = ("messages", "prompt")  # the first that has a value is read
FOR_TEMPLATES = ("tools", "documents")  # what stands beside messages for a template to write
Messages = list[dict[str, str]]


class Prompt(NamedTuple):
    """One input: `content` is a text or chat messages; `error` says why it could not even be read."""

    prompt_id: int
    content: str | Messages
    error: str = ""

    @property
    def text(self) -> str:
        """The prompt as given: messages as JSON; what no UTF-8 can hold (half a surrogate pair) is escaped."""
        text = self.content if isinstance(self.content, str) else json.dumps(self.content, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace").decode()


class Packed(Sequence[Prompt]):
    """Prompts of a file as one block of bytes: as objects, a million would take several times the file."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._ids, self._ends, self._bytes = array("q"), array("q", [0]), bytearray()
        for prompt in prompts:
            packed = json.dumps([prompt.content, prompt.error], ensure_ascii=False)
            self._bytes += packed.encode("utf-8", "surrogatepass")
            self._ids.append(prompt.prompt_id)
            self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, i: int) -> Prompt: ...
    @overload
    def __getitem__(self, i: slice) -> list[Prompt]: ...
    def __getitem__(self, i: int | slice) -> Prompt | list[Prompt]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        at = range(len(self))[i]
        packed = self._bytes[self._ends[at] : self._ends[at + 1]].decode("utf-8", "surrogatepass")
        return Prompt(self._ids[at], *json.loads(packed))


def as_prompts(given: Any, *, kind: str | None = None, column: str | None = None) -> Sequence[Prompt]:
    """A text, a list of messages, a path to a file (`Path`; kind and column as in `read_prompts`), or a sequence of texts,
    message lists and prompts."""
    if isinstance(given, Path):
        return read_prompts(given, kind=kind, column=column)
    if isinstance(given, str) or _is_chat(given):
        return [Prompt(0, given)]
    prompts = [content if isinstance(content, Prompt) else _checked(i, content) for i, content in enumerate(given)]
    if not prompts:
        raise BadPrompt("no prompts given", hint="give at least one text")
    return prompts


def system_of(text: str) -> str | None:
    """The system message of a prompt (see `Prompt.text`) that is messages; None where there is none."""
    messages = _messages(text)
    first = messages[0] if _is_chat(messages) else {}
    return str(joined(0, first)["content"]) if first.get("role") == "system" else None


def hash_of(prompts: Iterable[Prompt]) -> str:
    """Of all the prompts' texts: a resume must be asked for the same."""
    texts = hashlib.sha256()
    for i, prompt in enumerate(prompts):
        texts.update(("\x1e" * bool(i) + prompt.text).encode("utf-8", "surrogatepass"))
    return texts.hexdigest()


def read_prompts(source: Path | BinaryIO, *, kind: str | None = None, column: str | None = None) -> Sequence[Prompt]:
    """Prompts of a file or a stream: a line each, or the column `prompt` (text) or `messages` (chat), or `column` (either).

    A row's `prompt_id` is its number in the file, blank rows counted. A row that holds no prompt keeps its place.
    Raises `BadPrompt` if nothing can be read, no row has the column, or there is no prompt; `BadOption` as `read_rows`.
    """
    origin = str(source) if isinstance(source, Path) else "standard input"
    names = NAMES if column is None else (column,)
    kind, found = read_rows(source, columns=names, kind=kind, origin=origin)
    if kind == "txt" and column is not None:
        raise BadOption(f"'{origin}' is lines of text: there is no column '{column}'", hint="--format names another")
    if kind == "json":
        found = list(found)
        if _is_chat([row.value for row in found]):
            return [_checked(0, [row.value for row in found])]
    prompts = Packed(Prompt(row.number, row.value) if kind == "txt" else _from_row(row, names) for row in found)
    if not prompts:
        raise BadPrompt(f"no prompt in '{origin}'", hint=f"one prompt a row: a line of text, or a column {_named(names)}")
    if all(p.error for p in prompts):
        raise BadPrompt(
            f"no usable prompt in '{origin}': {prompts[0].error}",
            hint=f"the column is {_named(names)}; --column names another, and --format txt takes lines as they are",
        )
    return prompts


def _from_row(row: FileRow, names: Sequence[str]) -> Prompt:
    if row.error:
        return Prompt(row.number, "", row.error)
    value = row.value
    if isinstance(value, str) or _is_chat(value):
        return _checked(row.number, value)
    if not isinstance(value, dict) or value.keys().isdisjoint(names):
        found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        return Prompt(row.number, "", f"no column {_named(names)} (found: {found})")
    name = next((name for name in names if value.get(name) is not None), names[-1])
    content = _messages(value.get(name)) if name != "prompt" else value.get(name)
    if name == "messages" and isinstance(content, str):
        return Prompt(row.number, "", "the messages are no JSON list of messages with 'role' and 'content'")
    beside = next((key for key in FOR_TEMPLATES if value.get(key) and key not in names), None)
    if beside is not None and _is_chat(content):
        way = f"--template-option {beside}=JSON gives them to the template; leave the column out"
        return Prompt(row.number, "", f"'{beside}' beside messages is not read from a file: {way}")
    return _checked(row.number, content)


def _named(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _messages(content: Any) -> Any:
    """What a column holds; messages that it holds as JSON text, as a CSV must, are messages."""
    if not isinstance(content, str) or content.lstrip()[:1] != "[":
        return content
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return content
    return parsed if _is_chat(parsed) else content


def _checked(i: int, content: Any) -> Prompt:
    if isinstance(content, str):
        return Prompt(i, content)
    if _is_chat(content):
        return Prompt(i, [{str(k): v for k, v in message.items() if v is not None} for message in content])
    return Prompt(i, "", f"a prompt is a text or a list of messages with 'role' and 'content', not {type(content).__name__}")


def _is_chat(content: Any) -> bool:
    return (
        isinstance(content, Sequence)
        and not isinstance(content, str)
        and len(content) > 0
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in content)
        and all(m.keys() & {"content", "tool_calls"} for m in content)
    )
