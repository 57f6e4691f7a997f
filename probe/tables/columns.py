"""What a column and a table are, and the columns that many tables have."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import pyarrow as pa


class Column(NamedTuple):
    """One column: its Arrow type, what a value means (unit or range), and the first schema version that has it.

    A column that is added has the next version of the schema for its `since`, and is null in the runs of before.
    """

    name: str
    type: pa.DataType
    doc: str
    since: int = 1


class Table(NamedTuple):
    """One table. `keys` order and identify its rows; a `large` table stays a folder of part files. A `passing` one is there
    while a run is made, for a resume to go on from, and not in the run.

    verbs: the commands whose runs have it. example: a question to it in SQL, where RUN is the folder of a run.
    """

    name: str
    row: str
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    large: bool = False
    verbs: tuple[str, ...] = ()
    example: str = ""
    passing: bool = False


ESTIMATES = ("estimate", "difference", "effect", "coefficient", "accuracy", "mean", "share", "value")
BOUNDS = (("ci_low", "ci_high"), ("low", "high"))


def bounds_of(column: str, names: Collection[str]) -> tuple[str, str] | None:
    """The columns of a table (or the keys of a summary) that hold the interval of one of them; None where there is none.

    COLUMN_low and COLUMN_high; else ci_low and ci_high, or low and high, which are about the first of ESTIMATES that is there.
    """
    for low, high in ((f"{column}_low", f"{column}_high"), *(BOUNDS if _first_estimate(names) == column else ())):
        if low in names and high in names:
            return low, high
    return None


def _first_estimate(names: Collection[str]) -> str | None:
    return next((one for one in ESTIMATES if one in names), None)


def list_of(value: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", value, nullable=False))


def words() -> pa.DataType:
    return pa.dictionary(pa.int32(), pa.string())


INTS, FLOATS = list_of(pa.int32()), list_of(pa.float32())

RUN = Column("run_id", words(), "the run's id")
PROMPT = Column("prompt_id", pa.int32(), "which prompt of the run")
BRANCH = Column("branch", pa.int32(), "which continuation of the prompt")
POS = Column("pos", pa.int32(), "position, 0 is the first token")
LAYER = Column("layer", pa.int16(), "layer, from 0; -1 where a site has none")
HEAD = Column("head", pa.int16(), "head, from 0; -1 where a site has none")
NEURON = Column("neuron", pa.int32(), "neuron, from 0; -1 where it is not of a single one", since=4)
INPUT = Column("input", words(), "text, or repeated: random tokens, twice over; null where there are only texts", since=4)
QUERY = Column("query", pa.int32(), "position that looks")


def f32(name: str, doc: str, since: int = 1) -> Column:
    return Column(name, pa.float32(), doc, since)


def i32(name: str, doc: str, since: int = 1) -> Column:
    return Column(name, pa.int32(), doc, since)


def f64(name: str, doc: str, since: int = 1) -> Column:
    return Column(name, pa.float64(), doc, since)


def text(name: str, doc: str, since: int = 1) -> Column:
    return Column(name, pa.string(), doc, since)
