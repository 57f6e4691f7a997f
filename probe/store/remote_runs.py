"""The runs at URLs, as `catalog` has those in folders: which there are, and removed. Reads no rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from probe.addresses import inside
from probe.errors import RunError
from probe.store import layout, mirroring
from probe.store.claiming import Claim
from probe.store.layout import MANIFEST, REMOVING, STATE
from probe.store.remote import RemoteFolder
from probe.store.run import read_manifest

MARKS = (MANIFEST, STATE, REMOVING)  # a run has one of them, whole or not


def is_run(url: str) -> bool:
    """Whether a run is at a URL, whole or not."""
    remote = RemoteFolder(url)
    return any(remote.there(name) for name in MARKS)


def remove(url: str) -> list[str]:
    """As `catalog.remove`: delete the run at a URL, and what is kept of it here; what others put there stays, and is named.

    What says that there is a run goes first, and last a mark that its removal was begun: a kill leaves what the same call
    completes.
    """
    remote = RemoteFolder(url, writes=True)
    if not is_run(url):
        raise RunError(f"'{url}' is not a run; nothing was removed", hint="probe runs ls shows those there are")
    claim = Claim(remote)
    try:
        remote.write(REMOVING, b"{}")
        remote.clear([MANIFEST, STATE])
        names = [name for name in remote.files() if name != REMOVING and not layout.is_claim(name)]
        own = {name for name in names if layout.writes(name) or layout.table_of(name)}
        remote.clear(own)
        remote.clear([REMOVING])
        shutil.rmtree(mirroring.kept(url), ignore_errors=True)
    finally:
        claim.release()
    return sorted(set(names) - own)


def runs_in(url: str) -> Iterator[str]:
    """The URLs of the runs right under a URL, whole or not."""
    return (one for name in RemoteFolder(url).folders() if is_run(one := inside(url, name)))


@contextmanager
def glimpse(url: str, table: str) -> Iterator[Path]:
    """A folder with what a line in a list needs of the run at a URL: of a whole one its manifest and one of its tables, if it
    has that; else its state and its journal, or the mark that it is being removed."""
    remote = RemoteFolder(url)
    if remote.there(MANIFEST):
        copy = mirroring.Copy(url)
        with suppress(RunError):  # it is damaged, and its line will say so
            copy.bring(read_manifest(copy.path)["tables"].get(table, {}).get("files", ()))
        yield copy.path
        return
    with mirroring.begun(remote) as folder:
        yield folder
