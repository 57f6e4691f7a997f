"""Partial forwards: blocks from one on and positions from one on, by the model's own modules. Knows no metric.

By causality a change at (layer, position) leaves lower layers, and earlier positions of every layer, as they were. So the
blocks below give at once what they gave before, and the positions before are keys and values that are already known.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from probe.anatomy.sums import apart, loudest
from probe.anatomy.tape import probe_tokens
from probe.decoding.caches import FilledLayer, expected, held, pads, slot
from probe.fitting import halving
from probe.instrument import Tap, bypassing, emptied, filled, recording, tapping, wrapped
from probe.interventions import Edit, applying
from probe.interventions.edits import AbsolutePositions
from probe.language_model.stepping import plain_kwargs, stepped, uncached_kwargs
from probe.patching.cells import CellPositions, batch_patch
from probe.patching.reading import SiteLayer, Watch, ended, keeper
from probe.sites import SITES

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

CELL, HINT = "one patched text", "shorter texts, or --dtype bfloat16"  # where memory does not suffice
TOLERANCE = 2e-5  # of the largest logit, in fp32: sums in another order
_keeping: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
_tried: weakref.WeakKeyDictionary[nn.Module, tuple[int, Shortcut | None, str]] = weakref.WeakKeyDictionary()


class SharedPrefixLayer(FilledLayer):
    """Keys and values (1, head, pos, d) of the positions before, for every row of a batch; what follows them is not kept."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = len(key_states)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


class Shortcut(NamedTuple):
    """How the rest of a forward is run: after positions whose keys and values are `known`, or all positions anew; and with
    the `last` position alone in the final norm, or with all."""

    known: bool
    last: bool


class RecordedText:
    """One text as the model reads it under `edits`, by one forward: what goes into each block, keys and values, the logits
    (read, d_vocab) of its last position and of what is given after it (`tail`), the `values` of the sites that were asked for
    and the `raw` tensors of taps. Its length is that of text and tail.

    `resid[l]` (1, pos, d_model) goes into block l, the last entry comes out of the last block. `shortcut` is how a partial
    forward is run; where it is None, `why_not` says why a forward cannot be entered in the middle.
    """

    def __init__(
        self, lm: LanguageModel, ids: Sequence[int], edits: Sequence[Edit] = (), *, tail: Sequence[int] = (),
        wheres: Sequence[SiteLayer] = (), raw: Collection[Tap] = (),
    ) -> None:  # fmt: skip
        self.lm, self.ids = lm, torch.tensor([[*ids, *tail]], device=lm.device)
        self.n_text, self.reads = len(ids), 1 + len(tail)
        self.edits: tuple[Edit, ...] = ()
        self.resid: list[Tensor] = []
        self.values: dict[SiteLayer, Tensor] = {}
        self.raw: dict[Tap, Tensor] = {}
        self.why_not = _no_stream(lm)
        self.shortcut = None if self.why_not else Shortcut(known=_keeps_keys(lm), last=True)
        self._forms: list[Any] = []
        self._known: list[tuple[Tensor, Tensor]] = []
        self.logits = self._read(Watch(lm, ids, wheres, tail=tail), edits, raw)

    def __len__(self) -> int:
        return self.ids.shape[1]

    def patched(self, rows: int, edit: Edit, *, start: int) -> Tensor:
        """Logits (row, read, d_vocab), with an edit of one site that changes nothing before position `start` of the text."""
        if self.shortcut is None:
            return self.full_forward(rows, [edit])
        layer = entry(self.lm, edit.cell.site, edit.cell.layer)
        return self.partial_forward(rows, [edit], layer=layer, start=start)

    @torch.no_grad()
    def full_forward(self, rows: int, edits: Sequence[Edit]) -> Tensor:
        """Logits (row, read, d_vocab), by a full forward of so many rows."""
        with applying(self.lm, [*self.edits, *edits], start=0):
            return ended(self.lm, self.ids.expand(rows, -1), read=self.reads)

    @torch.no_grad()
    def partial_forward(self, rows: int, edits: Sequence[Edit], *, layer: int, start: int) -> Tensor:
        """The same logits, where no edit comes before block `layer` or position `start`.

        An edit of what comes out of the block below is one of what goes into block `layer`.
        """
        lm, shortcut = self.lm, self.shortcut
        assert shortcut is not None and lm.anatomy.final_norm is not None, self.why_not
        start = start if shortcut.known else 0
        own = [edit for edit in self.edits if SITES[edit.cell.site].moment(edit.cell.layer) > layer or not layer]
        last = {Tap(lm.anatomy.final_norm.path, "input"): self._last} if shortcut.last else {}
        with applying(lm, [*own, *edits], start=start), tapping(lm.model, last), ExitStack() as active:
            if layer:
                value = self.resid[layer][:, start:].repeat(rows, 1, 1)
                below = zip(lm.anatomy.layers, self._forms[:layer], strict=False)
                outputs = {block.block: filled(form, value) for block, form in below}
                active.enter_context(bypassing(lm.model, outputs))
            ids = self.ids.expand(rows, -1)
            if not start:
                return ended(lm, ids, read=self.reads)
            known = [SharedPrefixLayer(k[..., :start, :], v[..., :start, :]) for k, v in self._known]
            cache = {str(slot(lm.model)): Cache(layers=known)}  # type: ignore[arg-type]
            kwargs = {**plain_kwargs(lm, ids, read=self.reads), **cache}
            logits: Tensor = stepped(lm, ids, kwargs, new=len(self) - start).logits
            return logits[:, -self.reads :]

    def _last(self, value: Tensor) -> Tensor:
        """Only the positions that are read reach the final norm and the head."""
        return value[:, -self.reads :]

    @torch.no_grad()
    def _read(self, watch: Watch, edits: Sequence[Edit], raw: Collection[Tap]) -> Tensor:
        """One forward for everything."""
        lm, anatomy = self.lm, self.lm.anatomy
        blocks = {} if self.shortcut is None else {layer.block: i for i, layer in enumerate(anatomy.layers)}
        taps = [anatomy.tap("resid_pre", i) for i in blocks.values()]
        taps += [anatomy.tap("resid_post", anatomy.n_layers - 1)] if blocks else []
        kept: dict[int, Tensor] = {}
        forms: dict[int, Any] = {}

        def record(path: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if path in blocks:
                forms[blocks[path]] = emptied(output, anatomy.tap("resid_post", blocks[path]).key)

        known = self.shortcut is not None and self.shortcut.known
        cache = {"use_cache": True, str(slot(lm.model)): DynamicCache()} if known else {}
        with ExitStack() as hooked:
            self.edits = hooked.enter_context(watch.active(edits))
            hooked.enter_context(tapping(lm.model, {tap: keeper(self.raw, tap) for tap in raw}))
            hooked.enter_context(tapping(lm.model, {tap: keeper(kept, i) for i, tap in enumerate(taps)}))
            if blocks:
                hooked.enter_context(recording(lm.model, record))
            output = lm.model(self.ids, **{**uncached_kwargs(lm, read=self.reads), **cache})
        self.values = watch.values()
        self.resid, self._forms = [kept[i] for i in range(len(kept))], [forms[i] for i in range(len(forms))]
        if known:
            self._known = [(layer.keys, layer.values) for layer in held(output).layers]
        logits: Tensor = output.logits[0, -self.reads :]
        return logits


def entry(lm: LanguageModel, site: str, layer: int) -> int:
    """The first block that has to run when a site is changed; as many as there are if none."""
    return int(max(0, min(SITES[site].moment(layer), lm.anatomy.n_layers)))


def _no_stream(lm: LanguageModel) -> str:
    """Why a forward of this model cannot be entered in the middle, as far as its parts tell."""
    anatomy = lm.anatomy
    layers = range(anatomy.n_layers)
    if not anatomy.causal:
        return "later tokens change earlier ones"
    if not layers or not all(anatomy.has("resid_pre", i) and anatomy.has("resid_post", i) for i in layers):
        return "the stream between its blocks is not found"
    if anatomy.final_norm is None:
        return "its final norm is not found"
    paths = [layer.block for layer in anatomy.layers]
    if len(set(paths)) < len(paths):
        return "a block of it is visited several times"
    ends = [anatomy.tap("resid_post", i) for i in layers]
    if any(tap.side != "output" or tap.path != path for tap, path in zip(ends, paths, strict=True)):
        return "the stream is not what its blocks return"
    if any(wrapped(lm.model.get_submodule(path)) for path in paths):
        return "its blocks are wrapped already"
    return ""


@torch.no_grad()
def _keeps_keys(lm: LanguageModel) -> bool:
    """Whether the model's cache is keys and values, and nothing that a position leaves behind otherwise; tried once a model."""
    if lm.model not in _keeping:
        usual = slot(lm.model) is not None and pads(expected(lm.model.config))
        _keeping[lm.model] = usual and pads(held(lm.model(probe_tokens(lm.model), use_cache=True)))
    return _keeping[lm.model]


def choose_shortcut(text: RecordedText) -> None:
    """Set the text's `way` to the fastest that gives the same logits as a whole forward, or to None and say why not.

    A model is tried once, and again for a longer text, in which a window may hide what a short one shows.
    """
    if text.shortcut is None:
        return
    longest, shortcut, why = _tried.get(text.lm.model, (0, text.shortcut, ""))
    if longest < len(text):
        shortcut, why = _tried_on(text)
        _tried[text.lm.model] = (len(text), shortcut, why)
    text.shortcut, text.why_not = shortcut, why


def _tried_on(text: RecordedText) -> tuple[Shortcut | None, str]:
    n_layers, n = text.lm.anatomy.n_layers, text.n_text
    starts = {0: n // 2, 1: n // 3, n_layers // 2: 2 * n // 3, n_layers - 1: n // 2, n_layers: n - 1}
    edits = [_edit(text, layer, start) for layer, start in starts.items()]

    def whole(some: list[Edit]) -> Tensor:
        own = [edit.for_row(0, row, edit.absolute or AbsolutePositions()) for row, edit in enumerate(some)]
        return text.full_forward(len(some), own)

    wanted = torch.cat([found for _, found in halving(edits, whole, what=CELL, hint=HINT)])
    assert text.shortcut is not None
    why = ""
    for shortcut in [
        Shortcut(known, last) for known in ((True, False) if text.shortcut.known else (False,)) for last in (True, False)
    ]:
        text.shortcut = shortcut
        why = _failure(text, edits, starts, wanted)
        if not why:
            return shortcut, ""
    return None, why


def _failure(text: RecordedText, edits: Sequence[Edit], starts: Mapping[int, int], wanted: Tensor) -> str:
    """What is wrong with the text's way; empty if nothing is."""
    try:
        found = torch.cat([
            text.partial_forward(1, [edit], layer=layer, start=start)
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


def _edit(text: RecordedText, layer: int, start: int) -> Edit:
    """Noise of the stream's own size on what goes into a block, at one position."""
    stream = text.resid[layer][0].float()
    noise = torch.randn(stream.shape, generator=torch.Generator().manual_seed(layer)).to(stream.device)
    site, of = ("resid_pre", layer) if layer < text.lm.anatomy.n_layers else ("resid_post", layer - 1)
    return batch_patch(site, of, [CellPositions((start,), None)], stream + stream[start].std() * noise)
