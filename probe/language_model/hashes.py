"""sha256 of files, remembered by (path, size, modification time) so that a second load need not read them again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from probe.language_model.home import Progress, home

_BLOCK = 1 << 22


def sha256(path: Path, *, progress: Progress | None = None) -> str:
    """The hex sha256 of a file's bytes, always read."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress:
                progress(f"hashing {path.name}", done, total)
    return digest.hexdigest()


def remembered(paths: Sequence[Path], *, progress: Progress | None = None) -> dict[str, str]:
    """File name -> hex sha256; files that have not changed since they were last hashed are not read."""
    known = _read()
    hashes, learnt = {}, {}
    for path in paths:
        stat = path.stat()
        key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = known.get(key)
        if not entry or entry[:2] != stamp:
            learnt[key] = entry = [*stamp, sha256(path, progress=progress)]
        hashes[path.name] = entry[2]
    if learnt:
        _write({**_read(), **learnt})
    return hashes


def _read() -> dict[str, list]:
    try:
        return json.loads((home() / "hashes.json").read_text())
    except (OSError, ValueError):
        return {}


def _write(known: dict[str, list]) -> None:
    """Two writers at once lose an entry, never tear the file; an unwritable home only costs time."""
    part = home() / f".hashes-{os.getpid()}.part"
    try:
        home().mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known, indent=0))
        part.replace(home() / "hashes.json")
    except OSError:
        part.unlink(missing_ok=True)
