"""The end of a run: small tables become one sorted file each, the manifest is written, the folder gets its name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from probe import durable, tables
from probe.memory import peak_memory
from probe.store import layout, manifest, parquet, sorting
from probe.store.backends import Disk
from probe.store.journal import only_uploaded
from probe.store.layout import STATE
from probe.store.uploading import Upload


def finish(path: Path, backend: Disk, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """From units on a backend to the whole run `path`. A kill in between leaves what `--resume` completes."""
    if backend.journal.records:
        backend.flush()
        listed = _compacted(backend)
    else:  # nothing was flushed: no need to write anything twice
        listed = _directly(backend)
    described = _manifest(state, about, listing_of(listed), seconds=backend.journal.seconds)
    written = durable.write_bytes(backend.folder / layout.README, readme(described).encode())
    described["readme"] = written._asdict()
    durable.write_json(backend.folder / layout.MANIFEST, manifest.sealed(described))
    conclude(path, backend.folder, backend.journal.upload)


def conclude(path: Path, folder: Path, upload: Upload | None = None) -> None:
    """Remove what only an unfinished run needs, and rename. The manifest is there already."""
    for table in manifest.intact(folder / layout.MANIFEST, manifest.Manifest)["tables"].values():
        for file in table["files"]:
            if not only_uploaded(upload, folder, file) and (what := layout.wrong(folder, file)):
                raise layout.altered(folder, f"{file['path']}: {what}")
    parts = [part for record in manifest.read_records(folder) for part in record["parts"]]
    small = [part["path"] for part in parts if not tables.TABLES[part["table"]].large]
    layout.clear(folder, [*small, *layout.in_shards(folder)])  # before the journal, which names the former
    layout.clear(folder, [path.relative_to(folder).as_posix() for path in reversed(layout.records(folder))])
    layout.remove_empty(folder)
    durable.sync(folder)
    folder.rename(path)
    durable.sync(path.parent)
    (path / STATE).unlink(missing_ok=True)  # not before: without it a partial folder is not ours


def discard(folder: Path) -> None:
    """Remove a partial run in which nothing was finished. Its state goes last: without it the folder is not ours."""
    layout.clear(folder, [*layout.unfinished(folder, []), *layout.in_shards(folder), layout.LOCK])
    (folder / STATE).unlink(missing_ok=True)
    layout.remove_empty(folder)
    with suppress(OSError):  # something of the user's is in it
        folder.rmdir()


def in_memory(state: Mapping[str, Any], about: Mapping[str, Any], found: Mapping[str, pa.Table]) -> dict[str, Any]:
    """The manifest of a run that has no files."""
    listing = {name: {"rows": table.num_rows, "bytes": table.nbytes, "files": []} for name, table in sorted(found.items())}
    return _manifest(state, about, listing, seconds=None)


def _manifest(
    state: Mapping[str, Any], about: Mapping[str, Any], listing: Mapping[str, Any], *, seconds: float | None
) -> dict[str, Any]:
    return {
        **state,
        "ended": manifest.now(),
        "wall_seconds": None if seconds is None else round(seconds, 3),
        "peak_memory_bytes": peak_memory(),
        **durable.jsonable(about),
        "tables": dict(listing),
    }


def listing_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest's `tables`, of the entries of part files."""
    listing: dict[str, Any] = {}
    for entry in entries:
        table = listing.setdefault(entry["table"], {"rows": 0, "bytes": 0, "files": []})
        table["rows"] += entry["rows"]
        table["bytes"] += entry["bytes"]
        table["files"].append({key: value for key, value in entry.items() if key != "table"})
    return dict(sorted(listing.items()))


def _directly(backend: Disk) -> list[dict[str, Any]]:
    listed = backend.seal_large()
    for name in filter(_stays, backend.small_names()):
        listed.append(_one_file(backend, name, [backend.read(name)]))
    durable.sync(backend.folder)
    return listed


def _compacted(backend: Disk) -> list[dict[str, Any]]:
    found = backend.journal.parts
    listed = [part for part in found if tables.TABLES[part["table"]].large]
    for name in filter(_stays, sorted({part["table"] for part in found} - {part["table"] for part in listed})):
        paths = [backend.folder / part["path"] for part in found if part["table"] == name]
        rows = map(backend.changes.get(name, _as_it_is), sorting.merged(paths, tables.TABLES[name].keys))
        listed.append(_one_file(backend, name, rows))
    return listed


def _stays(name: str) -> bool:
    return not tables.TABLES[name].passing


def _as_it_is(rows: pa.Table) -> pa.Table:
    return rows


def _one_file(backend: Disk, name: str, batches: Any) -> dict[str, Any]:
    path = backend.folder / f"{name}.parquet"
    rows, written = parquet.write_file(path, backend.schema(name), _chunks(batches))
    return {"table": name, "path": path.name, "rows": rows, **written._asdict(), "footer": layout.footer_hash(path)}


def _chunks(batches: Any) -> Any:
    """Row groups of CHUNK rows whether the rows came in one table or in many: same rows, same bytes."""
    for table in batches:
        for start in range(0, max(table.num_rows, 1), sorting.CHUNK):
            yield sorting.fresh(table.slice(start, sorting.CHUNK))


def readme(about: Mapping[str, Any]) -> str:
    """README.md whose header lets Hugging Face `datasets` load each table by its name."""
    lines = ["---", "configs:"]
    for name, table in sorted(about["tables"].items()):
        files = f"{name}/*.parquet" if tables.TABLES[name].large else f"{name}.parquet"
        lines += [f"- config_name: {name}", f"  data_files: {files}"]
        if name == "tokens":
            lines.append("  default: true")
        assert table["files"], f"table {name} without a file"
    if not about["tables"]:
        lines[-1] = "configs: []"
    lines += ["---", "", f"# {about['run_id']}", "", f"Made by `{about['command']}` of probe. Tables:", ""]
    for name, table in sorted(about["tables"].items()):
        where = f"{name}/" if tables.TABLES[name].large else f"{name}.parquet"
        lines.append(f"- `{where}`: {table['rows']} rows, one is {tables.TABLES[name].row}")
    lines += ["", "The files' metadata says what each column means; `manifest.json` how they were made.", ""]
    return "\n".join(lines)
