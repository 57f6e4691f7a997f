"""What is expected of a run, said before it is made: a small grammar over its summary and its tables, and three verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from probe.durable import jsonable
from probe.expecting.grammar import Expectation, parse
from probe.expecting.naming import checked
from probe.expecting.verdicts import FAILED, HELD, UNRESOLVED, RowsOf, Verdict, verdict_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FAILED", "HELD", "UNRESOLVED", "Expectation", "Verdict", "checked", "expect", "judged", "parse", "verdict_of"]


class Judgeable(Protocol):
    """What a run has that is looked at: `probe.Run`."""

    @property
    def summary(self) -> dict[str, Any]: ...
    @property
    def tables(self) -> list[str]: ...
    def table_arrow(self, name: str) -> pa.Table: ...


def expect(run: Judgeable, that: str) -> Verdict:
    """Whether something is so in a run: `expect(run, "max(effects.difference) > 0.1").verdict`.

    What is expected before a run is made, `expect_that=` of every verb, is kept in its manifest. Raises `BadExpectation`.
    """
    found = set(run.tables)
    return verdict_of(checked(that), jsonable(run.summary), lambda name: run.table_arrow(name) if name in found else None)


def judged(
    expectations: Iterable[str], summary: Mapping[str, Any], rows: RowsOf, *, command: str | None
) -> list[dict[str, Any]]:
    """The verdict on each, as a manifest holds it."""
    plain = jsonable(summary)
    return [jsonable(asdict(verdict_of(checked(text, command), plain, rows))) for text in expectations]
