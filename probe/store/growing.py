"""A run that is still being written, as far as it is safely on the disk. Takes no lock, removes nothing, writes nothing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from probe.errors import RunError
from probe.store import finishing, layout, manifest
from probe.store.layout import MANIFEST, PARTIAL, STATE
from probe.store.run import DiskReader, Run, open_run


def growing(path: Path) -> Path | None:
    """The folder in which the run `path` is being built; None where it is whole, or where there is nothing of it."""
    if path.suffix == PARTIAL:
        return path if (path / STATE).is_file() else None
    folder = layout.partial(path)
    return folder if not (path / MANIFEST).is_file() and (folder / STATE).is_file() else None


def open_growing(path: Path | str, *, without: Collection[str] = ()) -> tuple[Run, int | None]:
    """The run, and None; of one that is not whole what its journal names, with an empty summary, and how many units that is.
    Tables `without` are then not among it: those that say nothing without a summary.

    The parts of a run that ends at this very moment may be gone before they are read: the tables then raise `RunError`, and
    the next call has the whole run. Raises `RunError` where there is no run at all, or one that is damaged.
    """
    path = Path(path)
    whole = path.with_suffix("") if path.suffix == PARTIAL and not path.exists() else path
    folder = growing(path)
    if folder is None:
        return open_run(whole), None
    state = manifest.intact(folder / STATE, manifest.State)
    records = manifest.read_records(folder)
    parts = [part for record in records for part in record["parts"] if part["table"] not in without]
    about: dict[str, Any] = {
        **state, "ended": None, "wall_seconds": None, "peak_memory_bytes": None, "summary": {}, "anatomy": None,
        "model": _model(state), "warnings": list(dict.fromkeys(text for record in records for text in record["warnings"])),
        "tables": finishing.listing_of(parts),
    }  # fmt: skip
    return Run(DiskReader(folder, about), about), sum(len(one["units"]) for one in records)


def _model(state: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of the model before the end: its name."""
    name = state.get("resolved", {}).get("model")
    return {"name": name} if isinstance(name, str) else None


def gone(error: RunError) -> bool:
    """Whether a file was missing: of a run that ended while it was read."""
    return isinstance(error.__cause__, FileNotFoundError)
