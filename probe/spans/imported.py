"""A user's own steps: character spans in a JSON file. Knows files, no tokens."""

from __future__ import annotations

import json
from pathlib import Path

from probe.errors import BadOption

_FORM = (
    "a JSON list of [start, end] character positions in the completion, the first 0, each beginning where the last ends"
)


def read_spans(path: str) -> list[tuple[int, int]]:
    """Half-open character spans of a file. Raises `BadOption` if it can't be read or holds something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadOption(f"cannot read spans from '{path}': {error}", hint=_FORM) from error
    fine = isinstance(found, list) and all(
        isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span) for span in found
    )
    if not fine or not found:
        raise BadOption(f"'{path}' holds no spans", hint=_FORM)
    return [(start, end) for start, end in found]
