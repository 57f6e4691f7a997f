"""Tables of what heads are: kernels, memories, and the space of their keys."""

from __future__ import annotations

from probe.tables.columns import Table

# fmt: off
HEAD_VIEWS: tuple[Table, ...] = (
)
# fmt: on
