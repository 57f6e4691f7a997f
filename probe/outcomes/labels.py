"""A file of outcomes that somebody else has given to continuations: CSV, JSON lines or Parquet. Knows no runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from probe.errors import BadOption
from probe.files import read_rows
from probe.outcomes.judging import Judgement

COLUMNS = ("branch", "outcome")
FORM = "columns: prompt_id (where the run has several prompts), branch and outcome; the rest is kept beside them"
Place = tuple[int, int]


class LabelFile(NamedTuple):
    """What a file says of each (prompt_id, branch), the sha256 of the file, and what is wrong with single rows of it."""

    labels: dict[tuple[int | None, int], Judgement]
    sha256: str
    wrong: tuple[str, ...]

    def of(self, places: Iterable[Place]) -> tuple[dict[Place, Judgement], list[str]]:
        """The labels of a run's continuations, and what is to be said of those that have none and of labels of none.

        Raises `BadOption` where no label is of any, and where the file names no prompts and the run has several.
        """
        there = list(places)
        prompts = sorted({prompt for prompt, _ in there})
        if any(prompt is None for prompt, _ in self.labels) and len(prompts) > 1:
            raise BadOption(f"the labels name no prompt_id, and the run has {len(prompts)} prompts", hint=FORM)
        named = {(prompts[0] if p is None else p, b): one for (p, b), one in self.labels.items()} if prompts else {}
        found = {place: named[place] for place in there if place in named}
        if there and not found:
            raise BadOption("no label is of a continuation of this run", hint=FORM)
        said = list(self.wrong)
        if missing := len(there) - len(found):
            said.append(f"{missing:,} of {len(there):,} continuations have no label: their outcome is <unlabelled>")
        if unknown := len(named) - len(found):
            said.append(f"{unknown:,} labels are of no continuation of this run, and were passed over")
        return found, said


def read_labels(path: Path) -> LabelFile:
    """The labels in a file. A row that can't be read is passed over, and said; two that contradict each other are an error.

    Raises `BadPrompt` where nothing can be read, `BadOption` where there are no labels.
    """
    _, rows = read_rows(path, columns=COLUMNS, origin=str(path))
    found: dict[tuple[int | None, int], Judgement] = {}
    first: dict[tuple[int | None, int], int] = {}
    wrong = []
    for row in rows:
        place, label, error = _label(row.value) if not row.error else (None, None, row.error)
        if error:
            wrong.append(f"row {row.number}: {error}")
        elif place is not None and label is not None:
            if place in found and found[place].outcome != label.outcome:
                where = f"branch {place[1]}" + ("" if place[0] is None else f" of prompt {place[0]}")
                raise BadOption(
                    f"'{path}' gives {where} two outcomes: '{found[place].outcome}' (row {first[place]}) and "
                    f"'{label.outcome}' (row {row.number})",
                    hint="leave one of them out",
                )
            found.setdefault(place, label)
            first.setdefault(place, row.number)
    if not found:
        raise BadOption(f"no label in '{path}'" + (f": {wrong[0]}" if wrong else ""), hint=FORM)
    said = (f"{len(wrong):,} rows of '{path}' could not be read, as {wrong[0]}",) if wrong else ()
    return LabelFile(found, hashlib.sha256(path.read_bytes()).hexdigest(), said)


def _label(value: Any) -> tuple[tuple[int | None, int] | None, Judgement | None, str]:
    """Its place, what it says (None where its outcome is empty), or why it can't be read."""
    if not isinstance(value, dict) or any(name not in value for name in COLUMNS):
        return None, None, f"no columns {' and '.join(COLUMNS)}"
    given = {name: value[name] for name in ("prompt_id", "branch") if value.get(name) not in (None, "")}
    numbers = {name: _whole(number) for name, number in given.items()}
    if bad := [name for name, number in numbers.items() if number is None]:
        return None, None, f"{bad[0]} is {given[bad[0]]!r}, which is no number"
    branch = numbers.get("branch")
    if branch is None:
        return None, None, "it has no branch"
    outcome = value["outcome"]
    if outcome is None or outcome == "":
        return None, None, ""
    text = outcome.strip() if isinstance(outcome, str) else json.dumps(outcome, default=str)
    more = {k: v for k, v in value.items() if k not in ("prompt_id", "run_id", *COLUMNS) and v not in (None, "")}
    return (numbers.get("prompt_id"), branch), Judgement(text, more), ""


def _whole(value: Any) -> int | None:
    """A whole number that is written as one, also as 3.0, which is how tables with gaps hold it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None
