"""What of an unfinished run is safely on the disk: its state and one record a flush. Knows no rows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe import durable
from probe.errors import RunError
from probe.store import layout, manifest
from probe.store.layout import JOURNAL, STATE
from probe.store.uploading import Upload


class Journal:
    """`RUN.partial/state.json` (whose run this is) and `journal/*.json` (which units are in which parts).

    upload: of a run at a URL, where all that is durable here goes.
    """

    def __init__(self, folder: Path, state: dict[str, Any], upload: Upload | None = None) -> None:
        self.folder, self.state, self.upload = folder, state, upload
        self.records: list[dict[str, Any]] = []
        self._parts: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)  # of each table
        self._began = time.monotonic()
        self._before = 0.0

    @classmethod
    def start(cls, folder: Path, state: dict[str, Any], upload: Upload | None = None) -> Journal:
        """A new run in an empty folder."""
        durable.write_json(folder / STATE, manifest.sealed(state))
        (folder / JOURNAL).mkdir(exist_ok=True)
        durable.sync(folder.parent)
        if upload is not None:
            upload.put_state(folder)
        return cls(folder, state, upload)

    @classmethod
    def reopen(cls, folder: Path, upload: Upload | None = None) -> Journal:
        """An unfinished run: read the records, look whether the parts are what they say, and remove what was being
        written when it ended. Files of others stay."""
        _no_links(folder)
        journal = cls(folder, manifest.intact(folder / STATE, manifest.State), upload)
        (folder / JOURNAL).mkdir(exist_ok=True)
        for record in manifest.read_records(folder):
            journal._take(record)
        for part in journal.parts:
            if not only_uploaded(upload, folder, part) and (what := layout.wrong(folder, part)):
                raise layout.altered(folder, f"{part['path']}: {what}")
        if journal.records:
            journal._before = float(journal.records[-1]["seconds"])
        layout.clear(folder, layout.unfinished(folder, journal.parts))
        return journal

    def extend(self, columns: Mapping[str, Any]) -> None:
        """State durably which extra columns the run's tables have (in words), before any row of theirs."""
        self.state = {**self.state, "columns": dict(columns)}
        durable.write_json(self.folder / STATE, manifest.sealed(self.state))
        if self.upload is not None:
            self.upload.put_state(self.folder)

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
        name = layout.record_name(len(self.records))
        durable.write_json(self.folder / JOURNAL / name, manifest.sealed(record))
        self._take(record)
        if self.upload is not None:
            self.upload.put_record(self.folder, name, parts)

    def _take(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        for part in record["parts"]:
            self._parts[part["table"]].append(part)

    def parts_of(self, table: str) -> Sequence[dict[str, Any]]:
        """Those of one table, oldest first."""
        return self._parts[table]

    def next_part(self, table: str) -> int:
        return len(self._parts[table])


def only_uploaded(upload: Upload | None, folder: Path, part: Mapping[str, Any]) -> bool:
    """Whether a part is not in the run's folder here, because it need not be."""
    return upload is not None and upload.has(part) and not (folder / part["path"]).exists()


def _no_links(folder: Path) -> None:
    """What is resumed is written to: nothing in it may lead out of it."""
    for name in layout.files(folder):
        if (folder / name).is_symlink():
            raise RunError(f"'{folder}' holds a link: {name}", hint="remove it, or start again with another --out")
