"""One pass of the target as rows of the table `proposals`: what was proposed, how likely to both, what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probe.scoring import kl, score_rows
from probe.speculating.rounds import Round

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Row = dict[str, Any]


class ProposalDistances(NamedTuple):
    """Of distributions p and q (row, d_vocab), each (row,): total variation, and KL both ways in nats."""

    tv: Tensor
    kl: Tensor
    kl_reverse: Tensor


def distances(p: Tensor, q: Tensor) -> ProposalDistances:
    """float64; a KL is infinite where the second lacks what the first has."""
    return ProposalDistances((p - q).abs().sum(-1) / 2, kl(p.log(), q.log()), kl(q.log(), p.log()))


def rows_of(lm: LanguageModel, one: Round) -> list[Row]:
    """A row for each drafted token, and for the token that the target added to a whole block."""
    n, tokens = len(one.proposal.tokens), one.proposal.tokens
    added = int(one.settled.token[0])
    if not n:
        return [_bonus(lm, one, added)]
    q = one.proposal.distributions.to(one.p.device)
    at = torch.tensor(tokens, device=q.device)[:, None]
    p_of, q_of = (values[:n].gather(1, at)[:, 0].tolist() for values in (one.p, q))
    apart = [values.tolist() for values in distances(one.p[:n], q)]
    rows, numbers = [], zip(one.settled.chances[0].tolist(), one.settled.uniforms[0].tolist(), strict=True)
    for i, (token, (chance, number)) in enumerate(zip(tokens, numbers, strict=True)):
        verdict = _verdict(one, i)
        tested, wrong = verdict != "discarded", verdict == "rejected"
        rows.append({
            **_named(lm, one, i, token), "verdict": verdict, "accepted": verdict == "accepted" if tested else None,
            "p": p_of[i], "q": q_of[i], "accept_prob": chance, "uniform": number if tested else None,
            "correction_id": added if wrong else None, "correction": lm.token_text(added) if wrong else None,
            "tv": apart[0][i], "kl": apart[1][i], "kl_reverse": apart[2][i],
        })  # fmt: skip
    _score(rows, one.logits[:n], tokens, "")
    if one.proposal.logits is not None:
        _score(rows, one.proposal.logits, tokens, "draft_")
    return [*rows, _bonus(lm, one, added)] if one.kept == n + 1 else rows


def _verdict(one: Round, i: int) -> str:
    """What became of the token at place i; nothing after the end of the text was ever part of it."""
    if i >= one.kept or i > one.accepted:
        return "discarded"
    return "accepted" if i < one.accepted else "rejected"


def _bonus(lm: LanguageModel, one: Round, token: int) -> Row:
    n = len(one.proposal.tokens)
    row = {**_named(lm, one, n, token), "verdict": "bonus", "p": float(one.p[n, token])}
    _score([row], one.logits[n : n + 1], [token], "")
    return row


def _named(lm: LanguageModel, one: Round, i: int, token: int) -> Row:
    before = [*one.text, *one.proposal.tokens[:i]][-1]
    text = lm.token_text(token)
    return {
        "round": one.number, "index": i, "pos": len(one.text) + i, "token_id": token, "token": text,
        "kind": "special" if token in lm.tokenizer.all_special_ids else kind_of(text, lm.token_text(before)),
    }  # fmt: skip


def kind_of(text: str, before: str) -> str:
    """What sort of token it is, by its text and that of the one before it."""
    bare = text.strip()
    if not bare:
        return "space"
    if "\ufffd" in text:
        return "bytes"
    if any(c.isdigit() for c in bare):
        return "number"
    if not any(c.isalpha() for c in bare):
        return "punctuation"
    goes_on = text[0].isalpha() and before[-1:].isalpha()
    return "continuation" if goes_on else "word start"


def _score(rows: list[Row], logits: Tensor, tokens: list[int], whose: str) -> None:
    """What a model itself gives to the tokens, before temperature and filters."""
    scores = score_rows(logits, torch.tensor(tokens), top=0)
    for row, logprob, entropy, rank in zip(
        rows, scores.logprob.tolist(), scores.entropy.tolist(), scores.rank.tolist(), strict=True
    ):
        row |= {f"{whose}logprob": logprob, f"{whose}entropy": entropy, f"{whose}rank": rank}


def columns(prompt_id: int, rows: list[Row]) -> dict[str, Any]:
    """Rows of one prompt as columns of `proposals`."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {"prompt_id": [prompt_id] * len(rows), **{name: [row.get(name) for row in rows] for name in names}}
