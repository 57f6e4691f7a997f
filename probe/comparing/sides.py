"""One text under two models: ids, a reading of each, and how far apart the two distributions are. Writes no run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.capturing import MemorySink, Reading, read
from probe.comparing.aligning import Tokens, segment_columns
from probe.comparing.residuals import Sampled, cells_of
from probe.errors import BadPrompt
from probe.interventions import Edit, applying
from probe.language_model.pieces import pieces
from probe.scoring import BLOCK

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


PIECE = 2**19  # logits compared at once: their float64 copies stay small
FAR = 50.0  # nats: beyond, a token's share of the Jensen-Shannon divergence is its whole probability times ln 2
LEAST = 1e-300  # probabilities below are 0, or their quotient with another may overflow


class Distances(NamedTuple):
    """One value a row, float64 on the CPU. Nats, `tv` from 0 to 1; exactly 0 where the two rows of logits are equal."""

    kl_ab: Tensor
    kl_ba: Tensor
    js: Tensor
    tv: Tensor


def distances(a: Tensor, b: Tensor) -> Distances:
    """KL(a || b), KL(b || a), Jensen-Shannon and total variation of the softmax of logits a and b, (rows, d_vocab).

    KL is infinite where one gives no probability (logit -inf) to what the other can say.
    """
    step = max(1, PIECE // a.shape[-1])
    parts = [_of_pieces(a[at : at + step].double(), b[at : at + step].to(a.device).double()) for at in range(0, len(a), step)]
    return Distances(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def left_out(logits: Tensor, shared: int) -> float:
    """The largest probability, over the rows, of ids from `shared` on."""
    if logits.shape[-1] <= shared:
        return 0.0
    wide = logits.double()
    return float((wide[:, shared:].logsumexp(-1) - wide.logsumexp(-1)).exp().max())


def _of_pieces(a: Tensor, b: Tensor) -> Distances:
    """All from ln p - ln q, so that two distributions that are close lose no digits."""
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    apart = (log_p - log_q).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)  # NaN: both rule the token out
    near = apart.clamp(-FAR, FAR)
    # ln(m / p) with m = (p + q) / 2 is ln((1 + q / p) / 2)
    js = -(p * torch.log1p(torch.expm1(-near) / 2) + q * torch.log1p(torch.expm1(near) / 2)).sum(-1) / 2
    return Distances(_kl(p, q, apart), _kl(q, p, -apart), js.clamp_(min=0.0) + 0.0, (p - q).abs().sum(-1) / 2)


def _kl(p: Tensor, q: Tensor, apart: Tensor) -> Tensor:
    """Sum of p (d - 1 + e^-d) with d = ln p - ln q: as the sums of p and q are 1, this is KL, and no term is negative."""
    terms = p * (apart + torch.expm1(-apart))
    return torch.where(p > LEAST, terms, q).sum(-1).clamp_(min=0.0) + 0.0  # not -0


NUL = "\ufffd"


class Side(NamedTuple):
    """A model, and the edits that hold while it reads."""

    lm: LanguageModel
    edits: tuple[Edit, ...] = ()


@dataclass
class ComparedModels:
    """Two sides. `by_tokens`: one tokenizer is the other's, so that positions and distributions mean the same."""

    a: Side
    b: Side
    by_tokens: bool
    why_no_similarity: str
    edit: list[str]  # B's, as they were written
    samples: tuple[list[Sampled], list[Sampled]] = field(default_factory=lambda: ([], []))
    beyond: float = 0.0  # the most probability that one gave to ids that the other lacks

    @property
    def shared(self) -> int:
        """How many ids both have."""
        return min(self.a.lm.anatomy.d_vocab, self.b.lm.anatomy.d_vocab)


def one_vocabulary(a: LanguageModel, b: LanguageModel) -> bool:
    """Whether no id means one token to A and another to B; one may have further ids."""
    if a is b:
        return True
    names_a, names_b = ({i: name for name, i in lm.tokenizer.get_vocab().items()} for lm in (a, b))
    both = names_a.keys() & names_b.keys()
    return bool(both) and all(names_a[i] == names_b[i] for i in both)


def by_tokens(pair: ComparedModels, ids: Sequence[int], positions: Sequence[int]) -> dict[str, Any]:
    """Columns of `comparison` of one text: both read the same ids. positions: where the streams are kept for later."""
    similar = not pair.why_no_similarity
    sinks = [Sampled(positions) if similar else MemorySink() for _ in "ab"]
    # an edited model's logits are held whole: so are the other's, or rounding alone would tell them apart
    a, b = (
        _reading(side, ids, sink, similar=similar, whole=bool(pair.edit))
        for side, sink in zip((pair.a, pair.b), sinks, strict=True)
    )
    for sink, kept in zip(sinks, pair.samples, strict=True):
        if isinstance(sink, Sampled):
            sink.readback.finish()
            kept.append(sink)
    apart = _distances(pair, a, b, len(ids) - 1)
    cut = pair.a.lm.pieces(ids)
    columns: dict[str, Any] = {
        "pos": np.arange(len(ids), dtype=np.int32), "token_id": np.asarray(ids, np.int32), "token": pair.a.lm.labels(ids),
        "text_start": [start for start, _ in cut.offsets], "text_end": [end for _, end in cut.offsets],
    }  # fmt: skip
    measured: dict[str, list[Any]] = {name: getattr(apart, name).tolist() for name in Distances._fields}
    measured["accept"] = [1 - tv for tv in measured["tv"]]
    for name, one in (("a", a.scores[0]), ("b", b.scores[0])):
        measured |= {f"logprob_{name}": one.logprob[:-1].tolist(), f"rank_{name}": one.rank[:-1].tolist(),
                 f"entropy_{name}": one.entropy[:-1].tolist(), f"top_{name}": one.top_ids[:-1, 0].tolist()}  # fmt: skip
    measured["difference"] = [y - x for x, y in zip(measured["logprob_a"], measured["logprob_b"], strict=True)]
    measured["same_top"] = [x == y for x, y in zip(measured["top_a"], measured["top_b"], strict=True)]
    return columns | {name: [None, *values] for name, values in measured.items()}


def by_characters(pair: ComparedModels, text: str) -> dict[str, Any]:
    """Columns of `segments` of one text, which each side reads in its own tokens."""
    return segment_columns(text, *(_tokens(side, text) for side in (pair.a, pair.b)))


def _reading(side: Side, ids: Sequence[int], sink: MemorySink, *, similar: bool = False, whole: bool = False) -> Reading:
    edited = applying(side.lm, side.edits, ids=list(ids), n_prompt=len(ids)) if side.edits else nullcontext()
    with edited:
        cells = cells_of(side.lm) if similar else ()
        return read(side.lm, torch.tensor([list(ids)]), [len(ids)], sink=sink, cells=cells, top=1, whole=whole)


def _distances(pair: ComparedModels, a: Reading, b: Reading, n: int) -> Distances:
    """Of the first n rows, a block of them at a time: all logits of both never exist at once for this."""
    parts = []
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        parts.append(_block(pair, a.logits(0, rows), b.logits(0, rows)))
    return Distances(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _block(pair: ComparedModels, a: Tensor, b: Tensor) -> Distances:
    shared = min(a.shape[-1], b.shape[-1])
    if a.shape[-1] != b.shape[-1]:
        pair.beyond = max(pair.beyond, left_out(a, shared), left_out(b, shared))
    return distances(a[:, :shared], b[:, :shared])


def _tokens(side: Side, text: str) -> Tokens:
    """The tokens of the text itself: what the tokenizer puts around it is read, and not counted."""
    lm = side.lm
    ids, plain = lm.encode(text).ids, lm.ids_of(text)
    first = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), None)
    cut = lm.pieces(plain)
    if not plain or first is None or cut.text != text:
        raise BadPrompt(
            f"the tokenizer of '{lm.name}' does not give this text back", hint="the other model has another tokenizer"
        )
    check_length(lm, ids)
    scored = [float("nan"), *_reading(side, ids, MemorySink()).scores[0].logprob[:-1].tolist()][first : first + len(plain)]

    def whole(i: int) -> bool:
        end = cut.offsets[i][1]
        if end == 0 or text[end - 1].isascii():
            return end > 0
        return pieces(lm.tokenizer, plain[max(0, i - 8) : i + 1]).text.endswith(text[end - 1]) and text[end - 1] != NUL

    return Tokens(cut.offsets, scored, whole)


def check_length(lm: LanguageModel, ids: Sequence[int]) -> None:
    """Raises `BadPrompt` for ids that the model has no room or no embedding for."""
    if lm.context_length is not None and len(ids) > lm.context_length:
        raise BadPrompt(
            f"the text has {len(ids):,} tokens, and the context of {lm.name} holds {lm.context_length:,}",
            hint="shorten the text",
        )
    lm.check_ids(ids)
    if max(ids) >= lm.anatomy.d_vocab:
        raise BadPrompt(f"the text has a token that {lm.name} does not know", hint="compare models of one vocabulary")
