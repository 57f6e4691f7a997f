"""What an exact sweep costs beside full forwards with one hook: one by one, and in batches. Long ones are timed on a sample."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

import probe
from probe.instrument import tapping
from probe.interventions import applying
from probe.patching.attribution import products, slopes
from probe.patching.cells import CellPositions, LayerCells, batch_patch, cells_of
from probe.patching.exact import PreparedPair, exact, prepare_pair
from probe.patching.metrics import measure_of
from probe.patching.pairs import Pair, pair_of
from probe.patching.planning import parse_memory
from probe.patching.reading import values
from probe.requests import PatchSweep
from probe.targets import Contrast, token_target

from .measure import Peak
from .trace import text_of

ALONE = 12  # cells that stand for all where they run one by one
BATCHES = 2  # batches that stand for all where whole forwards run in batches
ROWS = 1024  # tokens of such a batch
LAYERS = 2  # of a long text
MEMORY = "1GB"
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "z", "q", "k", "v")


Values = dict[int, torch.Tensor]
"""layer -> (pos, [head,] d) of one text at one site."""


class Timed(NamedTuple):
    """Seconds of all cells, and logit differences of those that were run, by (slice, cell)."""

    seconds: float
    found: dict[tuple[int, int], float]


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print how many times faster a sweep is than the plain ways, and how far from them its numbers are."""
    lm = probe.load(model)
    print(f"{lm}  torch threads: {torch.get_num_threads()}")
    rounds = max(1, repeat // 2)
    short, long = (8, 16) if quick else (20, 200)
    if only in (None, "stream"):
        stream(lm, short, rounds, layers="all")
        stream(lm, long, max(1, rounds // 2), layers=_spread(lm.anatomy.n_layers))
    if only in (None, "heads"):
        heads(lm, short, rounds)
    if only in (None, "gradient"):
        gradient(lm, short, rounds)
        gradient(lm, long, max(1, rounds // 2))
    if only in (None, "budget"):
        budget(lm, long)


def pair_at(lm: probe.LanguageModel, n: int) -> Pair:
    """Texts of n tokens whose first one differs, so that no cell is known to change nothing."""
    ids = tuple(lm.encode(text_of(lm, n)).ids[:n])
    other = lm.ids_of(" Mary")[0]
    return pair_of(
        ids,
        (other, *ids[1:]),
        Contrast(token_target(lm, lm.ids_of(" a")[0]), token_target(lm, other)),
        align=None,
        names=("", ""),
    )


def stream(lm: probe.LanguageModel, n: int, rounds: int, *, layers: str) -> None:
    """The residual stream, layers x positions."""
    asked = PatchSweep(sites=("resid_pre",), layers=layers)
    compare(f"resid_pre, layers {layers} x {n} positions", lm, pair_at(lm, n), asked, rounds,
            targets=(6.0, None) if n < 100 else (None, 3.0))  # fmt: skip


def heads(lm: probe.LanguageModel, n: int, rounds: int) -> None:
    """z, all layers x heads, at all positions at once."""
    compare(f"z, all layers x heads, {n} tokens", lm, pair_at(lm, n), PatchSweep(sites=("z",)), rounds, targets=(4.0, None))


def gradient(lm: probe.LanguageModel, n: int, rounds: int) -> None:
    """Attribution of every site of every layer beside one forward: both texts read, one of them backwards too."""
    pair, anatomy = pair_at(lm, n), lm.anatomy
    wheres = [(site, i) for site in SITES for i in range(anatomy.n_layers) if anatomy.has(site, i)]
    measure = measure_of("logit-diff", pair.target, torch.zeros(anatomy.d_vocab))

    def attributed() -> None:
        other = values(lm, pair.clean, wheres).values
        read = slopes(lm, pair.corrupt, wheres, measure)
        for where in wheres:
            products(read, where, other[where])

    def plain() -> None:
        values(lm, pair.corrupt, ())

    attributed()
    ratios = []
    for _ in range(max(3, rounds)):
        begun = time.perf_counter()
        plain()
        middle = time.perf_counter()
        attributed()
        ratios.append((time.perf_counter() - middle) / (middle - begun))
    ratio = statistics.median(ratios)
    print(f"\nattribution, {len(wheres)} sites of layers at {n} tokens: {ratio:.1f} forwards (target: under 5)")


def compare(
    title: str, lm: probe.LanguageModel, pair: Pair, asked: PatchSweep, rounds: int, *,
    targets: tuple[float | None, float | None]
) -> None:  # fmt: skip
    """Ratios within a round, so that what slows the machine for a while slows all."""
    view = prepare_pair(lm, pair, "denoise")
    parts = cells_of(lm, pair, asked)
    site, where = parts[0].site, [part.layer for part in parts]
    old, new = activations(lm, pair.corrupt, site, where), activations(lm, pair.clean, site, where)
    ways: dict[str, Callable[[], Timed]] = {
        "sweep": lambda: swept(view, parts, old, new),
        "loop of whole forwards, batch 1": lambda: looped(view, parts, new),
        "whole forwards in batches": lambda: batched(view, parts, new),
    }
    ways["loop of whole forwards, batch 1"]()  # warms up
    taken: dict[str, list[Timed]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(way())
    print(f"\n{title}: {sum(len(part.locations) for part in parts)} cells")
    print(f"  {'':<36}{'seconds':>9}{'sweep is':>10}{'target':>8}{'apart by':>10}")
    for (name, runs), target in zip(taken.items(), (None, *targets), strict=True):
        ratio = statistics.median(own.seconds / ours.seconds for own, ours in zip(runs, taken["sweep"], strict=True))
        apart = max(abs(value - taken["sweep"][0].found[cell]) for cell, value in runs[0].found.items())
        wanted = f"{target:.1f}x" if target else ""
        print(f"  {name:<36}{statistics.median(t.seconds for t in runs):>9.2f}{ratio:>9.1f}x{wanted:>8}{apart:>10.1e}")


def swept(view: PreparedPair, parts: Sequence[LayerCells], old: Values, new: Values) -> Timed:
    """Every cell, by the sweep."""
    found = {}
    begun = time.perf_counter()
    for i, part in enumerate(parts):
        measured = exact(view, part, old[part.layer], new[part.layer], budget=parse_memory(MEMORY))
        found.update({(i, j): float(value) for j, value in enumerate(measured.readout.logit_diff)})
    return Timed(time.perf_counter() - begun, found)


@torch.no_grad()
def looped(view: PreparedPair, parts: Sequence[LayerCells], new: Values) -> Timed:
    """A few cells, each a forward of the plain model with one hook; the seconds are of as many as there are."""
    lm, ids, target = view.base.lm, view.base.ids, view.baselines.pair.target
    every = [(i, j) for i, part in enumerate(parts) for j in range(len(part.locations))]
    chosen = [every[k] for k in np.linspace(0, len(every) - 1, min(ALONE, len(every))).astype(int)]
    found = {}
    begun = time.perf_counter()
    for i, j in chosen:
        part, swap = parts[i], parts[i].locations[j]
        with tapping(lm.model, {lm.anatomy.tap(part.site, part.layer): hook(swap, new[part.layer])}):
            logits = lm.model(ids).logits[0, -1]
        found[i, j] = float(target.difference([logits[None]], []))
    return Timed((time.perf_counter() - begun) * len(every) / len(chosen), found)


def activations(lm: probe.LanguageModel, ids: Sequence[int], site: str, layers: Sequence[int]) -> Values:
    """One site of some layers of a text."""
    found = values(lm, ids, [(site, layer) for layer in layers]).values
    return {layer: found[site, layer] for layer in layers}


def hook(swap: CellPositions, values: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What puts one cell's values in their place."""
    where = list(swap.positions)

    def put(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        whole = new if swap.head is None else new.unflatten(-1, values.shape[1:])
        if swap.head is None:
            whole[:, where] = values[where]
        else:
            whole[:, where, swap.head] = values[where, swap.head]
        return new

    return put


@torch.no_grad()
def batched(view: PreparedPair, parts: Sequence[LayerCells], new: Values) -> Timed:
    """A few batches of whole forwards, of about ROWS tokens; the seconds are of as many cells as there are."""
    lm, base, target = view.base.lm, view.base, view.baselines.pair.target
    size = max(1, ROWS // len(base))
    found: dict[tuple[int, int], float] = {}
    begun = time.perf_counter()
    for i in np.linspace(0, len(parts) - 1, BATCHES).astype(int):
        part = parts[i]
        rows = part.locations[:size]
        with applying(lm, [batch_patch(part.site, part.layer, rows, new[part.layer])], start=0):
            logits = lm.model(base.ids.expand(len(rows), -1)).logits[:, -1]
        for j, row in enumerate(logits):
            found[int(i), j] = float(target.difference([row[None]], []))
    total = sum(len(part.locations) for part in parts)
    return Timed((time.perf_counter() - begun) * total / len(found), found)


def budget(lm: probe.LanguageModel, n: int) -> None:
    """The most that a sweep of one layer holds above what it began with, for two budgets."""
    pair = pair_at(lm, n)
    view, parts = (prepare_pair(lm, pair, "denoise"), cells_of(lm, pair, PatchSweep(sites=("resid_pre",), layers="0")))
    old, new = activations(lm, pair.corrupt, "resid_pre", [0]), activations(lm, pair.clean, "resid_pre", [0])
    print(f"\nmemory of a pass, one layer x {n} positions")
    for text in ("20MB", MEMORY):
        give_back()
        with Peak() as peak:
            exact(view, parts[0], old[0], new[0], budget=parse_memory(text))
        print(f"  --memory {text:<8}{peak.megabytes:>9.0f} MB")


def give_back() -> None:
    """Let the allocator return what it holds for later, so that a peak is what the next thing takes (glibc; else no-op)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _spread(n_layers: int) -> str:
    """A few layers whose mean is that of all."""
    step = n_layers / min(LAYERS, n_layers)
    return ",".join(str(int((i + 0.5) * step)) for i in range(min(LAYERS, n_layers)))
