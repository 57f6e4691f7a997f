"""Which texts are meant as runs: a command's argument may be a prompt, a model, or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probe.errors import BadOption
from probe.store.catalog import is_run
from probe.store.inside import partial
from probe.store.run import Run, open_run
from probe.store.writer import fresh_path


def names_run(text: str) -> bool:
    """Whether a text is the path of a run, or of one that was begun."""
    path = Path(text)
    if path.name == "":
        return False
    return _is_folder(partial(path)) or (_is_folder(path) and is_run(path))


def run_of(source: Any) -> Run | None:
    """The run that a prompt's place was given: a `Run`, a `Path`, or a text that names one. None for everything else.

    A text with a slash that is some other folder was meant as one, too: `RunError`, as for a run that is unfinished.
    """
    if isinstance(source, Run):
        return source
    named = isinstance(source, str) and (names_run(source) or ("/" in source and _is_folder(Path(source))))
    return open_run(source) if named or isinstance(source, Path) else None


def place_for(command: str, out: Path | str | None, *, word: str = "", resume: bool = False) -> Path | None:
    """Where a command's run goes: "auto" is a new name under `runs/`, None is memory. BadOption where a resumed run has no
    name."""
    if resume and (out is None or out == "auto"):
        raise BadOption("which run is to be resumed?", hint="name it with --out")
    return fresh_path(command, word=word) if out == "auto" else Path(out) if out else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or no path at all
        return False
