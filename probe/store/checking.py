"""Whether the files of a run, in a folder or at a URL, are what it says of them: every byte is read, and no row."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from probe.addresses import is_url
from probe.errors import RunError
from probe.store import layout, manifest, mirroring
from probe.store.catalog import is_run
from probe.store.layout import MANIFEST, PARTIAL, README, STATE
from probe.store.remote import RemoteFolder
from probe.store.run import read_manifest


def check(path: Path | str) -> list[str]:
    """What is wrong with a run, file by file: missing, torn, altered, extra. Nothing: []. Of one at a URL every byte goes over
    the network, and none is kept.

    RunError only where there is no run at all, or the server of a URL does not do what is asked.
    """
    return _at_url(path) if is_url(path) else _in_folder(Path(path))


def _in_folder(path: Path) -> list[str]:
    problems: list[str] = []
    partial = path.suffix == PARTIAL and is_run(path)
    try:
        entries = _begun(path, problems) if partial else _whole(path, problems)
    except RunError as error:
        if not is_run(path):
            raise
        return [error.message]
    problems += [f"{file['path']}: {what}" for file in entries if (what := layout.wrong(path, file))]
    ours = {*layout.DOCUMENTS, *(p.relative_to(path).as_posix() for p in layout.records(path) if partial)}
    ours |= set(layout.in_shards(path) if partial else ())
    return problems + _extra(set(layout.files(path)) - ours, entries)


def _at_url(url: str) -> list[str]:
    problems: list[str] = []
    remote = RemoteFolder(url)
    found = remote.files()
    whole = MANIFEST in found
    if not whole and STATE not in found:
        raise RunError(f"there is no run '{url}'", hint="is the URL right? probe runs ls shows those in a folder")
    with nullcontext(mirroring.Copy(url).path) if whole else mirroring.begun(remote, found) as folder:
        try:
            with mirroring.said_of(url, folder):
                entries = _whole(folder, problems) if whole else _begun(folder, problems)
        except RunError as error:
            return [error.message]
    problems += [f"{file['path']}: {what}" for file in entries if (what := remote.wrong(file["path"], file))]
    ours = {MANIFEST} if whole else {name for name in found if layout.writes(name) and layout.table_of(name) is None}
    return problems + _extra({name for name in found if not layout.is_claim(name)} - ours, entries)


def _extra(found: set[str], entries: list[dict[str, Any]]) -> list[str]:
    return [f"{name}: extra, not of this run" for name in sorted(found - {file["path"] for file in entries})]


def _begun(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The files that a partial run's journal names."""
    manifest.intact(path / STATE, manifest.State)
    records = manifest.read_records(path)
    units = sum(len(record["units"]) for record in records)
    problems.append(f"unfinished: {units} units are done; the same command with --resume completes it")
    return [part for record in records for part in record["parts"]]


def _whole(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The files that a whole run's manifest names, its README among them."""
    about = read_manifest(path)
    if manifest.altered(about):
        problems.append(f"{MANIFEST}: altered: its {manifest.SEAL} is another")
    files = [file for table in about["tables"].values() for file in table["files"]]
    return files + ([{"path": README, **about["readme"]}] if about.get("readme") else [])
