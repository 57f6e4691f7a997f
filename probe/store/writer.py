"""A run while it is being written: units of work that become durable as wholes, and its end. Computes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from probe import durable
from probe.errors import ProbeError, RunError
from probe.store import columns, finishing, layout, manifest
from probe.store.backends import Disk, Limits, Memory
from probe.store.journal import Journal
from probe.store.layout import MANIFEST, STATE, partial
from probe.store.run import MemoryReader, Run, open_run

# fmt: off
_WORDS = [
    "amber", "basil", "birch", "cedar", "clover", "coral", "ember", "fjord", "garnet", "hazel", "indigo", "jade",
    "kelp", "linden", "maple", "mesa", "nova", "ocean", "onyx", "orchid", "pearl", "plum", "quartz", "reef", "river",
    "sage", "slate", "spruce", "topaz", "umber", "willow", "zephyr",
]
# fmt: on


def fresh_path(command: str, *, root: Path = Path("runs"), word: str = "") -> Path:
    """Reserve a run directory `root/<time>-<command>-<word>` of its own, also when others ask at the same moment."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{manifest.slug(command)}"
    for attempt in range(100):
        chosen = manifest.slug(word)[:24].lower() if word and not attempt else secrets.choice(_WORDS)
        path = root / (f"{stem}-{chosen}" if attempt < 3 else f"{stem}-{chosen}-{secrets.token_hex(2)}")
        if path.exists():
            continue
        with durable.stated(path):
            root.mkdir(parents=True, exist_ok=True)
            try:
                partial(path).mkdir()
            except FileExistsError:
                continue
        return path
    raise AssertionError(f"no free name in {root} after 100 draws")


def create(
    path: Path | str | None,
    *,
    command: str,
    arguments: Mapping[str, Any],
    resolved: Mapping[str, Any] | None = None,
    resume: bool = False,
    run_id: str | None = None,
    typed: str | None = None,
    limits: Limits | None = None,
) -> Writer:
    """Begin (or with `resume` go on with) the run `path`; None keeps it in memory.

    `arguments` is everything that decides the numbers, and nothing else; `resolved` what they came to (the model's name, a
    hash of a file's prompts): a resume with others is refused. `typed` is
    the command line (default: this process's). Resuming what does not exist starts it, and resuming a whole run
    gives a writer whose units are all done. Raises RunError (in the way, locked, other arguments) and StorageFull.
    """
    path = None if path is None else Path(path)
    name = run_id or (_default_id(command) if path is None else _id_for(path, command))
    state = manifest.begun(command, arguments, resolved or {}, run_id=name, typed=typed)
    if path is None:
        return Writer(None, Memory(), {**state, "git": manifest.commit(Path.cwd())})
    limits = limits or Limits()
    if "\0" in str(path):
        raise RunError("no file's name has a NUL in it", hint="choose another --out")
    folder = partial(path)
    with durable.stated(path):
        if path.exists() or path.is_symlink():
            return _whole(path, state, resume=resume)
    with durable.stated(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        lock = layout.Lock(folder)
        try:
            return _begin(path, state, resume=resume, lock=lock, limits=limits)
        except BaseException:
            lock.release()
            raise


def _begin(path: Path, state: dict[str, Any], *, resume: bool, lock: layout.Lock, limits: Limits) -> Writer:
    folder = partial(path)
    if path.exists():  # finished by another process between our look and our lock
        raise _in_the_way(path)
    if not (folder / STATE).exists():  # reserved, or killed before it began
        if {child.name for child in folder.iterdir()} - {layout.LOCK, STATE + durable.TEMPORARY}:
            if (folder / layout.REMOVING).exists():
                hint = f"probe runs rm {folder} completes that"
                raise RunError(f"cannot write '{path}': '{folder}' is half removed", hint=hint)
            raise RunError(f"cannot write '{path}': '{folder}' is not a run", hint="choose another --out")
        state["git"] = manifest.commit(Path.cwd())
        return Writer(path, Disk(Journal.start(folder, state), limits), state, lock=lock)
    if not resume:
        hint = f"add --resume to go on with it, or remove it: probe runs rm {folder}"
        raise RunError(f"'{path}' was begun and not finished", hint=hint)
    before = manifest.intact(folder / STATE, manifest.State)
    _same(before, state, path=folder)
    if (folder / MANIFEST).exists():
        finishing.conclude(path, folder)
        lock.release()
        return Writer(path, Memory(), before, whole=open_run(path))
    return Writer(path, Disk(Journal.reopen(folder), limits), before, lock=lock)


def _whole(path: Path, state: dict[str, Any], *, resume: bool) -> Writer:
    if not resume or not (path / MANIFEST).exists():
        raise _in_the_way(path)
    _same(manifest.intact(path / MANIFEST, manifest.Manifest), state, path=path)
    run = open_run(path)
    return Writer(path, Memory(), run.manifest, whole=run)


def _in_the_way(path: Path) -> RunError:
    what = "a run is already there" if (path / MANIFEST).exists() else "something is already there"
    return RunError(f"cannot write '{path}': {what}", hint="choose another --out, or remove it: probe runs rm")


def _same(before: Mapping[str, Any], now: Mapping[str, Any], *, path: Path) -> None:
    """Refuse to go on with a run of another command, other arguments or another format."""
    hint = "give the same arguments, or choose another --out"
    for key in ("schema_version", "command"):
        if before.get(key) != now[key]:
            raise RunError(f"'{path}' was made with {key} {before.get(key)}, not {now[key]}", hint=hint)
    old = {**before["arguments"], **before.get("resolved", {})}
    new = {**now["arguments"], **now["resolved"]}
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if differing:
        key = differing[0]
        more = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
        what = f"{key} = {_short(old.get(key))}, not {_short(new.get(key))}{more}"
        raise RunError(f"'{path}' was made with {what}", hint=hint)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _default_id(command: str) -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}-{manifest.slug(command)}-{secrets.choice(_WORDS)}-{secrets.token_hex(2)}"


def _id_for(path: Path, command: str) -> str:
    """The folder's own name if it is one of ours, else a new one: `runs/a` and `b/a` must not share an id."""
    stem = manifest.slug(command)
    return path.name if f"-{stem}-" in path.name and path.name == manifest.slug(path.name) else _default_id(command)


class Writer:
    """Rows go in by units; `finish` makes the run. Leaving the `with` without it leaves a resumable partial run."""

    def __init__(
        self,
        path: Path | None,
        backend: Disk | Memory,
        state: Mapping[str, Any],
        *,
        lock: layout.Lock | None = None,
        whole: Run | None = None,
    ) -> None:
        self.path = path
        self.run_id: str = state["run_id"]
        self.whole = whole  # set when there is nothing left to do
        self.warnings: list[str] = list(backend.journal.warnings) if isinstance(backend, Disk) else []
        self._backend, self._state, self._lock = backend, dict(state), lock
        self._done = backend.journal.units if isinstance(backend, Disk) else set()
        self._unit: str | None = None
        self._finished: Run | None = whole

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def units_done(self) -> int:
        return len(self._done)

    def done(self, key: str) -> bool:
        """Whether this unit's rows are part of the run already."""
        return self.whole is not None or key in self._done

    @contextmanager
    def unit(self, key: str, *, again: bool = False) -> Iterator[None]:
        """One unit of work: its rows become part of the run together, or (on any exception) not at all. `again`: it may be
        done already, and is gone through for what else it finds; its rows are in the run and are not written twice."""
        assert self._unit is None and (again or self._finished is None), "units are not nested, and end with the run"
        known = self.done(key)
        assert again or not known, f"unit {key!r} is already done"
        self._backend.begin()
        self._unit = key
        try:
            yield
        except BaseException:
            self._backend.rollback()
            raise
        finally:
            self._unit = None
        if known:
            self._backend.rollback()
            return
        self._done.add(key)
        self._backend.commit(key)

    def write(self, table: str, values: Mapping[str, Any] | pa.Table, *, store: str = "exact") -> None:
        """Append rows to a table, inside a unit. `store="bf16"` rounds float32 to bfloat16 (see `columns.build`).

        A call with many rows of a large table becomes a row group, so write what is read together: one site of one
        layer, positions ascending.
        """
        assert self._unit is not None, "rows are written inside a unit"
        n = max((len(v) for v in _lengthy(values)), default=1)
        keep = self._backend.keeps(table, n)
        self._backend.append(table, columns.build(table, values, run_id=self.run_id, store=store, copy=keep), store=store)

    def warn(self, text: str) -> None:
        """Say something in the manifest, once."""
        if text not in self.warnings:
            self.warnings.append(text)
            if isinstance(self._backend, Disk):
                self._backend.warnings.append(text)

    def read(self, table: str) -> pa.Table:
        """The rows of a small table so far, by key, those of earlier sessions included: for the summary."""
        return self.whole.table_arrow(table) if self.whole else self._backend.read(table)

    def batches(self, table: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """What `read` reads, in pieces of which one at a time is held, in any order; these columns of it."""
        if self.whole is None:
            return self._backend.batches(table, columns)
        found = self.whole.batches(table) if table in self.whole.tables else iter(())
        return (piece.select(list(columns)) for piece in found)

    def flush(self) -> None:
        """Put the finished units on the disk now."""
        if isinstance(self._backend, Disk):
            self._backend.flush()

    def finish(
        self,
        *,
        summary: Mapping[str, Any],
        model: Mapping[str, Any] | None = None,
        anatomy: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Run:
        """Write the manifest and give the folder its name. `more` (seed, parent, …) goes into the manifest as it is."""
        if self._finished is not None:
            return self._finished
        assert self._unit is None, "finish comes after the units"
        about = {"model": model, "anatomy": anatomy, "summary": summary, **more, "warnings": self.warnings}
        if isinstance(self._backend, Disk):
            assert self.path is not None
            with durable.stated(self.path), durable.uninterrupted():
                finishing.finish(self.path, self._backend, self._state, about)
            self._finished = open_run(self.path)
            self.close()
        else:
            found = {name: self._backend.read(name) for name in self._backend.rows}
            self._finished = Run(MemoryReader(found), finishing.in_memory(self._state, about, found))
        return self._finished

    def close(self) -> None:
        """Let go of the folder. What is finished stays for --resume; a run in which nothing was is removed."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if self._finished is None and isinstance(self._backend, Disk):
            with suppress(ProbeError, OSError):
                self._backend.flush()
            with suppress(OSError):
                self._backend.abandon()
                if not self._backend.journal.records:
                    finishing.discard(self._backend.folder)
        lock.release()
        if self._finished is not None and self.path is not None:
            (self.path / layout.LOCK).unlink(missing_ok=True)


def _lengthy(values: Mapping[str, Any] | pa.Table) -> list[Any]:
    if isinstance(values, pa.Table):
        return [values]
    return [v for v in values.values() if hasattr(v, "__len__") and not isinstance(v, (str, bytes))]
