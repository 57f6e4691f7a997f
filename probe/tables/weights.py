"""Tables of the weights themselves: matrices, heads' circuits, neurons."""

from __future__ import annotations

from probe.tables.columns import Table

# fmt: off
WEIGHTS: tuple[Table, ...] = (
)
# fmt: on
