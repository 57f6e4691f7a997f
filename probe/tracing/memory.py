"""What reading one long text holds beside the model, in bytes, told from shapes; and whether it is read in chunks. Runs nothing
but the trial of a model's cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from probe import kernels
from probe.capturing.logits import HELD
from probe.capturing.patterns import LARGEST, ROWS
from probe.decoding.caches import expected
from probe.sites import SITES
from probe.tracing.chunked import why_not_chunked

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.tracing.resolving import Tracing

CHUNK = 512  # tokens of a forward, where a text is read in chunks
WRITTEN = 3  # copies of what is written of a layer: as it is read, as Arrow and as Parquet have it
STATISTICS = 40  # float32 of each row of each head, while its statistics are made and become columns
TOP_BYTES = 40  # of each weight that top-k keeps of a row: value and key, sorted out and as columns
MASK = 4  # bytes of each (query, key) while a mask is made
LOOPS = 110_000_000  # numba and its compiled loops, which long texts go through on a CPU
TOKEN_BYTES = 2_000  # of a token's row in Python, Arrow and the steps


class ReadingMemory(NamedTuple):
    """Bytes by what holds them. forward: the tensors of the widest block; masks: (query, key) ones, and scores where the model
    computes them itself; cache: keys and values of all positions; states: those that wait for their end (final norm, lens);
    logits: a block of them; attention: row statistics and tiles; captured: vectors of one site on their way to the disk;
    rows: those of the tables of tokens and steps; loops: what compiles them."""

    forward: int
    masks: int
    cache: int
    states: int
    logits: int
    attention: int
    captured: int
    rows: int
    loops: int


def memory(lm: LanguageModel, tracing: Tracing, n: int, chunk: int | None) -> ReadingMemory:
    """Of a text of n tokens, read in one forward or `chunk` tokens at a time."""
    anatomy, size, c = lm.anatomy, lm.dtype.itemsize, min(n, chunk or n)
    layers = range(anatomy.n_layers)
    mlp = max((_width(lm, "mlp_post", layer) for layer in layers), default=0) or 4 * anatomy.d_model
    heads = max((anatomy.n_heads("pattern", layer) for layer in layers if anatomy.has("pattern", layer)), default=0)
    streams = 1 + (anatomy.n_layers if tracing.request.lens else 0)
    whole_logits = bool(tracing.edits) or not anatomy.readout_exact or any(cell.site == "logits" for cell in tracing.cells)
    kept_logits = n if whole_logits and (chunk is None or _readout(tracing)) else 0
    widest = max((_width(lm, cell.site, cell.layer) for cell in tracing.cells), default=0)
    return ReadingMemory(
        forward=c * (3 * mlp + 5 * anatomy.d_model) * size,
        masks=_masks(lm, c, n, heads, chunked=chunk is not None),
        cache=0 if chunk is None else _cache(lm, n) * 5 // 4,  # with room for more
        states=(n if chunk is None or _readout(tracing) else c) * streams * anatomy.d_model * size,
        logits=max(kept_logits, min(c, max(1, HELD // anatomy.d_vocab))) * anatomy.d_vocab * 4,
        attention=_attention(lm, tracing, c, n, heads),
        captured=c * widest * (size + 4 * WRITTEN),
        rows=n * TOKEN_BYTES,
        loops=LOOPS if kernels.worth(n, lm.device) else 0,
    )


def most_memory(lm: LanguageModel, tracing: Tracing, lengths: Sequence[int]) -> int:
    """Of the batch that holds most: of the longest text, or of shorter ones together; while it is read, or while it grows."""
    request, longest = tracing.request, max(lengths)
    chunk = chunk_of(lm, tracing, longest)
    n = longest if chunk else max(longest, min(sum(lengths), request.batch_tokens))
    grown = _cache(lm, n) if request.generate else 0
    return max(sum(memory(lm, tracing, n, chunk)), grown)


def chunk_of(lm: LanguageModel, tracing: Tracing, n: int) -> int | None:
    """How many tokens a forward over a text of n tokens has; None for all of them.

    What was asked for; else, of a text longer than `CHUNK`, whichever holds less memory. Nothing where the model cannot.
    """
    asked = tracing.request.prefill_chunk_size
    chunk = CHUNK if asked is None else asked
    if not chunk or n <= chunk:
        return None
    if asked is None and sum(memory(lm, tracing, n, None)) <= sum(memory(lm, tracing, n, chunk)):
        return None
    return None if unchunked(lm, tracing, n) else chunk


def unchunked(lm: LanguageModel, tracing: Tracing, n: int) -> str:
    """Why a text of n tokens is read in one forward, if it was to be read in chunks; empty if it can be, or is short.

    To be asked before edits are at work."""
    if n <= (tracing.request.prefill_chunk_size or CHUNK):
        return ""
    return why_not_chunked(lm, n, patterns=_patterns(tracing))


def _patterns(tracing: Tracing) -> bool:
    """Whether anything of attention patterns is asked for."""
    return tracing.attention.mode != "none" or any(cell.site in ("pattern", "scores") for cell in tracing.cells)


def _readout(tracing: Tracing) -> bool:
    """Whether logits are read out again when all is read."""
    request = tracing.request
    return tracing.explain is not None or request.answer_set is not None or request.against_set is not None


def _width(lm: LanguageModel, site: str, layer: int) -> int:
    """Values at a position, of all heads together; 0 where the model does not have the site."""
    anatomy = lm.anatomy
    if not SITES[site].at_positions or not anatomy.has(site, layer):
        return 0
    return anatomy.site(site, layer).width * max(1, anatomy.n_heads(site, layer))


def _cache(lm: LanguageModel, n: int) -> int:
    """Bytes of keys and values of all layers after n tokens."""
    windows = _windows(lm)
    widths = {layer: _width(lm, "k", layer) + _width(lm, "v", layer) for layer in range(lm.anatomy.n_layers)}
    return lm.dtype.itemsize * sum(min(n, windows.get(layer, n)) * width for layer, width in widths.items())


def _windows(lm: LanguageModel) -> dict[int, int]:
    """Layers that see a window of positions only, and how many that is."""
    layers = getattr(expected(lm.model.config), "layers", [])
    found = {i: getattr(layer, "sliding_window", None) for i, layer in enumerate(layers)}
    return {i: window for i, window in found.items() if window}


def _masks(lm: LanguageModel, c: int, n: int, heads: int, *, chunked: bool) -> int:
    """What the model makes of its masks, and its attention function of one; eager attention also has the scores, the weights
    and their float32. Of one forward without windows sdpa needs no mask."""
    size, implementation = lm.dtype.itemsize, lm.identity["attention"]
    if implementation == "eager":
        return c * n * (MASK + size + heads * (2 * size + 4))
    made = chunked or any(window < n for window in _windows(lm).values())
    return c * n * (MASK + size) if made and implementation == "sdpa" else 0


def _attention(lm: LanguageModel, tracing: Tracing, c: int, n: int, heads: int) -> int:
    """Row statistics of a layer, its largest weights, and a tile's scores and weights in each thread."""
    spec = tracing.attention
    if not heads or not _patterns(tracing):
        return 0
    threads = torch.get_num_threads() if lm.device.type == "cpu" else 1
    top = TOP_BYTES * min(spec.k, n) if spec.mode == "topk" else 0
    return heads * c * (4 * STATISTICS + top) + threads * 2 * 4 * min(ROWS * n, LARGEST)
