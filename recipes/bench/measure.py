"""Ratios of times and memory, measured side by side in one process; knows clocks, not models."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from probe.memory import peak_memory

PROCESS = Path("/proc/self")


class Case(NamedTuple):
    """One thing to time, what it should reach (a ratio to the baseline), if anything, and what to clear away untimed."""

    name: str
    run: Callable[[], object]
    target: float | None = None
    clear: Callable[[], object] = lambda: None


class Measurement(NamedTuple):
    """One measured case: median seconds, median of the ratios to the baseline right before it in wall and processor
    time, and the most memory above the start (MB)."""

    name: str
    seconds: float
    ratio: float
    cpu_ratio: float
    peak_mb: float
    target: float | None


def compare(baseline: Case, cases: list[Case], *, repeat: int) -> list[Measurement]:
    """Time all cases in turn, `repeat` rounds after one for warming up, so that noise falls on all alike.

    Each case comes right after a baseline of its own, and its ratio is to that: what slows the machine for a while
    slows both. (To one baseline a round, ratios of a long list differed by 0.2 from process to process.)
    """
    whole: list[_Times] = []
    rows: dict[str, list[tuple[_Times, _Times]]] = {case.name: [] for case in cases}
    for turn in range(repeat + 1):
        for case in cases:
            pair = _timed(baseline), _timed(case)
            if turn:
                whole.append(pair[0])
                rows[case.name].append(pair)
    return [
        Measurement(
            baseline.name, statistics.median(t.wall for t in whole), 1, 1, max(t.peak_mb for t in whole), baseline.target
        ),
        *(_row(case, rows[case.name]) for case in cases),
    ]


def once(baseline: Case, cases: list[Case]) -> list[Measurement]:
    """Time each a single time, the baseline first and nothing warmed up: for what takes minutes."""
    first = _timed(baseline)
    rows = [_row(case, [(first, _timed(case))]) for case in cases]
    return [Measurement(baseline.name, first.wall, 1, 1, first.peak_mb, baseline.target), *rows]


class _Times(NamedTuple):
    wall: float
    cpu: float
    peak_mb: float


def _timed(case: Case) -> _Times:
    gc.collect()
    with Peak() as peak:
        begun, worked = time.perf_counter(), time.process_time()
        try:
            case.run()
        finally:
            taken, work = time.perf_counter() - begun, time.process_time() - worked
            case.clear()
    return _Times(taken, work, peak.megabytes)


def _row(case: Case, pairs: list[tuple[_Times, _Times]]) -> Measurement:
    wall, cpu = statistics.median(b.wall / a.wall for a, b in pairs), statistics.median(b.cpu / a.cpu for a, b in pairs)
    seconds, peak = statistics.median(b.wall for _, b in pairs), max(b.peak_mb for _, b in pairs)
    return Measurement(case.name, seconds, wall, cpu, peak, case.target)


class Peak:
    """Peak resident memory of this process above what it had on entering, in MB. Linux keeps it: nothing runs beside.

    (A thread that looked every 5 ms made what it watched up to 5 % slower.)
    """

    megabytes = 0.0

    def __enter__(self) -> Peak:
        (PROCESS / "clear_refs").write_text("5")  # from now on
        self._start = resident()
        return self

    def __exit__(self, *_: object) -> None:
        self.megabytes = max(0, (peak_memory() or 0) - self._start) / 1e6


def resident(process: Path = PROCESS) -> int:
    """Resident memory of a process, of this one if no other is named, in bytes."""
    return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def show(title: str, rows: list[Measurement]) -> None:
    """Print the rows of one comparison; the first one is the baseline."""
    print(f"\n{title}")
    print(f"  {'':<44}{'seconds':>9}{'ratio':>8}{'of cpu':>8}{'target':>8}{'peak MB':>9}")
    for row in rows:
        target = f"{row.target:.2f}" if row.target else ""
        print(f"  {row.name:<44}{row.seconds:>9.3f}{row.ratio:>8.2f}{row.cpu_ratio:>8.2f}{target:>8}{row.peak_mb:>9.0f}")
