"""Teacher forcing: what the model gives to texts that follow one prefix. The prefix is computed once; nothing is sampled."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probe.decoding.caches import grows, held, slot
from probe.decoding.prefixes import Known
from probe.errors import BadModel
from probe.fitting import halving
from probe.language_model.stepping import cache_support

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

BATCH_TOKENS = 2048  # padded suffix tokens in one forward; their logits are the largest tensor here
_ROWS = 64  # rows of logits that are normalised at once


def suffix_logprobs(lm: LanguageModel, prefix: Sequence[int], suffixes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Raw log-probs (len(suffix),) in nats, float32, of the tokens of each suffix after the prefix (at least one token).

    Equal to one forward over prefix + suffix to fp32 rounding.
    """
    return Prefix(lm, prefix).logprobs(suffixes)


def token_logprobs(logits: Tensor, ids: Sequence[int]) -> np.ndarray:
    """Log-softmax of logits (n, d_vocab) at ids (n,): nats, float32."""
    targets = torch.tensor(list(ids), device=logits.device, dtype=torch.long)[:, None]
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(ids), _ROWS):
        rows = logits[start : start + _ROWS].float()
        own = rows.gather(1, targets[start : start + _ROWS]) - rows.logsumexp(-1, keepdim=True)
        parts.append(own[:, 0].cpu().numpy())
    return np.concatenate(parts)


class Prefix:
    """Ids and the model's cache of them, which can grow and be followed by other ids again and again.

    Where the cache is not keys and values alone the prefix is computed anew each time: some families forget a recurrent
    state when several tokens follow it (jamba, transformers 5.23). The numbers are the same.
    """

    @torch.inference_mode()
    def __init__(self, lm: LanguageModel, ids: Sequence[int]) -> None:
        if not ids:
            raise ValueError("a prefix has at least one token")
        self.lm, self.ids = lm, list(ids)
        self._accepted = inspect.signature(lm.model.forward).parameters
        self._slot = slot(lm.model) or ""
        output = self._run([self.ids], keep=1)
        self._last = output.logits[:, -1]  # (1, d_vocab): predicts the next token
        cache = held(output)
        self._cache: Any = cache if grows(cache) else None

    def fork(self) -> Prefix:
        """Another that begins with the same ids and grows by itself."""
        other = copy.copy(self)
        other.ids, other._cache = list(self.ids), copy.deepcopy(self._cache)
        return other

    @property
    def known(self) -> Known | None:
        """The same for continuations to begin from, which leave it as it is; None where no several tokens can follow."""
        return None if self._cache is None else Known(self._last, self._cache, self._slot)

    def logprobs(self, suffixes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Raw log-probs (len(suffix),) in nats, float32, of the tokens of each suffix; the prefix stays as it is.

        Suffixes run together, padded on the right, which no causal model can see.
        """
        found = [np.empty(0, np.float32)] * len(suffixes)

        def score(rows: list[int]) -> None:
            if len(rows) == 1:
                found[rows[0]] = self._scored(suffixes[rows[0]])
                return
            for row, logits in zip(rows, self.teacher_forced([suffixes[r] for r in rows]), strict=True):
                found[row] = token_logprobs(logits, suffixes[row])

        for batch in _batches(suffixes):
            for _ in halving(batch, score, what="one text", hint="a shorter one, or --dtype bfloat16"):
                pass
        return found

    def _scored(self, ids: Sequence[int]) -> np.ndarray:
        """The same of one, however long: its logits are never held together."""
        if len(ids) > 1:
            check_beginnings(self.lm)
        parts = [token_logprobs(self._last[: len(ids)], ids[:1])]
        for logits in self._after(ids[:-1]) if len(ids) > 1 else ():
            done = sum(map(len, parts))
            parts.append(token_logprobs(logits, ids[done : done + len(logits)]))
        return np.concatenate(parts)

    @torch.inference_mode()
    def extend(self, ids: Sequence[int]) -> Tensor:
        """Take ids into the prefix; logits (len(ids), d_vocab) that predicted them."""
        if not ids:
            return self._last[:0]
        check_beginnings(self.lm)
        if self._cache is None:
            output = self._run([self.ids + list(ids)], keep=len(ids))
        else:
            output = self._run([list(ids)], cache=self._cache)
        found = torch.cat([self._last, output.logits[0, -len(ids) :]])
        self.ids, self._last = self.ids + list(ids), found[-1:]
        return found[:-1]

    @torch.inference_mode()
    def teacher_forced(self, suffixes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits (len(suffix), d_vocab) that predict the tokens of each suffix; the prefix stays as it is."""
        longest = max(map(len, suffixes))
        if longest <= 1:
            return [self._last[: len(s)] for s in suffixes]
        check_beginnings(self.lm)
        if len(suffixes) == 1:
            return [torch.cat([self._last, *self._after(suffixes[0][:-1])])]
        padded = [[*s[:-1], *[self.ids[-1]] * (longest - max(1, len(s)))] for s in suffixes]
        if self._cache is None:
            output = self._run([self.ids + row for row in padded], keep=longest - 1)
        else:
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(len(suffixes))
            output = self._run(padded, cache=cache)
        logits = output.logits[:, 1 - longest :]
        return [torch.cat([self._last, own])[: len(s)] for s, own in zip(suffixes, logits, strict=True)]

    @torch.inference_mode()
    def after_gap(self, ids: Sequence[int], skipped: int, *, last: bool = False) -> Iterator[Tensor]:
        """Logits (token, d_vocab) *after* each of ids that follow a gap of `skipped` positions: what stood there is gone.

        They come `BATCH_TOKENS` at a time; of each time the last alone, with `last`. The same as forbidding these tokens to
        look at the gap in all layers and heads (METHODS M12). Raises `BadModel` where positions cannot be given, or a recurrent
        state or a window counts tokens and not positions.
        """
        start, origin = len(self.ids) + skipped, cache_support(self.lm).origin
        if origin is None or self._cache is None or _windowed(self._cache, start + len(ids)):
            raise BadModel(
                f"'{self.lm.name}' cannot skip positions: it has no keys and values of every position to leave out",
                hint="use another method",
            )
        return self._after(ids, first=start + origin, last=last)

    @torch.inference_mode()
    def _after(self, ids: Sequence[int], *, first: int | None = None, last: bool = False) -> Iterator[Tensor]:
        """The same without a gap; the prefix stays as it is. first: the position of the first, if the model is to be told.

        From the cache `BATCH_TOKENS` at a time, because a mask has a number for each token and each that it may see."""
        if self._cache is None:
            yield self._run([self.ids + list(ids)], keep=len(ids)).logits[0, -len(ids) :]
            return
        cache = copy.deepcopy(self._cache)
        for at in range(0, len(ids), BATCH_TOKENS):
            some, more = list(ids[at : at + BATCH_TOKENS]), {}
            if first is not None:
                more = {"position_ids": torch.arange(first + at, first + at + len(some), device=self.lm.device)[None]}
            yield self._run([some], keep=int(last), cache=cache, **more).logits[0, -1 if last else 0 :]

    def _run(self, ids: list[list[int]], *, keep: int = 0, cache: Any = None, **more: Any) -> Any:
        if cache is not None:
            more[self._slot] = cache
        if keep and "logits_to_keep" in self._accepted:
            more["logits_to_keep"] = keep
        if "use_cache" in self._accepted:
            more["use_cache"] = cache_support(self.lm).cached and not cache_support(self.lm).needs_positions
        return self.lm.model(torch.tensor(ids, device=self.lm.device), return_dict=True, **more)


def check_beginnings(lm: LanguageModel) -> None:
    """Raises `BadModel` for a model whose logits after a text's beginning depend on what follows."""
    if not cache_support(lm).causal:
        raise BadModel(
            f"'{lm.name}' reads what follows too: a text's beginning gives other numbers alone", hint="use a causal model"
        )


def _windowed(cache: Any, n: int) -> bool:
    """Whether a layer sees fewer than the last n positions."""
    return any((getattr(layer, "sliding_window", None) or n) < n for layer in cache.layers)


def _batches(suffixes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows of similar length together, so that little is padded; empty suffixes too (they score nothing)."""
    order = sorted(range(len(suffixes)), key=lambda r: len(suffixes[r]))
    batches: list[list[int]] = []
    for row in order:
        width = max(1, len(suffixes[row]))
        if batches and width * (len(batches[-1]) + 1) <= BATCH_TOKENS and len(suffixes[batches[-1][0]]) * 2 >= width:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
