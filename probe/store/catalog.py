"""Runs in folders and at URLs: what is one, its end, and which text or option names one. Reads no rows."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from probe import durable
from probe.addresses import is_url, leads_to_runs
from probe.errors import BadOption, RunError
from probe.store import layout, manifest, remote_runs
from probe.store.beginning import fresh_path
from probe.store.layout import MANIFEST, PARTIAL, REMOVING, STATE
from probe.store.run import Run, open_run, read_manifest


def is_run(path: Path | str) -> bool:
    """Whether a folder is a run, whole or not, by the files that only a run has; or whether one is at a URL."""
    if is_url(path):
        return remote_runs.is_run(path)
    path = Path(path)
    try:
        if (path / REMOVING).is_file():
            return True
        for name in (MANIFEST, STATE):
            if (path / name).is_file():
                about = layout.read_json(path / name)
                return isinstance(about, dict) and {"run_id", "schema_version", "command"} <= set(about)
    except RunError:  # damaged: what else a run has decides
        return path.suffix == PARTIAL or (path / layout.README).is_file()
    except (OSError, ValueError):  # a name that is too long, or no name at all
        return False
    return False


def remove(path: Path | str) -> list[str]:
    """Delete a run, whole or partial: the files that it names as its own, and nothing else. What is left of others' files,
    which stay where they are. Refuses what is no run, is being written, or does not say what is its own.

    A list of the files is written first and manifest and state go next: a kill leaves no run, and the same call completes it.
    """
    if is_url(path):
        return remote_runs.remove(path)
    path = Path(path)
    with layout.readable(path):
        if path.is_symlink() or not path.is_dir() or not is_run(path):
            raise RunError(f"'{path}' is not a run; nothing was removed", hint="probe runs ls shows those there are")
        if layout.locked(path):
            raise RunError(f"'{path}' is being written by another process", hint="stop it first")
    try:
        removal = manifest.read(path / REMOVING, manifest.Removal) if (path / REMOVING).is_file() else _own_files(path)
    except RunError as error:
        hint = f"look into the folder, and delete it yourself: {error.message}"
        raise RunError(f"'{path}' does not say which files are its own; nothing was removed", hint=hint) from error
    with durable.stated(path):
        durable.write_json(path / REMOVING, removal)
        layout.clear(path, [MANIFEST, STATE])
        durable.sync(path)
        layout.clear(path, [*removal["files"], layout.README, layout.LOCK])
        left = [name for name in layout.files(path) if name != REMOVING]
        layout.clear(path, [REMOVING])
        layout.remove_empty(path, removal["files"])
        with suppress(OSError):  # something of the user's is in it
            path.rmdir()
    return left


def _own_files(path: Path) -> dict[str, Any]:
    if path.suffix != PARTIAL:
        about = read_manifest(path)
        names = [file["path"] for table in about["tables"].values() for file in table["files"]]
        return {"run_id": about["run_id"], "files": names}
    about = manifest.read(path / STATE, manifest.State)
    parts = [part for record in manifest.read_records(path) for part in record["parts"]]
    names = [part["path"] for part in parts] + layout.unfinished(path, parts) + layout.in_shards(path)
    if (path / MANIFEST).is_file():  # killed at its very end
        whole = manifest.read(path / MANIFEST, manifest.Manifest)
        names += [file["path"] for table in whole["tables"].values() for file in table["files"]]
    journal = [record.relative_to(path).as_posix() for record in layout.records(path)]
    return {"run_id": about["run_id"], "files": [*names, *journal]}


def names_run(text: str) -> bool:
    """Whether a text is the path of a run, or of one that was begun, or a URL at which runs may be; asks no server."""
    if leads_to_runs(text):
        return True
    path = Path(text)
    if path.name == "":
        return False
    return _is_folder(layout.partial(path)) or (_is_folder(path) and is_run(path))


def run_of(source: Any) -> Run | None:
    """The run that a prompt's place was given: a `Run`, a `Path`, or a text that names one. None for everything else.

    A text with a slash that is some other folder was meant as one, too: `RunError`, as for a run that is unfinished.
    """
    if isinstance(source, Run):
        return source
    named = isinstance(source, str) and (names_run(source) or ("/" in source and _is_folder(Path(source))))
    return open_run(source) if named or isinstance(source, Path) else None


def place_for(command: str, out: Path | str | None, *, word: str = "", resume: bool = False) -> Path | str | None:
    """Where a command's run goes: "auto" is a new name under `runs/`, None is memory, a URL stays one. BadOption
    where a resumed run has no name."""
    if resume and (out is None or out == "auto"):
        raise BadOption("which run is to be resumed?", hint="name it with --out")
    if is_url(out):
        return out
    return fresh_path(command, word=word) if out == "auto" else Path(out) if out else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or no path at all
        return False
