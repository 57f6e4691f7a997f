"""Ratios of times and memory, measured side by side in one process; knows clocks, not models."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    """One thing to time, and what it should reach (a ratio to the baseline), if anything."""

    name: str
    run: Callable[[], object]
    target: float | None = None


class Row(NamedTuple):
    """One measured case: median seconds, ratio to the baseline's median, peak memory above the start (MB)."""

    name: str
    seconds: float
    ratio: float
    peak_mb: float
    target: float | None


def compare(baseline: Case, cases: list[Case], *, repeat: int) -> list[Row]:
    """Time all cases in turn, `repeat` rounds after one for warming up, so that noise falls on all alike."""
    everything = [baseline, *cases]
    seconds: dict[str, list[float]] = {case.name: [] for case in everything}
    peaks: dict[str, float] = {}
    for turn in range(repeat + 1):
        for case in everything:
            gc.collect()
            with Peak() as peak:
                begun = time.perf_counter()
                case.run()
                taken = time.perf_counter() - begun
            if turn:
                seconds[case.name].append(taken)
                peaks[case.name] = max(peaks.get(case.name, 0.0), peak.megabytes)
    base = statistics.median(seconds[baseline.name])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [Row(c.name, medians[c.name], medians[c.name] / base, peaks[c.name], c.target) for c in everything]


class Peak:
    """Peak resident memory of this process above what it had on entering, in MB, sampled every 5 ms."""

    megabytes = 0.0

    def __enter__(self) -> Peak:
        self._start, self._highest, self._over = resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._highest = max(self._highest, resident())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.megabytes = max(0, max(self._highest, resident()) - self._start) / 1e6


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def show(title: str, rows: list[Row]) -> None:
    """Print the rows of one comparison; the first one is the baseline."""
    print(f"\n{title}")
    print(f"  {'':<44}{'seconds':>9}{'ratio':>8}{'target':>8}{'peak MB':>9}")
    for row in rows:
        target = f"{row.target:.2f}" if row.target else ""
        print(f"  {row.name:<44}{row.seconds:>9.3f}{row.ratio:>8.2f}{target:>8}{row.peak_mb:>9.0f}")
