"""Estimates with intervals, tests and null floors for outcomes of samples."""

from probe.stats.allocation import Allocation
from probe.stats.arms import (
    Difference,
    compare,
    half_width,
    independent,
    mean_half_width,
    paired,
    pairs_to_tell,
    power,
    resolution,
    size_told,
)
from probe.stats.attempts import Vote, majority, pass_at_k
from probe.stats.clusters import (
    ClusterEstimate,
    ClusterRegression,
    cluster_mean,
    cluster_means,
    cluster_regression,
    cluster_shares,
    q_values,
)
from probe.stats.distributions import Shift, cochran, entropy, homogeneous, jensen_shannon, kl_jeffreys, shift, tv
from probe.stats.intervals import Interval, bootstrap_mean, bootstrap_means, student_mean, wilson
from probe.stats.ranks import kendall_tau, pearson, spearman
from probe.stats.sequential import StoppingRule, anytime, anytime_half_width, anytime_independent, anytime_mean, anytime_share
from probe.stats.series import Means, how, mean_of

__all__ = [
    "Allocation", "ClusterEstimate", "ClusterRegression", "Difference", "Interval", "Means", "Shift", "StoppingRule",
    "Vote", "anytime", "anytime_half_width", "anytime_independent", "anytime_mean", "anytime_share", "bootstrap_mean",
    "bootstrap_means", "cluster_mean", "cluster_means", "cluster_regression", "cluster_shares",
    "cochran", "compare", "entropy", "half_width",
    "homogeneous", "how", "independent", "jensen_shannon", "kendall_tau", "kl_jeffreys", "majority", "mean_half_width",
    "mean_of", "paired", "pairs_to_tell", "pass_at_k", "pearson", "power", "q_values", "resolution", "shift", "size_told",
    "spearman", "student_mean", "tv", "wilson",
]  # fmt: skip
