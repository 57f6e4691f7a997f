"""An engine that is a server: rollouts are requests, and what comes back is checked as our own decoder would have ended it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe.decoding.draws import Continuation, ended
from probe.decoding.engine import check
from probe.decoding.rollouts import Ended, Known, Rollout
from probe.decoding.teacher_forced import Prefix
from probe.decoding.teacher_forced import suffix_logprobs as own_suffix_logprobs
from probe.errors import EngineError
from probe.requests import Sampling
from probe.serving.checks import check_settings, examine, local_probe, remarks_on
from probe.serving.client import PATIENCE, Client, Json, Patience
from probe.serving.completions import (
    PATH,
    Reply,
    Served,
    body_of,
    check_sampling,
    prompt_logprobs,
    read_reply,
    request_seed,
    scoring_body,
)  # fmt: skip

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

IN_FLIGHT = 64  # requests under way at once
ROUNDS = 3  # times that a rollout is asked for whose answer is no whole one


class _Asked(NamedTuple):
    """A rollout that is to be drawn: the tokens there is room for, and whether the server ends it at stop texts by itself."""

    rollout: Rollout
    most: int
    stops: bool = True


class ServerEngine:
    """A server that has the model, over the OpenAI-compatible completions protocol (vLLM, SGLang).

    The address of a rollout's noise goes with it as the request's seed. Where the server's noise is a function of prefix and
    seed alone (`addressed_noise`, found out when the engine is made), arms of one sample share it.
    """

    activations = edits = False

    def __init__(
        self, lm: LanguageModel, url: str, *, in_flight: int = IN_FLIGHT, patience: Patience = PATIENCE
    ) -> None:  # fmt: skip
        """Raises `EngineError` for a server that does not answer or has another model, `BadOption` for no address."""
        check(lm)
        self.lm, self.name = lm, url
        self.client = Client(url, in_flight=in_flight, patience=patience)
        self.served = served_by(self.client)
        self._probe = local_probe(lm, self.served.context)
        self.findings = examine(self.client, lm, self.served, self._probe)
        self.addressed_noise = self.findings.addressed_noise
        self._obeyed: set[Sampling] = set()

    @property
    def identity(self) -> dict[str, Any]:
        """What a run's manifest says of the server: the same for the same server and model, started again."""
        return {
            **self.served._asdict(), "exact": self.findings.exact, "logprobs": self.findings.logprobs,
            "rescores": self.findings.scores is not None, "addressed_noise": self.addressed_noise,
        }  # fmt: skip

    def remarks(self, sampling: Sampling) -> list[str]:
        """What a reader of a run must know."""
        return remarks_on(self.findings, self.served, self.lm, sampling)

    def draw(
        self, rollouts: Sequence[Rollout], sampling: Sampling, *, done: Ended, kept: Known | None = None,
        stems: Sequence[Prefix] = (),
    ) -> None:  # fmt: skip
        """As `Engine.draw` says; which rollouts are beside each other the server decides.

        Raises `EngineError` for a request that fails for good, once what was under way has ended, `BadOption` for a setting
        that the server does not obey.
        """
        check_sampling(sampling)
        waiting: dict[Rollout, list[int]] = {}
        for place, one in enumerate(rollouts):
            if kept is None or not kept(place):
                waiting.setdefault(one, []).append(place)
        if waiting:
            self._check_settings(sampling)
        for one, found in self._drawn(list(waiting), sampling):
            for place in waiting[one]:
                done(place, found)

    def suffix_logprobs(self, prefix: Sequence[int], suffixes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """As `decoding.suffix_logprobs`, from the server where it gives them."""
        way, limit = self.findings.scores, self.served.context
        texts = [[*prefix, *suffix] for suffix in suffixes]
        if way is None or (limit is not None and any(len(text) >= limit for text in texts)):
            return own_suffix_logprobs(self.lm, prefix, suffixes)
        found = [np.empty(0, np.float32)] * len(texts)
        asked = [i for i, suffix in enumerate(suffixes) if suffix]
        answers = self.client.each(
            PATH, len(asked), lambda n: scoring_body(texts[asked[n]], self.served, echo=way == "echo")
        )  # fmt: skip
        for n, answer in answers:
            i = asked[n]
            values = prompt_logprobs(answer, texts[i], echo=way == "echo")
            if values is None:
                raise EngineError("the server left out the log-probs of a text", hint="--engine local scores it here")
            found[i] = np.asarray(values[len(prefix) :], dtype=np.float32)
        return found

    def _check_settings(self, sampling: Sampling) -> None:
        plain = replace(sampling, seed=0)
        if plain not in self._obeyed:
            check_settings(self.client, self.served, self._probe, plain)
            self._obeyed.add(plain)

    def _drawn(self, rollouts: Sequence[Rollout], sampling: Sampling) -> Iterator[tuple[Rollout, Continuation]]:
        """Each rollout with what was drawn, as they end."""
        limit = min((n for n in (self.lm.context_length, self.served.context) if n), default=None)
        asked: list[_Asked] = []
        for one in rollouts:
            most = one.max_new if limit is None else min(one.max_new, limit - len(one.prefix))
            if most >= 1:
                asked.append(_Asked(one, most))
            else:
                yield one, Continuation(stop_reason="context" if one.max_new >= 1 else "length")
        for _ in range(ROUNDS):
            again: list[_Asked] = []
            for i, answer in self._answers(asked, sampling):
                own = asked[i]
                reply = read_reply(answer, own.rollout.prefix, most=own.most, n_ids=self.lm.n_ids)
                found = self._whole(own, reply, sampling)
                if isinstance(found, _Asked):
                    again.append(found)
                else:
                    yield own.rollout, found
            asked = again
        if asked:
            raise EngineError(
                f"the server broke off a text {ROUNDS} times", hint="see its log; what was drawn is kept, and --resume goes on"
            )

    def _answers(self, asked: Sequence[_Asked], sampling: Sampling) -> Iterator[tuple[int, Json]]:
        return self.client.each(PATH, len(asked), lambda i: self._body(asked[i], sampling))

    def _body(self, asked: _Asked, sampling: Sampling) -> Json:
        one = asked.rollout
        return body_of(
            one.prefix, sampling, self.served, max_tokens=asked.most, seed=request_seed(one.seed, one.sample),
            eos=self.lm.eos_ids, logprobs=self.findings.logprobs is not None, stops=asked.stops,
        )  # fmt: skip

    def _whole(self, asked: _Asked, reply: Reply, sampling: Sampling) -> Continuation | _Asked:
        """What was drawn, to where our decoder would have ended it; or what to ask for instead.

        A stop text that the server finds and this tokenizer does not is no end: the same is drawn on without it.
        """
        ids = list(reply.ids)
        if reply.finish == "stop" and reply.ended_by in self.lm.eos_ids and reply.ended_by not in ids[-1:]:
            ids.append(int(reply.ended_by))  # a server that keeps the end to itself
        n, reason = first_end(self.lm, ids, sampling.stop)
        if not reason and reply.finish == "length" and n == asked.most:
            reason = "length" if n == asked.rollout.max_new else "context"
        if not reason and reply.finish == "abort":
            return asked
        if not reason and reply.finish == "stop" and sampling.stop and asked.stops:
            return asked._replace(stops=False)
        if not reason:
            raise EngineError(
                f"the server ended a text after {n} of {asked.most} tokens for a reason of its own: {reply.finish} "
                f"({reply.ended_by})",
                hint="vLLM adds no stop tokens of its own with --generation-config vllm",
            )
        forbidden = set(sampling.suppress).intersection(ids[:n])
        if forbidden:
            raise EngineError(f"the server drew token {min(forbidden)}, which is suppressed", hint="--engine local")
        return self._columns(ids[:n], reply.logprobs, sampling, reason)

    def _columns(self, ids: list[int], stated: list[float] | None, sampling: Sampling, reason: str) -> Continuation:
        """What is known of each token: of log-probs and the number of tokens left what the server says or what follows from the
        settings, else None. Of the noise nothing."""
        n, greedy, kind = len(ids), sampling.temperature == 0.0, self.findings.logprobs
        unknown: list[Any] = [None] * n
        values: list[Any] = unknown if stated is None else [*stated, *unknown][:n]
        plain = replace(sampling, seed=0, stop=()) == Sampling(temperature=1.0)
        drawn = values if kind == "processed" or (plain and kind) else unknown
        width = int(self._probe.logits.shape[-1])
        left = width - sum(token < width for token in set(sampling.suppress))
        return Continuation(
            ids=ids, stop_reason=reason, sample_logprob=[0.0] * n if greedy else drawn,
            kept=[1] * n if greedy else unknown if sampling.filtered else [left] * n, noise=unknown,
            logprob=values if kind == "raw" or (plain and kind) else unknown,
        )  # fmt: skip


def served_by(client: Client) -> Served:
    """What is served at an address. Raises `EngineError` if it is no such server, or which model is meant is not said."""
    found = client.get("/v1/models")
    models = found.get("data") if found is not None else None
    if not isinstance(models, list) or not models or not all(isinstance(m, dict) and "id" in m for m in models):
        raise EngineError(
            f"at {client.url} is no OpenAI-compatible server: it lists no models", hint="vllm serve MODEL, then its address"
        )
    names = [str(m["id"]) for m in models]
    if client.model not in names and (client.model or len(names) > 1):
        what = f"does not serve '{client.model}'" if client.model else f"serves {len(names)} models"
        raise EngineError(f"the server at {client.url} {what}", hint=f"{client.url}#MODEL, of {', '.join(names)}")
    one = models[names.index(client.model) if client.model else 0]
    kind = str(one.get("owned_by") or "unknown")
    version = (client.get("/version") or {}).get("version") if kind == "vllm" else None
    length = one.get("max_model_len")
    return Served(kind, str(one["id"]), version, length if isinstance(length, int) else None)


def first_end(lm: LanguageModel, ids: Sequence[int], stop: Sequence[str]) -> tuple[int, str]:
    """How many of generated ids there are until they end by themselves, and why (`ended`); all of them and "" if they don't."""
    eos = next((n for n, token in enumerate(ids, 1) if token in lm.eos_ids), None)
    if stop and any(one in lm.pieces(ids).text for one in stop):
        for n in range(1, (eos or len(ids)) + 1):
            if reason := ended(lm, ids[:n], stop):
                return n, reason
    return (len(ids), "") if eos is None else (eos, "eos")
