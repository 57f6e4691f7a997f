"""A finished run to read: tables as DataFrames, activations as arrays. Writes nothing; shows nothing of half a run."""

from __future__ import annotations

import difflib
import html
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from probe import tables
from probe.addresses import is_url
from probe.errors import RunError
from probe.store import activations, layout, manifest, reading
from probe.store.backends import extra_of
from probe.store.layout import MANIFEST, PARTIAL, partial
from probe.store.mirroring import Copy, said_of

if TYPE_CHECKING:
    import pandas as pd


PAGE = "probe.reporting.viewing:notebook_html"  # a run stands below its pictures: it knows where they are made by name only


class RunReader(Protocol):
    """Where the rows of a run are."""

    path: Path | None
    url: str | None

    def read(self, name: str, columns: Sequence[str] | None, where: Mapping[str, Any]) -> pa.Table: ...
    def batches(self, name: str, rows: int) -> Iterator[pa.Table]: ...


class MemoryReader:
    """Tables that were never written."""

    path: Path | None = None
    url: str | None = None

    def __init__(self, found: Mapping[str, pa.Table]) -> None:
        self._found = dict(found)

    def read(self, name: str, columns: Sequence[str] | None, where: Mapping[str, Any]) -> pa.Table:
        table = reading.filtered(self._found[name], where)
        return table if columns is None else table.select(list(columns))

    def batches(self, name: str, rows: int) -> Iterator[pa.Table]:
        for start in range(0, self._found[name].num_rows, rows):
            yield self._found[name].slice(start, rows)


class DiskReader:
    """Tables in a run directory; in one that is a copy of a run at a URL, files are brought when they are read."""

    def __init__(self, path: Path, about: Mapping[str, Any], copy: Copy | None = None) -> None:
        self.path: Path | None = path
        self.url = copy.url if copy else None
        self._about, self._copy = about, copy
        extra = extra_of(about)
        self._parts = {
            name: reading.TableFiles(
                path, entry["files"], tables.TABLES[name], version=about["schema_version"], extra=extra.get(name)
            )
            for name, entry in about["tables"].items()
            if name in tables.TABLES
        }

    def read(self, name: str, columns: Sequence[str] | None, where: Mapping[str, Any]) -> pa.Table:
        return self._files(name).read(columns, where)

    def batches(self, name: str, rows: int) -> Iterator[pa.Table]:
        return self._files(name).batches(rows)

    def _files(self, name: str) -> reading.TableFiles:
        if self._copy is not None:
            self._copy.bring(self._about["tables"][name]["files"])
        return self._parts[name]


def open_run(path: Run | Path | str) -> Run:
    """The run in a directory or at a URL, or the run itself. RunError if there is none, if it is unfinished, damaged, or of
    another format.

    Warns of one whose manifest is another than was written, and of one that was made with a later schema: the tables and
    columns that this one does not know are passed over. Columns that an earlier schema does not have are null.
    """
    if isinstance(path, Run):
        return path
    copy = Copy(path) if is_url(path) else None
    where, path = path, copy.path if copy else Path(path)
    with said_of(copy.url, copy.path) if copy else nullcontext():
        found = read_manifest(path)
    unknown = [name for name in found["tables"] if name not in tables.TABLES]
    if unknown or found["schema_version"] > tables.SCHEMA_VERSION:
        what = f": its {', '.join(unknown)}" if unknown else ""
        message = f"'{where}' has schema {found['schema_version']}, and this probe knows {tables.SCHEMA_VERSION}"
        warnings.warn(f"{message}; what is newer is passed over{what}", stacklevel=2)
    if manifest.altered(found):
        warnings.warn(f"the manifest of '{where}' was altered since it was written", stacklevel=2)
    return Run(DiskReader(path, found, copy), found)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a whole run, of any schema; else a RunError that says what is there instead."""
    with layout.readable(path):
        _whole(path)
    found = layout.read_json(path / MANIFEST)
    version = found.get("schema_version") if isinstance(found, dict) else None
    try:
        return manifest.checked(found, manifest.Manifest, path / MANIFEST)
    except RunError as error:
        if isinstance(version, int) and version > tables.SCHEMA_VERSION:
            hint = "use the version of probe that made it; the Parquet files open in pandas as they are"
            message = f"'{path}' has schema {version}, which this probe cannot read: it knows {tables.SCHEMA_VERSION}"
            raise RunError(message, hint=hint) from error
        raise


def _whole(path: Path) -> None:
    if (path / MANIFEST).is_file() and path.suffix != PARTIAL:
        return
    if (path.suffix == PARTIAL and path.is_dir()) or (partial(path).is_dir() and not path.exists()):
        raise RunError(f"the run '{path}' is unfinished", hint="the command that began it completes it with --resume")
    if not path.exists():
        raise RunError(f"there is no run '{path}'", hint="probe runs ls shows those there are")
    raise RunError(f"'{path}' is not a run: it has no {MANIFEST}", hint="probe runs ls shows those there are")


class Run:
    """A whole run. `run.tokens`, `run.steps` … are DataFrames; `run.activation(site, layer)` is an array,
    `run.attention(layer, head, query)` a row of a pattern."""

    def __init__(self, source: RunReader, about: Mapping[str, Any]) -> None:
        self._source = source
        self.manifest: dict[str, Any] = dict(about)
        self._small: dict[str, pa.Table] = {}

    @property
    def path(self) -> Path | None:
        """Its directory; of a run at a URL that of the copy here, with what was read; None if it is only in memory."""
        return self._source.path

    @property
    def address(self) -> str | None:
        """Where it is: its URL, or its directory; None if it is only in memory."""
        return self._source.url or (str(self.path) if self.path else None)

    @property
    def reference(self) -> dict[str, Any]:
        """How the manifest of a run that is made of it names it, as its `parent`."""
        return {"run": self.run_id, "path": self.address}

    @property
    def run_id(self) -> str:
        return str(self.manifest["run_id"])

    @property
    def command(self) -> str:
        return str(self.manifest["command"])

    @property
    def summary(self) -> dict[str, Any]:
        return dict(self.manifest["summary"])

    @property
    def tables(self) -> list[str]:
        """Names of the tables there are, without those of a later schema."""
        return [name for name in self.manifest["tables"] if name in tables.TABLES]

    def extra(self, name: str) -> Mapping[str, pa.DataType]:
        """The columns that a table of this run has beside the declared ones: those of a file that was read."""
        return extra_of(self.manifest).get(name, {})

    def schema(self, name: str) -> pa.Schema:
        """The columns of a table, its extra ones last."""
        return tables.schema(name, self.extra(name))

    def table(self, name: str) -> pd.DataFrame:
        """A table as a DataFrame; units and meanings of its columns are in `.attrs["probe"]`."""
        found = self.table_arrow(name)
        frame = found.to_pandas()
        frame.attrs.update(attributes(found.schema))
        return frame

    def table_arrow(self, name: str) -> pa.Table:
        """A table as Arrow."""
        if name not in self._small:
            found = self.scan(name)
            if tables.TABLES[name].large:
                return found
            self._small[name] = found
        return self._small[name]

    def scan(self, name: str, *, columns: Sequence[str] | None = None, **where: Any) -> pa.Table:
        """The rows where keys have a value or one of several: `scan("lens", layer=5, pos=[0, 1])`; reads only those."""
        if name not in self.tables:
            raise RunError(f"the run has no table '{name}'", hint=f"it has: {', '.join(self.tables)}")
        known = self.schema(name).names
        for column in [*(columns or ()), *where]:
            if column not in known:
                raise RunError(f"the table '{name}' has no column '{column}'", hint=f"it has: {', '.join(known)}")
        return self._source.read(name, columns, where)

    def batches(self, name: str, rows: int = 8192) -> Iterator[pa.Table]:
        """A table piece by piece, for tables larger than memory."""
        if name not in self.tables:
            raise RunError(f"the run has no table '{name}'", hint=f"it has: {', '.join(self.tables)}")
        return self._source.batches(name, rows)

    def activation(
        self, site: str, layer: int = -1, *, head: int | None = None, neuron: int | Sequence[int] | None = None,
        prompt_id: int = 0, branch: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """float32 (pos, width) of a site, positions ascending; `pattern` and `scores`: (query, key) of one head.

        Sites with heads (z, q, k, v) are (pos, head, width) of the heads that were captured, ascending, or with `head`
        (pos, width) of that one. With `neuron`, (pos,) of that neuron (or expert), (pos, neuron) of several, at the positions
        where they were captured; where only some were captured, they are the width. In `pattern`, weights that were not kept
        are 0; in `scores`, keys that are not visible are -inf. RunError says what was captured if this was not.
        """
        return activations.activation(self, site, layer, head=head, neuron=neuron, prompt_id=prompt_id, branch=branch)

    def attention(self, layer: int, head: int, query: int, *, prompt_id: int = 0, branch: int = 0) -> pd.DataFrame:
        """One row of a head's pattern: `key` (ascending), its `token`, `weight`; of a run with `topk` those that were kept.

        query: the position that looks, from the end if negative. The whole table is `run.table("attention")`.
        """
        return activations.attention_row(self, layer, head, query, prompt_id=prompt_id, branch=branch)

    def text(self, prompt_id: int = 0, branch: int = 0) -> str:
        """The decoded text of a sequence, prompt and completion."""
        columns = ["pos", "token", "text_start", "text_end"]
        rows = self.scan("tokens", columns=columns, prompt_id=prompt_id, branch=branch).to_pylist()
        if not rows:
            raise RunError(f"the run has no prompt {prompt_id} with branch {branch}")
        text = ""
        for row in rows:
            if row["text_end"] > len(text):  # several tokens can share a character
                text += row["token"][len(text) - row["text_end"] :]
        return text

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("_") or name == "manifest":
            raise AttributeError(name)
        if name in self.tables:
            return self.table(name)
        near = difflib.get_close_matches(name, self.tables, n=1)
        meant = f"; did you mean '{near[0]}'?" if near else ""
        raise AttributeError(f"this run has no table '{name}'{meant} It has: {', '.join(self.tables)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.tables]

    def __repr__(self) -> str:
        counts = " · ".join(f"{name} {self.manifest['tables'][name]['rows']}" for name in self.tables)
        return f"<Run {self.run_id} ({self.command}) {counts} at {self.address or 'memory'}>"

    def _repr_html_(self) -> str:
        """For notebooks: the page of the run in a frame; where that would be too large, its tables and its summary."""
        module, _, name = PAGE.partition(":")
        page: str | None = getattr(import_module(module), name)(self)
        return self._facts_html() if page is None else page

    def _facts_html(self) -> str:
        """What tables there are and what came out; every text is escaped."""
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{self.manifest['tables'][name]['rows']}</td><td>{html.escape(tables.TABLES[name].row)}</td></tr>"
            for name in self.tables
        )
        facts = "".join(
            f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
            for key, value in self.summary.items()
        )
        where = html.escape(self.address or "in memory")
        return (
            f"<div><b>{html.escape(self.run_id)}</b> ({html.escape(self.command)}, {where})"
            f"<table><tr><th>table</th><th>rows</th><th>a row is</th></tr>{rows}</table>"
            f"<table>{facts}</table></div>"
        )


def attributes(schema: pa.Schema) -> dict[str, Any]:
    """What `pd.read_parquet` would put into `DataFrame.attrs`."""
    import json

    packed = (schema.metadata or {}).get(b"PANDAS_ATTRS")
    return json.loads(packed) if packed else {}
