"""Many continuations at once from a model's own cache: finished ones leave, stop strings and the context end them."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.utils import ALL_CACHE_NAMES

from probe.decoding.caches import expected, joined, joins, make_room, select, selects, slot
from probe.decoding.draws import Continuation, OpenBranch, TokenDraws
from probe.decoding.prefixes import Edits, Known
from probe.errors import BadModel
from probe.language_model.rotary import start_over
from probe.language_model.stepping import cache_support, forward, plain_kwargs
from probe.requests import Sampling

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Progress = Callable[[str, int, int], None]
LEAVE = 0.75  # the cache is cut down when at most this share of its rows still runs: every cut copies it


def decode(
    lm: LanguageModel, prefixes: Sequence[Sequence[int]], *, max_new: int, sampling: Sampling,
    samples: Sequence[int] | None = None, progress: Progress | None = None, edits: Edits | None = None,
) -> list[Continuation]:  # fmt: skip
    """Continue each prefix (token ids) by at most `max_new` tokens; many of one prefix, or of one stem: `branch`.

    `samples` is the noise address of each (default 0, 1, …): a continuation is the same alone, beside others and in another
    order (in fp32). Prefixes of different lengths run side by side, padded on the left, where every layer is attention that
    takes a mask and positions; else those of one length run together, because a recurrent state would swallow the padding.
    edits: what `applying` gave, if edits are at work: it is told where each forward begins, so that no device need be asked;
    those for single rows are named by the number of their prefix.
    Raises `NonFinite`, and `BadModel` for a model that cannot generate.
    """
    check(lm)
    numbers = list(range(len(prefixes))) if samples is None else list(samples)
    rows = [OpenBranch(tuple(p), s, i, max_new, sampling.seed) for i, (p, s) in enumerate(zip(prefixes, numbers, strict=True))]
    padded = len({len(row.prefix) for row in rows}) > 1 and takes_padding(lm)
    before = None if edits is None else (edits.rows, edits.start)
    try:
        for some in [rows] if padded else by_length(lm, rows):
            Batch(lm, some, sampling, edits=edits).run(max_new, progress=progress)
    finally:
        if edits is not None and before is not None:
            edits.rows, edits.start = before
    return [row.found for row in rows]


def check(lm: LanguageModel) -> None:
    """Raises `BadModel` for a model that cannot generate."""
    if not isinstance(lm.model, GenerationMixin):
        raise BadModel(f"'{lm.name}' cannot generate", hint="trace it without --generate")
    support = cache_support(lm)
    if not support.continues:
        why = "is made for generation other inputs than the text" if support.causal else "reads what follows too"
        raise BadModel(
            f"'{lm.name}' {why}: what it would choose is not what reading the text says", hint="trace it without --generate"
        )


def by_length(lm: LanguageModel, rows: Sequence[OpenBranch]) -> list[list[OpenBranch]]:
    """Rows that can run side by side without padding; each by itself if states are no cache (rwkv mixes rows, 5.23)."""
    if slot(lm.model) not in ("cache", "past_key_values", "cache_params"):
        return [[row] for row in rows]
    together: dict[int, list[OpenBranch]] = defaultdict(list)
    for row in rows:
        together[len(row.prefix)].append(row)
    return list(together.values())


def takes_padding(lm: LanguageModel) -> bool:
    """Whether padding on the left is out of sight: all layers attend through masks, and positions can be given.

    Not where the longest row of a batch sets the frequencies of all (dynamic and long rotary embeddings).
    """
    accepted = inspect.signature(lm.model.forward).parameters
    attends = all(layer.attention is not None for layer in lm.anatomy.layers)
    longest_rules = lm.frequencies_change is not None
    usual = joins(expected(lm.model.config))  # compressed keys, for one, would hold some of the padding
    given = cache_support(lm).origin is not None and "attention_mask" in accepted
    return attends and usual and not longest_rules and given


class Batch:
    """Rows that run together: their ids so far (row, pos), the model's cache, and where each row's results go."""

    def __init__(
        self,
        lm: LanguageModel,
        rows: Sequence[OpenBranch],
        sampling: Sampling,
        *,
        edits: Edits | None = None,
        done: Callable[[OpenBranch], None] | None = None,
    ) -> None:
        self.lm, self.rows, self.sampling, self.edits, self.done = lm, list(rows), sampling, edits, done
        prefixes = [list(row.prefix) for row in rows]
        self.longest = max(map(len, prefixes))
        # a row is padded with its own first token, so that the repetition penalty sees nothing that is not there
        self.ids = torch.tensor([[p[0]] * (self.longest - len(p)) + p for p in prefixes], device=lm.device)
        self.kwargs = plain_kwargs(lm, self.ids)
        ends = torch.tensor([len(p) for p in prefixes], device=lm.device)[:, None]
        if int(ends.min()) < self.longest:
            mask = (torch.arange(self.longest, device=lm.device) >= self.longest - ends).long()
            places = (mask.cumsum(-1) - 1).clamp(min=0) + (cache_support(lm).origin or 0)
            self.kwargs |= {"attention_mask": mask, "position_ids": places}
        self._logits: Tensor | None = None  # of the next token, if they are known

    def start_from(self, known: Sequence[Known], repeats: Sequence[int]) -> None:
        """The prefixes have been computed: the rows are these, each so many times; their caches are used up."""
        self._logits = torch.cat([one.logits.expand(n, -1) for one, n in zip(known, repeats, strict=True)])
        self.kwargs[known[0].slot] = joined([one.cache for one in known], repeats)
        self._lengthen()

    @torch.inference_mode()
    def run(self, max_new: int, *, progress: Progress | None = None) -> None:
        """Decode until every row has ended, which is after `max_new` tokens at the latest."""
        start_over(self.lm.model)
        for row in self.rows:
            if reason := row.over(self.lm.context_length):
                self._end(row, reason)
        step = 0
        while running := [row for row in self.rows if row.running]:
            self._cut()
            draws = TokenDraws(self.lm, self.rows, self.sampling)
            for i in range(draws.steps):
                tokens = draws.draw(self._next(step + i), self.ids)
                self.ids = torch.cat([self.ids, tokens], dim=1)
            draws.look()
            step += draws.steps
            for row in running:
                if not row.running:
                    self._end(row, row.found.stop_reason)
            if progress:
                progress("decoding", step, max_new)

    def _end(self, row: OpenBranch, reason: str) -> None:
        row.found.stop_reason = reason
        if self.done:
            self.done(row)

    def _cut(self) -> None:
        """Let the finished rows leave the batch, if they are many and the cache can be cut."""
        keep = [i for i, row in enumerate(self.rows) if row.running]
        slot = self._slot()
        if len(keep) > LEAVE * len(self.rows) or (slot and not selects(self.kwargs[slot])):
            return
        if slot:
            select(self.kwargs[slot], keep)
        self.rows, self.ids = [self.rows[i] for i in keep], self.ids[keep]
        if self._logits is not None:
            self._logits = self._logits[keep]
        for name in ("attention_mask", "position_ids"):
            if name in self.kwargs:
                self.kwargs[name] = self.kwargs[name][keep]

    def _next(self, step: int) -> Tensor:
        """Logits (row, d_vocab) of the next token."""
        if self._logits is not None:
            logits, self._logits = self._logits, None
            return logits
        slot = self._slot()
        if self.edits is not None:
            self.edits.rows = [row.name for row in self.rows]
            ahead = step - 1 if slot else -self.longest  # without a cache the whole text is read again
            self.edits.start = [len(row.prefix) + ahead for row in self.rows]
        logits, self.kwargs = forward(self.lm, self.ids, self.kwargs, new=1 if slot else None)
        if not slot and self._slot():
            make_room(self.kwargs[self._slot()])
        return logits

    def _slot(self) -> str:
        """Under which name the model is given its cache; empty before the first forward, and where there is none."""
        return next((name for name in ALL_CACHE_NAMES if name in self.kwargs), "")

    def _lengthen(self) -> None:
        """Mask and positions of the token to come, where they are given."""
        if (mask := self.kwargs.get("attention_mask")) is not None:
            self.kwargs["attention_mask"] = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
        if (places := self.kwargs.get("position_ids")) is not None:
            self.kwargs["position_ids"] = torch.cat([places, places[:, -1:] + 1], dim=1)
