"""The stages of one choice as rows of the tables `stages` and `candidates`. Counts and masses in float64; runs no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probe.sampling.stages import Stage

SHOWN = 10  # candidates and removed tokens that are named, best first


class Token(NamedTuple):
    """The token whose way is told: where it stands, its id, and the noise of its race (None: nothing was drawn)."""

    pos: int
    token_id: int
    order: str
    noise: Tensor | None
    chosen: int | None


def stage_columns(found: Sequence[Stage], about: Token) -> dict[str, Any]:
    """Columns of `stages`: what each stage kept and removed, and where the token stood after it."""
    raw = found[0].logprobs.exp()
    rows = []
    for i, stage in enumerate(found):
        before = found[max(0, i - 1)].logprobs
        left = stage.logprobs > -torch.inf
        removed = ((before > -torch.inf) & ~left).nonzero()[:, 0]
        named = removed[before[removed].argsort(descending=True, stable=True)[:SHOWN]]
        own, there = stage.logprobs[about.token_id], bool(left[about.token_id])
        rows.append({
            "stage": i, "name": stage.name, "setting": stage.setting, "kept": int(left.sum()), "removed": len(removed),
            "kept_mass": float(before.exp()[left].sum()), "raw_mass": float(raw[left].sum()),
            "entropy": float(torch.special.entr(stage.logprobs.exp()).sum()), "token_id": about.token_id,
            "rank": rank(stage.logprobs, about.token_id) if there else None, "prob": float(own.exp()),
            "removed_ids": named.tolist(), "removed_probs": before[named].exp().tolist(),
        })  # fmt: skip
    return _columns(rows, about)


def candidate_columns(found: Sequence[Stage], about: Token, text: Callable[[int], str]) -> dict[str, Any]:
    """Columns of `candidates`: the best tokens before and after the filters, the token itself and the one that wins."""
    first, last = found[0].logprobs, found[-1].logprobs
    tops = [(stage, stage.topk(min(SHOWN, len(stage))).indices) for stage in (first, last)]
    best = [t for stage, top in tops for t in top[stage[top] > -torch.inf].tolist()]
    named = {*best, about.token_id, *([] if about.chosen is None else [about.chosen])}
    rows = []
    for token in sorted(named, key=lambda t: (-float(first[t]), t)):
        final = float(last[token].exp())
        noise = None if about.noise is None else float(about.noise[token])
        rows.append({
            "token_id": token, "token": text(token), "rank": rank(first, token), "raw_prob": float(first[token].exp()),
            "final_prob": final, "removed_by": _removed_by(found, token), "noise": noise,
            "race": None if noise is None or final == 0.0 else noise / final,
            "actual": token == about.token_id, "chosen": None if about.chosen is None else token == about.chosen,
        })  # fmt: skip
    return _columns(rows, about)


def rank(logprobs: Tensor, token: int) -> int:
    """How many tokens come before it: 0 is the top; of equals the lower id comes first."""
    own = logprobs[token]
    return int((logprobs > own).sum() + (logprobs[:token] == own).sum())


def _removed_by(found: Sequence[Stage], token: int) -> str | None:
    """The stage after which it is out."""
    return next((stage.name for stage in found if float(stage.logprobs[token]) == -torch.inf), None)


def _columns(rows: Sequence[dict[str, Any]], about: Token) -> dict[str, Any]:
    keys = {"pos": about.pos, "order": about.order}
    return {name: [{**keys, **row}[name] for row in rows] for name in (*keys, *rows[0])}
