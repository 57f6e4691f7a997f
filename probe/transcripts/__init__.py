"""What other programs keep of a model's answers, as rows of problems with their completions. Knows no tokens and no model.

A row that comes of it has `messages` or `prompt`; what was written after it as `completion`, `completion_ids` (with
`prompt_ids`) or as the messages' last turn; `stop_reason`; `left_out`, a list of what of the record is not in the row; `expect`
and `choices`; and the rest of the record under its own names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from probe.errors import BadPrompt
from probe.files import FileRow, read_rows
from probe.transcripts import evaluations, folders, openai

LOOKED_AT = 20  # rows that say what a file is


class Form(NamedTuple):
    """One program's way to write transcripts down: whether a row is one of its records, and the rows that they come to."""

    name: str
    holds: Callable[[Mapping[str, Any]], bool]
    rows: Callable[[Iterable[FileRow]], Iterator[FileRow]]


FORMS = (
    Form("tokens of a run", folders.is_token, folders.of_tokens),
    Form("prompts of a run", folders.is_prompt, folders.of_prompts),
    Form("OpenAI responses", openai.is_record, openai.rows),
    Form("an Inspect log", evaluations.is_inspect, evaluations.of_inspect),
    Form("lm-eval samples", evaluations.is_lm_eval, evaluations.of_lm_eval),
    Form("a thought-anchors solution", folders.is_solution, folders.of_solution),
)


def recognised(rows: Iterable[FileRow]) -> tuple[str, Iterable[FileRow]]:
    """Rows of a file as rows of problems, and whose records they were; rows that are nobody's stay as they are ("")."""
    rows = iter(rows)
    first = list(islice(rows, LOOKED_AT))
    found = [row.value for row in first if isinstance(row.value, Mapping)]
    for form in FORMS:
        if any(form.holds(value) for value in found):
            return form.name, form.rows(chain(first, rows))
    return "", chain(first, rows)


def read_other(path: Path, columns: Collection[str]) -> tuple[str, Iterable[FileRow]] | None:
    """Rows of a folder (a run, solutions, batch files) or an archive (`.eval`), which is no file of rows; None for all else.

    Raises `BadPrompt` for a folder that is none of these, and for an archive that cannot be read.
    """
    if path.is_dir():
        rows = folders.of_folder(path)
        if rows is not None:
            return rows
        found = sorted(path.glob("*.jsonl"))
        if not found:
            raise BadPrompt(
                f"'{path}' is a folder without prompts",
                hint="a folder is a run, solutions of thought-anchors, or .jsonl batch files",
            )
        read = chain.from_iterable(read_rows(one, columns=columns, kind="jsonl", origin=str(one))[1] for one in found)
        return recognised(FileRow(i, row.value, row.error) for i, row in enumerate(read))
    if evaluations.is_archive(path):
        return "an Inspect log", evaluations.of_archive(path)
    return None
