"""Hashes of files, remembered so that a file that has not changed is not read again. Knows no models."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xxhash

from probe.language_model.home import Progress, home

_BLOCK = 1 << 22
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
    part = home() / f".hashes-{os.getpid()}.part"
    try:
        home().mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known, indent=0))
        part.replace(home() / "hashes.json")
    except OSError:
        part.unlink(missing_ok=True)
