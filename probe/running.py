"""From a request to a run: where it goes, what is done already, who watches, and its end. Knows no verb."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from probe import durable, tables
from probe import store as stores
from probe.addresses import is_url, last_name
from probe.errors import BadOption, ProbeError
from probe.expecting import judged
from probe.fitting import fitting
from probe.language_model.spreading import is_first, is_shared
from probe.requests import Request
from probe.requests.workers import RAY, shared
from probe.sharding import Walk, Workers, at_work
from probe.store import parquet, sorting

if TYPE_CHECKING:
    import pandas as pd

    from probe.language_model import LanguageModel

T = TypeVar("T")
UNFINISHED = "unfinished"  # the table of what a run that is not finished keeps of its units
# where no part that can be tried by halves has said so
WHOLE, HINT = "what is asked", "ask for less at once, give shorter texts, or take --dtype bfloat16"


def found_once(find: Callable[[], T]) -> T:
    """What is found before a run begins: by the process that makes it; a worker is told it (`running`, `found`)."""
    walk = at_work()
    return find() if walk is None else walk.found


@contextmanager
def running(
    request: Request, lm: LanguageModel | None, *, word: str = "", resolved: Mapping[str, Any], found: Any = None
) -> Iterator[Running]:
    """A run that is being made of a request, on a model or of other runs. If it is left by an error, what was finished is kept
    on disk.

    word: what a new run's directory is called after. resolved: what the request came to; a resume must come to the same.
    found: what a worker gets from `found_once`.
    """
    about = {} if lm is None else {"model": lm.name, "dtype": str(lm.dtype)}
    resolved = {**about, **resolved}
    if (walk := at_work()) is not None:  # a worker's part of a run that another process has begun
        with fitting(WHOLE, hint=HINT):
            yield Running(request, lm, walk.writer(request, resolved), walk)
        return
    path = stores.place_for(request.command, request.out, word=word, resume=request.resume)
    if lm is not None and is_shared(lm):
        path = _place_beside(request, lm, path)
    with stores.create(
        path, command=request.command, arguments=request.arguments(), resolved=resolved, resume=request.resume
    ) as writer:
        workers = Workers(request, lm, writer, found) if lm is not None and shared(request) else None
        with fitting(WHOLE, hint=HINT):
            yield Running(request, lm, writer, workers)


def _place_beside(request: Request, lm: LanguageModel, path: Path | str | None) -> Path | str | None:
    """Where a process writes that shares its model with others: the first one the run, another a copy that goes with the model.
    Raises `BadOption` for what would have them go through other forwards than each other."""
    if request.resume or shared(request):
        asked = "--resume" if request.resume else f"--engine {RAY}"
        raise BadOption(f"{asked} on a model that several processes share", hint="leave it out, or --tp-plan")
    if path is None or is_first():
        return path
    beside = TemporaryDirectory(prefix="probe-beside-")
    weakref.finalize(lm.model, beside.cleanup)
    return Path(beside.name) / (last_name(path) if is_url(path) else Path(path).name)


class Running:
    """One run while it is made: its writer, and who watches."""

    def __init__(
        self, request: Request, lm: LanguageModel | None, writer: stores.Writer, sharing: Workers | Walk | None = None
    ) -> None:
        self.request, self.writer, self._lm, self._sharing = request, writer, lm, sharing
        self._told: set[str] = set()
        self._kept: dict[str, bytes] | None = None

    @property
    def lm(self) -> LanguageModel:
        """The model that it is made on."""
        assert self._lm is not None, "a run that is made of other runs has no model"
        return self._lm

    def report(self, what: str, done: int, total: int) -> None:
        """Tell who watches how far it is."""
        if self.request.progress is not None and what not in self._told:
            self.request.progress(what, done, total)

    def missing(
        self, what: str, units: Iterable[tuple[str, T]], *, total: int
    ) -> Iterator[tuple[AbstractContextManager[None], T]]:
        """The units, of a name and an item each, that the run does not have yet, with the context in which one is written.

        `for unit, item in run.missing("prompts", …): with unit: run.write(…)`. Who watches hears of each that is done.
        """
        for done, (name, item) in enumerate(units, 1):
            if not self.writer.done(name):
                yield self.writer.unit(name), item
            self.report(what, done, total)

    def share(
        self, what: str, items: Iterable[T], *, total: int, size: Callable[[T], int], lost: Callable[[T, ProbeError], None],
        together: int = 1,
    ) -> Iterator[T]:  # fmt: skip
        """The items, each of which is worked at by one process: this one, or with `--engine ray` one of several.

        What comes before and after belongs to the process that makes the run, and so does what all items together come to: when
        this one is given an item that a worker has done, its units are done. An item's units are no other's, and none of its
        numbers depends on another item. together: how many a worker is given at once, if nobody says. lost(item, why): writes
        that an item came to nothing, under a unit that it would have had. what, total, size: what is said of how far it is.
        """
        together = getattr(self.request, "shard_size", None) or together
        if isinstance(self._sharing, Walk):
            return self._sharing.share(items, together, size)
        if isinstance(self._sharing, Workers):
            told = self.request.progress or (lambda *how_far: None)
            self._told.add(what)  # by workers; what this process finds done is no news
            return self._sharing.share(items, together, lost, lambda done: told(what, done, total))
        return iter(items)

    def write(self, table: str, columns: Mapping[str, Any], *, store: str = "exact") -> None:
        """Append rows to a table, inside a unit."""
        self.writer.write(table, columns, store=store)

    def write_all(self, tables: Mapping[str, Mapping[str, Any]], *, unit: str) -> None:
        """Write rows of several tables as one unit, unless the run has it."""
        if not self.writer.done(unit):
            with self.writer.unit(unit):
                for name, columns in tables.items():
                    self.write(name, columns)

    def keep(self, unit: str, told: Mapping[str, Any]) -> None:
        """Keep, inside a unit, what is to be said of it when the run is finished: another process may come to that."""
        self.write(UNFINISHED, {"part": [unit], "state": [json.dumps(durable.jsonable(told)).encode()]})

    def kept(self, unit: str) -> dict[str, Any] | None:
        """What was kept of a unit that the run has, as plain values; None where nothing was, or the run does not have it."""
        if not self.writer.done(unit):
            return None
        if self._kept is None:  # units that are done later are this process's own, and it knows of them
            rows = self.writer.read(UNFINISHED)
            self._kept = dict(zip(rows["part"].to_pylist(), rows["state"].to_pylist(), strict=True))
        told = self._kept.get(unit)
        return None if told is None else json.loads(told)

    def frame(self, table: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of a small table so far, by key; of a table with many texts only the columns that are needed, its keys among
        them."""
        pieces = [] if columns is None else list(self.writer.batches(table, columns))
        if not pieces:
            rows = self.writer.read(table)
            return (rows if columns is None else rows.select(list(columns))).to_pandas()
        return sorting.sort(parquet.together(pieces), tables.TABLES[table].keys).to_pandas()

    def warn(self, *messages: str) -> None:
        """Keep what a reader of the run must know."""
        for message in messages:
            self.writer.warn(message)

    def finish(self, summary: Mapping[str, Any], **about: Any) -> stores.Run:
        """The whole run, with its manifest, and in it what became of each thing that was expected. about: what stands there
        too: `seed`, `parent`, the identity of another model."""
        lm = self._lm
        own: dict[str, Any] = {} if lm is None else {"model": lm.identity, "anatomy": lm.anatomy.to_dict()}
        if (that := self.request.expect_that) and self.writer.whole is None:
            own["expectations"] = judged(that, summary, self.writer.read, command=self.request.command)
        return self.writer.finish(summary=summary, **{**own, **about})
