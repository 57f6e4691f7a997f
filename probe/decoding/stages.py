"""How logits become a choice, stage by stage, in the order of three engines, and the rows that tell of it. Runs no model.

The same settings do not mean the same elsewhere (METHODS M18): a filter that comes before the temperature sees another
distribution than one that comes after it, and min-p before top-p leaves top-p another mass to share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from probe.decoding.noise import exponential
from probe.decoding.settings import processors
from probe.errors import BadOption, NonFinite
from probe.requests import Sampling

# hf: generation/utils.py of transformers 5.23; vllm: the v1 sampler (its docs of 0.22: penalties, temperature, the
# argmax-invariant processors, of which min-p is the built-in one, then top-k and top-p); llamacpp: common/sampling's default
ORDERS: dict[str, tuple[str, ...]] = {
    "hf": ("penalty", "suppress", "temperature", "top_k", "top_p", "min_p"),
    "vllm": ("suppress", "penalty", "temperature", "min_p", "top_k", "top_p"),
    "llamacpp": ("suppress", "penalty", "top_k", "top_p", "min_p", "temperature"),
}
SHOWN = 10  # candidates and removed tokens that are named, best first
WINDOW = 64  # llama.cpp's repeat_last_n: its penalty looks at so many last tokens, the others' at all
_NAMES = {
    RepetitionPenaltyLogitsProcessor: ("penalty", "repetition_penalty"),
    SuppressTokensLogitsProcessor: ("suppress", "suppress"),
    TemperatureLogitsWarper: ("temperature", "temperature"),
    TopKLogitsWarper: ("top_k", "top_k"),
    TopPLogitsWarper: ("top_p", "top_p"),
    MinPLogitsWarper: ("min_p", "min_p"),
}


class Stage(NamedTuple):
    """What there is after one stage. The first, `logits`, is what the model gave and has no setting."""

    name: str
    setting: float | None
    logprobs: Tensor  # (d_vocab,) float64, normalised over what is left; -inf where a token is out


def stages(logits: Tensor, ids: Tensor, sampling: Sampling, order: str) -> list[Stage]:
    """Every stage that does something, in an engine's order. logits (d_vocab,); ids (pos,) are the tokens before.

    Raises `NonFinite` for logits that hold NaN or +inf or nothing else than -inf, `BadOption` for an unknown order.
    """
    check_order(order)
    scores = logits.to(torch.float32)[None]
    if not bool(scores.amax(-1).isfinite()):
        raise NonFinite("the logits are not finite numbers", hint="try --dtype float32")
    found = [Stage("logits", None, scores[0].double().log_softmax(-1))]
    filters = {_NAMES[type(p)]: p for p in processors(sampling)}
    active = {name: (filter_, _setting(sampling, field)) for (name, field), filter_ in filters.items()}
    for name in ORDERS[order]:
        if name in active:
            processor, setting = active[name]
            if order == "llamacpp" and name == "top_k":
                scores = _exactly(scores, int(setting))
            else:
                seen = ids[-WINDOW:] if order == "llamacpp" else ids
                scores = processor(seen[None], scores.clone())
            found.append(Stage(name, setting, scores[0].double().log_softmax(-1)))
    return found


def _setting(sampling: Sampling, field: str) -> float:
    """What a stage was set to; of suppressed tokens how many they are."""
    value = getattr(sampling, field)
    return float(len(value) if isinstance(value, tuple) else value)


def check_order(order: str) -> None:
    """Raises `BadOption` for an order that no engine of ours has."""
    if order not in ORDERS:
        raise BadOption(f"unknown order '{order}'", hint=", ".join(ORDERS))


def race(last: Stage, sampling: Sampling, *, sample: int, step: int) -> tuple[Tensor | None, int]:
    """The noise of every token (d_vocab,), float64, and the token that wins: argmin E / p. Greedy: no noise, the top token."""
    if sampling.temperature == 0.0:
        return None, int(last.logprobs.argmax())
    tokens = torch.arange(len(last.logprobs), device=last.logprobs.device)
    noise = exponential(sampling.seed, [sample], [step], tokens)[0].double()
    return noise, int((noise.log() - last.logprobs).argmin())


def _exactly(scores: Tensor, k: int) -> Tensor:
    """llama.cpp keeps k tokens also where several tie with the k-th: here those of lower id."""
    out = scores[0].sort(descending=True, stable=True).indices[k:]
    return scores.index_fill(-1, out, -torch.inf)


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
