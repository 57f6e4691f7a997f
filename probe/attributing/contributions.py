"""What is taken apart: an answer's logit at each position, or a whole answer's log-prob. Runs the model, writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from probe.attributing.decomposition import Component, Decomposition, decompose
from probe.attributing.linear import call, unembedded, weighted_unembedding
from probe.attributing.recording import Recording, record
from probe.attributing.sources import HeadSources, head_sources
from probe.targets import AnswerTarget, Contrast, token_target

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


class Attributed(NamedTuple):
    """Of the answer, or of answer - against, (pos,): as the model gave it, and before the cap (the same without one). Of a set:
    the log-sum-exp of its logits; of a whole answer: its log-prob."""

    given: Tensor
    before_cap: Tensor


class Contributions(NamedTuple):
    """What was followed and taken apart, its parts (pos,), and what each head read where, of the positions before `ends`."""

    target: Contrast
    value: Attributed
    parts: Decomposition
    sources: list[HeadSources]
    ends: list[int]


def of_logits(
    lm: LanguageModel,
    ids: Sequence[int],
    positions: Sequence[int],
    target: Contrast | None,
    *,
    by_source: bool,
    neurons: int = 0,
) -> Contributions:
    """The logit of the answer (None: of the top token at the last position) after each position, by one forward, two with
    sources."""
    seen = record(lm, ids, positions, hidden=neurons > 0)
    target = target or Contrast(token_target(lm, int(seen.logits[-1].argmax())))
    given, raw, hidden = _logits(lm, seen)
    if all(one is None or one.is_token for one in target):
        tokens = target.answer.token, None if target.against is None else target.against.token
        row = unembedded(lm.model, lm.anatomy, hidden, tokens)
        parts = decompose(lm.model, lm.anatomy, seen, row, lm.dtype, neurons=neurons)
    else:
        weights, entropy = _first(raw, target.answer)
        if target.against is not None:
            more, other = _first(raw, target.against)
            weights, entropy = weights - more, entropy - other
        parts = _decomposed(lm, seen, hidden, weights, neurons)
        parts.components.append(Component("set_entropy", -1, -1, entropy))
    found = _sources(lm, ids, positions, parts) if by_source else []
    return Contributions(
        target, Attributed(*(_followed(x, target) for x in (given, raw))), parts, found, [p + 1 for p in positions]
    )


def of_whole_answer(
    lm: LanguageModel, text: Sequence[int], target: Contrast, *, by_source: bool, neurons: int = 0
) -> Contributions:
    """log P(answer | text), less that of the other: the sum over its tokens of logit - log-sum-exp of all logits, each at the
    position before the token, of one forward (two with sources) for each continuation. One row, which stands after the text.

    A part is what was written towards the logit of each token at its position, summed. The log-sum-exp is not linear in what
    was written, and is a part of its own, `log_normalizer`; where both answers are read at one place, it cancels.
    """
    given, raw, each, sources = [], [], [], []
    for row, tail in enumerate(target.tails):
        ids = [*text, *tail]
        positions = range(len(text) - 1, len(ids))
        seen = record(lm, ids, positions, hidden=neurons > 0)
        own, before, hidden = _logits(lm, seen)
        given.append(own)
        raw.append(before)
        weights, entropy, normalizer = _of_answers(before, target, row)
        parts = _decomposed(lm, seen, hidden, weights, neurons)
        if any(len(tokens) > 1 for one in target if one is not None for tokens in one.steps):
            parts.components.append(Component("set_entropy", -1, -1, entropy))
        if not target.by_logits:
            parts.components.append(Component("log_normalizer", -1, -1, normalizer))
        sources.append(_sources(lm, ids, positions, parts) if by_source else [])
        each.append(parts)
    value = Attributed(*(_whole(logits, target)[None] for logits in (given, raw)))
    return Contributions(target, value, _summed(each), _summed_sources(sources), [len(text) + max(map(len, target.tails))])


def _logits(lm: LanguageModel, seen: Recording) -> tuple[Tensor, Tensor, Tensor]:
    """As the model gave them and before the cap, both (pos, d_vocab), and what the head read (pos, d_model)."""
    anatomy = lm.anatomy
    last = seen.values[anatomy.layers[-1].taps["resid_post"]]
    hidden = seen.values[anatomy.final_norm] if anatomy.final_norm is not None else last
    given = raw = seen.logits.reshape(len(last), -1)
    if anatomy.readout.cap is not None:
        raw = anatomy.readout.scale * call(lm.model.get_submodule(anatomy.head or ""), hidden)
    return given, raw, hidden


def _decomposed(lm: LanguageModel, seen: Recording, hidden: Tensor, weights: Tensor, neurons: int) -> Decomposition:
    """The parts of the logits' sum by weights (pos, d_vocab)."""
    row = weighted_unembedding(lm.model, lm.anatomy, hidden, weights)
    return decompose(lm.model, lm.anatomy, seen, row, lm.dtype, neurons=neurons)


def _sources(lm: LanguageModel, ids: Sequence[int], positions: Sequence[int], parts: Decomposition) -> list[HeadSources]:
    found, notes = head_sources(lm, ids, positions, parts)
    parts.notes += notes
    return found


def _followed(logits: Tensor, target: Contrast) -> Tensor:
    """logits (pos, d_vocab) -> (pos,): of the answer, less that of the other."""
    return target.difference([logits[:, None]], []) if target.against is not None else target.answer.of(logits[:, None])


def _whole(logits: Sequence[Tensor], target: Contrast) -> Tensor:
    """logits (step, d_vocab) of each continuation -> the log-prob of the answer, less that of the other."""
    own, other = (logits[row].log_softmax(-1) for row in target.rows)
    return target.answer.of(own) - (0.0 if target.against is None else target.against.of(other))


def _first(logits: Tensor, target: AnswerTarget) -> tuple[Tensor, Tensor]:
    """`_shares` of the answer's first tokens, in every row."""
    return _shares(logits, [target.steps[0]] * len(logits))


def _of_answers(logits: Tensor, target: Contrast, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probs that are read of one continuation, logits (step, d_vocab), as Σ weights · logits + entropy of sets +
    normalizer, each of the last two (step,)."""
    weights = torch.zeros_like(logits)
    entropy, normalizer = logits.new_zeros(len(logits)), logits.new_zeros(len(logits))
    for sign, one, own in zip((1.0, -1.0), target, target.rows, strict=True):
        if one is not None and own == row:
            n = len(one.steps)
            shares, rest = _shares(logits[:n], one.steps)
            weights[:n] += sign * shares
            entropy[:n] += sign * rest
            normalizer[:n] -= sign * logits[:n].logsumexp(-1)
    return weights, entropy, normalizer


def _shares(logits: Tensor, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """How much of the log-sum-exp over its row's tokens each token is (row, d_vocab), and the entropy (row,) of these shares,
    in nats. logits (row, d_vocab) float64: logsumexp = Σ share · logit + entropy."""
    weights, entropy = torch.zeros_like(logits), logits.new_zeros(len(logits))
    for i, ids in enumerate(map(list, tokens)):
        weights[i, ids] = logits[i, ids].softmax(-1)
        entropy[i] = torch.special.entr(weights[i]).sum()
    return weights, entropy


def _summed(each: Sequence[Decomposition]) -> Decomposition:
    """The parts (1,), over all positions of all continuations, in the order of the network."""
    total: dict[Component, Tensor] = {}
    nothing = torch.zeros(1, dtype=torch.float64)
    for parts in each:
        for part in parts.components:
            key = part._replace(value=nothing)
            total[key] = total.get(key, nothing) + part.value.sum(0, keepdim=True)
    notes = dict.fromkeys(note for parts in each for note in parts.notes)
    return Decomposition([part._replace(value=value) for part, value in total.items()], {}, list(notes))


def _summed_sources(each: Sequence[Sequence[HeadSources]]) -> list[HeadSources]:
    """value (1, head, source) of the layers that were split in all continuations; sources after the text are the answer's."""
    longest = max((one.value.shape[-1] for found in each for one in found), default=0)
    total: dict[int, list[Tensor]] = {}
    for found in each:
        for one in found:
            value = one.value.sum(0, keepdim=True)
            total.setdefault(one.layer, []).append(torch.nn.functional.pad(value, (0, longest - value.shape[-1])))
    return [HeadSources(i, torch.stack(values).sum(0)) for i, values in total.items() if len(values) == len(each)]
