"""Tables of the experts that a token is sent to."""

from __future__ import annotations

from probe.tables.columns import Table

# fmt: off
ROUTING: tuple[Table, ...] = (
)
# fmt: on
