"""Pictures of a run: what is drawn of each table, the page that shows it all, and files for a paper."""

from __future__ import annotations
