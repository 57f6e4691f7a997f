"""Laws of going on after a text: what is decoded, forked, shared or left out is what one plain forward says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from probe.decoding import Sampling, decode
from probe.decoding.teacher_forced import Prefix, suffix_logprobs
from probe.language_model.stepping import cache_support
from probe.laws.reading import gap, plain
from probe.speculating.drafts import make_draft
from probe.speculating.rounds import speculate_ids

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

NEW, ROLLOUTS, SEED = 12, 6, 3


def decoding_is_reading(lm: LanguageModel, ids: list[int]) -> float:
    """By how much a greedy token falls short of the largest logit of a plain forward."""
    (one,) = decode(lm, [ids], max_new=NEW, sampling=Sampling())
    return _short_of_the_largest(lm, ids, one.ids)


def speculating_is_reading(lm: LanguageModel, ids: list[int]) -> float:
    """The same of tokens that half of the layers propose."""
    draft = make_draft(lm, f"layers:{max(1, lm.anatomy.n_layers // 2)}")
    return _short_of_the_largest(lm, ids, speculate_ids(lm, draft, ids, max_new=NEW, sampling=Sampling()).found.ids)


def _short_of_the_largest(lm: LanguageModel, ids: list[int], chosen: list[int]) -> float:
    """By how much the logits of chosen tokens, in one plain forward, fall short of the largest ones."""
    logits = plain(lm, [*ids, *chosen])[len(ids) - 1 : -1].float()
    own = logits.gather(1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0]
    return float((logits.max(-1).values - own).max())


def _rollouts(lm: LanguageModel, ids: list[int], samples: list[int]) -> list[list[int]]:
    warm = Sampling(temperature=1.0, seed=SEED)
    return [one.ids for one in decode(lm, [ids] * len(samples), max_new=NEW, sampling=warm, samples=samples)]


def company_changes_no_rollout(lm: LanguageModel, ids: list[int]) -> float:
    """How many rollouts differ."""
    together = _rollouts(lm, ids, list(range(ROLLOUTS)))
    backwards = _rollouts(lm, ids, list(range(ROLLOUTS))[::-1])[::-1]
    alone = [_rollouts(lm, ids, [sample])[0] for sample in range(ROLLOUTS)]
    return float(sum(a != b or a != c for a, b, c in zip(together, backwards, alone, strict=True)))


def a_prefix_is_computed_once(lm: LanguageModel, ids: list[int]) -> float:
    """Log-probabilities of two ends that share a prefix, against those of a plain forward."""
    half = len(ids) // 2
    own = suffix_logprobs(lm, ids[:half], [ids[half:], ids[half : half + 3]])
    rows = plain(lm, ids).double().log_softmax(-1)[half - 1 : -1]
    expected = rows.gather(1, torch.tensor(ids[half:], device=rows.device)[:, None])[:, 0].cpu().numpy()
    return float(max(np.abs(own[0] - expected).max(), np.abs(own[1] - expected[:3]).max()))


def suppression_is_deletion(lm: LanguageModel, ids: list[int]) -> float:
    """Logits after a span that is not seen, against those of a text without it whose positions are kept."""
    start, end = len(ids) // 3, len(ids) // 2
    found = torch.cat(list(Prefix(lm, ids[:start]).after_gap(ids[end:], end - start)))
    positions = torch.tensor([[*range(start), *range(end, len(ids))]], device=lm.device) + (cache_support(lm).origin or 0)
    with torch.inference_mode():
        gone = lm.model(torch.tensor([ids[:start] + ids[end:]], device=lm.device), position_ids=positions).logits[0, start:]
    return gap(found, gone)
