"""What `Lines`, `largest` and whole rows are by compiled loops: the same numbers of float32 tensors on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from probe.capturing.patterns import Block, Source
from probe.capturing.statistics import Lines, Matches

_NONE = np.zeros((0, 1), np.float32)  # no sinks


class CompiledLines(Lines):
    """Fills the sums of `Lines` in one pass."""

    def __init__(self, source: Source, matches: Matches, *, peaks: bool) -> None:
        """See `Lines`."""
        super().__init__(source, matches, peaks=peaks)
        self._found = self._sums.numpy()  # views of it don't hand the interpreter to another thread, as torch's do

    def add(self, block: Block, scores: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """See `Lines.add`; the mass takes the place of the scores, and `room` isn't needed."""
        from probe.kernels import loops

        source, (head, n_heads, start, end, low, _) = self._source, block
        sinks = source.sinks(block)
        loops.attention(
            scores.numpy(), _NONE if sinks is None else sinks.contiguous().numpy(), source.normalized,
            source.later(start, end), head, start, low, *self._matches.earlier, self._found, self._peaks.numpy(),
        )  # fmt: skip
        kept, rest = self._found[:2, head : head + n_heads, start:end]
        return scores, torch.from_numpy(kept + rest)


def largest(mass: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `probe.scoring.largest`: mass (row, key) -> the largest (row, k) and their keys."""
    from probe.kernels import loops

    k = min(k, mass.shape[1])
    values, keys = torch.empty(len(mass), k), torch.empty(len(mass), k, dtype=torch.int64)
    loops.largest(mass.numpy(), values.numpy(), keys.numpy())
    return values, keys


def cut(mass: Tensor, total: Tensor, low: int, lengths: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights mass (head, query, key) / total (head, query) of keys from `low` on, put into `values` as whole rows.

    lengths (head * query,). Returns the sum of each row.
    """
    from probe.kernels import loops

    kept = np.empty(total.numel(), np.float32)
    loops.cut(mass.numpy(), total.numpy(), low, lengths, values, kept)
    return kept
