"""Whether drawn steps say the same as the original's: the model's own activations, and the numbers in them (METHODS M2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from probe.capturing import AttentionSpec, MemorySink, read
from probe.errors import BadOption
from probe.registries.step_edits import numbers_in
from probe.sites import parse_places

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

BATCH_TOKENS = 4096


def embeddings(
    lm: LanguageModel, texts: Sequence[Sequence[int]], *, centre: Sequence[Sequence[int]] | None = None,
    pooled: dict[tuple[int, ...], np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """(text, d_model) float64: resid_post of the middle layer, mean over the text's tokens, minus the mean of all texts.

    Each text is read alone, after BOS where the model has one; models' activations share a large common direction, which
    the centring takes away. centre: the mean is of these, which are among the texts. pooled: means over tokens that are known
    already; those of these texts are added.
    """
    layer = lm.anatomy.n_layers // 2
    cells = lm.anatomy.cells(parse_places(f"resid_post@{layer}"))
    start = [] if lm.bos_id is None else [lm.bos_id]
    pooled = {} if pooled is None else pooled
    unique = sorted({tuple(ids) for ids in texts} - pooled.keys(), key=len)
    for batch in _batches(unique):
        rows = [[*start, *ids] for ids in batch]
        lengths = [len(row) for row in rows]
        padded = torch.tensor([row + [row[0]] * (max(lengths) - len(row)) for row in rows], device=lm.device)
        sink = MemorySink()
        read(lm, padded, lengths, cells=cells, attention=AttentionSpec("none"), top=0, lens=False, sink=sink)
        values = sink.activations["resid_post", layer, None].double().cpu().numpy()
        for ids, own, n in zip(batch, values, lengths, strict=True):
            pooled[ids] = own[len(start) : n].mean(axis=0)
    found = np.stack([pooled[tuple(ids)] for ids in texts])
    of = dict.fromkeys(tuple(ids) for ids in (texts if centre is None else centre))
    return found - np.mean([pooled[ids] for ids in of], axis=0)


def external(name: str, texts: Sequence[str]) -> np.ndarray:
    """(text, width) embeddings of a sentence-transformers model; an extra: `pip install mechprobe[embedder]`."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise BadOption(
            "sentence-transformers is not installed", hint="pip install 'mechprobe[embedder]', or drop --embedder"
        ) from error
    return np.asarray(SentenceTransformer(name).encode(list(texts)), np.float64)


def cosines(vectors: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Cosine of each of vectors (n, d) with `to` (d,); 0 for a vector of no length."""
    scale = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(to)
    return np.divide(vectors @ to, scale, out=np.zeros(len(vectors)), where=scale > 0)


def say_otherwise(
    steps: Sequence[str], drawn: Sequence[Sequence[str]], vectors: Sequence[np.ndarray], own: np.ndarray,
    pilot: int | None = None,
) -> tuple[list[np.ndarray], float]:  # fmt: skip
    """For each step, which of its draws say something else: other numbers, or a cosine below the threshold, which is the
    median over all (draw, step) pairs (Bogdan et al. 2025), or those of the first `pilot` draws. Returns (bool arrays,
    threshold)."""
    found = [cosines(v, o) for v, o in zip(vectors, own, strict=True)]
    threshold = float(np.median(np.concatenate([near[:pilot] for near in found])))
    return [
        np.asarray([numbers_in(text) != numbers_in(step) for text in texts]) | (near < threshold)
        for step, texts, near in zip(steps, drawn, found, strict=True)
    ], threshold


def _batches(texts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Texts, shortest first, in batches of at most BATCH_TOKENS padded tokens."""
    batches: list[list[tuple[int, ...]]] = []
    for ids in texts:
        if batches and (len(batches[-1]) + 1) * (len(ids) + 1) <= BATCH_TOKENS:
            batches[-1].append(ids)
        else:
            batches.append([ids])
    return batches
