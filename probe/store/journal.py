"""What of an unfinished run is safely on the disk: its state and one record a flush. Knows no rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.errors import RunError
from probe.store import durable

STATE = "state.json"
FOLDER = "journal"


class Journal:
    """`RUN.partial/state.json` (whose run this is) and `journal/*.json` (which units are in which parts)."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state
        self.records: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._before = 0.0

    @classmethod
    def start(cls, folder: Path, state: dict[str, Any]) -> Journal:
        """A new run in an empty folder."""
        durable.write_json(folder / STATE, state)
        (folder / FOLDER).mkdir(exist_ok=True)
        durable.sync_folder(folder.parent)
        return cls(folder, state)

    @classmethod
    def reopen(cls, folder: Path) -> Journal:
        """An unfinished run: read the records, and remove every file that no record names."""
        journal = cls(folder, durable.read_json(folder / STATE))
        (folder / FOLDER).mkdir(exist_ok=True)
        for path in sorted((folder / FOLDER).glob("*.json")):
            journal.records.append(durable.read_json(path))
        if journal.records:
            journal._before = float(journal.records[-1]["seconds"])
        journal._sweep()
        return journal

    @property
    def parts(self) -> list[dict[str, Any]]:
        return [part for record in self.records for part in record["parts"]]

    @property
    def units(self) -> set[str]:
        return {unit for record in self.records for unit in record["units"]}

    @property
    def warnings(self) -> list[str]:
        return list(dict.fromkeys(text for record in self.records for text in record["warnings"]))

    @property
    def seconds(self) -> float:
        """Wall time spent on this run by all processes that worked on it."""
        return self._before + time.monotonic() - self._began

    def record(self, units: Sequence[str], parts: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> None:
        """State durably that these parts hold these units. From here on they are part of the run."""
        record = {"units": list(units), "parts": list(parts), "warnings": list(warnings), "seconds": self.seconds}
        durable.write_json(self.folder / FOLDER / f"{len(self.records):06d}.json", record)
        self.records.append(record)

    def next_part(self, table: str) -> int:
        return sum(part["table"] == table for part in self.parts)

    def _sweep(self) -> None:
        named = {part["path"]: part["bytes"] for part in self.parts}
        for path in sorted(self.folder.rglob("*")):
            inside = path.relative_to(self.folder).as_posix()
            if path.is_file() and inside not in named and not _ours(inside):
                path.unlink()
        for inside, size in named.items():
            path = self.folder / inside
            if not path.is_file() or path.stat().st_size != size:
                hint = f"remove it (probe runs rm {self.folder}) and start again"
                raise RunError(f"'{self.folder}' was altered: {inside} is missing or has another size", hint=hint)


def _ours(inside: str) -> bool:
    in_journal = inside.startswith(f"{FOLDER}/") and inside.endswith(".json")
    return inside in (STATE, durable.Lock.NAME) or in_journal
