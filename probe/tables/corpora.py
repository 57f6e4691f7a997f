"""Tables of a place over a file of texts: what moves it most, its means and variances."""

from __future__ import annotations

from probe.tables.columns import Table

# fmt: off
CORPORA: tuple[Table, ...] = (
)
# fmt: on
