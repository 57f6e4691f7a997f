"""Teacher forcing: what the model gives to texts that follow one prefix. The prefix is computed once; nothing is sampled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

BATCH_TOKENS = 2048  # padded suffix tokens in one forward; their logits are the largest tensor here
_ROWS = 64  # rows of logits that are normalised at once


class Forced(NamedTuple):
    """What one suffix scored: `logprob` (n,) in nats, float32; `logits` (n, d_vocab) of its tokens if they were asked for."""

    logprob: np.ndarray
    logits: Tensor | None


@torch.inference_mode()
def forced(
    lm: LanguageModel, prefix: Sequence[int], suffixes: Sequence[Sequence[int]], *, logits: bool = False
) -> list[Forced]:
    """Raw log-probs of the tokens of each suffix, given the prefix (at least one token) and the suffix's tokens before.

    Equal to one forward over prefix + suffix to fp32 rounding. Suffixes run together, padded on the right, which no causal
    model can see. `logits` keeps them (CPU, float32): n * d_vocab numbers a suffix.
    """
    if not prefix:
        raise ValueError("a prefix has at least one token")
    found: list[Forced | None] = [None] * len(suffixes)
    prefilled = _Prefilled(lm, prefix)
    for rows in _batches(suffixes):
        given = prefilled.follow([list(suffixes[r]) for r in rows])
        for row, own in zip(rows, given, strict=True):
            found[row] = _scored(own, suffixes[row], keep=logits)
    return [one for one in found if one is not None]


class _Prefilled:
    """A prefix and the cache that holds it, if the model's cache can be copied to several rows."""

    def __init__(self, lm: LanguageModel, prefix: Sequence[int]) -> None:
        self.lm, self.prefix = lm, list(prefix)
        output = self._run([self.prefix], {}, keep=1)
        self.last = output.logits[:, -1:]  # (1, 1, d_vocab): predicts the first token of every suffix
        cache = getattr(output, "past_key_values", None)
        self.cache = cache if _repeats(cache) else None

    def follow(self, suffixes: list[list[int]]) -> list[Tensor]:
        """Logits (len(suffix), d_vocab) that predict the tokens of each suffix."""
        longest = max(map(len, suffixes))
        if longest <= 1:
            return [self.last[0, : len(s)] for s in suffixes]
        padded = [s[:-1] + [s[0]] * (longest - len(s)) for s in suffixes]
        if self.cache is None:
            output = self._run([self.prefix + row for row in padded], {}, keep=longest)
            return [output.logits[i, -longest:][: len(s)] for i, s in enumerate(suffixes)]
        cache: Any = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(suffixes))
        output = self._run(padded, {"past_key_values": cache}, keep=0)
        return [torch.cat([self.last[0], output.logits[i, : len(s) - 1]]) for i, s in enumerate(suffixes)]

    def _run(self, ids: list[list[int]], more: dict[str, Any], *, keep: int) -> Any:
        import inspect

        if keep and "logits_to_keep" in inspect.signature(self.lm.model.forward).parameters:
            more = {**more, "logits_to_keep": keep}
        return self.lm.model(torch.tensor(ids, device=self.lm.device), use_cache=True, return_dict=True, **more)


def _repeats(cache: Any) -> bool:
    """Whether a cache can be repeated for several rows: keys and values can; a recurrent state has no method for it."""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(
        hasattr(layer, "batch_repeat_interleave") and not hasattr(layer, "update_recurrent_state") for layer in layers
    )


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


def _scored(logits: Tensor, ids: Sequence[int], *, keep: bool) -> Forced:
    targets = torch.tensor(list(ids), device=logits.device, dtype=torch.long)[:, None]
    parts = [
        (own.gather(1, targets[start : start + _ROWS]) - own.logsumexp(-1, keepdim=True))[:, 0]
        for start in range(0, len(ids), _ROWS)
        for own in (logits[start : start + _ROWS].float(),)
    ]
    logprob = torch.cat(parts).cpu().numpy() if parts else np.empty(0, np.float32)
    return Forced(logprob, logits.float().cpu() if keep else None)
