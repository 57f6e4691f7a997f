"""What a picture is before anything draws it: rows of a table of a run, and what they are drawn as. Draws nothing itself.

The page, the terminal and the files for a paper are drawn from these; what a scale means is said here once, for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import pandas as pd

Coordinate = Literal["token", "layer", "head", "step", "branch"]
"""What the cursor is at. `token` is a position, `step` follows from it (and it from a step: the step's first token)."""

Scaling = Literal["sequential", "diverging", "log", "classes"]
"""sequential: least to most; diverging: 0 in the middle, both ends as far from it; log: log(1 + x), for ranks and counts;
classes: each value of a text column its own colour."""


@dataclass(frozen=True)
class Axis:
    """A column whose values stand side by side."""

    column: str
    title: str
    cursor: Coordinate | None = None  # what a click on one of its values moves
    labels: Mapping[Any, str] | None = None  # by value; without: of a position its token, else the value itself


@dataclass(frozen=True)
class Measure:
    """A column that is shown as colour or height."""

    column: str
    title: str
    unit: str = ""
    scaling: Scaling = "sequential"
    low: float | None = None  # ends of the scale; None: those of the data (of a diverging one the largest from 0)
    high: float | None = None
    band: tuple[str, str] | None = None  # columns of its interval


@dataclass(frozen=True)
class Panel:
    """One picture of one sequence of a run.

    where: a value, or several of which a row has one.
    frame: rows of the run's table, its own columns first (they are what the CSV gives), then those named in `derived`.
    follows: coordinate of the cursor -> the column by which the rows of the picture are chosen: only those at the cursor.
    """

    kind: ClassVar[str]

    name: str  # unique among the panels of a sequence: letters, digits, "-", "." and ">"
    title: str
    table: str
    frame: pd.DataFrame = field(repr=False)
    _: KW_ONLY
    where: Mapping[str, Any] = field(default_factory=dict)  # how the rows were chosen: column -> value
    derived: tuple[str, ...] = ()
    follows: Mapping[Coordinate, str] = field(default_factory=dict)
    note: str = ""  # what a reader must know: what was kept, which way the arrow goes
    counted: tuple[str, ...] = ()  # not empty: a row is all rows of the table with the same values of these, not one of them


@dataclass(frozen=True)
class TokenStrip(Panel):
    """A text, its tokens coloured by a measure. Columns `pos`, `token`; where there are any `segment`, `step`."""

    kind = "tokens"
    _: KW_ONLY
    measures: tuple[Measure, ...]  # the first is shown first
    alternatives: tuple[str, str] | None = None  # columns of lists: texts, log-probs (nats)
    shown: str | None = None  # column of what stands in place of `token`: bytes of half a character; else null


@dataclass(frozen=True)
class Grid(Panel):
    """A heat map. What has no row is left blank."""

    kind = "grid"
    _: KW_ONLY
    rows: Axis
    columns: Axis
    measures: tuple[Measure, ...]
    text: str | None = None  # a column whose text stands in a cell that is large enough
    upwards: bool = False  # the first row is at the bottom, as layers are in a lens


@dataclass(frozen=True)
class Patterns(Panel):
    """Attention patterns: a row is a query of a head, `keys` (null: every position up to it) and `weights` are lists.

    `follows` has layer and head; `kept_mass` says how much of a row was kept.
    """

    kind = "patterns"


@dataclass(frozen=True)
class Bars(Panel):
    """Estimates with intervals, one bar a value of the axis, one group of bars a value of `series`."""

    kind = "bars"
    _: KW_ONLY
    axis: Axis
    measure: Measure
    series: str | None = None  # column of classes; each has its colour and stands in the legend
    facet: str | None = None  # column; each of its values has a row of bars with a scale of its own
    span: tuple[str, str] | None = None  # columns of first position and one past the last: the bars lie under the tokens
    floor: str | None = None  # column; what there is where nothing differs: a dashed line across the bar


@dataclass(frozen=True)
class Lines(Panel):
    """Curves over a numeric axis, with their bands; one curve a value of `series`, else one a measure."""

    kind = "lines"
    _: KW_ONLY
    axis: Axis
    measures: tuple[Measure, ...]
    series: str | None = None


@dataclass(frozen=True)
class OutcomeTree(Panel):
    """Where continuations fork, with counts of their outcomes.

    root: `label`, `n`, `outcomes` {class: count}, `children`, and `branch` where a click chooses one.
    """

    kind = "tree"
    _: KW_ONLY
    root: Mapping[str, Any]


@dataclass(frozen=True)
class ShownColumn:
    """A column of a table of rows."""

    name: str
    title: str
    digits: int | None = None  # of a number; None: as it is
    cursor: Coordinate | None = None  # what a click on the row moves


@dataclass(frozen=True)
class Listing(Panel):
    """Rows as a table: verdicts, stages, branches. `text` is a column that is long: shown in full for the row at the cursor."""

    kind = "listing"
    _: KW_ONLY
    columns: tuple[ShownColumn, ...]
    text: str | None = None
    beside: str | None = None  # column; its values stand beside one another, as both arms of a rewind do


@dataclass(frozen=True)
class SequenceView:
    """All pictures of one prompt of a run."""

    prompt_id: int
    title: str  # the beginning of its text
    panels: tuple[Panel, ...]
