"""The exact sweep: every cell patched and the model run on from there, many cells side by side. Knows no table, no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.errors import NonFinite
from probe.interventions import Edit
from probe.patching.grid import Slice
from probe.patching.memory import rows_at_once
from probe.patching.metrics import Readout, logprobs_of, read_out
from probe.patching.pairs import Pair
from probe.patching.rest import Text, last_logits
from probe.patching.swaps import Swap, swaps
from probe.patching.trial import choose_way
from probe.sites import SITES

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


@dataclass(frozen=True)
class View:
    """One pair as the model sees it: `clean`, the log-probs (d_vocab,) of the clean run; `ends`, the metrics of the clean
    and of the corrupt run (2,)."""

    pair: Pair
    direction: str
    clean: Tensor
    ends: Readout

    @property
    def start(self) -> Readout:
        """The metrics of the base, unpatched (1,)."""
        row = 1 if self.direction == "denoise" else 0
        return Readout(*(column[row : row + 1] for column in self.ends))


@dataclass(frozen=True)
class Scene(View):
    """With the base text, ready to be patched."""

    base: Text


class Measured(NamedTuple):
    """Metrics of the cells of a slice, in its order, which of them took a pass (n,) bool, and, where the metrics are foretold,
    what those that were run gave (n,), NaN for the others."""

    readout: Readout
    passed: np.ndarray
    exact: np.ndarray | None = None


def scene(lm: LanguageModel, pair: Pair, direction: str, edits: Sequence[Edit] = ()) -> Scene:
    """Run both texts of a pair, under `edits`. Raises `NonFinite` for logits that are no numbers."""
    base = Text(lm, pair.base(direction), edits)
    other = last_logits(lm, pair.source(direction), edits)
    clean, corrupt = (other, base.logits) if direction == "denoise" else (base.logits, other)
    for name, logits in (("clean", clean), ("corrupt", corrupt)):
        if bool(logits.isnan().any()):
            raise NonFinite(f"the logits of the {name} text are not finite numbers", hint="try --dtype float32")
    logprobs = logprobs_of(clean)
    ends = read_out(torch.stack([clean, corrupt]), pair.target, logprobs)
    choose_way(base)
    return Scene(pair, direction, logprobs, ends, base)


def exact(
    view: Scene, part: Slice, old: Tensor, new: Tensor, *, budget: int, paired: bool = True,
    report: Callable[[int], None] = lambda done: None,
) -> Measured:  # fmt: skip
    """Metrics with each cell of the slice patched. old, new (pos, [head,] d): what the base has there, what it is to take.

    Cells where both are equal are the base. paired: `new` are the other text's own values, so that positions before the
    first difference are equal by causality, whatever rounding says. report: told how many cells are done.
    """
    needed = [i for i, swap in enumerate(part.swaps) if _matters(view, part, swap, old, new, paired=paired)]
    columns = [np.repeat(column, len(part.swaps)) for column in view.start]
    done = len(part.swaps) - len(needed)
    report(done)
    for members in _batches(view, part, needed, budget):
        rows = [part.swaps[i] for i in members]
        edit = swaps(part.site, part.layer, rows, new)
        logits = patched_logits(view, edit, part, len(rows), min(row.positions[0] for row in rows))
        for column, found in zip(columns, read_out(logits, view.pair.target, view.clean), strict=True):
            column[members] = found
        done += len(members)
        report(done)
    return Measured(Readout(*columns), np.isin(np.arange(len(part.swaps)), needed))


def patched_logits(view: Scene, edit: Edit, part: Slice, rows: int, start: int) -> Tensor:
    """Logits (row, d_vocab) of the base with an edit of the slice's site, none before position `start`."""
    if view.base.way is None:
        return view.base.whole(rows, [edit])
    return view.base.rest(rows, [edit], layer=entry(view.base.lm, part.site, part.layer), start=start)


def entry(lm: LanguageModel, site: str, layer: int) -> int:
    """The first block that has to run when a site is changed; as many as there are if none."""
    return int(max(0, min(SITES[site].moment(layer), lm.anatomy.n_layers)))


def _matters(view: Scene, part: Slice, swap: Swap, old: Tensor, new: Tensor, *, paired: bool) -> bool:
    """Whether the patch changes anything that is read."""
    lm, last = view.base.lm, len(view.base) - 1
    if lm.anatomy.causal and paired and swap.positions[-1] < view.pair.first:
        return False
    if lm.anatomy.causal and entry(lm, part.site, part.layer) == lm.anatomy.n_layers and swap.positions[-1] < last:
        return False  # no block follows that could carry it to the last position
    where = list(swap.positions)
    a, b = (values[where] if swap.head is None else values[where, swap.head] for values in (old, new))
    return not torch.equal(a, b)


def _batches(view: Scene, part: Slice, needed: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cells that run together: neighbours, so that few positions are computed that only the first of them needs."""
    n, lm = len(view.base), view.base.lm
    ordered = sorted(needed, key=lambda i: part.swaps[i].positions[0])
    at = 0
    while at < len(ordered):
        first = part.swaps[ordered[at]].positions[0]
        first = first if view.base.way and view.base.way.known else 0
        size = rows_at_once(lm, new=n - first, n=n, budget=budget)
        yield ordered[at : at + size]
        at += size
