"""What recording costs: captures, attention, memory, decoding, start-up; each beside the plain thing it is compared with."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import probe
from probe.capturing import AttentionSpec, MemorySink, read
from probe.decoding import Sampling, decode
from probe.instrument import tapping
from probe.sites import parse_places

from .measure import Case, Peak, compare, resident, show

RESIDUAL = ["resid_pre@all", "resid_mid@all", "resid_post@all", "attn_out@all", "mlp_out@all"]
WORDS = "The quick brown fox jumps over the lazy dog while seven wizards discuss the price of tea in small towns. "


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print every comparison of `trace` with the plain model, or only one of them."""
    lm = probe.load(model)
    print(f"{lm}  torch threads: {torch.get_num_threads()}")
    lm.anatomy  # noqa: B018  (found before anything is timed)
    short, long, longest = (64, 128, 256) if quick else (512, 2048, 8192)
    parts = {
        "captures": lambda: captures(lm, text_of(lm, short), repeat=repeat),
        "attention": lambda: attention(lm, text_of(lm, long), repeat=repeat),
        "very_long": lambda: very_long(lm, text_of(lm, longest)),
        "decoding": lambda: decoding(lm, text_of(lm, 32), new=16 if quick else 64, repeat=repeat),
        "start_up": lambda: start_up(model, repeat=repeat),
    }
    for name, run in parts.items():
        if only in (None, name):
            run()


def text_of(lm: probe.LanguageModel, n: int) -> str:
    """A text of about `n` tokens that is not the same sentence over and over."""
    pieces = lm.encode("".join(f"{i}. {WORDS}" for i in range(n // 8 + 2))).ids[:n]
    return lm.pieces(pieces).text


def plain(lm: probe.LanguageModel, text: str) -> Case:
    ids = torch.tensor([lm.encode(text).ids], device=lm.device)

    def forward() -> None:
        with torch.no_grad():
            lm.model(ids)

    return Case(f"plain model(ids), {ids.shape[1]} tokens", forward)


def traced(lm: probe.LanguageModel, text: str, name: str, target: float | None, *, disk: bool = False, **what: Any) -> Case:
    """A whole `probe.trace` of the text: in memory, or written to a run that is removed again."""
    folder = Path(tempfile.gettempdir()) / f"probe-bench-{os.getpid()}"

    def run() -> None:
        probe.trace(lm, text, out=folder / "run" if disk else None, **what)

    def clear() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    return Case(name, run, target, clear)


def tapped(lm: probe.LanguageModel, text: str) -> Case:
    """The plain forward with hooks that only keep the residual sites: what no instrument can do without."""
    sites = [place.site for asked in RESIDUAL for place in parse_places(asked)]
    taps = [lm.anatomy.tap(site, layer) for site in sites for layer in range(lm.anatomy.n_layers)]
    forward = plain(lm, text)

    def run() -> None:
        kept: list[torch.Tensor] = []
        with tapping(lm.model, dict.fromkeys(taps, kept.append)):
            forward.run()

    return Case("the same with hooks that keep them all", run)


def captures(lm: probe.LanguageModel, text: str, *, repeat: int) -> None:
    cases = [
        tapped(lm, text),
        looked(lm, text, "read, nothing but scores", None),
        looked(lm, text, "read, all residual sites into memory", 1.10, places=RESIDUAL),
        traced(lm, text, "trace, tokens only", None, attention="none"),
        traced(lm, text, "trace, all residual sites, written", 1.7, disk=True, attention="none", capture=RESIDUAL),
        traced(lm, text, "the same, rounded to bf16", None, disk=True, attention="none", capture=RESIDUAL, store="bf16"),
    ]
    show("captures (baseline: plain forward)", compare(plain(lm, text), cases, repeat=repeat))


def looked(
    lm: probe.LanguageModel, text: str, name: str, target: float | None, *,
    places: Sequence[str] = (), attention: str = "none",
) -> Case:  # fmt: skip
    """The instrumented forward alone, into memory: what is recorded beside the scores of every token."""
    ids = torch.tensor([lm.encode(text).ids], device=lm.device)
    asked = [place for text in places for place in parse_places(text)]
    cells = lm.anatomy.cells(asked)
    spec = AttentionSpec.parse(attention)
    return Case(name, lambda: read(lm, ids, [ids.shape[1]], cells=cells, attention=spec, sink=MemorySink()), target)


def attention(lm: probe.LanguageModel, text: str, *, repeat: int) -> None:
    cases = [
        looked(lm, text, "read, heads", 1.15, attention="heads"),
        traced(lm, text, "trace, heads", 1.15, attention="heads"),
        traced(lm, text, "trace, summary (a line a row), written", None, disk=True, attention="summary"),
        traced(lm, text, "trace, topk:8, written", 1.5, disk=True, attention="topk:8"),
        traced(lm, text, "trace, full rows, written", 3.0, disk=True, attention="full"),
    ]
    show("attention (baseline: plain forward, sdpa)", compare(plain(lm, text), cases, repeat=repeat))


def very_long(lm: probe.LanguageModel, text: str) -> None:
    """One trace of a long text: what the process holds, of which the model is a part."""
    with Peak() as peak:
        begun, start = time.perf_counter(), resident()
        probe.trace(lm, text, attention="heads")
    seconds, n = time.perf_counter() - begun, len(lm.encode(text).ids)
    most = start / 1e6 + peak.megabytes
    print(f"\n{n} tokens with head summaries: {seconds:.1f} s; process at most {most:.0f} MB (target 6000)")


def decoding(lm: probe.LanguageModel, text: str, *, new: int, repeat: int) -> None:
    ids = lm.encode(text).ids
    batch, mask = torch.tensor([ids], device=lm.device), torch.ones(1, len(ids), dtype=torch.long, device=lm.device)
    hugging = Case(
        f"model.generate, {new} tokens, greedy",
        lambda: lm.model.generate(
            batch, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        ),
    )
    ours = Case("decode, greedy", lambda: decode(lm, [ids], max_new=new, sampling=Sampling()), 1.0)
    noisy = Case("decode, temperature 1", lambda: decode(lm, [ids], max_new=new, sampling=Sampling(temperature=1.0)))
    show("decoding (baseline: model.generate)", compare(hugging, [ours, noisy], repeat=repeat))


def start_up(model: str, *, repeat: int) -> None:
    """Seconds of `probe --help`, and of two loads in a process of their own: the first imports transformers' lazy parts."""
    helped = statistics.median(_seconds([sys.executable, "-m", "probe", "--help"]) for _ in range(repeat))
    code = (
        "import time, torch, transformers, probe\n"
        "for _ in range(2):\n"
        f"    begun = time.perf_counter(); probe.load({model!r}); print(time.perf_counter() - begun)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(repeat)]
    first, second = (statistics.median(column) for column in zip(*(map(float, r.stdout.split()) for r in runs), strict=True))
    print(f"\nprobe --help: {helped:.2f} s (target 0.5)")
    print(f"load with transformers' lazy imports: {first:.2f} s   with all imported: {second:.2f} s (target 2)")


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - begun
