"""How a run begins, or is gone on with: its folder, its lock, what it was begun with. Writes no rows."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from probe import durable
from probe.addresses import is_url, last_name
from probe.errors import RunError
from probe.store import finishing, layout, manifest
from probe.store.backends import Disk, Limits, Memory
from probe.store.journal import Journal
from probe.store.layout import MANIFEST, STATE, partial
from probe.store.run import open_run
from probe.store.uploading import Upload
from probe.store.writer import Writer

# fmt: off
_WORDS = [
    "amber", "basil", "birch", "cedar", "clover", "coral", "ember", "fjord", "garnet", "hazel", "indigo", "jade",
    "kelp", "linden", "maple", "mesa", "nova", "ocean", "onyx", "orchid", "pearl", "plum", "quartz", "reef", "river",
    "sage", "slate", "spruce", "topaz", "umber", "willow", "zephyr",
]
# fmt: on


def fresh_path(command: str, *, root: Path = Path("runs"), word: str = "") -> Path:
    """Reserve a run directory `root/<time>-<command>-<word>` of its own, also when others ask at the same moment."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{manifest.slug(command)}"
    for attempt in range(100):
        chosen = manifest.slug(word)[:24].lower() if word and not attempt else secrets.choice(_WORDS)
        path = root / (f"{stem}-{chosen}" if attempt < 3 else f"{stem}-{chosen}-{secrets.token_hex(2)}")
        if path.exists():
            continue
        with durable.stated(path):
            root.mkdir(parents=True, exist_ok=True)
            try:
                partial(path).mkdir()
            except FileExistsError:
                continue
        return path
    raise AssertionError(f"no free name in {root} after 100 draws")


def create(
    path: Path | str | None,
    *,
    command: str,
    arguments: Mapping[str, Any],
    resolved: Mapping[str, Any] | None = None,
    resume: bool = False,
    run_id: str | None = None,
    typed: str | None = None,
    limits: Limits | None = None,
) -> Writer:
    """Begin (or with `resume` go on with) the run `path`, a directory or a URL; None keeps it in memory.

    `arguments` is everything that decides the numbers, and nothing else; `resolved` what they came to (the model's name, a
    hash of a file's prompts): a resume with others is refused. `typed` is
    the command line (default: this process's). Resuming what does not exist starts it, and resuming a whole run
    gives a writer whose units are all done. Raises RunError (in the way, locked, other arguments) and StorageFull.
    """
    there = path if is_url(path) else None
    path = None if path is None else Path(last_name(path) if is_url(path) else path)
    name = run_id or (_default_id(command) if path is None else _id_for(path, command))
    state = manifest.begun(command, arguments, resolved or {}, run_id=name, typed=typed)
    if path is None:
        return Writer(None, Memory(), {**state, "git": manifest.commit(Path.cwd())})
    limits = limits or Limits()
    if "\0" in str(path):
        raise RunError("no file's name has a NUL in it", hint="choose another --out")
    if there is not None:
        return _create_remote(there, state, resume=resume, limits=limits)
    return _create(path, state, resume=resume, limits=limits)


def _create_remote(url: str, state: dict[str, Any], *, resume: bool, limits: Limits) -> Writer:
    """The run at a URL is made in a folder here, which first is as far as the run is there."""
    upload = Upload(url)
    try:
        if (whole := upload.remote.there(MANIFEST)) and not resume:
            raise _in_the_way(url, "a run")
        if whole:
            run = open_run(url)
            same_run(run.manifest, state, path=url)
            upload.tidy(run.manifest)
            upload.close()
            return Writer(None, Memory(), run.manifest, whole=run)
        if (before := upload.begun()) is not None:
            if not resume:
                raise _unfinished(url)
            same_run(before, state, path=url)
        upload.fetch(before, resume=resume)
        writer = _create(upload.path, state, resume=True, limits=limits, upload=upload)
        if writer.whole is None:
            return writer
        upload.finish()
        upload.close()
        run = open_run(url)
        return Writer(None, Memory(), run.manifest, whole=run)
    except BaseException:
        upload.close()
        raise


def _create(path: Path, state: dict[str, Any], *, resume: bool, limits: Limits, upload: Upload | None = None) -> Writer:
    folder = partial(path)
    with durable.stated(path):
        if path.exists() or path.is_symlink():
            return _whole(path, state, resume=resume)
    with durable.stated(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        lock = layout.Lock(folder)
        try:
            return _begin(path, state, resume=resume, lock=lock, limits=limits, upload=upload)
        except BaseException:
            lock.release()
            raise


def _begin(
    path: Path, state: dict[str, Any], *, resume: bool, lock: layout.Lock, limits: Limits, upload: Upload | None
) -> Writer:
    folder = partial(path)
    if path.exists():  # finished by another process between our look and our lock
        raise _in_the_way(path, _what(path))
    if not (folder / STATE).exists():  # reserved, or killed before it began
        if {child.name for child in folder.iterdir()} - {layout.LOCK, STATE + durable.TEMPORARY}:
            if (folder / layout.REMOVING).exists():
                hint = f"probe runs rm {folder} completes that"
                raise RunError(f"cannot write '{path}': '{folder}' is half removed", hint=hint)
            raise RunError(f"cannot write '{path}': '{folder}' is not a run", hint="choose another --out")
        state["git"] = manifest.commit(Path.cwd())
        return Writer(path, Disk(Journal.start(folder, state, upload), limits), state, lock=lock, upload=upload)
    if not resume:
        raise _unfinished(path)
    before = manifest.intact(folder / STATE, manifest.State)
    same_run(before, state, path=folder)
    if (folder / MANIFEST).exists():
        finishing.conclude(path, folder, upload)
        lock.release()
        return Writer(path, Memory(), before, whole=open_run(path))
    return Writer(path, Disk(Journal.reopen(folder, upload), limits), before, lock=lock, upload=upload)


def _whole(path: Path, state: dict[str, Any], *, resume: bool) -> Writer:
    if not resume or not (path / MANIFEST).exists():
        raise _in_the_way(path, _what(path))
    same_run(manifest.intact(path / MANIFEST, manifest.Manifest), state, path=path)
    run = open_run(path)
    return Writer(path, Memory(), run.manifest, whole=run)


def _what(path: Path) -> str:
    return "a run" if (path / MANIFEST).exists() else "something"


def _in_the_way(path: Path | str, what: str) -> RunError:
    return RunError(f"cannot write '{path}': {what} is already there", hint="choose another --out, or remove it: probe runs rm")


def _unfinished(path: Path | str) -> RunError:
    hint = f"add --resume to go on with it, or remove it: probe runs rm {path if is_url(path) else partial(Path(path))}"
    return RunError(f"'{path}' was begun and not finished", hint=hint)


def same_run(before: Mapping[str, Any], now: Mapping[str, Any], *, path: Path | str) -> None:
    """Refuse to go on with a run of another command, other arguments or another format."""
    hint = "give the same arguments, or choose another --out"
    for key in ("schema_version", "command"):
        if before.get(key) != now[key]:
            raise RunError(f"'{path}' was made with {key} {before.get(key)}, not {now[key]}", hint=hint)
    old = {**before["arguments"], **before.get("resolved", {})}
    new = {**now["arguments"], **now["resolved"]}
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if differing:
        key = differing[0]
        more = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
        what = f"{key} = {_short(old.get(key))}, not {_short(new.get(key))}{more}"
        raise RunError(f"'{path}' was made with {what}", hint=hint)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _default_id(command: str) -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}-{manifest.slug(command)}-{secrets.choice(_WORDS)}-{secrets.token_hex(2)}"


def _id_for(path: Path, command: str) -> str:
    """The folder's own name if it is one of ours, else a new one: `runs/a` and `b/a` must not share an id."""
    stem = manifest.slug(command)
    return path.name if f"-{stem}-" in path.name and path.name == manifest.slug(path.name) else _default_id(command)
