"""What workers are worth: prompts a second of two workers beside one, and what a shard costs beside the work in it."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

import probe
from probe.requests import Trace
from probe.texts import as_prompts, batches, encode_all

from .corpora import texts_of

TARGET, SHARE = 1.7, 0.03  # prompts a second of two workers; of a shard of a minute
MINUTE = 60.0


class Pace(NamedTuple):
    """Seconds of the time in which prompts were done, after the first of them, how many that were, and until the first."""

    seconds: float
    prompts: int
    first: float

    @property
    def rate(self) -> float:
        return self.prompts / self.seconds


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print prompts a second of this process, one worker and two, when all have the model; and the overhead of a shard.

    Needs the extra `ray`, and two cores that nothing else uses: `OMP_NUM_THREADS=1`.
    """
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
