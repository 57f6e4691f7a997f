"""Clusters of unit vectors: k-means with restarts, and the number of clusters that the silhouette says. Knows no model."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from probe.stats.mutual_information import normalised

CANDIDATES = (2, 3, 4, 6, 8, 12, 16)  # numbers of clusters that are tried
RESTARTS = 5
STEPS = 10  # of Lloyd's algorithm
FEWEST = 4  # vectors a cluster, on average


class VectorClusters(NamedTuple):
    """labels (n,) from 0, the largest cluster first. silhouette: the mean over vectors, NaN of one cluster. stability: mean
    normalised mutual information of this clustering with those of the other restarts."""

    labels: np.ndarray
    k: int
    silhouette: float
    stability: float


def units(x: np.ndarray) -> np.ndarray:
    """x (n, d) at length 1, float32; a vector of zeros stays."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x, np.float32), where=norm > 0).astype(np.float32, copy=False)


def clustered(x: np.ndarray, k: int | None, *, seed: int) -> VectorClusters:
    """Clusters of unit vectors x (n, d): k of them, or as many of CANDIDATES as have the largest silhouette.

    Where there are fewer different vectors than k, there are as many clusters as different vectors.
    """
    different = len(np.unique(x, axis=0))
    asked = (k,) if k is not None else tuple(n for n in CANDIDATES if n * FEWEST <= len(x))
    found = [_of(x, n, seed) for n in asked if n < different]
    if len(found) < len(asked) and different > 1:
        found.append(_each_by_itself(x))
    if not found:
        return VectorClusters(np.zeros(len(x), np.int64), 1, float("nan"), 1.0)
    return max(found, key=lambda one: one.silhouette)


def _of(x: np.ndarray, k: int, seed: int) -> VectorClusters:
    """The best of several starts, by the sum of squares within clusters."""
    from scipy.cluster.vq import kmeans2

    runs = []
    for restart in range(RESTARTS):
        generator = np.random.default_rng((seed, k, restart))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a cluster that lost its members: there is one fewer then
            centroids, labels = kmeans2(x, k, iter=STEPS, minit="++", rng=generator)
        runs.append((float(np.square(x - centroids[labels]).sum()), restart, labels))
    best = min(runs)[2]
    each = range(k + 1)
    others = [normalised(np.histogram2d(best, labels, bins=(each, each))[0]) for _, _, labels in runs]
    return _ranked(x, np.unique(best, return_inverse=True)[1], (float(np.sum(others)) - 1) / (RESTARTS - 1))


def _each_by_itself(x: np.ndarray) -> VectorClusters:
    """A cluster for every different vector."""
    return _ranked(x, np.unique(x, axis=0, return_inverse=True)[1].reshape(-1), 1.0)


def _ranked(x: np.ndarray, labels: np.ndarray, stability: float) -> VectorClusters:
    counts = np.bincount(labels)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    labels = rank[labels]
    return VectorClusters(labels, len(counts), silhouette(x, labels), stability)


def silhouette(x: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette (Rousseeuw 1987) of unit vectors x (n, d), by cosine distance; a cluster of one vector counts 0.

    The mean distance to the members of a cluster is 1 - x·(their sum)/(their number), so that no pairs are formed.
    """
    k = int(labels.max()) + 1
    counts = np.bincount(labels, minlength=k)
    sums = np.zeros((k, x.shape[1]))
    np.add.at(sums, labels, x)
    near = x @ sums.T  # (n, k): sums of cosines
    rows = np.arange(len(x))
    own = counts[labels]
    within = (own - near[rows, labels]) / np.maximum(own - 1, 1)  # the distance to itself is 0
    distance = 1 - near / counts
    distance[rows, labels] = np.inf
    nearest = distance.min(axis=1)
    most = np.maximum(within, nearest)
    gain = np.divide(nearest - within, most, out=np.zeros(len(x)), where=(most > 0) & (own > 1))
    return float(gain.mean())
