"""How far two labellings of the same things agree, against what labels that are shuffled come to. Knows no model.

The measure is normalised mutual information, 2 I(A; B) / (H(A) + H(B)) (Strehl & Ghosh 2002, with the arithmetic mean): 0 where
neither tells of the other, 1 where they are the same up to names. It grows by chance with the number of labels, so that a floor
is taken away: its mean over shuffled labels. What is kept fixed while they are shuffled says what the floor is of.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

GROUPS = 20  # of clusters, left out one at a time
ELEMENTS = 2**21  # counts held at once


class LabelAgreement(NamedTuple):
    """nmi; floor, floor_sd: mean and standard deviation over shuffles; excess: nmi - floor, with its 95 % interval (NaN with
    fewer than two clusters); p: share of shuffles that come as high, the real one counted among them."""

    nmi: float
    floor: float
    floor_sd: float
    excess: float
    low: float
    high: float
    p: float


def normalised(counts: np.ndarray) -> np.ndarray:
    """Normalised mutual information of contingency tables: counts (…, a, b) -> (…,). NaN where both have one label only."""
    from scipy.special import xlogy

    n = counts.sum((-2, -1), dtype=np.float64)
    row, column, cell = (_sum_log(x) for x in (counts.sum(-1), counts.sum(-2), counts.reshape(*counts.shape[:-2], -1)))
    whole = xlogy(n, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = 2 * (cell - row - column + whole) / (2 * whole - row - column)
    return np.where(2 * whole - row - column > 1e-9 * n, np.clip(found, 0, 1), np.nan)


def _sum_log(counts: np.ndarray) -> np.ndarray:
    from scipy.special import xlogy

    found: np.ndarray = xlogy(counts, counts).sum(-1)
    return found


def agreement_of(given: np.ndarray, labels: np.ndarray, shuffles: np.ndarray, clusters: np.ndarray) -> LabelAgreement:
    """Agreement of the labels (n,) with those that are given (n,), and the floor that shuffles (s, n) of the labels make.

    All are numbers from 0. clusters (n,): things of one cluster hang together, as tokens of a text do. The interval is
    Student's t on a jackknife that leaves out at most 20 groups of clusters, one at a time, from the labels and every shuffle.
    """
    groups = np.unique(clusters, return_inverse=True)[1] % GROUPS
    shape = (int(groups.max()) + 1, int(given.max()) + 1, int(max(labels.max(), shuffles.max())) + 1)
    at = (groups * shape[1] + given) * shape[2]
    size = int(np.prod(shape))
    step = max(1, ELEMENTS // max(size, len(labels)))
    parts = [_left_out(_tables(at, labels[None], shape))]
    parts += [_left_out(_tables(at, shuffles[i : i + step], shape)) for i in range(0, len(shuffles), step)]
    nmi = np.concatenate(parts)  # (1 + s, 1 + group)
    excess = nmi[0] - nmi[1:].mean(0)
    half = _half_width(excess[1:])
    floor = nmi[1:, 0]
    # rounding makes equal tables differ in the last digits
    p = (1 + int((floor >= nmi[0, 0] - 1e-12).sum())) / (1 + len(floor))
    mean, whole = float(floor.mean()), float(excess[0])
    return LabelAgreement(float(nmi[0, 0]), mean, float(floor.std(ddof=1)), whole, whole - half, whole + half, p)


def _tables(at: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Contingency tables (s, group, a, b) of labels (s, n)."""
    size = int(np.prod(shape))
    where = np.arange(len(labels))[:, None] * size + at + labels
    return np.bincount(where.ravel(), minlength=len(labels) * size).reshape(len(labels), *shape)


def _left_out(tables: np.ndarray) -> np.ndarray:
    """(s, 1 + group): of all groups together, then without each."""
    whole = tables.sum(1, keepdims=True)
    return normalised(np.concatenate([whole, whole - tables], axis=1))


def _half_width(without: np.ndarray) -> float:
    """Of the 95 % interval, from the statistic without each group (group,)."""
    from scipy.special import stdtrit

    n = len(without)
    if n < 2:
        return float("nan")
    return float(stdtrit(n - 1, 0.975) * np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))


def shuffled_within(labels: np.ndarray, strata: np.ndarray, shuffles: int, generator: np.random.Generator) -> np.ndarray:
    """(shuffles, n): the labels (n,) in random order among those of one stratum (n,)."""
    place = np.argsort(strata, kind="stable")
    found = np.empty((shuffles, len(labels)), labels.dtype)
    for row in found:
        row[place] = labels[np.lexsort((generator.random(len(labels)), strata))]
    return found


def shuffled_over_types(
    labels: np.ndarray, types: np.ndarray, shuffles: int, generator: np.random.Generator, *, alike: int = 10
) -> np.ndarray:
    """(shuffles, n): every type gets the labels of another type of about the same count, and keeps them wherever it stands.

    A control task (Hewitt & Liang 2019, 1909.03368): a labelling that is a matter of the type alone, without any sense. Types
    are sorted by their counts, ties at random, and change places among `alike` neighbours. types (n,): what a thing is one of.
    """
    _, kind, counts = np.unique(types, return_inverse=True, return_counts=True)
    order = np.argsort(kind, kind="stable")
    begin = np.cumsum(counts) - counts
    number = np.empty(len(labels), np.int64)  # of a thing among those of its type
    number[order] = np.arange(len(labels)) - np.repeat(begin, counts)
    blocks = np.arange(len(counts)) // alike
    found = np.empty((shuffles, len(labels)), labels.dtype)
    for row in found:
        ranked = np.lexsort((generator.random(len(counts)), -counts))
        other = np.empty(len(counts), np.int64)
        other[ranked] = ranked[np.lexsort((generator.random(len(counts)), blocks))]
        source = other[kind]
        row[:] = labels[order[begin[source] + number % counts[source]]]
    return found
