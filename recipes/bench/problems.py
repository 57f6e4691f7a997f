"""What the rollouts of a set of problems cost: one engine for all of them against `generate`, one call a boundary."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from operator import truediv

import torch

import probe
from probe.decoding import Continuation, Sampling, decode
from probe.decoding.rollouts import LocalEngine, Rollout, problem_seed

from .measure import Peak
from .trace import text_of

SAMPLING = Sampling(temperature=0.8, top_p=0.95)
ASKED = (
    "Question: {} has {} apples, buys {} bags with {} apples each and gives away {}. How many are left?\nAnswer: Let us count. "
)
NAMES = ("Tom", "Ada", "Max", "Eva", "Ben", "Ida", "Leo", "Mia", "Sam", "Zoe", "Kim", "Ali")


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print ratios of time and memory for problems x boundaries x rollouts, and tokens per second of 64 x 64 tokens."""
    lm = probe.load(model)
    print(f"{lm}  torch threads: {torch.get_num_threads()}")
    if only in (None, "problems"):
        problems(lm, *((3, 2, 4, 24) if quick else (12, 6, 16, 128)), rounds=max(1, repeat // 5))
    if only in (None, "prefixes"):
        prefixes(lm, *((8, 8, 64) if quick else (64, 64, 512)), rounds=max(1, repeat // 5))


def problems(lm: probe.LanguageModel, n: int, n_boundaries: int, n_rollouts: int, longest: int, *, rounds: int) -> None:
    """Rollouts from boundaries of what the model itself answers, until they end or have as many tokens as the answer may."""
    asked = [lm.encode(ASKED.format(name, 3 + i, 2 + i % 4, 4 + i % 5, 1 + i % 3)).ids for i, name in enumerate(NAMES[:n])]
    answered = decode(lm, asked, max_new=longest, sampling=Sampling(repetition_penalty=1.1))
    prefixes_of = [
        [(*ids, *one.ids[: len(one.ids) * k // n_boundaries]) for k in range(n_boundaries)]
        for ids, one in zip(asked, answered, strict=True)
    ]
    boundaries = [prefix for own in prefixes_of for prefix in own]
    rollouts = [
        Rollout(prefix, sample, longest, problem_seed(0, ids))
        for ids, own in zip(asked, prefixes_of, strict=True)
        for prefix in own
        for sample in range(n_rollouts)
    ]
    lengths = [len(prefix) for prefix in boundaries]
    print(f"\n{n} problems x {n_boundaries} boundaries x {n_rollouts} rollouts of at most {longest} tokens, prefixes of "
          f"{min(lengths)} to {max(lengths)}")  # fmt: skip

    def engine() -> int:
        return _drawn(lm, rollouts)

    def by_generate() -> int:
        return sum(_generated(lm, prefix, n_rollouts, longest) for prefix in boundaries)

    _compare([("one engine", engine, None), ("generate, a call a boundary", by_generate, 3.0)], rounds)


def prefixes(lm: probe.LanguageModel, n: int, n_new: int, n_prefix: int, *, rounds: int) -> None:
    """Rollouts that run to their end, from one prefix and from as many as there are rollouts."""
    own, lm.eos_ids = lm.eos_ids, set()
    ids = lm.encode(text_of(lm, n_prefix + n)).ids
    print(f"\n{n} rollouts of {n_new} tokens from {n_prefix}")
    one = [Rollout(tuple(ids[:n_prefix]), sample, n_new, 0) for sample in range(n)]
    other = [Rollout(tuple(ids[sample : sample + n_prefix]), sample, n_new, 0) for sample in range(n)]
    _compare([("one prefix", lambda: _drawn(lm, one), None), ("different prefixes", lambda: _drawn(lm, other), None)], rounds)
    lm.eos_ids = own


def _drawn(lm: probe.LanguageModel, rollouts: Sequence[Rollout]) -> int:
    """How many tokens the engine draws."""
    lengths: list[int] = []

    def done(_: int, one: Continuation) -> None:
        lengths.append(len(one.ids))

    LocalEngine(lm).draw(rollouts, SAMPLING, done=done)
    assert len(lengths) == len(rollouts)
    return sum(lengths)


def _generated(lm: probe.LanguageModel, prefix: Sequence[int], n: int, n_new: int) -> int:
    """The same by one call of `generate`; what it pads ended rows with does not count."""
    ends = sorted(lm.eos_ids)
    batch = torch.tensor([list(prefix)], device=lm.device)
    found = lm.model.generate(
        batch, attention_mask=torch.ones_like(batch), num_return_sequences=n, do_sample=True, temperature=SAMPLING.temperature,
        top_p=SAMPLING.top_p, top_k=0, pad_token_id=ends[0], max_new_tokens=n_new, eos_token_id=ends,
    )  # fmt: skip
    new = torch.isin(found[:, len(prefix) :], torch.tensor(ends, device=lm.device))
    return int((new.cumsum(-1) - new.long() == 0).sum())


def _compare(cases: Sequence[tuple[str, Callable[[], int], float | None]], rounds: int) -> None:
    """Tokens per second and peak memory of each, in turn; how many times less the first takes within a round, in wall and in
    processor time."""
    seconds, work, rates = ([[0.0] * rounds for _ in cases] for _ in range(3))
    peaks = [0.0] * len(cases)
    for turn in range(rounds):
        for i, (_, run, _) in enumerate(cases):
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what the last case has freed is not memory that this one has for nothing
            with Peak() as peak:
                begun, worked = time.perf_counter(), time.process_time()
                n_tokens = run()
                seconds[i][turn], work[i][turn] = time.perf_counter() - begun, time.process_time() - worked
            rates[i][turn] = n_tokens / seconds[i][turn]
            peaks[i] = max(peaks[i], peak.megabytes)
    print(f"  {'':<32}{'seconds':>9}{'tokens/s':>10}{'first is':>10}{'of cpu':>8}{'target':>8}{'peak MB':>9}")
    for i, (name, _, target) in enumerate(cases):
        times, of_cpu = (statistics.median(map(truediv, taken[i], taken[0])) for taken in (seconds, work))
        wanted = f"{target:.1f}x" if target else ""
        numbers = f"{statistics.median(seconds[i]):>9.1f}{statistics.median(rates[i]):>10.1f}{times:>9.1f}x{of_cpu:>7.1f}x"
        print(f"  {name:<32}{numbers}{wanted:>8}{peaks[i]:>9.0f}")
