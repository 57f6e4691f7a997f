"""Models that probe converted: made once, checked at every load by the hashes of their files, made again if damaged."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probe.language_model.hashes import remembered, xxh3
from probe.language_model.home import RECORD, Progress, claimed, record_of

_HASHES = "xxh3_128"


def hashes_of(directory: Path) -> dict[str, Any]:
    """What the record of a finished directory holds beside the sizes: a hash of each file."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {_HASHES: {str(path.relative_to(directory)): xxh3(path) for path in files}}


def intact(directory: Path, progress: Progress | None = None) -> dict[str, Any] | None:
    """The record of a directory that holds what was written into it, to the bit, by the hashes in its record; else None."""
    record = record_of(directory)
    written = record and record.get(_HASHES)
    if record is None or not isinstance(written, dict) or written.keys() != record["files"].keys():
        return None
    for name, digest in written.items():
        if list(remembered([directory / name], kind=_HASHES, progress=progress).values()) != [digest]:
            return None
    return record


def _vouches_for_nothing(directory: Path) -> bool:
    """Whether a directory is whole as far as its record goes, which holds no hashes: older versions wrote none."""
    record = record_of(directory)
    return record is not None and _HASHES not in record


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
                    f"the converted copy of '{target.name}' is not what was written: it is converted again",
                    stacklevel=2,
                )
            make()
            record = intact(target, progress)
    assert record is not None, "a conversion that ended well left no whole model"
    return record
