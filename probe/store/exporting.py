"""A table of a run in other formats, a batch at a time; never over an existing file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe import durable, tables
from probe.errors import BadOption, RunError, StorageFull
from probe.store import parquet, reading
from probe.store.run import Run


class Exported(NamedTuple):
    """Rows that are written, a batch at a time, and the run's table that they are of."""

    run: Run
    table: str
    schema: pa.Schema
    batches: Iterator[pa.Table]


def export(
    run: Run, table: str, dest: Path | str | BinaryIO, *, format: str | None = None, flat: bool = False
) -> int:  # fmt: skip
    """Write one table to `dest` (csv, jsonl, parquet; activations also safetensors) and return its rows.

    The format is the suffix of `dest` unless given; a stream has none, and is written as csv. Lists are JSON in csv. In JSON a
    number that is not finite is null (`durable.jsonable`); parquet and safetensors keep it, and so do the columns of numbers of
    csv. flat: of `attention` and `scores`, one row a (query, key), without lists.
    Raises `BadOption`, `RunError`, `StorageFull`.
    """
    dest = Path(dest) if isinstance(dest, str) else dest
    suffix = dest.suffix.lstrip(".") if isinstance(dest, Path) else "csv"
    format = (format or suffix).lower()
    if format not in FORMATS:
        raise BadOption(f"cannot export to '{format or dest}'", hint=f"formats: {', '.join(FORMATS)}")
    if table not in run.tables:
        raise RunError(f"the run has no table '{table}'", hint=f"it has: {', '.join(run.tables)}")
    if isinstance(dest, Path) and dest.exists():
        raise RunError(f"'{dest}' exists", hint="choose another name, or remove it")
    if format == "safetensors" and table != "activations":
        raise BadOption(f"safetensors holds activations, not '{table}'", hint="csv, jsonl and parquet hold any table")
    if flat and table not in tables.FLAT:
        raise BadOption(f"'{table}' cannot be laid flat", hint=f"those can: {', '.join(tables.FLAT)}")
    rows = Exported(run, table, run.schema(table), run.batches(table))
    if flat:
        laid = tables.FLAT[table]
        rows = rows._replace(schema=laid.schema, batches=(flattened(laid, batch) for batch in rows.batches))
    if not isinstance(dest, Path):
        return FORMATS[format](rows, dest)
    with durable.stated(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
        return FORMATS[format](rows, dest)


def flattened(laid: tables.FlatTable, batch: pa.Table) -> pa.Table:
    """Rows of lists as one row a value, in the order of the rows and of their keys as they stand."""
    values = batch[laid.values].combine_chunks()
    counts = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    parents = np.repeat(np.arange(len(batch)), counts)
    keys = np.arange(len(parents)) - np.repeat(np.cumsum(counts) - counts, counts)
    if laid.keys is not None:
        given = batch[laid.keys].combine_chunks()
        keys[np.repeat(given.is_valid().to_numpy(zero_copy_only=False), counts)] = pc.list_flatten(given).to_numpy()
    kept = batch.select([name for name in laid.schema.names if name in batch.column_names]).take(pa.array(parents))
    found = [kept[name] for name in kept.column_names] + [pa.array(keys, pa.int32()), pc.list_flatten(values)]
    return pa.Table.from_arrays(found, schema=laid.schema)


def _lines(dest: Path | BinaryIO, pieces: Iterator[tuple[int, bytes]]) -> int:
    rows = 0
    if not isinstance(dest, Path):
        for n, piece in pieces:
            dest.write(piece)
            rows += n
        dest.flush()
        return rows
    sink = durable.HashedFile(durable.temporary(dest))
    try:
        for n, piece in pieces:
            sink.write(piece)
            rows += n
        sink.seal()
    except BaseException:
        sink.abandon()
        raise
    durable.settle(dest)
    return rows


def _csv(rows: Exported, dest: Path | BinaryIO) -> int:
    from pyarrow import csv

    def pieces() -> Iterator[tuple[int, bytes]]:
        yield 0, (",".join(_quoted(name) for name in rows.schema.names) + "\n").encode()
        for batch in rows.batches:
            out = pa.BufferOutputStream()
            csv.write_csv(_texts(batch), out, csv.WriteOptions(include_header=False))
            yield batch.num_rows, out.getvalue().to_pybytes()

    return _lines(dest, pieces())


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _texts(batch: pa.Table) -> pa.Table:
    """Lists and structs as JSON text (shortest digits that give back the same float32), dictionaries as their words."""
    for i, field in enumerate(batch.schema):
        column = batch[i].combine_chunks()
        if pa.types.is_struct(field.type) or (pa.types.is_list(field.type) and not _of_numbers(field.type)):
            texts = [None if v is None else json.dumps(durable.jsonable(v), ensure_ascii=False) for v in column.to_pylist()]
            batch = batch.set_column(i, field.name, pa.array(texts, pa.string()))
        elif pa.types.is_list(field.type):
            words = pc.cast(column, pa.list_(pa.string()))
            joined = pc.binary_join(words, ", ")
            joined = pc.binary_join_element_wise("[", joined, "]", "")
            for word in ("nan", "-inf", "inf"):
                joined = pc.replace_substring(joined, word, "null")
            batch = batch.set_column(i, field.name, joined)
        elif pa.types.is_dictionary(field.type):
            batch = batch.set_column(i, field.name, pc.cast(column, field.type.value_type))
    return batch


def _of_numbers(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)


def _jsonl(rows: Exported, dest: Path | BinaryIO) -> int:
    def pieces() -> Iterator[tuple[int, bytes]]:
        for batch in rows.batches:
            lines = (json.dumps(durable.jsonable(row), ensure_ascii=False) for row in batch.to_pylist())
            yield batch.num_rows, "".join(f"{line}\n" for line in lines).encode()

    return _lines(dest, pieces())


def _parquet(rows: Exported, dest: Path | BinaryIO) -> int:
    if isinstance(dest, Path):
        return parquet.write_file(dest, rows.schema, rows.batches)[0]
    return parquet.write_stream(dest, rows.schema, rows.batches)


def _safetensors(rows: Exported, dest: Path | BinaryIO) -> int:
    """One tensor (pos, width) a place, named `site.layer[.head].pPROMPT.bBRANCH`; its positions under `….pos`, the neurons
    that it is of, where it is not of all, under `….units`. Where these differ by position, `….1` is the second such set."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if not isinstance(dest, Path):
        raise BadOption("safetensors is written to a file", hint="name one, as in activations.safetensors")
    run, count, tensors = rows.run, 0, {}
    keys = ["site", "layer", "head", "prompt_id", "branch"]
    everything = run.table_arrow(rows.table)
    everything = everything.set_column(
        everything.schema.get_field_index("site"), "site", pc.cast(everything["site"], pa.string())
    )
    for place in everything.select(keys).group_by(keys).aggregate([]).to_pylist():
        found = reading.filtered(everything, place).sort_by("pos")
        head = f".{place['head']}" if place["head"] >= 0 else ""
        units = pa.array([json.dumps(held) for held in found["units"].to_pylist()], pa.string())
        for number, held in enumerate(pc.unique(units).to_pylist()):
            own = found.filter(pc.equal(units, held))
            name = f"{place['site']}.{place['layer']}{head}.p{place['prompt_id']}.b{place['branch']}"
            name += f".{number}" if number else ""
            tensors[name] = reading.matrix(own["vector"])
            tensors[f"{name}.pos"] = own["pos"].to_numpy()
            if (of := json.loads(held)) is not None:
                tensors[f"{name}.units"] = np.asarray(of, np.int32)
        count += found.num_rows
    part = durable.temporary(dest)
    try:
        save_file(tensors, part, metadata={"run_id": run.run_id})
        durable.sync(part)
    except SafetensorError as error:
        part.unlink(missing_ok=True)
        raise StorageFull(f"cannot write '{dest}': {error}", hint="is there room, and may you write there?") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    durable.settle(dest)
    return count


FORMATS: dict[str, Callable[[Exported, Path | BinaryIO], int]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "safetensors": _safetensors,
}
