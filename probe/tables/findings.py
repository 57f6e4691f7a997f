"""Tables of a first look: ranked findings."""

from __future__ import annotations

from probe.tables.columns import Table

# fmt: off
FINDINGS: tuple[Table, ...] = (
)
# fmt: on
