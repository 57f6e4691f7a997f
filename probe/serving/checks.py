"""Whether a server has the model that this process has, draws with noise that a seed addresses, and obeys each setting.

Each is found out by requests, since what a server is told and does not know it passes over in silence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from probe.decoding.settings import processors
from probe.decoding.teacher_forced import Prefix, token_logprobs
from probe.errors import BadOption, EngineError
from probe.requests import Sampling
from probe.serving.client import Client, Json, Refused
from probe.serving.completions import (
    PATH,
    Reply,
    Served,
    body_of,
    order_remarks,
    prompt_logprobs,
    read_reply,
    request_seed,
    scoring_body,
)  # fmt: skip

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

TEXT = (
    "The capital of France is Paris. Let x = 17 and y = 23: then x * y = 391, since 17 * 20 = 340 and 17 * 3 = 51. "
    "def area(r): return 3.14159 * r ** 2. She asked why the river was so low, and nobody in the village could tell."
)
EXACT = 2e-3  # nats, of the largest difference: two programs that compute in fp32
LOOSE = 0.1  # nats, of the mean difference: another dtype or kernel; the text's mean differs by more between two models
DRAWN = 24  # tokens of a continuation that is drawn to look at the noise
FEW, WARM = 4, 2.0  # tokens and temperature of a continuation that a filter makes greedy
OTHERS = 6  # other seeds that run beside
_WIDE = Sampling(temperature=1.0)
_SHARP = Sampling(temperature=0.5, top_k=2)  # processed log-probs are far from raw ones


class Probe(NamedTuple):
    """The text that is asked about, and the logits (pos - 1, d_vocab) that predict its tokens here."""

    ids: list[int]
    logits: Tensor


class Findings(NamedTuple):
    """What is known of a server. differs: mean and largest difference of log-probs to the model here, nats.

    scores: by which request the log-probs of a given text come, `prompt` or `echo`; None: not at all.
    logprobs: what those of drawn tokens are, `raw` or `processed`; None: neither, or there are none.
    """

    differs: tuple[float, float]
    scores: str | None
    logprobs: str | None
    addressed_noise: bool

    @property
    def exact(self) -> bool:
        """Whether the server computes the same numbers, to fp32 rounding."""
        return self.differs[1] <= EXACT


def local_probe(lm: LanguageModel, context: int | None) -> Probe:
    """The text's tokens, or as many of them as leave room for what is drawn, and what the model here says of them."""
    room = min(n for n in (lm.context_length, context, 1 << 20) if n) - DRAWN
    ids = list(lm.encode(TEXT).ids)[: max(2, room)]
    return Probe(ids, Prefix(lm, ids[:1]).teacher_forced([ids[1:]])[0])


def examine(client: Client, lm: LanguageModel, served: Served, probe: Probe) -> Findings:
    """Compare the server's model with the one here, and look at its noise.

    Raises `EngineError` for another model, tokenizer or vocabulary, for ids that are not those it drew, and for seeds that it
    does not hear.
    """
    _check_tokenizer(client, served, probe)
    scores, given = _scores_of(client, served, probe)
    own = token_logprobs(probe.logits, probe.ids[1:])
    same, drawn = _draw_alone_and_beside(client, lm, served, probe)
    stated = [reply for reply in drawn if reply.logprobs is not None]
    if given is None and not stated:
        raise EngineError(
            f"the server at {client.url} gives no log-probs: nothing says that it has the model '{lm.name}'",
            hint="vLLM and SGLang give them; or --engine local",
        )
    kind, drawn_differ = _kind_of_logprobs(client, lm, served, probe)
    differ = [] if given is None else [np.abs(np.asarray(given[1:], dtype=np.float64) - own)]
    differences = np.concatenate(differ) if differ else drawn_differ
    assert differences is not None, "log-probs of either are given"
    found = float(differences.mean()), float(differences.max())
    if not found[0] <= LOOSE:
        raise EngineError(
            f"the server at {client.url} has another model than '{lm.name}': its log-probs of a probe text differ by "
            f"{found[0]:.3g} nats in the mean (at most {found[1]:.3g})",
            hint=f"serve the same weights and tokenizer: up to {LOOSE:g} may come from another dtype",
        )
    if drawn_differ is not None and not float(np.median(drawn_differ)) <= LOOSE:
        raise EngineError(
            f"the ids that the server at {client.url} returns are not those that it drew: what it states of them is "
            f"{float(np.median(drawn_differ)):.3g} nats (median) from their log-probs here",
            hint="rollouts are kept in ids; use another server, or --engine local",
        )
    return Findings(found, scores, kind, same)


def _check_tokenizer(client: Client, served: Served, probe: Probe) -> None:
    """The server's own ids of the text, where it says them."""
    body = body_of([], Sampling(), served, max_tokens=1, seed=0, eos=(), logprobs=False) | {"prompt": TEXT}
    try:
        (found,) = client.post(PATH, [body])
    except Refused:  # a server without a tokenizer takes ids alone
        return
    choice = found["choices"][0] if found.get("choices") else {}
    ids = choice.get("prompt_token_ids", found.get("prompt_token_ids"))
    if ids is None:
        return
    n = len(probe.ids)
    other = sum(a != b for a, b in zip(ids[:n], probe.ids, strict=False)) + max(0, n - len(ids))
    if other:
        raise EngineError(
            f"the server at {client.url} has another tokenizer: {other} of {n} tokens of a probe text differ",
            hint="serve the model that is loaded here, or load the one that is served",
        )


def _scores_of(client: Client, served: Served, probe: Probe) -> tuple[str | None, list[float | None] | None]:
    """How the server gives the log-probs of a given text, and those of the probe text."""
    for way in ("prompt", "echo"):
        try:
            (found,) = client.post(PATH, [scoring_body(probe.ids, served, echo=way == "echo")])
        except Refused:
            continue
        given = prompt_logprobs(found, probe.ids, echo=way == "echo")
        if given is not None:
            return way, given
    return None, None


def _draw_alone_and_beside(
    client: Client, lm: LanguageModel, served: Served, probe: Probe
) -> tuple[bool, list[Reply]]:  # fmt: skip
    """Null edit: one (prefix, seed) alone, then twice beside others of other prefixes; whether its tokens are the same.

    Raises `EngineError` if other seeds give the same tokens too."""
    prefixes = [probe.ids, *[probe.ids] * OTHERS, probe.ids[: len(probe.ids) // 2], probe.ids[:5], probe.ids]
    seeds = [0, *range(1, 3 + OTHERS), 0]
    bodies = [
        body_of(prefix, _WIDE, served, max_tokens=DRAWN, seed=request_seed(0, seed), eos=lm.eos_ids)
        for prefix, seed in zip(prefixes, seeds, strict=True)
    ]
    answers = [*client.post(PATH, bodies[:1]), *client.post(PATH, bodies)]
    drawn = [
        read_reply(answer, prefix, most=DRAWN, n_ids=lm.n_ids)
        for answer, prefix in zip(answers, [prefixes[0], *prefixes], strict=True)
    ]
    same = all(one.ids == drawn[0].ids for one in (drawn[1], drawn[-1]))
    if all(one.ids == drawn[0].ids for one in drawn[1 : 2 + OTHERS]):
        raise EngineError(
            f"the server at {client.url} draws the same tokens whatever the seed", hint="use another server, or --engine local"
        )
    return same, drawn


def _kind_of_logprobs(
    client: Client, lm: LanguageModel, served: Served, probe: Probe
) -> tuple[str | None, np.ndarray | None]:  # fmt: skip
    """Whether the log-probs of drawn tokens are those of the model or those after the filters, and how far they are from them.

    The differences are absolute, nats; None where no log-probs are given. Medians decide: of two nearly equal tokens another
    one may be left here after the filters.
    """
    body = body_of(probe.ids, _SHARP, served, max_tokens=DRAWN, seed=request_seed(0, 0), eos=lm.eos_ids)
    reply = read_reply(client.post(PATH, [body])[0], probe.ids, most=DRAWN, n_ids=lm.n_ids)
    if reply.logprobs is None or not reply.ids:
        return None, None
    logits = Prefix(lm, probe.ids).teacher_forced([reply.ids])[0].float()
    stated = np.asarray(reply.logprobs)
    found = {}
    for kind, scores in (("raw", logits), ("processed", _sharpened(logits))):
        found[kind] = np.abs(stated - np.clip(token_logprobs(scores, reply.ids), -9999.0, None))
    kind = min(found, key=lambda k: float(np.median(found[k])))
    return kind, found[kind]


def _sharpened(logits: Tensor) -> Tensor:
    """Logits (pos, d_vocab) as `_SHARP` filters them; none of its filters looks at the text."""
    scores = logits.clone()
    for one in processors(_SHARP):
        scores = one(torch.zeros((len(logits), 0), dtype=torch.long), scores)
    return scores


def check_settings(client: Client, served: Served, probe: Probe, sampling: Sampling) -> None:
    """Raises `BadOption` for a setting that is asked for and that the server does not obey.

    Filters at their strictest make warm sampling greedy; the penalty and forbidden tokens turn a greedy choice into the one
    that is computed here.
    """
    cases = {**_strictest(served, probe, sampling), **_turned(served, probe, sampling)}
    if not cases:
        return
    greedy = body_of(probe.ids, Sampling(), served, max_tokens=FEW, seed=0, eos=(), logprobs=False)
    asked = [(name, *one) for name, ones in cases.items() for one in ones]
    answers = client.post(PATH, [greedy, *(body for _, body, _ in asked)])
    replies = [
        read_reply(a, b["prompt"], most=FEW, n_ids=None).ids
        for a, b in zip(answers, [greedy, *(x[1] for x in asked)], strict=True)
    ]
    for (name, _, expected), ids in zip(asked, replies[1:], strict=True):
        if ids != (replies[0] if expected is None else expected):
            raise BadOption(
                f"the server at {client.url} does not apply {name} as it is meant here",
                hint=f"leave out {name}, or --engine local",
            )


Case = tuple[Json, list[int] | None]  # a request, and the ids that must come (None: the greedy ones)


def _strictest(served: Served, probe: Probe, sampling: Sampling) -> dict[str, list[Case]]:
    warm = Sampling(temperature=WARM)
    strict = {
        "top-k": (sampling.top_k is not None, replace(warm, top_k=1)),
        "top-p": ((sampling.top_p or 1.0) < 1.0, replace(warm, top_p=1e-6)),
        "min-p": (bool(sampling.min_p), replace(warm, min_p=1.0)),
    }
    return {
        name: [
            (body_of(probe.ids, one, served, max_tokens=FEW, seed=request_seed(1, s), eos=(), logprobs=False), None)
            for s in range(2)
        ]
        for name, (asked, one) in strict.items()
        if asked
    }


def _turned(served: Served, probe: Probe, sampling: Sampling) -> dict[str, list[Case]]:
    """Requests for one greedy token, at a position where the setting changes it, and what it must be."""
    found: dict[str, list[Case]] = {}
    logits = probe.logits.float()
    if sampling.repetition_penalty != 1.0:
        strong = Sampling(repetition_penalty=max(2.0, sampling.repetition_penalty))
        penalty = RepetitionPenaltyLogitsProcessor(strong.repetition_penalty)
        rows = [penalty(torch.tensor([probe.ids[: i + 1]]), row[None].cpu().clone())[0] for i, row in enumerate(logits)]
        scores = torch.stack(rows)
        changed = (scores.argmax(-1) != logits.cpu().argmax(-1)).nonzero()[:, 0].tolist()
        margins = scores.topk(2).values
        if changed:
            at = max(changed, key=lambda i: float(margins[i, 0] - margins[i, 1]))
            found["repetition-penalty"] = [_one(served, probe, strong, at, int(scores[at].argmax()))]
    if sampling.suppress:
        best = logits.topk(3)
        at = int((best.values[:, 1] - best.values[:, 2]).argmax())
        first, second = best.indices[at, :2].tolist()
        found["suppressed tokens"] = [_one(served, probe, Sampling(suppress=(first,)), at, second)]
    return found


def _one(served: Served, probe: Probe, sampling: Sampling, at: int, expected: int) -> Case:
    body = body_of(probe.ids[: at + 1], sampling, served, max_tokens=1, seed=0, eos=(), logprobs=False)
    return body, [expected]


def remarks_on(findings: Findings, served: Served, lm: LanguageModel, sampling: Sampling) -> list[str]:
    """What a reader of a run must know of the server that drew it."""
    found = order_remarks(sampling, served.kind)
    if not findings.exact:
        found.append(
            f"the server's log-probs of a probe text differ from those here by {findings.differs[0]:.2g} nats in the mean: it "
            "computes in another dtype, or its weights are a little other ones"
        )
    if not findings.addressed_noise:
        found.append(
            "the server drew other tokens for one prefix and seed beside other requests: its noise is no function of them, and "
            "arms are not compared in pairs"
        )
    if served.context is not None and served.context < (lm.context_length or 1 << 62):
        found.append(f"the server holds texts of at most {served.context:,} tokens: longer ones end with `context`")
    return found
