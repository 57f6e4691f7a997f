"""Two runs of the same tokens: what the second has less the first, as measures of the second's panels. Draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from probe.reporting.scales import numbers
from probe.reporting.views import Grid, Measure, Panel, SequenceView, TokenStrip

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = "_b_minus_a"


def with_differences(a: Sequence[SequenceView], b: Sequence[SequenceView]) -> list[SequenceView]:
    """The second run's views, where their tokens are those of the first with differences, B - A, as further measures.

    A sequence has the partner with its prompt's number, if it has the same token ids at the same positions; panels with one
    name are partners. In the strip every numeric measure that both have gets one, in a grid those of grids with the same
    rows and columns. A cell that one of the two does not have has no difference.
    """
    partners = {view.prompt_id: view for view in a}
    return [_compared(partners.get(view.prompt_id), view) for view in b]


def same_tokens(a: SequenceView, b: SequenceView) -> bool:
    """Whether two sequences are the same token ids at the same positions."""
    strips = [next((panel for panel in view.panels if isinstance(panel, TokenStrip)), None) for view in (a, b)]
    ids = [None if one is None or "token_id" not in one.frame else one.frame[["pos", "token_id"]].to_numpy() for one in strips]
    return ids[0] is not None and ids[1] is not None and np.array_equal(ids[0], ids[1])


def _compared(a: SequenceView | None, b: SequenceView) -> SequenceView:
    if a is None or not same_tokens(a, b):
        return b
    partners = {panel.name: panel for panel in a.panels}
    return replace(b, panels=tuple(_with_difference(partners.get(panel.name), panel) for panel in b.panels))


def _with_difference(a: Panel | None, b: Panel) -> Panel:
    if isinstance(a, TokenStrip) and isinstance(b, TokenStrip):
        return _measured(a, b, ["pos"])
    if isinstance(a, Grid) and isinstance(b, Grid):
        axes = [b.rows.column, b.columns.column]
        keys = list(dict.fromkeys([*axes, *b.follows.values()]))
        alike = axes == [a.rows.column, a.columns.column] and a.follows == b.follows
        if alike and all(set(a.frame[name].dropna()) == set(b.frame[name].dropna()) for name in axes):
            return _measured(a, b, keys)
    return b


def _measured(a: TokenStrip | Grid, b: TokenStrip | Grid, keys: list[str]) -> Panel:
    """`b` with a column and a measure a numeric measure that both have, joined by the keys."""
    offered = {one.column for one in a.measures}
    shared = [one for one in b.measures if one.column in offered and one.scaling != "classes" and one.column not in keys]
    if not shared or a.frame.duplicated(keys).any() or b.frame.duplicated(keys).any():
        return b
    other = b.frame[keys].merge(a.frame[[*keys, *(one.column for one in shared)]], on=keys, how="left")
    columns: dict[str, pd.Series | np.ndarray] = {}
    measures = []
    for one in shared:
        name = one.column + SUFFIX
        columns[name] = numbers(b.frame[one.column]) - numbers(other[one.column])
        measures.append(Measure(name, f"{one.title}, B − A", one.unit, "diverging"))
    frame = b.frame.assign(**columns)
    return replace(b, frame=frame, derived=(*b.derived, *columns), measures=(*b.measures, *measures))
