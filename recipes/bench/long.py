"""What a long text costs: time and peak memory of `trace`, in processes of their own, beside a plain forward in chunks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from probe.tiny import tiny

CHUNK = 512
WHAT: dict[str, dict[str, Any]] = {
    "heads": {"attention": "heads"},
    "summary": {"attention": "summary"},
    "topk:8": {"attention": "topk:8"},
    "residuals": {"attention": "none", "capture": "resid_post@all"},
    "lens": {"attention": "none", "lens": True},
}
# a process of its own: model, tokens, chunk (0: one forward), what is asked for (null: the plain forward), folder
CHILD = """
import json, sys, time
import torch
import probe
from probe.decoding.caches import held, slot
from probe.instrument import tapping
from probe.requests import Trace
from probe.memory import peak_memory
from probe.tracing import plan_trace
from recipes.bench.trace import text_of

model, n, chunk, asked, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[5]
lm = probe.load(model)
text, plan = text_of(lm, n - 1), None
if asked is None:
    ids = torch.tensor([lm.encode(text).ids])
    taps = [lm.anatomy.tap("resid_post", layer) for layer in range(lm.anatomy.n_layers)]
    begun = time.process_time()
    with torch.no_grad(), tapping(lm.model, dict.fromkeys(taps, lambda resid: None)):
        cache = None
        for part in ids.split(chunk, dim=1):
            given = {} if cache is None else {slot(lm.model): cache}
            cache = held(lm.model(part, use_cache=True, logits_to_keep=1, **given))
else:
    plan = plan_trace(lm, Trace(text, prefill_chunk_size=chunk, **asked))["peak_memory_bytes"]
    begun = time.process_time()
    probe.trace(lm, text, out=folder, prefill_chunk_size=chunk, **asked)
print(json.dumps({"seconds": time.process_time() - begun, "peak": peak_memory(), "plan": plan}))
"""


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print seconds of a processor, their ratio to the plain forward with hooks, the peak of the process, and that told before.

    only: a kind of recording. The default model has too short a context: one of random weights stands in for it."""
    lengths = (1_024, 2_048) if quick else (2_048, 8_192, 32_768)
    with tempfile.TemporaryDirectory() as name:
        if model == "smollm2":
            model = _made(Path(name) / "model")
        print(f"{model}; chunks of {CHUNK}")
        print(f"  {'tokens':>7} {'':<24}{'seconds':>9}{'ratio':>8}{'doubling':>10}{'peak MB':>9}{'told':>7}")
        before: dict[str, tuple[int, float]] = {}
        for n in lengths:
            plain = _measured(model, n, CHUNK, None, Path(name) / "run")
            _row(n, "plain, in chunks", plain, plain, before)
            for what, asked in WHAT.items():
                for chunk in (0, CHUNK) if only in (None, what) else ():
                    found = _measured(model, n, chunk, asked, Path(name) / f"run-{n}-{what[:4]}-{chunk}")
                    _row(n, f"{what}, {'in chunks' if chunk else 'one forward'}", found, plain, before)


def _made(folder: Path) -> str:
    """A model of random weights with room for long texts."""
    model, tokenizer = tiny(
        "llama", layers=2, hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        vocab_size=16_384, max_position_embeddings=40_000,
    )  # fmt: skip
    tokenizer.model_max_length = 40_000
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _measured(model: str, n: int, chunk: int, asked: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    words = [sys.executable, "-c", CHILD, model, str(n), str(chunk), json.dumps(asked), str(folder)]
    found: dict[str, Any] = json.loads(
        subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
    )
    return found


def _row(n: int, name: str, found: dict[str, Any], plain: dict[str, Any], before: dict[str, tuple[int, float]]) -> None:
    """One measurement. doubling: how many times the seconds each time that the tokens double."""
    seconds, doubling = found["seconds"], ""
    if name in before:
        length, earlier = before[name]
        doubling = f"{(seconds / earlier) ** (1 / math.log2(n / length)):.2f}"
    before[name] = n, seconds
    told = f"{found['plan'] / 1e6:.0f}" if found["plan"] else ""
    ratio = seconds / plain["seconds"]
    print(f"  {n:>7,} {name:<24}{seconds:>9.2f}{ratio:>8.2f}{doubling:>10}{found['peak'] / 1e6:>9.0f}{told:>7}", flush=True)
