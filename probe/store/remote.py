"""Files at a URL: the only module that knows file systems other than this machine's. Knows names and bytes, and no runs.

pyarrow has S3, Google Cloud Storage, Azure and HDFS by itself, and `fsspec+PROTOCOL://` is whatever fsspec has for a protocol.
On a file system with folders a name may lead to a part of a file while that is written. What says which files count (state,
records, manifest) goes through `write`, which never shows a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from probe import durable
from probe.addresses import FSSPEC, SCHEMES, authority, inside
from probe.errors import BadOption, RunError
from probe.store.servers import credentials_of, first_line, form_of, of_server, told_of_waiting

ATOMIC = ("s3", "gcs", "abfs")  # where a file is there when it was closed, and not before
FLAT = "gcs"  # where pyarrow shows no folder but by the files in it
_PIECE = 1 << 22  # bytes that are held at once
_SECONDS = 30  # for which pyarrow asks Google's servers again; by itself it does so for 15 minutes


class StoredFile(NamedTuple):
    """A file at a URL. seconds: since 1970 by the server's clock when it was written; None where it does not say."""

    bytes: int
    seconds: float | None


class RemoteFolder:
    """The files under a URL, by their names there. Every method raises `RunError` where the server does not do what is asked;
    where a run is being written there, `StorageFull`."""

    def __init__(self, url: str, *, writes: bool = False) -> None:
        """writes: a run is being written there. Raises `BadOption` for a URL that no file system is known for, or that no run
        can be at."""
        from pyarrow import ArrowInvalid, fs

        self.url, self._writes = url, writes
        _check(url)
        with self._stated():
            try:
                self._system, root = fs.FileSystem.from_uri(_patient(url))
            except (ArrowInvalid, ImportError, ValueError) as error:
                raise _unreadable(url, error) from error
        self._root = root.rstrip("/")
        if not self._root.strip("/"):
            raise BadOption(f"'{url}' names no folder", hint=form_of(url))
        if self._system.type_name == "abfs":
            with self._stated():  # without credentials this is an error; opening a file would end the process
                self._system.get_file_info([self._root])
        self._fs = fs

    def inside(self, name: str) -> RemoteFolder:
        """A folder in this one."""
        found = copy(self)
        found.url, found._root = inside(self.url, name), self._at(name)
        return found

    def files(self, under: str = "") -> dict[str, StoredFile]:
        """All files, or those in a folder, by name."""
        start = self._at(under) if under else self._root
        with self._stated():
            selector = self._fs.FileSelector(start, allow_not_found=True, recursive=True)
            found = [one for one in self._system.get_file_info(selector) if one.type == self._fs.FileType.File]
        return {self._name(one.path): StoredFile(one.size or 0, _seconds(one)) for one in found}

    def folders(self) -> list[str]:
        """The names of the folders right under the URL."""
        if self._system.type_name == FLAT:
            return sorted({name.partition("/")[0] for name in self.files() if "/" in name})
        with self._stated():
            found = self._system.get_file_info(self._fs.FileSelector(self._root, allow_not_found=True))
        return sorted(self._name(one.path) for one in found if one.type == self._fs.FileType.Directory)

    def there(self, name: str) -> StoredFile | None:
        """A file, if it is there."""
        with self._stated():
            (found,) = self._system.get_file_info([self._at(name)])
        return StoredFile(found.size or 0, _seconds(found)) if found.type == self._fs.FileType.File else None

    def read(self, name: str) -> bytes | None:
        """What a file holds; None where there is none."""
        with self._stated():
            try:
                with self._system.open_input_stream(self._at(name)) as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """A file with this in it, in place of what was there: at every moment it is one of the two, also where files are seen
        while they are written."""
        if self._system.type_name in ATOMIC:
            self._write(name, [data])
            return
        self._write(name + durable.TEMPORARY, [data])
        with self._stated():
            self._system.move(self._at(name + durable.TEMPORARY), self._at(name))

    def put(self, name: str, path: Path) -> None:
        """A file of this machine, in place of what was there. Until it returns the name may lead to a part of it."""
        with durable.stated(path), path.open("rb") as file:
            self._write(name, iter(lambda: file.read(_PIECE), b""))

    def _write(self, name: str, pieces: Iterable[bytes]) -> None:
        with self._stated():
            try:
                out = self._system.open_output_stream(self._at(name))
            except FileNotFoundError:  # of a file system with folders
                self._system.create_dir(self._at(name).rpartition("/")[0], recursive=True)
                out = self._system.open_output_stream(self._at(name))
        for piece in pieces:  # not as a context: that would close, and so make, a file of which half is written
            with self._stated():
                out.write(piece)
        with self._stated():
            out.close()

    def get(self, name: str, path: Path, entry: Mapping[str, Any]) -> None:
        """Bring a file here. RunError where it is missing, or is not of the size and the hash that its entry in a manifest or a
        journal says; then nothing is at `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable.stated(path):
            file = durable.HashedFile(path.with_name(f"{path.name}.{id(path)}{durable.TEMPORARY}"))
            try:
                for piece in self._pieces(name):
                    file.write(piece)
                written = file.seal()
                if what := _differs(written, entry):
                    raise RunError(f"'{self.url}': {name}: {what}", hint=f"probe runs check {self.url}")
                file.path.replace(path)
            except BaseException:
                file.abandon()
                raise

    def wrong(self, name: str, entry: Mapping[str, Any]) -> str:
        """What a file has against its entry; empty if nothing. Reads every byte, and keeps none."""
        size, found = 0, xxhash.xxh3_128()
        try:
            for piece in self._pieces(name):
                size += len(piece)
                found.update(piece)
        except RunError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return "missing"
            raise
        return _differs(durable.Written(size, found.hexdigest()), entry)

    def _pieces(self, name: str) -> Iterator[bytes]:
        with self._stated():
            try:
                file = self._system.open_input_stream(self._at(name))
            except FileNotFoundError as error:
                raise RunError(f"'{self.url}' has no {name}", hint=f"probe runs check {self.url}") from error
        with file:
            while True:
                with self._stated():
                    piece = file.read(_PIECE)
                if not piece:
                    return
                yield piece

    def copy(self, name: str, to: str) -> None:
        """A file under another name too, without a way over this machine where the server can do that."""
        with self._stated():
            try:
                self._system.copy_file(self._at(name), self._at(to))
            except FileNotFoundError:
                self._system.create_dir(self._at(to).rpartition("/")[0], recursive=True)
                self._system.copy_file(self._at(name), self._at(to))

    def clear(self, names: Iterable[str]) -> None:
        """Delete these files where they are there, and then the folders of theirs that hold nothing, up to the URL itself.
        Nobody else may write into those meanwhile."""
        folders: set[str] = set()
        for name in names:
            with self._stated(), suppress(FileNotFoundError):
                self._system.delete_file(self._at(name))
                folders |= {str(one) for one in Path(name).parents if one.name}
        for folder in (*sorted(folders, reverse=True), ""):  # those inside others first
            with self._stated():
                self._drop_empty(f"{self._root}/{folder}".rstrip("/"))

    def _drop_empty(self, folder: str) -> None:
        """An object store keeps a name for a folder that became empty. A flat one does not, and what is in its folders' folders
        would not be seen."""
        if self._system.type_name == FLAT or self._system.get_file_info(self._fs.FileSelector(folder, allow_not_found=True)):
            return
        (found,) = self._system.get_file_info([folder])
        if found.type == self._fs.FileType.Directory:
            with suppress(FileNotFoundError):  # another process was first
                self._system.delete_dir(folder)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _name(self, path: str) -> str:
        return path.removeprefix(self._root).strip("/")

    @contextmanager
    def _stated(self) -> Iterator[None]:
        """What a server can do to us, as one clear error, and one line while it does nothing."""
        try:
            with told_of_waiting(self.url):
                yield
        except (RunError, BadOption):
            raise
        except Exception as error:  # a file system of fsspec raises whatever the library below it does
            raise of_server(self.url, error, writes=self._writes) from error


def _patient(url: str) -> str:
    """The URL with how long a server is asked again, where pyarrow has an option for that and the user did not give it."""
    if not url.startswith(("gs:", "gcs:")) or "retry_limit_seconds=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}retry_limit_seconds={_SECONDS}"


def _check(url: str) -> None:
    if any(character.isspace() for character in url):
        raise BadOption(f"'{url}' is no URL: it has a space in it", hint=f"{form_of(url)}; a space is %20")
    if url.startswith(f"{FSSPEC}memory:"):
        raise BadOption(f"'{url}' is only in the memory of this process", hint="give a folder, or a URL that others can read")
    who, at, _ = authority(url).rpartition("@")
    if at and ":" in who:
        hint = f"keep it where no run shows it: {credentials_of(url)}"
        raise BadOption("the URL holds a password, and it would stand in the manifest", hint=hint)


def _unreadable(url: str, error: Exception) -> BadOption:
    if isinstance(error, ImportError):
        return BadOption(f"there is no file system for '{url}' here: {first_line(error)}", hint="install what it names")
    scheme = url.partition(":")[0]
    if "Unrecognized filesystem" in str(error) or "not known" in str(error):
        known = ", ".join(f"{one}://" for one in SCHEMES)
        return BadOption(f"'{scheme}://' is no file system that pyarrow knows", hint=f"{known}, or {FSSPEC}{scheme}://")
    return BadOption(f"cannot read the URL '{url}': {first_line(error)}", hint=form_of(url))


def _differs(written: durable.Written, entry: Mapping[str, Any]) -> str:
    if written.bytes != entry["bytes"]:
        return f"{'torn' if written.bytes < entry['bytes'] else 'altered'}: {written.bytes} bytes, not {entry['bytes']}"
    return "" if written.xxh3_128 == entry["xxh3_128"] else "altered: its xxh3_128 is another"


def _seconds(info: Any) -> float | None:
    return None if info.mtime_ns is None else info.mtime_ns / 1e9
