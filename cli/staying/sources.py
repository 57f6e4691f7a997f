"""Whether the code that this process has imported is still what lies on the disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

Fingerprint = frozenset[tuple[str, int, int]]


def fingerprint() -> Fingerprint:
    """Path, size and time of each module of probe, and of the record of each package that is installed beside it."""
    import probe.cli
    import probe.recipes

    packages = [folder for package in (probe, probe.cli, probe.recipes) for folder in package.__path__]
    records = [one for folder in sys.path for one in _inside(folder) if one.name.endswith((".dist-info", ".egg-info"))]
    modules = [one for folder in packages for one in _modules(folder)]
    return frozenset((one.path, *_stamp(one)) for one in (*modules, *records))


def _modules(folder: str) -> Iterator[os.DirEntry[str]]:
    for one in _inside(folder):
        if one.name.endswith(".py"):
            yield one
        elif not one.name.startswith((".", "__")) and one.is_dir():
            yield from _modules(one.path)


def _inside(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder or ".") as found:
            return list(found)
    except OSError:
        return []


def _stamp(one: os.DirEntry[str]) -> tuple[int, int]:
    try:
        found = one.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
