"""Many continuations at once from a model's own cache: finished ones leave, stop strings and the context end them."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.utils import ALL_CACHE_NAMES

from probe.decoding.sampler import Sampling, choose
from probe.errors import BadModel

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Progress = Callable[[str, int, int], None]
LEAVE = 0.75  # the cache is cut down when at most this share of its rows still runs: every cut copies it


@dataclass
class Continuation:
    """What the model added to one prefix, with what the sampler saw at each token. `noise` is None where greedy.

    stop_reason: `eos` (an end token, kept), `stop` (a stop string, kept), `context` (no room left) or `length`.
    """

    ids: list[int] = field(default_factory=list)
    stop_reason: str = ""
    sample_logprob: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    noise: list[float | None] = field(default_factory=list)


def decode(
    lm: LanguageModel, prefixes: Sequence[Sequence[int]], *, max_new: int, sampling: Sampling,
    samples: Sequence[int] | None = None, progress: Progress | None = None,
) -> list[Continuation]:  # fmt: skip
    """Continue each prefix (token ids) by at most `max_new` tokens.

    `samples` is the noise address of each (default 0, 1, …): a continuation is the same alone, beside others and in another
    order (in fp32). Prefixes of different lengths run side by side, padded on the left, where every layer is attention that
    takes a mask and positions; else those of one length run together, because a recurrent state would swallow the padding.
    Raises `NonFinite`, and `BadModel` for a model that cannot generate.
    """
    if not isinstance(lm.model, GenerationMixin):
        raise BadModel(f"'{lm.name}' cannot generate", hint="trace it without --generate")
    numbers = list(range(len(prefixes))) if samples is None else list(samples)
    found = [Continuation() for _ in prefixes]
    together: dict[int, list[int]] = defaultdict(list)
    padded = len({len(p) for p in prefixes}) > 1 and _takes_padding(lm)
    for row, prefix in enumerate(prefixes):
        together[0 if padded else len(prefix)].append(row)
    for rows in together.values():
        _Batch(
            lm, [list(prefixes[r]) for r in rows], [found[r] for r in rows], [numbers[r] for r in rows], sampling
        ).run(max_new, progress)
    return found


def _takes_padding(lm: LanguageModel) -> bool:
    """Whether padding on the left is out of sight: all layers attend through masks, and positions can be given."""
    accepted = inspect.signature(lm.model.forward).parameters
    attends = all(layer.attention is not None for layer in lm.anatomy.layers)
    return attends and {"attention_mask", "position_ids"} <= set(accepted)


class _Batch:
    """Rows that run together: their ids so far (row, pos), the model's cache, and where each row's results go."""

    def __init__(
        self,
        lm: LanguageModel,
        prefixes: list[list[int]],
        found: list[Continuation],
        samples: list[int],
        sampling: Sampling,
    ) -> None:
        self.lm, self.sampling = lm, sampling
        self.found, self.samples = found, samples
        self.lengths = [len(p) for p in prefixes]
        longest = max(self.lengths)
        # a row is padded with its own first token, so that the repetition penalty sees nothing that is not there
        self.ids = torch.tensor([[p[0]] * (longest - len(p)) + p for p in prefixes], device=lm.device)
        self.kwargs: dict[str, Any] = {"use_cache": True}
        accepted = inspect.signature(lm.model.forward).parameters
        if "logits_to_keep" in accepted:
            self.kwargs["logits_to_keep"] = 1
        if min(self.lengths) < longest:
            ends = torch.tensor(self.lengths, device=lm.device)[:, None]
            mask = (torch.arange(longest, device=lm.device) >= longest - ends).long()
            self.kwargs |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        self.active = list(range(len(prefixes)))  # which row of the cache belongs to which result
        self.tail = 2 * max((len(s) for s in sampling.stop), default=0) + 8  # tokens in which a stop string can end

    @torch.inference_mode()
    def run(self, max_new: int, progress: Progress | None) -> None:
        """Decode until every row has ended."""
        for step in range(max_new):
            running = [r for r in self.active if not self._ended(r, step)]
            if not running:
                break
            self._cut(running)
            logits = self._forward(first=step == 0)
            chosen = choose(
                logits, self.ids, self.sampling,
                samples=[self.samples[r] for r in self.active], steps=[step] * len(self.active),
            )  # fmt: skip
            for row, token, logprob, kept, noise in zip(self.active, *chosen, strict=True):
                if not self.found[row].stop_reason:
                    self._append(self.found[row], token, logprob, kept, noise)
            self.ids = torch.cat([self.ids, torch.tensor(chosen.tokens, device=self.ids.device)[:, None]], dim=1)
            if progress:
                progress("decoding", step + 1, max_new)
        for one in self.found:
            one.stop_reason = one.stop_reason or "length"

    def _ended(self, row: int, step: int) -> bool:
        """Whether a row has stopped; one whose next token would have no position stops here."""
        limit = self.lm.context_length
        if not self.found[row].stop_reason and limit is not None and self.lengths[row] + step >= limit:
            self.found[row].stop_reason = "context"
        return bool(self.found[row].stop_reason)

    def _append(self, one: Continuation, token: int, logprob: float, kept: int, noise: float | None) -> None:
        one.ids.append(token)
        one.sample_logprob.append(logprob)
        one.kept.append(kept)
        one.noise.append(noise)
        if token in self.lm.eos_ids:
            one.stop_reason = "eos"
        elif self.sampling.stop:
            text = self.lm.pieces(one.ids[-self.tail :]).text
            if any(stop in text for stop in self.sampling.stop):
                one.stop_reason = "stop"

    def _cut(self, running: list[int]) -> None:
        """Let the finished rows leave the batch, if they are many and the cache can be cut."""
        if len(running) > LEAVE * len(self.active):
            return
        cache = self.kwargs.get("past_key_values")
        layers = getattr(cache, "layers", None)
        if cache is not None and not (layers and all(hasattr(layer, "batch_select_indices") for layer in layers)):
            return
        keep = torch.tensor([self.active.index(r) for r in running], device=self.ids.device)
        if cache is not None:
            cache.batch_select_indices(keep)
        self.ids, self.active = self.ids[keep], running
        for name in ("attention_mask", "position_ids"):
            if name in self.kwargs:
                self.kwargs[name] = self.kwargs[name][keep]

    def _forward(self, *, first: bool) -> Tensor:
        """Logits (row, d_vocab) of the next token, by the model's own preparation of inputs and update of its cache."""
        model = self.lm.model
        cached = any(name in self.kwargs for name in ALL_CACHE_NAMES)
        inputs = model.prepare_inputs_for_generation(
            self.ids, next_sequence_length=1 if cached else None, is_first_iteration=first, **self.kwargs
        )
        output = model(**inputs, return_dict=True)
        self.kwargs = model._update_model_kwargs_for_generation(output, self.kwargs, is_encoder_decoder=False)
        for name in ALL_CACHE_NAMES:
            if self.kwargs.get(name, 0) is None:
                del self.kwargs[name]
        return output.logits[:, -1]
