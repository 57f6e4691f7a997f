"""A table of a run in other formats, a batch at a time; never over an existing file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from probe import durable, tables
from probe.errors import BadOption, RunError, StorageFull
from probe.store import parquet, reading
from probe.store.run import Run


def export(run: Run, table: str, dest: Path | str, *, format: str | None = None) -> int:
    """Write one table to `dest` (csv, jsonl, parquet; activations also safetensors) and return its rows.

    The format is the suffix of `dest` unless given. Lists are JSON in csv. In JSON a number that is not
    finite is null (`durable.jsonable`); parquet and safetensors keep it, and so do the columns of numbers of csv.
    """
    dest = Path(dest)
    format = (format or dest.suffix.lstrip(".")).lower()
    if format not in FORMATS:
        raise BadOption(f"cannot export to '{format or dest.name}'", hint=f"formats: {', '.join(FORMATS)}")
    if table not in run.tables:
        raise RunError(f"the run has no table '{table}'", hint=f"it has: {', '.join(run.tables)}")
    if dest.exists():
        raise RunError(f"'{dest}' exists", hint="choose another name, or remove it")
    if format == "safetensors" and table != "activations":
        raise BadOption(f"safetensors holds activations, not '{table}'", hint="csv, jsonl and parquet hold any table")
    with durable.stated(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
        return FORMATS[format](run, table, dest)


def _lines(dest: Path, pieces: Iterator[tuple[int, bytes]]) -> int:
    sink, rows = durable.HashedFile(durable.temporary(dest)), 0
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


def _csv(run: Run, table: str, dest: Path) -> int:
    from pyarrow import csv

    def pieces() -> Iterator[tuple[int, bytes]]:
        yield 0, (",".join(f'"{name}"' for name in tables.schema(table).names) + "\n").encode()
        for batch in run.batches(table):
            out = pa.BufferOutputStream()
            csv.write_csv(_flat(batch), out, csv.WriteOptions(include_header=False))
            yield batch.num_rows, out.getvalue().to_pybytes()

    return _lines(dest, pieces())


def _flat(batch: pa.Table) -> pa.Table:
    """Lists as JSON text (shortest digits that give back the same float32), dictionaries as their words."""
    for i, field in enumerate(batch.schema):
        column = batch[i].combine_chunks()
        if pa.types.is_list(field.type):
            words = pc.cast(column, pa.list_(pa.string()))
            joined = pc.binary_join(words, ", ")
            joined = pc.binary_join_element_wise("[", joined, "]", "")
            for word in ("nan", "-inf", "inf"):
                joined = pc.replace_substring(joined, word, "null")
            batch = batch.set_column(i, field.name, joined)
        elif pa.types.is_dictionary(field.type):
            batch = batch.set_column(i, field.name, pc.cast(column, field.type.value_type))
    return batch


def _jsonl(run: Run, table: str, dest: Path) -> int:
    def pieces() -> Iterator[tuple[int, bytes]]:
        for batch in run.batches(table):
            rows = (json.dumps(durable.jsonable(row), ensure_ascii=False) for row in batch.to_pylist())
            yield batch.num_rows, "".join(f"{row}\n" for row in rows).encode()

    return _lines(dest, pieces())


def _parquet(run: Run, table: str, dest: Path) -> int:
    rows, _ = parquet.write_file(dest, tables.schema(table), run.batches(table))
    return rows


def _safetensors(run: Run, table: str, dest: Path) -> int:
    """One tensor (pos, width) a place, named `site.layer[.head].pPROMPT.bBRANCH`; its positions under `….pos`."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    rows, tensors = 0, {}
    keys = ["site", "layer", "head", "prompt_id", "branch"]
    everything = run.table_arrow(table)
    everything = everything.set_column(
        everything.schema.get_field_index("site"), "site", pc.cast(everything["site"], pa.string())
    )
    for place in everything.select(keys).group_by(keys).aggregate([]).to_pylist():
        found = reading.filtered(everything, place).sort_by("pos")
        head = f".{place['head']}" if place["head"] >= 0 else ""
        name = f"{place['site']}.{place['layer']}{head}.p{place['prompt_id']}.b{place['branch']}"
        tensors[name] = reading.matrix(found["vector"])
        tensors[f"{name}.pos"] = found["pos"].to_numpy()
        rows += found.num_rows
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
    return rows


FORMATS: dict[str, Callable[[Run, str, Path], int]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "safetensors": _safetensors,
}
