"""What branches of one prefix cost: side by side from one cache, one by one, and by `generate`; and noise beside a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

import probe
from probe.decoding import Sampling, branch
from probe.decoding.caches import joined
from probe.decoding.prefixes import extended
from probe.decoding.sampler import choose
from probe.language_model.stepping import forward, plain_kwargs

from .measure import Peak
from .trace import text_of

WARM = Sampling(temperature=1.0)
DEFAULT = Sampling(temperature=0.6, top_p=0.95)  # what a rewind of a greedy run draws with
ALONE = 2  # branches that stand for all where they run one by one


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print tokens per second of branches, and the share of a decode step that drawing takes."""
    lm = probe.load(model)
    print(f"{lm}  torch threads: {torch.get_num_threads()}")
    lm.eos_ids = set()  # every branch runs to its end
    n, n_new, n_prefix = (8, 8, 64) if quick else (64, 64, 512)
    ids = lm.encode(text_of(lm, n_prefix)).ids[:n_prefix]
    if only in (None, "speed"):
        speed(lm, ids, n, n_new, rounds=max(1, repeat // 5))
    if only in (None, "noise"):
        for rows in (1, n):
            noise(lm, ids, rows, repeat=4 if quick else 4 * repeat)


def speed(lm: probe.LanguageModel, ids: Sequence[int], n: int, n_new: int, *, rounds: int) -> None:
    """Tokens per second in turn, ratios within a round, peak memory above the model's."""
    batch = torch.tensor([ids], device=lm.device)

    def side_by_side() -> None:
        branch(lm, [ids], range(n), max_new=n_new, sampling=WARM, batch=n)

    def one_by_one() -> None:
        for sample in range(ALONE):
            branch(lm, [ids], [sample], max_new=n_new, sampling=WARM)

    def generate() -> None:
        lm.model.generate(
            batch, attention_mask=torch.ones_like(batch), num_return_sequences=n, do_sample=True, top_k=0, pad_token_id=0,
            max_new_tokens=n_new, eos_token_id=None,
        )  # fmt: skip

    cases: list[tuple[str, Callable[[], None], int, float | None]] = [
        (f"branch, {n} side by side", side_by_side, n, None),
        ("one by one, prefix anew each time", one_by_one, ALONE, 8.0),
        (f"generate(num_return_sequences={n})", generate, n, 1.2),
    ]
    one_by_one()
    rates: list[list[float]] = [[] for _ in cases]
    peaks = [0.0] * len(cases)
    for _ in range(rounds):
        for i, (_, run, branches, _) in enumerate(cases):
            with Peak() as peak:
                begun = time.perf_counter()
                run()
                rates[i].append(branches * n_new / (time.perf_counter() - begun))
            peaks[i] = max(peaks[i], peak.megabytes)
    print(f"\n{n} branches of {n_new} tokens from {len(ids)}")
    print(f"  {'':<40}{'tokens/s':>10}{'branch is':>11}{'target':>8}{'peak MB':>9}")
    for (name, _, _, target), rate, peak_mb in zip(cases, rates, peaks, strict=True):
        times = statistics.median(ours / own for ours, own in zip(rates[0], rate, strict=True))
        wanted = f"{target:.1f}x" if target else ""
        print(f"  {name:<40}{statistics.median(rate):>10.1f}{times:>10.1f}x{wanted:>8}{peak_mb:>9.0f}")


@torch.inference_mode()
def noise(lm: probe.LanguageModel, ids: Sequence[int], rows: int, *, repeat: int) -> None:
    """Median over steps of the time to draw over the time of the forward before it; greedy is what any choice costs."""
    known = extended(lm, None, tuple(ids), 0)
    text, logits = torch.tensor([list(ids)] * rows, device=lm.device), known.logits.expand(rows, -1)
    kwargs = plain_kwargs(lm, text) | {known.slot: joined([known.cache], [rows])}
    samplings = {"greedy": Sampling(), "temperature 1": WARM, "temperature 0.6, top-p 0.95": DEFAULT}
    seconds: dict[str, list[float]] = {name: [] for name in ("step", *samplings)}
    for step in range(repeat + 2):
        for name, sampling in samplings.items():
            begun = time.perf_counter()
            chosen = choose(logits, text, sampling, samples=range(rows), steps=[step] * rows)
            seconds[name].append(time.perf_counter() - begun)
        text = torch.cat([text, torch.tensor(chosen.tokens, device=lm.device)[:, None]], dim=1)
        begun = time.perf_counter()
        logits, kwargs = forward(lm, text, kwargs, new=1)
        seconds["step"].append(time.perf_counter() - begun)
    steps = seconds.pop("step")[2:]
    print(f"\na decode step of {rows} rows at {len(ids)} tokens: {1000 * statistics.median(steps):.0f} ms; of it (target 10 %)")
    for name, taken in seconds.items():
        share = statistics.median(own / whole for own, whole in zip(taken[2:], steps, strict=True))
        print(f"  choosing, {name:<30}{1000 * statistics.median(taken[2:]):>8.2f} ms{100 * share:>8.1f} %")
