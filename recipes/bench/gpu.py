"""On an accelerator, in bf16: reads beside forwards, captures beside hooks, rollouts beside `generate`, sweeps beside loops.

One script of under eight minutes by its own clock: no part is begun after its time. What it prints last is for RESULTS.md.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import probe
from probe.capturing import AttentionSpec, MemorySink, read
from probe.decoding import Sampling
from probe.decoding.rollouts import LocalEngine, Rollout
from probe.devices import free_bytes
from probe.errors import OutOfMemory
from probe.fitting import fitting
from probe.instrument import tapping
from probe.sites import parse_places

SECONDS = 7 * 60  # after which no part is begun; the longest takes less than the minute that is left
RESIDUAL = ("resid_pre@all", "resid_post@all", "attn_out@all", "mlp_out@all")
# layers, width, of the MLP, heads, key heads: Llama's own of 1 and of 8 billion parameters, and one for a rehearsal
SIZES = {"8B": (32, 4096, 14336, 32, 8), "1B": (16, 2048, 8192, 32, 8), "tiny": (3, 64, 128, 4, 2)}


class Ratio(NamedTuple):
    """One thing beside its baseline: median seconds of both, and the median of their ratios."""

    name: str
    baseline: float
    seconds: float
    ratio: float


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print every comparison on a model of random weights, made on the device by its config: as large as fits, or tiny (quick).

    `--model` is not read: nothing is downloaded. Without an accelerator it is a rehearsal of the script, not a measurement.
    """
    began = time.perf_counter()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    where = device or torch.device("cpu")
    size = "tiny" if quick or device is None else _largest(where)
    lm = made(size, where)
    name = _machine(where)
    print(f"{size} ({sum(p.numel() for p in lm.model.parameters()):,} parameters), {lm.dtype}, {name}")
    lengths = (16, 32) if size == "tiny" else (512, 2048, 8192)
    parts: dict[str, Callable[[], list[Ratio]]] = {
        "forwards": lambda: forwards(lm, lengths, repeat),
        "captures": lambda: captures(lm, lengths[1], repeat),
        "rollouts": lambda: rollouts(lm, 16 if size == "tiny" else 256, 8 if size == "tiny" else 128),
        "sweep": lambda: sweep(lm, 12 if size == "tiny" else 128),
    }
    rows: list[Ratio] = []
    try:
        for part, run in parts.items():
            if only not in (None, part):
                continue
            if time.perf_counter() - began > SECONDS:
                print(f"{part}: not begun, the time is over")
                continue
            try:
                with fitting(part, hint="a smaller size"):
                    found = run()
            except OutOfMemory as error:
                print(error.message)
                continue
            rows += found
            for row in found:
                print(f"{row.name:<52}{row.seconds:>10.4f} s{row.baseline:>10.4f} s{row.ratio:>8.2f}", flush=True)
    finally:  # an error of one part does not take away what the others came to
        print(f"{time.perf_counter() - began:.0f} s in all\n\n{table(rows, name, size, rehearsal=device is None)}")


def made(size: str, device: torch.device) -> probe.LanguageModel:
    """A Llama of random weights in bf16, made on the device, with the tokenizer of the tiny one."""
    layers, width, hidden, heads, kv_heads = SIZES[size]
    small = probe.load("tiny:llama", device="cpu")
    config = LlamaConfig(
        vocab_size=4_096 if size == "tiny" else 128_256, hidden_size=width, intermediate_size=hidden,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=16_384,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return probe.LanguageModel(model, small.tokenizer, name=f"llama of {size}")


def _largest(device: torch.device) -> str:
    """The largest size of which the weights take a third of what is free, at most."""
    free = free_bytes(device) or 0
    return "8B" if free > 48e9 else "1B"


def texts(lm: probe.LanguageModel, rows: int, n: int) -> torch.Tensor:
    """Ids (row, pos) of random tokens that the tokenizer has."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, len(lm.tokenizer), (rows, n), generator=generator).to(lm.device)


def forwards(lm: probe.LanguageModel, lengths: tuple[int, ...], repeat: int) -> list[Ratio]:
    """`read` (scores of every token; with head summaries too) beside the plain forward, at several lengths and batches."""
    found = []
    for n in lengths:
        for rows in sorted({1, max(1, 4 * lengths[0] // n)}):
            ids = texts(lm, rows, n)
            for name, spec in (("scores", "none"), ("head summaries", "heads")):

                def recorded(ids: torch.Tensor = ids, spec: str = spec, rows: int = rows, n: int = n) -> None:
                    read(lm, ids, [n] * rows, sink=MemorySink(), attention=AttentionSpec.parse(spec))

                def plain(ids: torch.Tensor = ids) -> None:
                    with torch.no_grad():
                        lm.model(ids, use_cache=False)

                found.append(compared(f"read, {name}: {rows} x {n} / forward", plain, recorded, repeat))
    return found


def captures(lm: probe.LanguageModel, n: int, repeat: int) -> list[Ratio]:
    """Residual sites of all layers kept by `read`, and read back into a run by `trace`, beside hooks that keep them there."""
    text = lm.tokenizer.decode(texts(lm, 1, n)[0])
    ids = torch.tensor([lm.encode(text).ids], device=lm.device)  # what random bytes are read as is longer
    asked = [place for text in RESIDUAL for place in parse_places(text)]
    taps = [lm.anatomy.tap(place.site, layer) for place in asked for layer in range(lm.anatomy.n_layers)]
    cells = lm.anatomy.cells(asked)

    def hooks() -> None:
        kept: list[torch.Tensor] = []
        with torch.no_grad(), tapping(lm.model, dict.fromkeys(taps, kept.append)):
            lm.model(ids, use_cache=False)

    def kept_there() -> None:
        read(lm, ids, [ids.shape[1]], sink=MemorySink(), cells=cells)

    def traced() -> None:
        probe.trace(lm, text, capture=list(RESIDUAL), attention="none", store="bf16")

    name = f"{len(taps)} sites of {ids.shape[1]} tokens"
    return [
        compared(f"read, {name} / hooks", hooks, kept_there, repeat),
        compared(f"trace, {name}, in memory / hooks", hooks, traced, repeat),
    ]


def rollouts(lm: probe.LanguageModel, n: int, new: int) -> list[Ratio]:
    """64 rollouts of one prefix beside `generate` of a batch of 64: seconds of a token of each."""
    ids, rows = texts(lm, 1, n), 64

    def generated() -> None:
        lm.model.generate(
            ids.expand(rows, -1), attention_mask=torch.ones_like(ids).expand(rows, -1), max_new_tokens=new, min_new_tokens=new,
            do_sample=True, temperature=1.0, pad_token_id=0,
        )  # fmt: skip

    def drawn() -> None:
        some = [Rollout(tuple(ids[0].tolist()), i, new, 0) for i in range(rows)]
        LocalEngine(lm).draw(some, Sampling(1.0), done=lambda place, found: None)

    return [compared(f"{rows} rollouts of {n} + {new} tokens / generate", generated, drawn, 1)]


def sweep(lm: probe.LanguageModel, n: int) -> list[Ratio]:
    """`patch` of every position of three layers beside a loop with a hook and a whole forward for each."""
    clean, other = texts(lm, 2, n)
    layers = sorted({0, lm.anatomy.n_layers // 2, lm.anatomy.n_layers - 1})
    pair = [lm.tokenizer.decode(ids) for ids in (clean, other)]
    length = min(len(lm.encode(text).ids) for text in pair)
    whole = [torch.tensor([lm.encode(text).ids[:length]], device=lm.device) for text in pair]
    pair = [lm.pieces(ids[0].tolist()).text for ids in whole]

    def loop() -> None:
        for layer in layers:
            tap, kept = lm.anatomy.tap("resid_pre", layer), list[torch.Tensor]()
            with torch.no_grad(), tapping(lm.model, {tap: kept.append}):
                lm.model(whole[0], use_cache=False, logits_to_keep=1)
            for position in range(length):

                def put(value: torch.Tensor, position: int = position, kept: list[torch.Tensor] = kept) -> torch.Tensor:
                    changed = value.clone()
                    changed[:, position] = kept[0][:, position]
                    return changed

                with torch.no_grad(), tapping(lm.model, {tap: put}):
                    lm.model(whole[1], use_cache=False, logits_to_keep=1)

    def swept() -> None:
        sites = [f"resid_pre@{layer}" for layer in layers]
        probe.patch(lm, pairs=[(*pair, "a", "b")], sites=sites, align="right")

    return [compared(f"sweep of {len(layers)} x {length} cells / loop", loop, swept, 1)]


def compared(name: str, baseline: Callable[[], object], run: Callable[[], object], repeat: int) -> Ratio:
    """Both in turn, `repeat` times after once for warming up, each until the device has done it."""
    pairs = []
    for turn in range(repeat + 1):
        pair = _timed(baseline), _timed(run)
        if turn or not repeat:
            pairs.append(pair)
    return Ratio(
        name, statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )  # fmt: skip


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - began


def _machine(device: torch.device) -> str:
    """The name of the device, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def table(rows: list[Ratio], machine: str, size: str, *, rehearsal: bool) -> str:
    """The rows as Markdown, to be put at the end of RESULTS.md."""
    what = "rehearsal of the script on a CPU: no measurement of an accelerator" if rehearsal else "bf16"
    head = f"## {machine}, {size}, torch {torch.__version__}, transformers {transformers.__version__} ({what})"
    lines = [f"| {row.name} | {row.seconds:.4f} | {row.baseline:.4f} | {row.ratio:.2f} |" for row in rows]
    return "\n".join([head, "", "| what / baseline | seconds | baseline | ratio |", "|---|---:|---:|---:|", *lines])
