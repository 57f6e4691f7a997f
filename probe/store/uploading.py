"""A run that is made here for a URL: what is durable here goes there, in the order in which it became so. Computes nothing.

What is at the URL, in time: `state.json`; then, again and again, part files and after them the journal record that names them;
at the end the tables' own files, `README.md`, and last `manifest.json`, whose presence makes it a run. Then state, journal and
the parts that were sorted into one file are deleted. A process that is killed between any two of these leaves what `--resume`
completes, from any machine: what the records name is the run so far, and nothing else that lies there counts.

The run is not renamed, and large tables stay where they were first written. A part of theirs that another machine wrote is not
brought here.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from probe import durable, tables
from probe.addresses import last_name
from probe.errors import ProbeError, RunError
from probe.store import layout, manifest, mirroring
from probe.store.claiming import Claim, alive
from probe.store.layout import JOURNAL, MANIFEST, README, STATE, partial
from probe.store.remote import RemoteFolder

WORKERS = "workers"  # of this machine, each with a folder until it is dead


class Upload:
    """The run at `url`, of which `path` is the folder here."""

    def __init__(self, url: str) -> None:
        """Raises `RunError` where another process writes it, or the server does not answer."""
        self.url, self.remote = url, RemoteFolder(url, writes=True)
        folder, self._fetched = mirroring.kept(url) / "made", mirroring.kept(url) / "fetched"
        self.path = folder / last_name(url)
        self._sent: dict[str, str] = {}  # what is there for certain: name -> hash
        with durable.stated(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = layout.Lock(folder)
            except RunError as error:
                raise RunError(f"'{url}' is being written by another process", hint="wait for it to finish") from error
        try:
            self._claim = Claim(self.remote)
        except BaseException:
            self._lock.release()
            raise

    def begun(self) -> dict[str, Any] | None:
        """The state of a run that was begun at the URL. From now on that and its journal are here too, for `fetch`."""
        shutil.rmtree(self._fetched, ignore_errors=True)
        mirroring.bring_journal(self.remote, self._fetched)
        state = self._fetched / STATE
        with mirroring.said_of(self.url, self._fetched):
            return manifest.intact(state, manifest.State) if state.is_file() else None

    def fetch(self, before: Mapping[str, Any] | None, *, resume: bool) -> None:
        """Have the run here as far as it is there, or further, if that was made here. Without `resume`: have nothing. before:
        what `begun` told."""
        if not resume or (before is not None and self._own_id() != before["run_id"]):
            self._forget()
        if before is not None:
            with mirroring.said_of(self.url, self._fetched):
                records = manifest.read_records(self._fetched)
            self._follow(records)
            shutil.rmtree(self._fetched, ignore_errors=True)
        elif partial(self.path).exists():  # of a run that is gone there
            self._send(0)

    def _own_id(self) -> str | None:
        """The id of the run that is here."""
        for file in (self.path / MANIFEST, partial(self.path) / STATE):
            with suppress(RunError, FileNotFoundError):
                if file.is_file():
                    return str(layout.read_json(file).get("run_id"))
        return None

    def _forget(self) -> None:
        for folder in (self.path, partial(self.path)):
            shutil.rmtree(folder, ignore_errors=True)

    def _follow(self, records: list[dict[str, Any]]) -> None:
        """Go on with what is here where it begins with these records of the URL, else with what they name."""
        whole, folder = self.path.exists(), partial(self.path)
        own, theirs = ([path.read_bytes() for path in layout.records(one)] for one in (folder, self._fetched))
        if not whole and (own[: len(theirs)] != theirs or not (folder / STATE).is_file()):
            self._forget()
            self._take(records)
        self._sent |= {part["path"]: part["xxh3_128"] for record in records for part in record["parts"]}
        if not whole:
            self._send(len(records))

    def _take(self, records: list[dict[str, Any]]) -> None:
        """What was fetched, with its small tables, becomes the run here; whole or not at all."""
        with durable.stated(self._fetched):
            for part in (part for record in records for part in record["parts"]):
                if not tables.TABLES[part["table"]].large:
                    self.remote.get(part["path"], self._fetched / part["path"], part)
            self._fetched.rename(partial(self.path))

    def _send(self, known: int) -> None:
        """State, and the records from this one on."""
        folder = partial(self.path)
        self.put_state(folder)
        for path, record in list(zip(layout.records(folder), manifest.read_records(folder), strict=True))[known:]:
            self.put_record(folder, path.name, record["parts"])

    def put_state(self, folder: Path) -> None:
        """What the run was begun with, or has been extended by."""
        self.remote.write(STATE, (folder / STATE).read_bytes())

    def put_record(self, folder: Path, name: str, parts: Sequence[Mapping[str, Any]]) -> None:
        """Parts, and then the record that names them."""
        self._claim.check()
        for part in parts:
            if not self.has(part):
                self.remote.put(part["path"], folder / part["path"])
                self.hold(part)
        self.remote.write(f"{JOURNAL}/{name}", (folder / JOURNAL / name).read_bytes())

    def has(self, part: Mapping[str, Any]) -> bool:
        """Whether a part is at the URL for certain."""
        return self._sent.get(part["path"]) == part["xxh3_128"]

    def hold(self, part: Mapping[str, Any]) -> None:
        """A part is at the URL."""
        self._sent[part["path"]] = part["xxh3_128"]

    def finish(self) -> None:
        """The run here is whole: make it so there. What is here becomes the copy that is read."""
        about = manifest.intact(self.path / MANIFEST, manifest.Manifest)
        for table in about["tables"].values():
            for file in table["files"]:
                if not self.has(file):
                    self.remote.put(file["path"], self.path / file["path"])
        self.remote.put(README, self.path / README)
        self._claim.check()
        text = (self.path / MANIFEST).read_bytes()
        self.remote.write(MANIFEST, text)  # last: its presence means that the run is complete
        self.tidy(about)
        (self.path / layout.LOCK).unlink(missing_ok=True)
        copy = mirroring.copy_of(self.url, text)
        with durable.stated(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            if copy.exists():  # somebody reads it already
                self._forget()
            else:
                self.path.rename(copy)
        _forget_workers(mirroring.kept(self.url) / WORKERS)

    def tidy(self, about: Mapping[str, Any]) -> None:
        """Delete what only an unfinished run needs."""
        named = {file["path"] for table in about["tables"].values() for file in table["files"]}
        self.remote.clear(
            name for name in self.remote.files() if layout.writes(name) and name not in {*named, MANIFEST, README}
        )
        self.remote.inside(layout.SHARDS).clear([])  # the folder of what workers wrote

    def discard(self) -> None:
        """Of a run in which nothing was done nothing stays."""
        with suppress(ProbeError):
            found = self.remote.files()
            if not any(name.startswith((f"{JOURNAL}/", f"{layout.SHARDS}/")) for name in found) and MANIFEST not in found:
                self.remote.clear([STATE])

    def close(self) -> None:
        """Let others write."""
        self._claim.release()
        self._lock.release()


def fetched(remote: RemoteFolder) -> Path:
    """A folder of this process with the state and the journal of the run that is made at a URL: what a worker begins with.
    Those of workers that are dead are removed."""
    above = mirroring.kept(remote.url) / WORKERS
    with durable.stated(above):
        above.mkdir(parents=True, exist_ok=True)
        _forget_workers(above)
        folder = above / f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
        (folder / layout.SHARDS).mkdir(parents=True)
        mirroring.bring_journal(remote, folder)
    return folder


def _forget_workers(above: Path) -> None:
    """Remove the folders of this machine's workers that are dead."""
    for one in above.iterdir() if above.is_dir() else ():
        host, pid, _ = one.name.rsplit("-", 2)
        if host == platform.node() and not alive(int(pid)):
            shutil.rmtree(one, ignore_errors=True)


def send_shard(remote: RemoteFolder, folder: Path) -> None:
    """Put what a worker wrote of a shard where the run is: its parts, then its records, which make it whole; nothing stays."""
    there = remote.inside(f"{layout.SHARDS}/{folder.name}")
    for part in (part for record in manifest.read_records(folder) for part in record["parts"]):
        there.put(part["path"], folder / part["path"])
    for path in layout.records(folder):
        there.write(f"{JOURNAL}/{path.name}", path.read_bytes())
    shutil.rmtree(folder, ignore_errors=True)
