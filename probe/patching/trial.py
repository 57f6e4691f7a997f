"""Whether entering a model's forward in the middle gives what a whole forward gives: tried on the user's own text."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from probe.anatomy.sums import apart, loudest
from probe.interventions import Edit
from probe.interventions.edits import AbsolutePositions
from probe.patching.rest import Text, Way
from probe.patching.swaps import Swap, swaps

TOLERANCE = 2e-5  # of the largest logit, in fp32: sums in another order
_tried: weakref.WeakKeyDictionary[nn.Module, tuple[int, Way | None, str]] = weakref.WeakKeyDictionary()


def choose_way(text: Text) -> None:
    """Set the text's `way` to the fastest that gives the same logits as a whole forward, or to None and say why not.

    A model is tried once, and again for a longer text, in which a window may hide what a short one shows.
    """
    if text.way is None:
        return
    longest, way, why = _tried.get(text.lm.model, (0, text.way, ""))
    if longest < len(text):
        way, why = _tried_on(text)
        _tried[text.lm.model] = (len(text), way, why)
    text.way, text.why_not = way, why


def _tried_on(text: Text) -> tuple[Way | None, str]:
    n_layers, n = text.lm.anatomy.n_layers, len(text)
    starts = {0: n // 2, 1: n // 3, n_layers // 2: 2 * n // 3, n_layers - 1: n // 2, n_layers: n - 1}
    edits = [_edit(text, layer, start) for layer, start in starts.items()]
    wanted = text.whole(
        len(edits), [e.for_row(0, row, e.absolute or AbsolutePositions()) for row, e in enumerate(edits)]
    )
    assert text.way is not None
    why = ""
    for way in [
        Way(known, last) for known in ((True, False) if text.way.known else (False,)) for last in (True, False)
    ]:
        text.way = way
        why = _failure(text, edits, starts, wanted)
        if not why:
            return way, ""
    return None, why


def _failure(text: Text, edits: Sequence[Edit], starts: Mapping[int, int], wanted: Tensor) -> str:
    """What is wrong with the text's way; empty if nothing is."""
    try:
        found = torch.cat([
            text.rest(1, [edit], layer=layer, start=start)
            for edit, (layer, start) in zip(edits, starts.items(), strict=True)
        ])  # fmt: skip
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        return f"its blocks do not run alone ({type(error).__name__}: {error})"
    return _differ(found, wanted)


def _differ(found: Tensor, wanted: Tensor) -> str:
    tolerance = max(TOLERANCE, 8 * torch.finfo(wanted.dtype).eps)
    if found.shape != wanted.shape:
        return f"its blocks alone give {tuple(found.shape)} logits"
    off = float((apart(found, wanted).max() / loudest(wanted)).nan_to_num(nan=1.0))
    return "" if off <= tolerance else f"its blocks alone give other logits (by {off:.1e} of the largest)"


def _edit(text: Text, layer: int, start: int) -> Edit:
    """Noise of the stream's own size on what goes into a block, at one position."""
    stream = text.resid[layer][0].float()
    noise = torch.randn(stream.shape, generator=torch.Generator().manual_seed(layer)).to(stream.device)
    site, of = ("resid_pre", layer) if layer < text.lm.anatomy.n_layers else ("resid_post", layer - 1)
    return swaps(site, of, [Swap((start,), None)], stream + stream[start].std() * noise)
