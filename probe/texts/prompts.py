"""Where prompts come from: a text, messages, or a file of many problems; knows columns and messages, not formats or tokens."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

from probe import transcripts as forms
from probe.errors import BadOption, BadPrompt
from probe.files import FileRow, read_rows
from probe.language_model.chat import joined
from probe.requests import FileOptions
from probe.texts.file_columns import ColumnsSeen, FileColumns, plain_value
from probe.texts.rows import NAMES, WRITTEN, GivenCompletion, Prompt, is_chat, messages_in, named, of_turn, prompt_in, prompt_of


class Packed(Sequence[Prompt]):
    """Prompts of a file as one block of bytes: as objects, a million would take several times the file.

    file_columns: what their rows have beside the prompt.
    """

    def __init__(self, prompts: Iterable[Prompt], *, texts: bool = False) -> None:
        self._ids, self._ends, self._bytes = array("q"), array("q", [0]), bytearray()
        seen = ColumnsSeen(texts=texts)
        self.first_given: int | None = None
        for prompt in prompts:
            if prompt.given is not None and self.first_given is None:
                self.first_given = prompt.prompt_id
            seen.see(prompt.columns)
            packed = json.dumps(_packed(prompt), ensure_ascii=False)
            self._bytes += packed.encode("utf-8", "surrogatepass")
            self._ids.append(prompt.prompt_id)
            self._ends.append(len(self._bytes))
        self.file_columns = seen.columns()

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
        content, *more = json.loads(packed)
        if not more:
            return Prompt(self._ids[at], content)
        error, about, columns = more
        given = about.pop("given", None)
        found = Prompt(self._ids[at], content, error, **about, columns=self.file_columns.values(columns))
        return found if given is None else found._replace(given=GivenCompletion(*given))


def _packed(prompt: Prompt) -> list[Any]:
    """What a prompt is made of again: most are a text and nothing else."""
    about = {"expect": prompt.expect, "choices": prompt.choices, "beside": prompt.beside}
    about = {name: plain_value(value) for name, value in {**about, "given": prompt.given}.items() if value}
    if not (prompt.error or about or prompt.columns):
        return [prompt.content]
    return [prompt.content, prompt.error, about, plain_value(prompt.columns)]


def as_prompts(given: Any, options: FileOptions | None = None, *, transcripts: bool = False) -> Sequence[Prompt]:
    """A text, a list of messages, a path to a file (`Path`; options as in `read_prompts`), or a sequence of texts, message
    lists, rows (mappings with the columns of a file) and prompts. transcripts: as in `read_prompts`."""
    options = options or FileOptions()
    if isinstance(given, Path):
        return read_prompts(
            given, kind=options.format, column=options.column, expect_column=options.expect_column, transcripts=transcripts
        )
    if isinstance(given, str) or is_chat(given):
        return [of_turn(prompt_of(0, given)) if transcripts else Prompt(0, given)]
    given = list(given)
    if not given:
        raise BadPrompt("no prompts given", hint="give at least one text")
    if any(isinstance(one, Mapping) for one in given):
        rows = (one if isinstance(one, Prompt) else FileRow(i, one) for i, one in enumerate(given))
        return _of_rows(rows, options.column, options.expect_column, origin="what was given", transcripts=transcripts)
    prompts = [content if isinstance(content, Prompt) else prompt_of(i, content) for i, content in enumerate(given)]
    prompts = [of_turn(prompt) if transcripts and prompt.given is None else prompt for prompt in prompts]
    return Packed(prompts) if any(prompt.columns for prompt in prompts) else prompts


def first_given(prompts: Sequence[Prompt]) -> int | None:
    """The first of prompts that came with what was written after it."""
    if isinstance(prompts, Packed):
        return prompts.first_given
    return next((prompt.prompt_id for prompt in prompts if prompt.given is not None), None)


def columns_of(prompts: Sequence[Prompt]) -> FileColumns:
    """What the rows of prompts that came from a file have beside them."""
    return prompts.file_columns if isinstance(prompts, Packed) else FileColumns()


def system_of(text: str) -> str | None:
    """The system message of a prompt (see `Prompt.text`) that is messages; None where there is none."""
    messages = messages_in(text)
    first = messages[0] if is_chat(messages) else {}
    return str(joined(0, first)["content"]) if first.get("role") == "system" else None


def hash_of(prompts: Iterable[Prompt]) -> str:
    """Of all the prompts' texts, and of what their rows say beside them: a resume must be asked for the same."""
    texts = hashlib.sha256()
    for i, prompt in enumerate(prompts):
        more = _packed(prompt._replace(error=""))[2:]
        beside = "\x1f" + json.dumps(more, sort_keys=True) if more else ""
        texts.update(("\x1e" * bool(i) + prompt.text + beside).encode("utf-8", "surrogatepass"))
    return texts.hexdigest()


def read_prompts(
    source: Path | BinaryIO, *, kind: str | None = None, column: str | None = None, expect_column: str | None = None,
    transcripts: bool = False,
) -> Sequence[Prompt]:  # fmt: skip
    """Prompts of a file or a stream: a line each, or the column `prompt` (text) or `messages` (chat), or `column` (either).

    A row's `prompt_id` is its number in the file, blank rows counted. A row that holds no prompt keeps its place. Its column
    `expect` (or `expect_column`) is the right answer, `choices` the options, `tools` and `documents` are for the template;
    every other column is kept with the prompt.
    transcripts: a row's `completion` (text) or `completion_ids` (with `prompt_ids`), or messages' last turn if it is the
    assistant's, is the prompt's generation; and the records of other programs are read (`probe.transcripts`), by their content.
    Raises `BadPrompt` if nothing can be read, no row has the column, or there is no prompt; `BadOption` as `read_rows`.
    """
    origin = str(source) if isinstance(source, Path) else "standard input"
    if transcripts and isinstance(source, Path) and kind is None:
        records = forms.read_other(source, _names(column))
        if records is not None:
            return _of_rows(records[1], column, expect_column, origin=origin, transcripts=True)
    kind, found = read_rows(source, columns=(*_names(column), *(WRITTEN if transcripts else ())), kind=kind, origin=origin)
    if kind == "txt":
        if other := column or expect_column:
            raise BadOption(f"'{origin}' is lines of text: there is no column '{other}'", hint="--format names another")
        lines = Packed(Prompt(row.number, row.value) for row in found)
        if not lines:
            raise BadPrompt(f"no prompt in '{origin}'", hint="one prompt a line")
        return lines
    if kind == "json":
        found = list(found)
        if is_chat([row.value for row in found]):
            return as_prompts([row.value for row in found], transcripts=transcripts)
    if transcripts:
        found = forms.recognised(map(_without_empty, found) if kind in ("csv", "tsv") else found)[1]
    return _of_rows(
        found, column, expect_column, origin=origin, texts=kind in ("csv", "tsv"), transcripts=transcripts
    )  # fmt: skip


def _of_rows(
    rows: Iterable[FileRow | Prompt], column: str | None, expect_column: str | None, *, origin: str, texts: bool = False,
    transcripts: bool = False,
) -> Packed:  # fmt: skip
    names = _names(column)
    made = (row if isinstance(row, Prompt) else prompt_in(row, names, expect_column, transcripts=transcripts) for row in rows)
    prompts = Packed(made, texts=texts)
    if not prompts:
        raise BadPrompt(f"no prompt in '{origin}'", hint=f"one prompt a row: a line of text, or a column {named(names)}")
    if all(p.error for p in prompts):
        raise BadPrompt(
            f"no usable prompt in '{origin}': {prompts[0].error}",
            hint=f"the column is {named(names)}; --column names another, and --format txt takes lines as they are",
        )
    if expect_column is not None and all(p.expect is None for p in prompts):
        there = ", ".join(prompts.file_columns.names) or "none beside the prompt"
        raise BadOption(f"'{origin}' has no column '{expect_column}' with answers", hint=f"its columns: {there}")
    return prompts


def _without_empty(row: FileRow) -> FileRow:
    """A row of a CSV, where an empty field of a generation says that there is none."""
    return row._replace(value={name: one for name, one in row.value.items() if one != "" or name not in WRITTEN})


def _names(column: str | None) -> tuple[str, ...]:
    return NAMES if column is None else (column,)
