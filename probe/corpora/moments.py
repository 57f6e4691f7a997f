"""Means and variances that are put together from those of parts. Knows numbers, no model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np


@dataclass
class Moments:
    """Of numbers in k columns: how many rows there were, and of each column mean, sum of squared deviations, minimum, maximum.

    n () int64, the others (k,) float64.
    """

    n: np.ndarray
    mean: np.ndarray
    deviations: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Of values (n, k) float64, n of them at least one."""
        mean = values.mean(0)
        apart = values - mean
        return cls(np.asarray(len(values)), mean, np.einsum("nk,nk->k", apart, apart), values.min(0), values.max(0))

    @classmethod
    def nothing(cls, k: int) -> Self:
        """Of no rows."""
        return cls(np.asarray(0), np.zeros(k), np.zeros(k), np.full(k, np.inf), np.full(k, -np.inf))

    def merge(self, other: Moments) -> None:
        """Take in those of other rows (Chan, Golub & LeVeque 1983, eq. 2.1): no sum of squares loses its digits."""
        n = self.n + other.n
        share = other.n / np.maximum(n, 1)
        apart = other.mean - self.mean
        self.deviations = self.deviations + other.deviations + np.square(apart) * self.n * share
        self.mean = self.mean + apart * share
        self.n = n
        self.minimum, self.maximum = np.minimum(self.minimum, other.minimum), np.maximum(self.maximum, other.maximum)

    @property
    def variance(self) -> np.ndarray:
        """Of each column, dividing by n."""
        return self.deviations / np.maximum(self.n, 1)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """By names that begin with `name`."""
        return {f"{name}.{f.name}": getattr(self, f.name) for f in fields(self)}

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray], name: str) -> Self:
        """What `arrays` gave."""
        return cls(**{f.name: arrays[f"{name}.{f.name}"] for f in fields(cls)})
