"""What happens to the answer when one thing is taken out: a token that later ones no longer see, a part at its mean."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.capturing import MemorySink, read
from probe.decoding.teacher_forced import Prefix
from probe.errors import BadModel
from probe.fitting import halving
from probe.interventions import Edit, Mean, applying, cells, parse_edits
from probe.language_model.stepping import uncached_kwargs
from probe.looking.findings import Finding
from probe.looking.subject import Subject

if TYPE_CHECKING:
    from probe.sites import Cell

TEXT, HINT = "a text that is changed", "a shorter text, or --dtype bfloat16"  # where memory does not suffice
SPANS = 64  # of a text that are taken out one by one; longer texts go by spans of several tokens
BATCH_TOKENS = 2048
LEAST = 0.1  # nats: what changes less is not told
SPREADS = 3.0  # median absolute deviations, scaled to a normal's sd, beyond which an effect stands out
TOLD = 3


class CutSpan(NamedTuple):
    """Positions [start, end) that are taken out together."""

    start: int
    end: int


def spans_of(n: int) -> list[CutSpan]:
    """The positions 1 to n - 2 in at most `SPANS` spans of equal length: the first token is every head's resting place, and
    the last one is where the answer is read."""
    width = max(1, -(-(n - 2) // SPANS))
    return [CutSpan(start, min(start + width, n - 1)) for start in range(1, n - 1, width)]


def leaning(subject: Subject) -> list[Finding]:
    """The tokens without which the answer is less probable: all heads of later tokens no longer see them (METHODS M12).

    Told are those whose loss (nats of the answer's log-prob) is at least `LEAST` and stands out from the losses of the
    other tokens by `SPREADS` robust deviations. Raises what an edit of patterns raises.
    """
    spans = spans_of(len(subject.ids))
    if len(spans) < 4:
        return []
    losses = -_unseen(subject, spans)
    middle = float(np.median(losses))
    beyond = middle + SPREADS * 1.4826 * float(np.median(np.abs(losses - middle)))
    found = []
    for i in np.argsort(-losses)[:TOLD]:
        if losses[i] >= max(LEAST, beyond):
            found.append(_leans(subject, spans[i], float(losses[i]), middle))
    return found


def _unseen(subject: Subject, spans: Sequence[CutSpan]) -> np.ndarray:
    """The answer's log-prob where later tokens do not see a span, less that where they see all: (span,) nats.

    Of a text that fills a batch by itself from the cache of what stands before a span, where the model can skip positions: a
    mask would have a number for each (query, key).
    """
    if len(subject.ids) > BATCH_TOKENS:
        with suppress(BadModel):
            return _skipped(subject, spans)
    return changes(subject, [parse_edits(subject.lm, [_cut(span)]) for span in spans])


def _skipped(subject: Subject, spans: Sequence[CutSpan]) -> np.ndarray:
    """The same, each span left out of the keys and values. Raises `BadModel` where positions cannot be skipped."""
    ids, found = subject.ids, []
    stem = Prefix(subject.lm, ids[: spans[0].start])
    for span in spans:
        *_, last = stem.after_gap(ids[span.end :], span.end - span.start, last=True)
        found.append(_answer(subject, last))
        stem.extend(ids[span.start : span.end])
    (plain,) = stem.after_gap(ids[-1:], 0)
    return np.concatenate(found) - _answer(subject, plain)


def _leans(subject: Subject, span: CutSpan, loss: float, middle: float) -> Finding:
    one = span.end - span.start == 1
    what = subject.label(span.start) if one else f"{subject.label(span.start)} … {subject.label(span.end - 1)}"
    where = f"at {span.start}" if one else f"at {span.start} to {span.end - 1}"
    return Finding(
        "cause", f"{subject.answer} leans on {what} {where}: unseen by later tokens, it costs {loss:.2f} nats",
        loss, "nats", middle, "the median of the text's other tokens", subject.edited(_cut(span)),
        place=_cut(span), pos=span.start, token=what,
    )  # fmt: skip


def _cut(span: CutSpan) -> str:
    keys = f"{span.start}" if span.end - span.start == 1 else f"{span.start}..{span.end - 1}"
    return f"pattern@all:{span.end}..=cut:{keys}"


def silenced(subject: Subject, writers: Sequence[Finding]) -> list[Finding]:
    """What the answer loses when the strongest writer of each kind is held at its mean over the text, against other parts
    of the kind, drawn at random. Told where no other part costs as much, and it is at least `LEAST` nats."""
    found = []
    for site, kind in (("z", "head"), ("mlp_out", "MLP")):
        mine = next((one for one in writers if one.place.startswith(f"{site}@") and one.value > 0), None)
        if mine is None:
            continue
        others = _others(subject, site, mine)
        parts = [_cell(subject, mine.place), *others]
        losses = -changes(subject, _means(subject, parts))
        most = float(losses[1:].max())
        if losses[0] >= LEAST and losses[0] > most:
            found.append(Finding(
                "part", f"without {kind} {mine.place.partition('@')[2]} (at its mean) {subject.answer} "
                f"loses {losses[0]:.2f} nats",
                float(losses[0]), "nats", most, f"the most that any of {len(others)} other {kind}s costs",
                subject.edited(f"{mine.place}=zero"),
                place=mine.place, layer=mine.layer, head=mine.head,
            ))  # fmt: skip
    return found


def _cell(subject: Subject, place: str) -> Cell:
    (cell,) = cells(subject.lm, place)
    return cell


def _others(subject: Subject, site: str, mine: Finding) -> list[Cell]:
    """Other places of the site, drawn without replacement."""
    anatomy = subject.lm.anatomy
    layers = [layer for layer in range(anatomy.n_layers) if anatomy.has(site, layer)]
    places = [
        f"{site}@{layer}" if not anatomy.n_heads(site, layer) else f"{site}@{layer}.{head}"
        for layer in layers for head in range(anatomy.n_heads(site, layer) or 1)
    ]  # fmt: skip
    rest = [place for place in places if place != mine.place]
    order = np.random.default_rng(subject.seed).permutation(len(rest))[: subject.controls]
    return [_cell(subject, rest[i]) for i in order]


def _means(subject: Subject, parts: Sequence[Cell]) -> list[tuple[Edit, ...]]:
    """An edit for each part: its mean over the text's positions but the first."""
    ids, sink = subject.ids, MemorySink()
    whole = dict.fromkeys(cell._replace(heads=None) for cell in parts)
    read(subject.lm, torch.tensor([ids]), [len(ids)], sink=sink, cells=list(whole), top=1)
    edits: list[tuple[Edit, ...]] = []
    for cell in parts:
        mean = sink.activations[cell.site, cell.layer, None][0, 1:].mean(0)
        if cell.heads is not None:
            mean = mean.unflatten(-1, (subject.lm.anatomy.n_heads(cell.site, cell.layer), -1))[list(cell.heads)]
        edits.append((Mean(cell, mean),))
    return edits


def changes(subject: Subject, edits: Sequence[Sequence[Edit]]) -> np.ndarray:
    """The answer's log-prob under each group of edits, less that without any: (n,) nats. Groups are rows of batches."""
    (plain,) = _logprob(subject, 1, [])
    width = max(1, BATCH_TOKENS // len(subject.ids))
    found = []
    for start in range(0, len(edits), width):
        groups = list(edits[start : start + width])
        found += [own for _, own in halving(groups, partial(_changed, subject), what=TEXT, hint=HINT)]
    return np.concatenate(found) - plain


def _changed(subject: Subject, groups: Sequence[Sequence[Edit]]) -> np.ndarray:
    own = [replace(edit, rows=(row,)) for row, group in enumerate(groups) for edit in group]
    return _logprob(subject, len(groups), own)


def _logprob(subject: Subject, n: int, edits: Sequence[Edit]) -> np.ndarray:
    """The answer's log-prob (n,) after the text, in a batch of n equal rows."""
    ids = torch.tensor([subject.ids] * n, device=subject.lm.device)
    with torch.inference_mode(), applying(subject.lm, edits, ids=[subject.ids] * n, n_prompt=len(subject.ids)):
        logits: Tensor = subject.lm.model(ids, **uncached_kwargs(subject.lm)).logits[:, -1]
    return _answer(subject, logits)


def _answer(subject: Subject, logits: Tensor) -> np.ndarray:
    """The answer's log-prob (row,) by logits (row, d_vocab)."""
    return logits.float().log_softmax(-1)[:, subject.choice.answer].double().cpu().numpy()
