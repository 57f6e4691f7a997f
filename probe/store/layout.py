"""A run's folder: the names that a writer makes, what only looks like its files, reading them, the lock. Reads no rows."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from probe import durable, tables
from probe.errors import RunError

LOCK = "lock"
MANIFEST, STATE, JOURNAL, README = "manifest.json", "state.json", "journal", "README.md"
REMOVING = "removing.json"  # what is being deleted: a kill in between leaves the list of the rest
PARTIAL = ".partial"
CLAIMS = "claims"  # at a URL: who writes there
SHARDS = "shards"  # of a partial run: what workers write, each shard in a folder of its own until it is part of the run
DOCUMENTS = (MANIFEST, STATE, README, REMOVING, LOCK)
_TABLE = "|".join(tables.TABLES)
_PART = re.compile(rf"({_TABLE})(?:\.parquet|/part-(\d{{5,9}})\.parquet)")
_FILE = re.compile(r"([a-z][a-z0-9_]{0,60})(?:\.parquet|/part-\d{5,9}\.parquet)")  # of a later schema's tables, too
_RECORD = re.compile(rf"{JOURNAL}/\d{{6,9}}\.json")
_CLAIM = re.compile(rf"{CLAIMS}/[0-9a-f]{{16}}\.json")
_KEPT = re.compile(rf"({_TABLE})/kept-part-\d{{5,9}}\.parquet")
_SHARD = re.compile(rf"{SHARDS}/(\d+)-(\d{{6}})(-[0-9a-f]{{8}})?/")  # with a tail: of a worker that has not finished it


def partial(path: Path) -> Path:
    """Where the run `path` is built: beside it."""
    named = path if path.name not in ("", "..") else path.resolve()
    return named.parent / (named.name + PARTIAL)


def table_of(name: str) -> str | None:
    """The table whose rows a file of this name holds; None if no writer, of this schema or a later one, gives such a name."""
    found = _FILE.fullmatch(name)
    return found[1] if found else None


def files(folder: Path, within: Path | None = None) -> list[str]:
    """Everything but folders under a folder, links and pipes too, by its place there (or `within` one above); links are not
    followed."""
    found = []
    for where, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        found += [(Path(where) / name).relative_to(within or folder).as_posix() for name in [*names, *links]]
    return sorted(found)


def records(folder: Path) -> list[Path]:
    """The journal's records, oldest first."""
    return [folder / name for name in files(folder) if is_record(name)]


def record_name(number: int) -> str:
    """Of a record in the journal."""
    return f"{number:06d}.json"


def writes(name: str) -> bool:
    """Whether a writer ever gives a file such a name."""
    if of := _SHARD.match(name):
        return writes(name[of.end() :]) and not _SHARD.match(name[of.end() :])
    stem = name.removesuffix(durable.TEMPORARY)
    found = stem in DOCUMENTS or _PART.fullmatch(stem) or _RECORD.fullmatch(stem)
    return bool(found or (stem != name and _KEPT.fullmatch(stem)))


def is_record(name: str) -> bool:
    """Whether a file is a record of the journal."""
    return _RECORD.fullmatch(name) is not None


def is_claim(name: str) -> bool:
    """Whether a file at a URL says who writes there."""
    return _CLAIM.fullmatch(name) is not None


def unfinished(folder: Path, parts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Files that a writer was at when it was killed: under temporary names, or parts newer than all that are recorded."""
    count: dict[str, int] = {}
    for part in parts:
        count[part["table"]] = count.get(part["table"], 0) + 1
    found = []
    for name in files(folder):
        part_ = _PART.fullmatch(name)
        temporary = name.endswith(durable.TEMPORARY) and writes(name)
        newer = part_ is not None and part_[2] is not None and int(part_[2]) >= count.get(part_[1], 0)
        if temporary or newer:
            found.append(name)
    return found


def shard_name(size: int, number: int) -> str:
    """The name of a shard: that of its folder, under `SHARDS`, when it is finished."""
    return f"{size}-{number:06d}"


def shards(folder: Path) -> list[str]:
    """The names of the finished shards whose rows are not part of the run yet, in their order."""
    found = [_SHARD.fullmatch(f"{SHARDS}/{path.name}/") for path in (folder / SHARDS).glob("*")]
    return [shard_name(*own) for own in sorted((int(one[1]), int(one[2])) for one in found if one and not one[3])]


def shard_unit(name: str) -> str:
    """The unit that is in a run when all units of a shard are."""
    return f"shard-{name}"


def shard_of(attempt: str) -> str:
    """The name of the shard that the folder of an attempt at it is called after."""
    return attempt.rpartition("-")[0]


def is_shard(path: Path) -> bool:
    """Whether a folder is a shard's, finished or not."""
    return _SHARD.fullmatch(f"{SHARDS}/{path.name}/") is not None and path.is_dir() and not path.is_symlink()


def in_shards(folder: Path) -> list[str]:
    """The files that workers wrote and that are not part of the run."""
    return [name for name in files(folder / SHARDS, folder) if writes(name)]


def own(folder: Path, name: str) -> Path:
    """A regular file of the run. RunError if it is missing, or something that leads elsewhere."""
    path, hint = folder / name, f"probe runs check {folder}"
    with readable(path):
        for place in [folder / parent for parent in Path(name).parents if parent.name] + [path]:
            try:
                mode = place.lstat().st_mode
            except FileNotFoundError as error:
                raise RunError(f"'{path}' is missing", hint=hint) from error
            if not (stat.S_ISREG(mode) if place == path else stat.S_ISDIR(mode)):
                raise RunError(f"'{path}' is no file of the run: '{place}' leads elsewhere", hint=hint)
    return path


def footer_hash(path: Path) -> str:
    """Of a Parquet file's footer: what pyarrow does not check before it believes it. Raises OSError for a file without one."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 8))
        size = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(0, end - size))
        return xxhash.xxh3_128_hexdigest(file.read(size))


def wrong(folder: Path, file: Mapping[str, Any]) -> str:
    """What a file has against its record (path, bytes, hash); empty if nothing. Reads every byte."""
    import hashlib

    try:
        path = own(folder, file["path"])
    except RunError as error:
        return "missing" if isinstance(error.__cause__, FileNotFoundError) else "not a file: it leads elsewhere"
    size = path.stat().st_size
    if size != file["bytes"]:
        return f"{'torn' if size < file['bytes'] else 'altered'}: {size} bytes, not {file['bytes']}"
    name, digest = ("xxh3_128", xxhash.xxh3_128) if file.get("xxh3_128") else ("sha256", hashlib.sha256)  # of older runs
    with readable(path), path.open("rb") as opened:
        found = hashlib.file_digest(opened, digest).hexdigest()
    return "" if found == file.get(name) else f"altered: its {name} is another"


def altered(folder: Path, what: str) -> RunError:
    """A run that cannot be gone on with."""
    return RunError(f"'{folder}' was altered: {what}", hint=f"remove it (probe runs rm {folder}) and start again")


def clear(folder: Path, names: Iterable[str]) -> None:
    """Delete these files; nothing else, and nothing through a link."""
    for name in names:
        if not any((folder / parent).is_symlink() for parent in Path(name).parents):
            (folder / name).unlink(missing_ok=True)


def remove_empty(folder: Path, names: Iterable[str] = ()) -> None:
    """Delete the folders that a writer makes in a run's, and those of these files, where they hold nothing (of the user's)."""
    for name in dict.fromkeys((*tables.TABLES, JOURNAL, *(Path(name).parts[0] for name in names if "/" in name))):
        if not (folder / name).is_symlink():
            with suppress(OSError):
                (folder / name).rmdir()
    if (folder / SHARDS).is_dir() and not (folder / SHARDS).is_symlink():
        for one in (folder / SHARDS).iterdir():
            if is_shard(one):
                remove_empty(one)
                with suppress(OSError):
                    one.rmdir()
        with suppress(OSError):
            (folder / SHARDS).rmdir()


def read_json(path: Path) -> Any:
    """The JSON in a file; RunError when it is torn, or no file of its own (a link, a pipe)."""
    try:
        return json.loads(read_bytes(path), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RunError(f"'{path}' is damaged: it is not JSON", hint=f"probe runs check {path.parent}") from error


def read_bytes(path: Path) -> bytes:
    """What a regular file holds; RunError for everything else that can be at a name."""
    with readable(path), open(path, "rb", opener=durable.open_own) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RunError(f"'{path}' is not a file", hint="probe runs ls shows the runs there are")
        return file.read()


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a disk or a name can do to us while reading `path` into one clear error."""
    try:
        yield
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise RunError(f"cannot read '{path}': {why}", hint="probe runs ls shows the runs there are") from error
    except ValueError as error:  # a name with a NUL in it, or with characters that the system's encoding has not
        if isinstance(error, json.JSONDecodeError):
            raise
        raise RunError(f"cannot read '{path}': {error}", hint="probe runs ls shows the runs there are") from error


class Lock:
    """One process at a time in a folder; the system lets go of it when the process dies."""

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        if (folder / LOCK).is_symlink():  # opening it would empty what it leads to
            raise RunError(f"'{folder}' has a link for a lock", hint="remove the link, or choose another --out")
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            hint = "wait for it to finish, or choose another --out"
            raise RunError(f"'{folder}' is locked: another process is writing it", hint=hint) from error
        if not (folder / LOCK).exists():  # it was finished and renamed while we opened it
            self._lock.release()
            raise RunError(f"'{folder}' was finished by another process just now")

    def release(self) -> None:
        self._lock.release()


def locked(folder: Path) -> bool:
    """Whether a living process writes in this folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        Lock(folder).release()
    except RunError:
        return True
    return False
