"""What workers are worth: prompts a second of two workers beside one, and what a shard costs beside the work in it; and what
many prompts take of memory, in the process that has the run and in each worker."""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

import probe
from probe.memory import peak_memory
from probe.requests import Trace
from probe.texts import as_prompts, batches, encode_all

from .corpora import texts_of

TARGET, SHARE = 1.7, 0.03  # prompts a second of two workers; of a shard of a minute
MINUTE = 60.0
PROMPTS, QUICK = 100_000, 2_000
SHARED = ("tracing", "problems")  # what workers are heard of
MARKS = (0.1, 0.5, 1.0)  # of the prompts


class Pace(NamedTuple):
    """Seconds of the time in which prompts were done, after the first of them, how many that were, and until the first."""

    seconds: float
    prompts: int
    first: float

    @property
    def rate(self) -> float:
        return self.prompts / self.seconds


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print prompts a second of this process, one worker and two, when all have the model, and what a shard costs (`speed`);
    what is left to this process when workers have done all (`last`); and the peak of memory after a tenth, half and all of
    many prompts of `tiny:llama`, whatever the model (`prompts`). only: one of these.

    Needs the extra `ray`, and for `speed` two cores that nothing else uses: `OMP_NUM_THREADS=1`.
    """
    if only in (None, "speed"):
        speed(model, repeat=repeat, quick=quick)
    if only in (None, "last"):
        last(model, 12 if quick else 60)
    if only in (None, "prompts"):
        prompts("tiny:llama", QUICK if quick else PROMPTS)


def speed(model: str, *, repeat: int, quick: bool) -> None:
    """One process, one worker and two."""
    import ray

    lm = probe.load(model)
    texts = texts_of(lm, 6_000 if quick else 40_000)
    load = os.getloadavg()[0]
    print(f"{lm}  torch threads: {torch.get_num_threads()}, load: {load:.1f} on {os.cpu_count()} cores, prompts: {len(texts)}")
    ray.init(address="local", num_cpus=2 * torch.get_num_threads(), include_dashboard=False, log_to_driver=False)
    batch = 1024
    ways: dict[str, dict[str, int | str]] = {
        "this process": {}, "1 worker": {"engine": "ray", "workers": 1, "shard_size": 1},
        "2 workers": {"engine": "ray", "workers": 2, "shard_size": 1},
    }  # fmt: skip
    best: dict[str, Pace] = {}
    for _ in range(1 if quick else max(1, repeat // 2)):
        for name, how in ways.items():
            pace = _pace(lm, texts, batch, how)
            best[name] = max(best.get(name, pace), pace, key=lambda one: one.rate)
    for name, pace in best.items():
        print(f"{name:14} {pace.rate:8.2f} prompts/s   {pace.first:6.1f} s until the first are done")
    extra = (1 / best["1 worker"].rate - 1 / best["this process"].rate) * _prompts_a_batch(lm, texts, batch)
    print(f"2 workers / 1: {best['2 workers'].rate / best['1 worker'].rate:.2f} (wanted: {TARGET})")
    print(f"a shard costs {1000 * extra:.0f} ms beside its work: {extra / MINUTE:.2%} of a minute (wanted: under {SHARE:.0%})")
    ray.shutdown()


def _pace(lm: probe.LanguageModel, texts: list[str], batch: int, how: dict[str, int | str]) -> Pace:
    told: list[tuple[float, int]] = []

    def hear(what: str, done: int, total: int) -> None:
        if what == "tracing":
            told.append((time.perf_counter(), done))

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        probe.trace(lm, texts, batch_tokens=batch, out=Path(folder) / "run", progress=hear, **how)  # type: ignore[arg-type]
    (first, before), (last, done) = told[0], told[-1]
    return Pace(last - first, done - before, first - began)


def _prompts_a_batch(lm: probe.LanguageModel, texts: list[str], batch: int) -> float:
    """Of the batches that a shard is of."""
    sequences, _ = encode_all(lm, as_prompts(texts), Trace(texts))
    return len(texts) / sum(1 for _ in batches(sequences, generate=0, tokens=batch))


def last(model: str, problems: int) -> None:
    """Seconds of a processor of this process behind the last shard, and of one process that does it all."""
    lm = probe.load(model)
    print(f"{model}, {problems} problems: seconds of cpu, alone, and behind the last shard of a worker")
    with tempfile.TemporaryDirectory(prefix="probe-scale-") as name:
        folder, cut = Path(name), "regex:.{40}"
        texts = [f"{i} and {i} is {'very ' * (i % 5)}" for i in range(problems)]
        probe.trace(lm, texts, generate=40, temperature=1.0, split=cut, out=folder / "traced")
        how: dict[str, Any] = {"samples": 8, "max_new": 24}
        verbs: dict[str, Callable[..., Any]] = {
            "trace": partial(probe.trace, lm, texts, generate=24), "sample": partial(probe.sample, lm, texts, **how),
            "rewind": partial(probe.rewind, folder / "traced", lm=lm, to="step1", append_wait=True, split=cut, **how),
            "importance": partial(probe.importance, folder / "traced", lm=lm, method="resampling,rescore", split=cut, **how),
        }  # fmt: skip
        for verb, run in verbs.items():
            began = time.process_time()
            run(out=folder / f"{verb}-alone")
            alone = time.process_time() - began
            behind = _behind(partial(run, out=folder / verb, engine="ray", workers=1))
            print(f"  {verb:<12}{alone:8.2f}{behind:8.2f}   {behind / alone:.1%}")


def _behind(run: Callable[..., Any]) -> float:
    """Seconds of a processor of this process from the moment in which workers had done all."""
    ends = [0.0]

    def hear(what: str, done: int, total: int) -> None:
        if what in SHARED:
            ends.append(time.process_time())

    run(progress=hear)
    return time.process_time() - ends[-1]


def prompts(model: str, n: int) -> None:
    """Many prompts end to end, each way in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="probe-scale-") as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("".join(f"{i} and {i % 7} is {'very ' * (i % 5)}\n" for i in range(n)))
        print(f"{model}, {n:,} prompts, {file.stat().st_size / n:.0f} bytes each; peak of memory (MB) after so much of them")
        print(
            f"  {'':<28}" + "".join(f"{mark:>8.0%}" for mark in MARKS) + f"{'the end':>9}{'bytes a prompt':>16}{'seconds':>9}"
        )
        ways: dict[str, dict[str, int | str]] = {"this process": {}, "2 workers": {"engine": "ray", "workers": 2}}
        for name, how in ways.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                took = alone.submit(_memory, model, file, n, how).result()
            for process, peaks in took.peaks.items():
                grown = (peaks[-1] - peaks[0]) / (n * (1 - MARKS[0]))
                print(
                    f"  {f'{name}: {process}':<28}" + "".join(f"{peak / 1e6:>8.0f}" for peak in peaks[:-1])
                    + f"{peaks[-1] / 1e6:>9.0f}{grown:>16.0f}{took.seconds:>9.0f}"
                )  # fmt: skip


class Took(NamedTuple):
    """The peaks of memory (bytes) of each process at each of the marks and at the end, and the seconds of it all."""

    peaks: dict[str, list[int]]
    seconds: float


def _memory(model: str, file: Path, n: int, how: dict[str, int | str]) -> Took:
    """A run over a file, in this process, which has done nothing before."""
    lm, began = probe.load(model), time.perf_counter()
    left, peaks = list(MARKS), defaultdict[str, list[int]](list)

    def look() -> None:
        for name, peak in _peaks().items():
            peaks[name].append(peak)

    def hear(what: str, done: int, total: int) -> None:
        while what == "tracing" and left and done >= left[0] * n:
            del left[0]
            look()

    probe.trace(lm, file, out=file.with_name(f"run-{len(how)}"), progress=hear, **how)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    of_workers = {name: [*own, own[-1]] for name, own in peaks.items() if name != "driver"}  # they are gone
    return Took({"driver": [*peaks["driver"], _peaks()["driver"]], **of_workers}, seconds)


def _peaks() -> dict[str, int]:
    """The most memory (bytes) that this process and each of its workers have had."""
    own = psutil.Process()
    workers = [one for one in own.children(recursive=True) if one.name().startswith("ray::Worker")]
    named = {"driver": own, **{f"worker {i}": one for i, one in enumerate(sorted(workers, key=lambda one: one.pid), 1)}}
    return {name: peak_memory(one.pid) or 0 for name, one in named.items()}
