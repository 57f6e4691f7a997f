"""Hashes of files, remembered so that an unchanged file is not read again; directories that are checked by them. No models."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from probe import durable
from probe.errors import StorageFull
from probe.language_model.home import RECORD, Progress, claimed, home, record_of

_BLOCK = 1 << 22
QUICK = "xxh3_128"  # several times faster than sha256, and no identity
_KINDS: dict[str, Callable[[], Any]] = {"sha256": hashlib.sha256, "xxh3_128": xxhash.xxh3_128}


def sha256(path: Path, *, progress: Progress | None = None) -> str:
    """The hex sha256 of a file's bytes, always read."""
    return _hash(path, "sha256", progress)


def xxh3(path: Path) -> str:
    """What `xxh128sum` prints for a file, always read: several times faster than sha256, and no identity."""
    return _hash(path, "xxh3_128", None)


def remembered(paths: Sequence[Path], *, kind: str = "sha256", progress: Progress | None = None) -> dict[str, str]:
    """File name -> hex hash; files that have not changed since they were last hashed are not read.

    Unchanged is of the same size, modification time, inode and change time: no program can set the last back.
    """
    known = _read()
    hashes, learnt = {}, {}
    for path in paths:
        stat = path.stat()
        key, stamp = f"{kind} {path.resolve()}", [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        entry = known.get(key)
        if not isinstance(entry, list) or entry[:-1] != stamp:
            learnt[key] = entry = [*stamp, _hash(path, kind, progress)]
        hashes[path.name] = entry[-1]
    if learnt:
        _write({**_read(), **learnt})
    return hashes


def tokenizer_sha256(directory: Path) -> str | None:
    """Of tokenizer.json, or of the vocabulary file in its place; None if the tokenizer has no file of its own."""
    for file in (
        "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json",
        "vocab.txt",
    ):  # fmt: skip
        if (path := directory / file).is_file():
            return remembered([path])[file]
    return None


def _hash(path: Path, kind: str, progress: Progress | None) -> str:
    digest, done, total = _KINDS[kind](), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress:
                progress(f"hashing {path.name}", done, total)
    return digest.hexdigest()


def _read() -> dict[str, Any]:
    try:
        known = json.loads((home() / "hashes.json").read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(known: dict[str, Any]) -> None:
    """Two writers at once lose an entry, never tear the file; an unwritable home only costs time."""
    with suppress(OSError, StorageFull):
        home().mkdir(parents=True, exist_ok=True)
        durable.write_json(home() / "hashes.json", known, shared=True)


def hashes_of(directory: Path) -> dict[str, Any]:
    """What the record of a finished directory holds beside the sizes: a hash of each file."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {QUICK: {str(path.relative_to(directory)): xxh3(path) for path in files}}


def intact(directory: Path, progress: Progress | None = None) -> dict[str, Any] | None:
    """The record of a directory that holds what was written into it, to the bit, by the hashes in its record; else None."""
    record = record_of(directory)
    written = record and record.get(QUICK)
    if record is None or not isinstance(written, dict) or written.keys() != record["files"].keys():
        return None
    for name, digest in written.items():
        if list(remembered([directory / name], kind=QUICK, progress=progress).values()) != [digest]:
            return None
    return record


def _vouches_for_nothing(directory: Path) -> bool:
    """Whether a directory is whole as far as its record goes, which holds no hashes: older versions wrote none."""
    record = record_of(directory)
    return record is not None and QUICK not in record


def made(target: Path, make: Callable[[], None], progress: Progress | None) -> dict[str, Any]:
    """The record of `target`, which `make` writes where it is missing or damaged; one process at a time."""
    record = intact(target, progress)
    if record is not None:
        return record
    with claimed(target, progress):
        record = intact(target, progress)
        if record is None:
            if (target / RECORD).is_file() and not _vouches_for_nothing(target):
                warnings.warn(
                    f"the converted copy of '{target.name}' is not what was written: it is converted again", stacklevel=2
                )
            make()
            record = intact(target, progress)
    assert record is not None, "a conversion that ended well left no whole model"
    return record
