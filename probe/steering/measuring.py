"""What comes of a direction that is added while one text is read, or written on: a row for each strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probe.decoding import Sampling, branch
from probe.decoding.teacher_forced import check_beginnings
from probe.errors import BadOption, BadPrompt, NonFinite
from probe.fitting import halving
from probe.interventions import Add, Edit, applying, edits_up_to, locate_edits
from probe.patterns import Pattern
from probe.requests.steer import MATCHING
from probe.scoring import kl
from probe.targets import Contrast
from probe.texts import TokenSequence

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

HELD = 2**25  # logits at once
STEERED, HINT = "one steered text", "a shorter one, or --dtype bfloat16"  # where memory does not suffice
Row = dict[str, Any]


@dataclass(frozen=True)
class SteeredText:
    """A text, the position after which something is measured, and one edit for each row of a scan, at its positions there.
    plain: the row in which nothing changes."""

    lm: LanguageModel
    sequence: TokenSequence
    measured: int
    edits: tuple[Edit, ...]
    plain: int

    @property
    def ids(self) -> list[int]:
        """What stands before what is measured."""
        return self.sequence.ids[: self.measured + 1]

    def logits(self, tails: Sequence[Sequence[int]], rows: Sequence[int] | None) -> Tensor:
        """Logits (row, pos, d_vocab) of the text with each tail after it, padded on the right, under the edit of each of these
        rows; without an edit where rows is None. Raises `NonFinite`."""
        longest = max(map(len, tails))
        batch = torch.tensor([[*self.ids, *tail, *[self.ids[-1]] * (longest - len(tail))] for tail in tails])
        edits = [replace(self.edits[i], rows=(row,)) for row, i in enumerate(rows or ())]
        with applying(self.lm, edits):
            logits: Tensor = self.lm.model(batch.to(self.lm.device), use_cache=False).logits.float()
        if bool((logits.isnan() | logits.isposinf()).any()):
            raise NonFinite("logits are not finite numbers under the direction", hint="smaller --strengths")
        return logits

    def chunks(self, longest: int) -> list[list[int]]:
        """The rows in the order of a scan, so many together as their logits may take; what is not changed comes first."""
        order = [self.plain, *(i for i in range(len(self.edits)) if i != self.plain)]
        size = max(1, HELD // ((len(self.ids) + longest) * self.lm.anatomy.d_vocab))
        return [order[first : first + size] for first in range(0, len(order), size)]


def steered_text(lm: LanguageModel, sequence: TokenSequence, measured: int, edits: Sequence[Add], *, more: int) -> SteeredText:
    """The text with the edits at their positions in it; it may grow by `more` tokens.

    Raises `BadOption` where they all stand after what is measured, `BadPlace` and `BadEdit` as `locate_edits`.
    """
    n = len(sequence.ids)
    located = locate_edits(lm, edits, ids=sequence.ids, longest=n + more, steps=sequence.spans)
    if measured + 1 < n:
        check_beginnings(lm)
        located = edits_up_to(located, measured)
        if not located:
            raise BadOption(
                f"the direction is added at {edits[0].cell.positions}, after the token that is measured ({measured})",
                hint="add it before, as --at resid_post@12:all, or measure later",
            )
    return SteeredText(lm, sequence, measured, located, next(i for i, edit in enumerate(edits) if edit.strength == 0))


@torch.no_grad()
def read_steered(text: SteeredText, target: Contrast) -> list[Row]:
    """The answer's log-prob after the text, KL(plain || steered) there, and what a token of the text costs more, in nats."""
    found: dict[int, Row] = {}
    plain: list[tuple[Tensor, float]] = []
    tails, (own, other), n = target.tails, target.rows, len(text.ids)
    if any(tails):
        check_beginnings(text.lm)

    def measure(rows: list[int]) -> None:
        logits = [text.logits([tail] * len(rows), rows) for tail in tails]
        scores = [one[:, n - 1 :].double().log_softmax(-1).cpu() for one in logits]
        before = torch.tensor([text.ids] * len(rows), device=text.lm.device)[:, 1:, None]
        costs = logits[0][:, : n - 1].logsumexp(-1) - logits[0][:, : n - 1].gather(-1, before)[..., 0]
        lost = costs.double().mean(-1).tolist() if n > 1 else [0.0] * len(rows)
        plain.append((scores[0][0, 0], lost[0]))  # the first row of all is the plain one
        values = target.answer.of(scores[own]) - (0.0 if target.against is None else target.against.of(scores[other]))
        for i, value, far, loss in zip(rows, values.tolist(), kl(plain[0][0], scores[0][:, 0]).tolist(), lost, strict=True):
            found[i] = {"value": value, "kl": far, "lost": loss - plain[0][1], "text": ""}

    for rows in text.chunks(max(map(len, tails))):
        for _ in halving(rows, measure, what=STEERED, hint=HINT):
            pass
    return [found[i] for i in range(len(text.edits))]


class SteeredWriting(NamedTuple):
    """What the rows of a scan wrote: rows of `steering` and, in their order, columns of `steering_tokens` for each."""

    rows: list[Row]
    tokens: list[dict[str, list[Any]]]


@torch.no_grad()
def write_steered(text: SteeredText, generate: int, target: Contrast | None, matching: str | None) -> SteeredWriting:
    """Greedy continuations under the edits: whether each holds the expression, or the answer's log-prob in the place of each of
    its tokens, on average; KL(plain || steered) over them; what a token of it costs the plain model, more than one of its own.
    """
    lm = text.lm
    with applying(lm, text.edits) as applied:
        drawn = branch(lm, [text.ids] * len(text.edits), [0], max_new=generate, sampling=Sampling(), edits=applied)
    written = [own[0].ids for own in drawn]
    if not all(written):
        raise BadPrompt("the prompt leaves no room for what is to be written", hint="a shorter prompt")
    tokens: dict[int, dict[str, list[Any]]] = {}

    def measure(rows: list[int]) -> None:
        tails = [written[i] for i in rows]
        steered, plain = text.logits(tails, rows), text.logits(tails, None)
        for row, i in enumerate(rows):
            where = slice(text.measured, text.measured + len(written[i]))
            tokens[i] = _tokens(text, written[i], steered[row, where], plain[row, where], target)

    for rows in text.chunks(max(map(len, written))):
        for _ in halving(rows, measure, what=STEERED, hint=HINT):
            pass
    own = [tokens[i] for i in range(len(text.edits))]
    plainly = _mean(own[text.plain]["plain_logprob"])
    texts, pattern = [lm.pieces(ids).text for ids in written], Pattern(matching or "", hint=MATCHING)
    return SteeredWriting(
        [
            {
                "value": float(pattern.search(said) is not None) if target is None else _value(found),
                "kl": _mean(found["kl"]), "text": said,
                "lost": plainly - _mean(found["plain_logprob"]),
            }
            for said, found in zip(texts, own, strict=True)
        ],
        own,
    )  # fmt: skip


def _tokens(
    text: SteeredText, ids: Sequence[int], steered: Tensor, plain: Tensor, target: Contrast | None
) -> dict[str, list[Any]]:
    """Columns of `steering_tokens` from `pos` on, of what was written, from the logits (token, d_vocab) that predict it."""
    chosen = torch.tensor(ids, device=steered.device)[:, None]
    own, other = steered.double().log_softmax(-1), plain.double().log_softmax(-1)
    found: dict[str, list[Any]] = {
        "pos": list(range(text.measured + 1, text.measured + 1 + len(ids))), "token_id": list(ids),
        "token": [text.lm.token_text(i) for i in ids], "logprob": own.gather(-1, chosen)[:, 0].tolist(),
        "plain_logprob": other.gather(-1, chosen)[:, 0].tolist(), "kl": kl(other, own).tolist(),
    }  # fmt: skip
    for name, one in zip(("answer_logprob", "against_logprob"), target or (None, None), strict=True):
        found[name] = [None] * len(ids) if one is None else one.of(own[:, None]).tolist()
    return found


def _value(found: dict[str, list[Any]]) -> float:
    against = found["against_logprob"]
    return _mean(found["answer_logprob"]) - (0.0 if None in against else _mean(against))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
