"""The rest of a forward: blocks from one on and positions from one on, by the model's own modules. Knows no metric.

By causality a change at (layer, position) leaves lower layers, and earlier positions of every layer, as they were. So the
blocks below give at once what they gave before, and the positions before are keys and values that are already known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from probe.anatomy.tape import probe_tokens
from probe.decoding.caches import expected, held, pads, slot
from probe.instrument import Reader, Tap, recording, tapping
from probe.interventions import Edit, applying
from probe.language_model.stepping import forward, plain_kwargs, uncached_kwargs
from probe.sites import SITES

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Key = TypeVar("Key")


class KnownLayer(DynamicLayer):
    """Keys and values (1, head, pos, d) of the positions before, for every row of a batch; what follows them is not kept."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = len(key_states)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


class Way(NamedTuple):
    """How the rest of a forward is run: after positions whose keys and values are `known`, or all positions anew; and with
    the `last` position alone in the final norm, or with all."""

    known: bool
    last: bool


class Text:
    """One text as the model reads it under `edits`: what goes into each block, keys and values, the last logits (d_vocab,).

    `resid[l]` (1, pos, d_model) goes into block l, the last entry comes out of the last block. `way` is how its rest is
    run; where it is None, `why_not` says why its forward cannot be entered in the middle.
    """

    def __init__(self, lm: LanguageModel, ids: Sequence[int], edits: Sequence[Edit] = ()) -> None:
        self.lm, self.ids = lm, torch.tensor([list(ids)], device=lm.device)
        self.edits: tuple[Edit, ...] = ()
        self.resid: list[Tensor] = []
        self.why_not = _no_stream(lm)
        self.way = None if self.why_not else Way(known=_keeps_keys(lm), last=True)
        self._forms: list[Any] = []
        self._known: list[tuple[Tensor, Tensor]] = []
        self.logits = self._read(edits)

    def __len__(self) -> int:
        return self.ids.shape[1]

    @torch.no_grad()
    def whole(self, rows: int, edits: Sequence[Edit]) -> Tensor:
        """Logits (row, d_vocab) after the last token, by a full forward of so many rows."""
        with applying(self.lm, [*self.edits, *edits], start=0):
            return ended(self.lm, self.ids.expand(rows, -1))

    @torch.no_grad()
    def rest(self, rows: int, edits: Sequence[Edit], *, layer: int, start: int) -> Tensor:
        """The same logits, where no edit comes before block `layer` or position `start`.

        An edit of what comes out of the block below is one of what goes into block `layer`.
        """
        lm, way = self.lm, self.way
        assert way is not None and lm.anatomy.final_norm is not None, self.why_not
        start = start if way.known else 0
        own = [edit for edit in self.edits if SITES[edit.cell.site].moment(edit.cell.layer) > layer or not layer]
        last = {Tap(lm.anatomy.final_norm.path, "input"): _last} if way.last else {}
        with applying(lm, [*own, *edits], start=start), tapping(lm.model, last), ExitStack() as active:
            if layer:
                value = self.resid[layer][:, start:].repeat(rows, 1, 1)
                active.enter_context(skipping(lm, self._forms[:layer], value))
            ids = self.ids.expand(rows, -1)
            if not start:
                return ended(lm, ids)
            known = [KnownLayer(k[..., :start, :], v[..., :start, :]) for k, v in self._known]
            kwargs = {**plain_kwargs(lm, ids), str(slot(lm.model)): Cache(layers=known)}  # type: ignore[arg-type]
            return forward(lm, ids, kwargs, new=self.ids.shape[1] - start)[0]

    @torch.no_grad()
    def _read(self, edits: Sequence[Edit]) -> Tensor:
        lm, anatomy = self.lm, self.lm.anatomy
        if self.way is None:
            with applying(lm, edits, ids=self.ids) as applied:
                self.edits = applied.edits
                return ended(lm, self.ids)[0]
        taps = [anatomy.tap("resid_pre", layer) for layer in range(anatomy.n_layers)]
        kept: dict[int, Tensor] = {}
        readers = {
            tap: keeper(kept, i) for i, tap in enumerate([*taps, anatomy.tap("resid_post", anatomy.n_layers - 1)])
        }
        blocks = {layer.block: i for i, layer in enumerate(anatomy.layers)}
        forms: dict[int, Any] = {}

        def record(path: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if path in blocks:
                forms[blocks[path]] = _emptied(output, anatomy.tap("resid_post", blocks[path]).key)

        cache = {"use_cache": True, str(slot(lm.model)): DynamicCache()} if self.way.known else {}
        with applying(lm, edits, ids=self.ids) as applied, tapping(lm.model, readers), recording(lm.model, record):
            self.edits = applied.edits
            output = lm.model(self.ids, **{**uncached_kwargs(lm), **cache})
        self.resid = [kept[i] for i in range(len(kept))]
        self._forms = [forms[i] for i in range(anatomy.n_layers)]
        if self.way.known:
            self._known = [(layer.keys, layer.values) for layer in held(output).layers]
        logits: Tensor = output.logits[0, -1]
        return logits


def keeper(kept: dict[Key, Tensor], key: Key) -> Reader:
    """Puts a copy of what it reads where the key is."""

    def keep(value: Tensor) -> None:
        kept[key] = value.clone()

    return keep


def _last(value: Tensor) -> Tensor:
    """Only the last position reaches the final norm and the head."""
    return value[:, -1:]


@torch.no_grad()
def last_logits(lm: LanguageModel, ids: Sequence[int], edits: Sequence[Edit] = ()) -> Tensor:
    """Logits (d_vocab,) after a text, under edits."""
    batch = torch.tensor([list(ids)], device=lm.device)
    with applying(lm, edits, ids=batch):
        return ended(lm, batch)[0]


def ended(lm: LanguageModel, ids: Tensor) -> Tensor:
    """Logits (row, d_vocab) after ids (row, pos)."""
    logits: Tensor = lm.model(ids, **uncached_kwargs(lm)).logits
    return logits[:, -1]


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
    if any("forward" in vars(lm.model.get_submodule(path)) for path in paths):
        return "its blocks are wrapped already"
    return ""


@torch.no_grad()
def _keeps_keys(lm: LanguageModel) -> bool:
    """Whether the model's cache is keys and values, and nothing that a position leaves behind otherwise."""
    if slot(lm.model) is None or not pads(expected(lm.model.config)):
        return False
    return pads(held(lm.model(probe_tokens(lm.model), use_cache=True)))


def _emptied(output: Any, key: int | str) -> Any:
    """What a block returned, with `...` for the stream and without other tensors (weights, which only a reader wants)."""
    if isinstance(output, Tensor):
        return ...
    return tuple(... if i == key else None if isinstance(x, Tensor) else x for i, x in enumerate(output))


@contextmanager
def skipping(lm: LanguageModel, forms: Sequence[Any], value: Tensor) -> Iterator[None]:
    """While active, the first blocks do nothing: each returns `value` (batch, pos, d_model), in the form it returns."""
    with ExitStack() as undo:
        for layer, form in zip(lm.anatomy.layers, forms, strict=False):
            block = lm.model.get_submodule(layer.block)
            given = value if form is ... else tuple(value if x is ... else x for x in form)
            undo.callback(vars(block).pop, "forward")
            vars(block)["forward"] = _giver(given)
        yield


def _giver(given: Any) -> Any:
    def give(*_: Any, **__: Any) -> Any:
        return given

    return give
