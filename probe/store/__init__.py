"""A run on disk or in memory: written by units, whole or resumable at any moment, read as DataFrames."""

from probe.store.backends import Limits
from probe.store.beginning import create, fresh_path
from probe.store.catalog import is_run, names_run, place_for, remove, run_of
from probe.store.checking import check
from probe.store.exporting import export
from probe.store.listing import Listed, describe, list_runs
from probe.store.run import Run, open_run
from probe.store.sharing import ShardWriter, shard_unit, shard_writer
from probe.store.writer import Writer

__all__ = [
    "Limits",
    "Listed",
    "Run",
    "ShardWriter",
    "Writer",
    "check",
    "create",
    "describe",
    "export",
    "fresh_path",
    "is_run",
    "list_runs",
    "names_run",
    "open_run",
    "place_for",
    "remove",
    "run_of",
    "shard_unit",
    "shard_writer",
]
