"""A model that reads a text which grows and is taken back again: its cache is cropped, never begun anew where it can be."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.anatomy.checking import read_out
from probe.anatomy.sums import apart, loudest
from probe.anatomy.tape import probe_tokens
from probe.decoding.caches import held, make_room, pads, slot
from probe.errors import BadOption
from probe.instrument import tapping

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


_tried: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class CachedModel:
    """One model and its cache of `ids`. `logits` reads on from what the text and `ids` have in common.

    Where the cache is more than plain keys and values (a recurrent state can't be taken back), or going back doesn't give
    the numbers of a whole forward, every text is read from its beginning, and `goes_back` is False.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.goes_back, self.width = lm, True, 0  # width: of the logits, once there were some
        self.ids: list[int] = []
        self.cache: Any = None
        self._accepted = inspect.signature(lm.model.forward).parameters
        self._slot = slot(lm.model) or ""

    def logits(self, ids: Sequence[int], keep: int) -> Tensor:
        """Logits (keep, d_vocab) after each of the last `keep` of ids."""
        self.go_back(ids, keep)
        output = self.run(ids[len(self.ids) :], keep)
        if self.cache is None and self.goes_back:
            self._hold(held(output))
        self.ids = list(ids) if self.goes_back else []
        found: Tensor = output.logits[0, -keep:]
        self.width = found.shape[-1]
        return found

    def go_back(self, ids: Sequence[int], keep: int = 1) -> None:
        """Forget all that is not a beginning of ids, and their last `keep`."""
        known = len(self.ids)
        same = known if self.ids == list(ids[:known]) else _common(self.ids, ids)
        same = min(same, len(ids) - keep)
        if self.cache is None or same < 1:
            self.cache, self.ids = None, []
            return
        if not all(holds_before(layer, known - same) for layer in self.cache.layers):
            self.cache, self.ids = None, []
            return
        for layer in self.cache.layers:
            crop(layer, known - same)
        self.ids = self.ids[:same]

    def run(self, ids: Sequence[int], keep: int) -> Any:
        """One forward over ids that follow what is cached."""
        more: dict[str, Any] = {} if self.cache is None else {self._slot: self.cache}
        if "logits_to_keep" in self._accepted:
            more["logits_to_keep"] = keep
        if "use_cache" in self._accepted:
            more["use_cache"] = self.goes_back
        return self.lm.model(torch.tensor([list(ids)], device=self.lm.device), return_dict=True, **more)

    def _hold(self, cache: Any) -> None:
        """Keep what a first forward left, if it can be taken back from now on."""
        self.goes_back = cache is not None and pads(cache) and _goes_back(self.lm)
        if self.goes_back:
            # a window then keeps what leaves it until the next crop
            cache.activate_past_recording()
            make_room(cache)
            self.cache = cache


def _goes_back(lm: LanguageModel) -> bool:
    """Whether a few tokens, taken back and read on from, give what a forward over all of them gives; tried once a model."""
    if lm.model not in _tried:
        _tried[lm.model] = True  # for the trial itself
        _tried[lm.model] = _trial(lm)
    return _tried[lm.model]


def _trial(lm: LanguageModel) -> bool:
    ids = probe_tokens(lm.model)[0].tolist()
    half, reader = len(ids) // 2, CachedModel(lm)
    whole = reader.run(ids, len(ids)).logits[0, half:].float()
    try:
        reader.logits(ids[:half], 1)
        reader.logits([*ids[:half], *ids[:3]], 3)
        found = reader.logits(ids, len(ids) - half).float()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # some families' own code takes one token at a time, and says so in any of these ways
    tolerance = max(1e-3, 8 * torch.finfo(lm.dtype).eps)
    return bool(apart(found, whole).max() <= tolerance * loudest(whole))


def crop(layer: Any, n: int) -> None:
    """Take the last n positions out of a layer of a cache; one that never held any is left alone.

    To take out none is not asked of a window: it would forget what it needs when more is taken out later.
    """
    if n and getattr(layer, "keys", None) is not None:
        layer.crop(-n)


def holds_before(layer: Any, n: int) -> bool:
    """Whether a layer still holds all that it looked at n positions ago: a window forgets, with each crop, what left it."""
    window, keys = getattr(layer, "sliding_window", None), getattr(layer, "keys", None)
    if not n or not window or keys is None:
        return True
    return bool(keys.shape[-2] - n >= min(window - 1, layer.get_seq_length() - n))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class _Enough(Exception):
    """The forward has come as far as it has to."""

    def __init__(self, resid: Tensor) -> None:
        self.resid = resid


class EarlyExit:
    """The first n blocks of a reader's model, then its final norm and head (LayerSkip, Elhoushi et al. 2024, 2404.16710).

    The model's own forward runs and is left after block n - 1. It goes on from the reader's cache, in which these blocks
    write: `give_back` takes that out again.
    """

    def __init__(self, reader: CachedModel, n: int) -> None:
        anatomy = reader.lm.anatomy
        self._reader, self._anatomy, self._tap = reader, anatomy, check_exit(reader.lm, n)
        self._lengths: list[int] | None = None
        self._ahead = 0

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits (1, d_vocab) after ids, which go on from what the reader has read and this has."""
        reader = self._reader
        if reader.cache is not None and self._lengths is None:
            self._lengths = [layer.get_seq_length() for layer in reader.cache.layers]
        new = list(ids[len(reader.ids) + self._ahead :])

        def leave(resid: Tensor) -> None:
            raise _Enough(resid)

        try:
            with tapping(reader.lm.model, {self._tap: leave}):
                reader.run(new, 1)
        except _Enough as found:
            resid = found.resid.reshape(-1, found.resid.shape[-1])[-1:]
        else:
            raise AssertionError("the forward never came to the block's output")
        if reader.cache is not None:
            self._ahead += len(new)
        return read_out(reader.lm.model, self._anatomy, resid)

    def give_back(self) -> None:
        """Take out of the reader's cache what was written since."""
        if self._lengths is not None:
            for layer, before in zip(self._reader.cache.layers, self._lengths, strict=True):
                if layer.get_seq_length() > before:
                    crop(layer, layer.get_seq_length() - before)
        self._lengths, self._ahead = None, 0


def check_exit(lm: LanguageModel, n: int) -> Any:
    """Where block n - 1 leaves the stream; raises `BadOption` where that or the readout is not found, or n is out of range."""
    anatomy = lm.anatomy
    if not anatomy.n_layers:
        raise BadOption(f"no blocks were found in '{lm.name}': {anatomy.reason('blocks')}", hint="use another draft")
    if not 1 <= n <= anatomy.n_layers:
        raise BadOption(f"'{lm.name}' has {anatomy.n_layers} blocks, not {n}", hint=f"layers:1 to layers:{anatomy.n_layers}")
    if anatomy.head is None or not anatomy.readout_exact:
        raise BadOption(
            f"the logits of '{lm.name}' are not known to be norm and head of the last block: {anatomy.reason('final_norm')}",
            hint="use another draft",
        )
    if not anatomy.has("resid_post", n - 1):
        raise BadOption(
            f"the stream after block {n - 1} of '{lm.name}' is not found: {anatomy.reason('resid_post', n - 1)}",
            hint="use another draft",
        )
    return anatomy.tap("resid_post", n - 1)
