"""One instrumented forward over finished ids, everything asked of it streamed to a sink; knows no file and no table."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from probe.capturing.activations import LOGITS, ActivationReader
from probe.capturing.attention import AttentionReader, CallReader
from probe.capturing.logits import Unembed, guesses, norms_all, replays, scored, unembedding
from probe.capturing.routing import ROUTER, RoutingReader
from probe.capturing.sinks import AttentionSpec, Sink
from probe.capturing.stopping import stopping
from probe.errors import NonFinite
from probe.instrument import attending, tapping
from probe.language_model.rotary import start_over
from probe.sites import SITES

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.capturing.statistics import SummarySums
    from probe.language_model import LanguageModel
    from probe.scoring import Scores
    from probe.sites import Cell

NOTHING = AttentionSpec("none")


class TextChunk(NamedTuple):
    """A later part of one text: `ids` (1, pos) from its beginning to the end of the part, which begins at `first`.

    following: the token after it, -1 after the last. given: what the model is given of the parts before. sums: what they
    gave to the head summaries. ended: nothing comes after it.
    """

    ids: Tensor
    first: int
    following: int
    given: Mapping[str, Any]
    sums: dict[tuple[int, int], SummarySums]
    ended: bool


class Seen(NamedTuple):
    """What a forward leaves: its scores, what its logits are read out from, how (None: they are logits), the model's output."""

    scores: list[Scores]
    states: Tensor
    unembed: Unembed | None
    output: Any


class Reading(NamedTuple):
    """What a read returns beside what went to the sink. `scores`: one a prompt, row t tells of the token after position t.

    The last row of a prompt tells of no token: its `logprob` and `rank` mean nothing, its distribution does.
    logits(prompt, rows) are those after some of a prompt's positions, (rows, d_vocab), read out again: each call may
    overwrite what the one before returned.
    """

    scores: list[Scores]
    warnings: tuple[str, ...]
    logits: Callable[[int, Any], Tensor]


def read(
    lm: LanguageModel, ids: Tensor, lengths: Sequence[int], *, sink: Sink, cells: Sequence[Cell] = (),
    attention: AttentionSpec = NOTHING, calls: CallReader | None = None, top: int = 5, lens: bool = False, whole: bool = False,
    sets: Sequence[Mapping[str, Sequence[int]]] = (),
) -> Reading:  # fmt: skip
    """One forward over ids (batch, pos), right-padded to their `lengths`; what was asked goes to `sink` while it runs.

    cells: sites to record, at all positions (which of them to keep is the sink's business). attention: how much of every
    layer's pattern. calls: hears of each attention call whose pattern was read. top: alternatives a position. lens: what each
    layer would answer, and of each prompt's `sets` (a column's name -> tokens) how probable it finds any token of one.
    whole: hold the model's own logits of all positions, as is done where they can't be replayed in blocks, or are changed.
    Raises `SiteAbsent` for a cell that the model doesn't have, `NonFinite` for logits that are not numbers.
    """
    with torch.inference_mode(False), torch.no_grad():
        one = OneForward(lm.model, lm.anatomy, ids.to(lm.device), list(lengths), sink, cells, attention, calls)
        seen = one.run(top, lens=lens, whole=whole, sets=sets)
        return Reading(seen.scores, one.attention.messages(), partial(read_out, seen.states, seen.unembed))


def observe(lm: LanguageModel, ids: Tensor, lengths: Sequence[int], *, sink: Sink, cells: Sequence[Cell]) -> None:
    """One forward over ids (batch, pos), right-padded to their `lengths`, of which the cells alone are read: nothing is scored,
    and of logits, and of blocks above the last that is read, what the model can leave out is left out.

    Raises `SiteAbsent` for a cell that the model doesn't have. What is not a finite number goes to the sink as it is.
    """
    with torch.inference_mode(False), torch.no_grad():
        OneForward(lm.model, lm.anatomy, ids.to(lm.device), list(lengths), sink, cells, NOTHING).observe()


class OneForward:
    """One forward: what is hooked, and what it leaves for later."""

    def __init__(
        self, model: nn.Module, anatomy: Anatomy, ids: Tensor, lengths: list[int], sink: Sink, cells: Sequence[Cell],
        attention: AttentionSpec, calls: CallReader | None = None, part: TextChunk | None = None,
    ) -> None:  # fmt: skip
        """ids (batch, pos): of the part only, where it is one."""
        self.model, self.anatomy, self.ids, self.lengths, self.cells = model, anatomy, ids, lengths, cells
        self.sink, self.part = sink, part
        self.inputs = _inputs(model, anatomy, ids, lengths)
        self.activations = ActivationReader(model, anatomy, cells, sink, shape=(ids.shape[0], ids.shape[1]))
        routed = [cell.layer for cell in cells if cell.site == ROUTER]
        self.routing = RoutingReader(anatomy, routed, sink, shape=(ids.shape[0], ids.shape[1]))
        seen, ends = (ids, lengths) if part is None else (part.ids, [part.ids.shape[1]])
        self.attention = AttentionReader(
            attention, seen, ends, sink, layers=anatomy.calls, emit=self.activations.emit, calls=calls,
            patterns=_heads_of(cells, "pattern", anatomy), scores=_heads_of(cells, "scores", anatomy),
            first=part.first if part else 0, ended=part is None or part.ended, sums=part.sums if part else {},
        )  # fmt: skip

    def run(self, top: int, *, lens: bool, whole: bool, sets: Sequence[Mapping[str, Sequence[int]]]) -> Seen:
        """The forward, then what can only be told after it."""
        later = self.part is not None and self.part.first > 0
        if not later:
            start_over(self.model)
        unembed = unembedding(self.model, self.anatomy)
        # whoever hooks the model itself (edits do) may change what it returns
        changed = bool(self.model._forward_hooks)
        whole = whole or changed or self.activations.wants_logits or unembed is None or not self._can_leave_logits()
        kept: dict[Any, list[Tensor]] = {self.anatomy.final_norm: []} if unembed else {}
        if lens:
            kept.update({self.anatomy.tap("resid_post", layer): [] for layer in range(self.anatomy.n_layers)})
        with ExitStack() as hooked:
            hooked.enter_context(tapping(self.model, self.activations.taps(self.ids, also=kept, **self.inputs)))
            hooked.enter_context(tapping(self.model, self.routing.taps()))
            if self.attention.wanted or any(SITES[cell.site].source == "call" for cell in self.cells):
                hooked.enter_context(attending(self.model, self.attention.observe))
            output = self._output(whole=whole)
        self.attention.finish()
        self.activations.check()
        logits: Tensor = output.logits
        hidden = kept[self.anatomy.final_norm][-1] if unembed else None
        # of a later part it is known; and another forward would have its tokens twice
        if unembed is not None and hidden is not None and not later and not replays(unembed, hidden, logits):
            unembed, logits = None, logits if whole else self._output(whole=True).logits
        if self.activations.wants_logits:
            self.activations.emit(LOGITS, -1, logits)
        self._read_returned_attention()
        every = whole or unembed is None
        targets = self._targets()
        scores = scored(
            targets, top, logits=logits if every else None, hidden=hidden, unembed=unembed,
            d_vocab=self.anatomy.d_vocab,
        )  # fmt: skip
        _check_finite(scores)
        if lens:
            resid = [kept[self.anatomy.tap("resid_post", layer)][-1] for layer in range(self.anatomy.n_layers)]
            guesses(self.model, self.anatomy, unembed, resid, targets, top=top, sets=sets, sink=self.sink)
        return Seen(scores, logits if every or hidden is None else hidden, None if every else unembed, output)

    def _targets(self) -> list[Tensor]:
        """Of each prompt the tokens (pos,) that follow its positions; -1 where none does."""
        after = self.ids.new_tensor([-1 if self.part is None else self.part.following])
        return [torch.cat([own[1:n], after]) for own, n in zip(self.ids, self.lengths, strict=True)]

    def observe(self) -> None:
        """The forward alone."""
        start_over(self.model)
        whole = self.activations.wants_logits or not self._can_leave_logits()
        stopped = stopping(self.model, self.anatomy, self.cells, self.ids, **self.inputs)
        with ExitStack() as hooked:
            hooked.enter_context(tapping(self.model, self.activations.taps(self.ids, also={}, **self.inputs)))
            if any(SITES[cell.site].source == "call" for cell in self.cells):
                hooked.enter_context(attending(self.model, self.attention.observe))
            hooked.enter_context(stopped)
            logits = self._output(whole=whole).logits
        self.attention.finish()
        self.activations.check()
        if self.activations.wants_logits:
            self.activations.emit(LOGITS, -1, logits)
        self.attention.check(self.cells)

    def _can_leave_logits(self) -> bool:
        """Whether the model can give the last position's logits only, and still norms all positions."""
        norm = self.anatomy.final_norm
        return (
            norm is not None and _accepts(self.model, "logits_to_keep") and norms_all(self.model, norm, self.ids, **self.inputs)
        )

    def _output(self, *, whole: bool) -> Any:
        """What the model returns; its logits are (batch, pos, d_vocab), or, if it can, of the last position only."""
        few = {} if whole else {"logits_to_keep": 1}
        given = {**self.inputs, **(self.part.given if self.part else {})}
        return self.model(self.ids, **given, **few)

    def _read_returned_attention(self) -> None:
        """Layers whose attention function was not seen: from the weights that the model itself returns, if it does."""
        attention, n_layers = self.attention, self.anatomy.n_layers
        missing = [layer for layer in range(n_layers) if attention.wants(layer) and layer not in attention.reasons]
        if missing and not attention.reasons and self.part is None:  # no layer's function was seen: this model has its own
            found = getattr(self.model(self.ids, **self.inputs, output_attentions=True), "attentions", None) or ()
            returned = {layer: weights for layer, weights in enumerate(found) if len(found) == n_layers}
            for layer in missing:
                if attention.read_returned(layer, returned.get(layer), causal=self.anatomy.causal):
                    attention.warnings.append("attention weights are those that the model returns; its calls can't be seen")
        attention.check(self.cells)


def read_out(states: Tensor, unembed: Unembed | None, prompt: int, rows: Any) -> Tensor:
    """Logits of some rows of one prompt, from states (batch, pos, …): the logits themselves if nothing is to be done."""
    with torch.inference_mode(False), torch.no_grad():
        return states[prompt, rows] if unembed is None else unembed(states[prompt, rows])


def _inputs(model: nn.Module, anatomy: Anatomy, ids: Tensor, lengths: list[int]) -> dict[str, Any]:
    """What the model is given beside the ids. A causal model needs no mask for padding on the right, and is faster without."""
    inputs: dict[str, Any] = {"use_cache": False}
    if not anatomy.causal and min(lengths) < ids.shape[1]:
        ends = torch.tensor(lengths, device=ids.device)[:, None]
        inputs["attention_mask"] = (torch.arange(ids.shape[1], device=ids.device) < ends).long()
    return inputs


def _accepts(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _heads_of(cells: Sequence[Cell], site: str, anatomy: Anatomy) -> dict[int, list[int]]:
    """layer -> heads of which the cells of that site want whole rows; a cell without heads wants all."""
    found: dict[int, set[int]] = defaultdict(set)
    for cell in cells:
        if cell.site == site:
            found[cell.layer].update(range(anatomy.n_heads(site, cell.layer)) if cell.heads is None else cell.heads)
    return {layer: sorted(heads) for layer, heads in found.items()}


def _check_finite(scores: list[Scores]) -> None:
    for prompt, one in enumerate(scores):
        bad = torch.as_tensor(one.entropy).isnan()
        if bool(bad.any()):
            where = int(bad.nonzero()[0])
            raise NonFinite(
                f"the logits after position {where} of prompt {prompt} are not finite numbers",
                hint="try --dtype float32; if they stay so, the weights are damaged",
            )
