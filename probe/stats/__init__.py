"""Estimates with intervals, tests and null floors for outcomes of samples."""

from probe.stats.distributions import (
    Null,
    entropy,
    jensen_shannon,
    kl_jeffreys,
    null_floor,
    permutation_test,
    tv,
)
from probe.stats.intervals import (
    Interval,
    bootstrap_mean,
    cells,
    independent_needed,
    mcnemar_exact,
    newcombe,
    paired_difference,
    pairs_needed,
    resolution,
    wilson,
)
from probe.stats.ranks import benjamini_hochberg, kendall_tau, pearson, ranks, spearman
from probe.stats.series import Means, how, mean_of

__all__ = [
    "Interval", "Means", "Null", "benjamini_hochberg", "bootstrap_mean", "cells", "entropy", "how", "independent_needed",
    "jensen_shannon", "kendall_tau", "kl_jeffreys", "mcnemar_exact", "mean_of", "newcombe", "null_floor", "paired_difference",
    "pairs_needed", "pearson", "permutation_test", "ranks", "resolution", "spearman", "tv", "wilson",
]  # fmt: skip
