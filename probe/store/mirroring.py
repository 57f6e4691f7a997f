"""A run at a URL, read from here: its manifest, and of its files those that are asked for, each brought once.

Copies are kept under `$PROBE_HOME/runs`, by URL and by the hash of the manifest: a run that was made anew is another. Between
two commands they may be deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import xxhash

from probe import durable
from probe.addresses import home, last_name
from probe.errors import RunError
from probe.store import layout
from probe.store.layout import JOURNAL, MANIFEST, PARTIAL, STATE
from probe.store.remote import RemoteFolder


def kept(url: str) -> Path:
    """The folder for all that is kept here of what is at a URL."""
    return home() / "runs" / xxhash.xxh3_64_hexdigest(url.encode())


def copy_of(url: str, manifest: bytes) -> Path:
    """The folder for the copy of the run at a URL that has this manifest."""
    return kept(url) / xxhash.xxh3_64_hexdigest(manifest) / last_name(url)


def bring_journal(remote: RemoteFolder, folder: Path, files: Iterable[str] | None = None) -> None:
    """Have the state and the journal of a run that is not whole in a folder here. files: of it there, where they are known."""
    found = {STATE, *remote.files(JOURNAL)} if files is None else files
    for name in sorted(name for name in found if name == STATE or layout.is_record(name)):
        if (content := remote.read(name)) is not None:
            with durable.stated(folder):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            durable.write_bytes(folder / name, content)


@contextmanager
def said_of(url: str, folder: Path) -> Iterator[None]:
    """What is wrong with documents that were brought to a folder is wrong at the URL that they are from."""
    try:
        yield
    except RunError as error:
        message, hint = (text.replace(str(folder), url) for text in (error.message, error.hint))
        raise RunError(message, hint=hint) from error


@contextmanager
def begun(remote: RemoteFolder, files: Iterable[str] | None = None) -> Iterator[Path]:
    """A folder with the state and the journal of a run or a shard that is not whole, named as it would be here."""
    with ExitStack() as stack:
        with durable.stated(Path(gettempdir())):
            above = stack.enter_context(TemporaryDirectory())
        folder = Path(above) / (last_name(remote.url) + PARTIAL)
        bring_journal(remote, folder, files)
        yield folder


class Copy:
    """The copy of a whole run at a URL: `path` has its manifest, and the files that were brought."""

    def __init__(self, url: str) -> None:
        """Raises `RunError` where no whole run is there, or the server does not answer."""
        self.url = url
        self._remote = RemoteFolder(url)
        manifest = self._remote.read(MANIFEST)
        if manifest is None:
            if self._remote.there(STATE):
                raise RunError(f"the run '{url}' is unfinished", hint="the command that began it completes it with --resume")
            raise RunError(f"there is no run '{url}'", hint="is the URL right? probe runs ls shows those in a folder")
        self.path = copy_of(url, manifest)
        with durable.stated(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / MANIFEST).is_file():
            durable.write_bytes(self.path / MANIFEST, manifest, shared=True)

    def bring(self, files: Iterable[Mapping[str, Any]]) -> None:
        """Have these files here. RunError for one that is not what the manifest says."""
        for file in files:
            if not (self.path / file["path"]).is_file():
                self._remote.get(file["path"], self.path / file["path"], file)
