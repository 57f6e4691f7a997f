"""From a request to a run: where it goes, what is done already, who watches, and its end. Knows no verb."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from probe import store as stores
from probe.expecting import judged
from probe.requests import Request

if TYPE_CHECKING:
    import pandas as pd

    from probe.language_model import LanguageModel

T = TypeVar("T")


@contextmanager
def running(request: Request, lm: LanguageModel | None, *, word: str = "", resolved: Mapping[str, Any]) -> Iterator[Running]:
    """A run that is being made of a request, on a model or of other runs. If it is left by an error, what was finished is kept
    on disk.

    word: what a new run's directory is called after. resolved: what the request came to; a resume must come to the same.
    """
    path = stores.place_for(request.command, request.out, word=word, resume=request.resume)
    about = {} if lm is None else {"model": lm.name, "dtype": str(lm.dtype)}
    with stores.create(
        path, command=request.command, arguments=request.arguments(), resolved={**about, **resolved}, resume=request.resume
    ) as writer:
        yield Running(request, lm, writer)


class Running:
    """One run while it is made: its writer, and who watches."""

    def __init__(self, request: Request, lm: LanguageModel | None, writer: stores.Writer) -> None:
        self.request, self.writer, self._lm = request, writer, lm

    @property
    def lm(self) -> LanguageModel:
        """The model that it is made on."""
        assert self._lm is not None, "a run that is made of other runs has no model"
        return self._lm

    def report(self, what: str, done: int, total: int) -> None:
        """Tell who watches how far it is."""
        if self.request.progress is not None:
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

    def write(self, table: str, columns: Mapping[str, Any], *, store: str = "exact") -> None:
        """Append rows to a table, inside a unit."""
        self.writer.write(table, columns, store=store)

    def write_all(self, tables: Mapping[str, Mapping[str, Any]], *, unit: str) -> None:
        """Write rows of several tables as one unit, unless the run has it."""
        if not self.writer.done(unit):
            with self.writer.unit(unit):
                for name, columns in tables.items():
                    self.write(name, columns)

    def frame(self, table: str) -> pd.DataFrame:
        """The rows of a small table so far."""
        return self.writer.read(table).to_pandas()

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
