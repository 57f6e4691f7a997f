"""What holds over the problems of a run: means, covariates and curves, of rows that are there. Draws nothing, reads no run."""

from probe.over_problems.facts import COLUMNS
from probe.over_problems.summarizing import OverProblems, effect_tables, importance_tables

__all__ = ["COLUMNS", "OverProblems", "effect_tables", "importance_tables"]
