"""Means over texts of what is known of each head in each: with intervals, and the kind that they make it. Streams the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from probe.capturing.statistics import NAMES
from probe.registries.head_kinds import SHORTEST, kind_of
from probe.running import Running
from probe.tables import TABLES

KEYS = ("prompt_id", "branch", "layer", "head")  # of a table whose rows are averaged


class HeadSums(NamedTuple):
    """Over texts, for each head and statistic, (layer, head, statistic): how many have it, their sum, and that of squares."""

    texts: np.ndarray
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def zero(cls, shape: tuple[int, ...]) -> HeadSums:
        return cls(*(np.zeros(shape) for _ in range(3)))

    def add(self, layer: np.ndarray, head: np.ndarray, values: np.ndarray) -> None:
        """Rows (row,), (row,) and (row, statistic); NaN is none."""
        there = ~np.isnan(values)
        values = np.where(there, values, 0.0)
        for part, own in zip(self, (there, values, values**2), strict=True):
            np.add.at(part, (layer, head), own)

    @property
    def mean(self) -> np.ndarray:
        """NaN where no text has it."""
        with np.errstate(invalid="ignore"):
            return self.total / self.texts

    def half_width(self) -> np.ndarray:
        """Of the 95 % interval of the mean, by Student's t; NaN with fewer than two texts."""
        from scipy.stats import t

        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.clip(self.squares - self.total**2 / self.texts, 0, None) / (self.texts - 1)
            width = t.ppf(0.975, self.texts - 1) * np.sqrt(variance / self.texts)
        return np.where(self.texts > 1, width, np.nan)


def mean_tables(run: Running, heads: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The tables `head_kinds` and `head_means`, of all rows that the run has of tables with a row a head in a text. heads: how
    many each layer has."""
    shape = len(heads), max(heads, default=0)
    kinds: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for name, table in TABLES.items():
        statistics = [column.name for column in table.columns if column.type == pa.float32()]
        if table.keys != KEYS or "heads" not in table.verbs:
            continue
        for which, (sums, long) in _summed(run, name, statistics, shape).items():
            means.append(_long(which, statistics, sums))
            if name == "heads":
                kinds.append(_kinds(which, sums, long, run))
    return {name: _joined(parts) for name, parts in (("head_kinds", kinds), ("head_means", means)) if parts}


def _summed(run: Running, table: str, statistics: list[str], shape: tuple[int, int]) -> dict[str, tuple[HeadSums, HeadSums]]:
    """Which input -> sums over its texts, and over those that are long enough to tell a kind by, the last column of which is
    the effective keys of uniform attention."""
    found: dict[str, tuple[HeadSums, HeadSums]] = {}
    own = table == "heads"
    for piece in run.writer.batches(table, ["layer", "head", *statistics, *(("rows", "input") if own else ())]):
        layer, head = (piece[name].to_numpy().astype(int) for name in ("layer", "head"))
        values = np.stack([piece[name].to_numpy().astype(float) for name in statistics], axis=1)
        inputs = np.asarray(piece["input"].to_pylist() if own else ["text"] * len(layer))
        for which in dict.fromkeys(inputs.tolist()):
            sums, long = found.setdefault(
                which, (HeadSums.zero((*shape, len(statistics))), HeadSums.zero((*shape, len(statistics) + 1)))
            )
            mine = inputs == which
            sums.add(layer[mine], head[mine], values[mine])
            if own:
                tokens = piece["rows"].to_numpy() + 1
                mine &= tokens >= SHORTEST
                both = np.concatenate([values, (tokens[:, None] + 2) / 2], axis=1)
                long.add(layer[mine], head[mine], both[mine])
    return found


def _kinds(which: str, sums: HeadSums, long: HeadSums, run: Running) -> dict[str, Any]:
    thresholds = run.request.thresholds  # type: ignore[attr-defined]
    layer, head = np.nonzero(np.asarray(sums.texts.any(-1)))
    mean, enough = long.mean, np.asarray(long.texts.any(-1))
    kinds = [
        kind_of(dict(zip(NAMES, mean[at][:-1], strict=True)), mean[at][-1], thresholds) if enough[at] else None
        for at in zip(layer, head, strict=True)
    ]
    return {
        "input": [which] * len(layer), "layer": layer, "head": head, "kind": kinds,
        "texts": sums.texts.max(-1)[layer, head].astype(np.int32),
        **{name: sums.mean[layer, head, i].astype(np.float32) for i, name in enumerate(NAMES)},
    }  # fmt: skip


def _long(which: str, statistics: list[str], sums: HeadSums) -> dict[str, Any]:
    layer, head, statistic = np.nonzero(sums.texts)
    at = layer, head, statistic
    mean, half = sums.mean[at], sums.half_width()[at]
    bounds = {"low": mean - half, "high": mean + half}
    return {
        "input": [which] * len(layer), "layer": layer, "head": head, "statistic": np.asarray(statistics)[statistic].tolist(),
        "mean": mean.astype(np.float32), **{k: pa.array(v.astype(np.float32), from_pandas=True) for k, v in bounds.items()},
        "texts": sums.texts[at].astype(np.int32),
    }  # fmt: skip


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One after the other."""
    return {
        name: [value for part in parts for value in part[name]] if isinstance(parts[0][name], list)
        else pa.concat_arrays([pa.array(part[name]) for part in parts])
        for name in parts[0]
    }  # fmt: skip
