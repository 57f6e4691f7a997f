"""A server as an engine: what it draws is what our own decoder draws with its seeds, and what goes wrong is said or mended."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import probe
from probe.decoding import decode
from probe.decoding.rollouts import LocalEngine, Rollout
from probe.decoding.teacher_forced import suffix_logprobs as own_logprobs
from probe.errors import BadOption, EngineError
from probe.language_model import LanguageModel
from probe.requests import Sampling
from probe.serving import engine_of, in_process, remarks, suffix_logprobs
from probe.serving.client import Patience
from probe.serving.completions import order_remarks, request_seed
from probe.serving.server import ServerEngine
from probe.tiny import tiny
from tests.stand_in import DROPPED, StandIn, serving

WARM = Sampling(temperature=1.0)
SOON = Patience(answer=30.0, tries=4, pause=0.01)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def other() -> LanguageModel:
    """The same tokenizer and shapes, other weights."""
    return LanguageModel(*tiny("llama", seed=1), name="other")


@contextmanager
def engine(
    lm: LanguageModel, stand_in: StandIn | None = None, *, patience: Patience = SOON, **more: Any
) -> Iterator[ServerEngine]:
    with serving(stand_in or StandIn(lm)) as url:
        yield ServerEngine(lm, url, patience=patience, **more)


def prefix_of(lm: LanguageModel, text: str = "Two and two") -> tuple[int, ...]:
    return tuple(lm.encode(text).ids)


def drawn(
    engine: ServerEngine | LocalEngine, rollouts: list[Rollout], sampling: Sampling = WARM, **more: Any
) -> dict[int, Any]:
    found: dict[int, Any] = {}

    def done(place: int, one: Any) -> None:
        assert place not in found, "each is given once"
        found[place] = one

    engine.draw(rollouts, sampling, done=done, **more)
    return found


def expected(lm: LanguageModel, one: Rollout, sampling: Sampling = WARM) -> Any:
    """What the stand-in's decoder draws, here."""
    own = replace(sampling, seed=request_seed(one.seed, one.sample))
    return decode(lm, [one.prefix], max_new=one.max_new, sampling=own, samples=[0])[0]


@pytest.mark.slow
def test_a_server_draws_what_its_seeds_say(lm) -> None:
    prefixes = [prefix_of(lm), prefix_of(lm, "Another")]
    rollouts = [Rollout(p, s, n, 11) for p in prefixes for s in range(4) for n in (5, 9)]
    stand_in = StandIn(lm)
    with engine(lm, stand_in) as server:
        assert server.addressed_noise and server.findings.exact and server.findings.logprobs == "raw"
        found = drawn(server, [*rollouts, rollouts[0]])
        n = len(stand_in.heard)
        kept = drawn(server, rollouts, kept=lambda i: i != 3)
        assert len(stand_in.heard) == n + 1, "what is kept is not asked for again"
    assert list(kept) == [3]
    assert sorted(found) == list(range(len(rollouts) + 1)) and found[0].ids == found[len(rollouts)].ids
    for i, one in enumerate(rollouts):
        own = expected(lm, one)
        assert found[i].ids == own.ids and found[i].stop_reason == own.stop_reason
        np.testing.assert_allclose(found[i].logprob, own_logprobs(lm, one.prefix, [own.ids])[0], atol=1e-5)
        assert found[i].sample_logprob == found[i].logprob and set(found[i].kept) == {259}
    asked = Counter((tuple(b["prompt"]), b["seed"], b["max_tokens"]) for b in stand_in.heard[:n] if b["max_tokens"] in (5, 9))
    assert set(asked.values()) == {1} and len(asked) == len(rollouts), "equal rollouts are one"


def test_each_address_has_a_seed_of_its_own() -> None:
    """In 63 bits, in the lowest 32 alone, which are all that torch's generator of a CPU looks at, and in 31."""
    addresses = [(seed, sample) for seed in (0, 1, 2**40, 2**62 + 5) for sample in range(500)]
    for bits, low in ((63, 32), (31, 31)):
        seeds = [request_seed(*one, bits) for one in addresses]
        assert all(0 <= s < 2**bits for s in seeds)
        assert len({s & (2**low - 1) for s in seeds}) == len(addresses)
    ones = np.array([[s >> k & 1 for k in range(63)] for s in (request_seed(3, i) for i in range(4000))]).mean(0)
    assert np.abs(ones - 0.5).max() < 0.05  # 6 standard errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7, top_k=20),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.02),
        Sampling(temperature=0.9, top_k=50, top_p=0.9, repetition_penalty=1.4),
        Sampling(temperature=1.0, suppress=(5, 80, 101)),
        Sampling(temperature=1.0, stop=("a", "qz")),
    ],
    ids=str,
)
def test_settings_are_what_the_server_is_told(lm, sampling: Sampling) -> None:
    rollouts = [Rollout(prefix_of(lm), s, 12, 5) for s in range(6)]
    with engine(lm) as server:
        found = drawn(server, rollouts, sampling)
    plain = sampling.temperature == 1.0 and not sampling.filtered and not sampling.suppress
    for i, one in enumerate(rollouts):
        own = expected(lm, one, sampling)
        assert (found[i].ids, found[i].stop_reason) == (own.ids, own.stop_reason)
        if sampling.temperature == 0.0 or plain:
            np.testing.assert_allclose(found[i].sample_logprob, own.sample_logprob, atol=1e-5)
        else:
            assert set(found[i].sample_logprob) == {None} and found[i].total is None
        assert found[i].kept == (own.kept if not sampling.filtered else [None] * len(own.ids))
        assert set(found[i].noise) == {None} and None not in found[i].logprob


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deaf", "sampling", "said"),
    [
        ("top_k", Sampling(temperature=1.0, top_k=5), "top-k"),
        ("top_p", Sampling(temperature=1.0, top_p=0.9), "top-p"),
        ("min_p", Sampling(temperature=1.0, min_p=0.1), "min-p"),
        ("repetition_penalty", Sampling(temperature=1.0, repetition_penalty=1.1), "repetition-penalty"),
        ("logit_bias", Sampling(temperature=1.0, suppress=(7,)), "suppressed tokens"),
    ],
)
def test_a_setting_that_a_server_passes_over_is_refused(lm, deaf: str, sampling: Sampling, said: str) -> None:
    stand_in = StandIn(lm, deaf=(deaf,))
    with engine(lm, stand_in) as server:
        with pytest.raises(BadOption, match=f"does not apply {said}"):
            drawn(server, [Rollout(prefix_of(lm), 0, 4, 0)], sampling)
        assert len(drawn(server, [Rollout(prefix_of(lm), 0, 4, 0)])) == 1, "which is nothing to those who don't need it"


def test_a_temperature_that_a_server_would_raise_is_refused(lm) -> None:
    with engine(lm) as server, pytest.raises(BadOption, match=r"temperature 0\.001"):
        drawn(server, [Rollout(prefix_of(lm), 0, 4, 0)], Sampling(temperature=0.001))


@pytest.mark.slow
def test_another_model_is_refused_with_the_figure(lm, other) -> None:
    with (
        pytest.raises(EngineError, match=r"another model than 'tiny:llama'.* 0\.97\d? nats in the mean") as caught,
        engine(lm, StandIn(other)),
    ):
        pass
    assert "0.1" in caught.value.hint


@pytest.mark.slow
def test_another_dtype_is_said(lm) -> None:
    served = probe.load("tiny:llama")
    served.model.bfloat16()
    with engine(lm, StandIn(served)) as server:
        assert not server.findings.exact and not server.identity["exact"]
        assert any("another dtype" in one for one in server.remarks(WARM))


def test_another_vocabulary_and_another_tokenizer_are_refused(lm) -> None:
    def longer(body: dict, _: int, answer: dict) -> dict:
        if isinstance(body["prompt"], str):
            answer["choices"][0]["prompt_token_ids"][7] = 3
        return answer

    with pytest.raises(EngineError, match="another tokenizer: 1 of 222 tokens"), engine(lm, StandIn(lm, change=longer)):
        pass

    def outside(body: dict, _: int, answer: dict) -> dict:
        answer["choices"][0]["token_ids"][-1] = 4000
        return answer

    with (
        pytest.raises(EngineError, match="drew token id 4,000, and the model has 259"),
        engine(lm, StandIn(lm, change=outside)),
    ):
        pass


def test_ids_that_were_not_drawn_are_refused(lm) -> None:
    """The text's log-probs are right, and those of the drawn tokens are of others than the ids that come back."""

    def shifted(body: dict, _: int, answer: dict) -> dict:
        answer["choices"][0]["token_ids"] = [(i + 1) % 250 for i in answer["choices"][0]["token_ids"]]
        return answer

    with pytest.raises(EngineError, match="not those that it drew"), engine(lm, StandIn(lm, change=shifted)):
        pass


@pytest.mark.slow
def test_text_without_ids_is_refused_and_ids_in_the_place_of_texts_are_read(lm) -> None:
    def without(body: dict, _: int, answer: dict) -> dict:
        del answer["choices"][0]["token_ids"]
        if body["max_tokens"] == 3 or not body.get("return_tokens_as_token_ids"):
            answer["choices"][0].get("logprobs", {})["tokens"] = ["a"]
        return answer

    with engine(lm, StandIn(lm, change=without)) as server:
        assert drawn(server, [Rollout(prefix_of(lm), 0, 4, 0)])[0].ids == expected(lm, Rollout(prefix_of(lm), 0, 4, 0)).ids
        with pytest.raises(EngineError, match="without token ids"):
            drawn(server, [Rollout(prefix_of(lm), 0, 3, 0)])


def test_a_prompt_that_the_server_changes_is_refused(lm) -> None:
    def begun(body: dict, _: int, answer: dict) -> dict:
        del answer["choices"][0]["prompt_token_ids"]
        answer["usage"]["prompt_tokens"] += 1
        return answer

    with pytest.raises(EngineError, match="read 223 tokens that are not the 222"), engine(lm, StandIn(lm, change=begun)):
        pass


@pytest.mark.slow
def test_noise_that_no_seed_addresses_is_found_out(lm) -> None:
    """Every request another stream: arms cannot share it. One stream for all: samples would be copies."""
    turn = iter(range(10**6))
    with engine(lm, StandIn(lm, seed_of=lambda seed: next(turn))) as server:
        assert server.addressed_noise is False and server.identity["addressed_noise"] is False
        assert any("not compared in pairs" in one for one in server.remarks(WARM))
    with pytest.raises(EngineError, match="the same tokens whatever the seed"), engine(lm, StandIn(lm, seed_of=lambda seed: 3)):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["half", "429", "503", "500", "late", "closed", "error inside"])
def test_what_passes_is_tried_again(lm, fault: str) -> None:
    """The third and fourth rollouts fail twice each; what comes in the end is what comes without a fault."""
    rollouts = [Rollout(prefix_of(lm), s, 6, 3) for s in range(5)]
    failed: Counter[int] = Counter()
    ill = {request_seed(3, s) for s in (2, 3)}
    stand_in = StandIn(lm)

    def change(body: dict, _: int, answer: dict) -> Any:
        if body["seed"] not in ill or body["max_tokens"] != 6 or failed[body["seed"]] == 2:
            return answer
        failed[body["seed"]] += 1
        if fault in ("429", "503", "500"):
            return int(fault), {"error": {"message": "busy"}}, {"Retry-After": "0.01"}
        if fault == "error inside":
            return {"error": {"message": "the engine stumbled"}}
        if fault == "late":
            threading.Event().wait(2.0)
            return answer
        if fault == "closed":
            return DROPPED
        return None

    stand_in.change = change
    with engine(lm, stand_in, patience=patience_for(fault)) as server:
        found = drawn(server, rollouts)
    assert set(failed.values()) == {2} and len(failed) == 2
    for i, one in enumerate(rollouts):
        assert found[i].ids == expected(lm, one).ids


def patience_for(fault: str) -> Patience:
    return SOON._replace(answer=1.5, tries=9) if fault == "late" else SOON


def test_retry_after_is_obeyed() -> None:
    patience = Patience(pause=1.0)
    assert [patience.before(n, None) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert patience.before(1, 7.0) == 7.0 and patience.before(1, 10**6) == 120.0


@pytest.mark.slow
def test_n_requests_are_in_flight(lm) -> None:
    """No answer is given before three are asked for at once: with fewer in flight the barrier breaks."""
    three = threading.Barrier(3, timeout=60)
    drawing = False

    def change(body: dict, number: int, answer: dict) -> dict:
        if drawing:
            three.wait()
        return answer

    stand_in = StandIn(lm, change=change)
    with engine(lm, stand_in, in_flight=3) as server:
        stand_in.most_at_once = 0
        drawing = True
        drawn(server, [Rollout(prefix_of(lm), s, 2, 3) for s in range(12)])
    assert stand_in.most_at_once == 3


@pytest.mark.slow
def test_a_request_that_fails_for_good_loses_nothing(lm) -> None:
    """The fourth is refused: those under way are given before it is said; what is left is drawn later."""
    rollouts = [Rollout(prefix_of(lm), s, 6, 3) for s in range(9)]
    ill = request_seed(3, 3)
    refuse = True

    def change(body: dict, _: int, answer: dict) -> Any:
        return (400, {"error": {"message": "no  such\nthing"}}) if refuse and body["seed"] == ill else answer

    with engine(lm, StandIn(lm, change=change), in_flight=4) as server:
        found: dict[int, Any] = {}
        with pytest.raises(EngineError, match=r"refuses \(400\): no such thing"):
            server.draw(rollouts, WARM, done=found.__setitem__)
        assert {0, 1, 2} <= set(found) and 3 not in found
        refuse = False
        later = drawn(server, rollouts, kept=lambda i: i in found)
    assert set(later) == set(range(9)) - set(found)
    for i, one in enumerate(rollouts):
        assert {**found, **later}[i].ids == expected(lm, one).ids


@pytest.mark.slow
def test_a_server_that_died_is_said_and_its_follower_goes_on(lm) -> None:
    rollouts = [Rollout(prefix_of(lm), s, 6, 3) for s in range(9)]
    stand_in = StandIn(lm)
    found: dict[int, Any] = {}

    def die(place: int, one: Any) -> None:
        found[place] = one
        stand_in.down = len(found) >= 3

    with serving(stand_in) as url:
        server = ServerEngine(lm, url, in_flight=2, patience=SOON)
        with pytest.raises(EngineError, match=r"does not answer: .* \(\d tries\)") as caught:
            server.draw(rollouts, WARM, done=die)
    assert "--resume" in caught.value.hint and 3 <= len(found) < 9
    with pytest.raises(EngineError, match="does not answer"):
        ServerEngine(lm, url, patience=SOON)
    with engine(lm) as again:
        assert again.identity == server.identity
        later = drawn(again, rollouts, kept=lambda i: i in found)
    for i, one in enumerate(rollouts):
        assert {**found, **later}[i].ids == expected(lm, one).ids


def test_who_stops_listening_breaks_off_what_is_under_way(lm) -> None:
    """An error while a rollout is kept (a full disk, Ctrl-C) comes out at once, and no request is left behind."""

    def full(place: int, one: Any) -> None:
        raise KeyboardInterrupt

    with engine(lm, in_flight=2) as server:
        with pytest.raises(KeyboardInterrupt):
            server.draw([Rollout(prefix_of(lm), s, 6, 3) for s in range(40)], WARM, done=full)
        assert not [t for t in threading.enumerate() if t.name == "requests"]


@pytest.mark.slow
def test_where_texts_end(lm) -> None:
    """No room: `context`, at the server's limit or the model's. An end that the server keeps to itself is put back. A stop text
    that the server alone sees is no end; a reason that is none of ours is an error."""
    prefix = prefix_of(lm)
    with engine(lm, StandIn(lm, context=len(lm.encode("x" * 300).ids))) as server:
        long = tuple(lm.encode("x" * 296).ids)
        found = drawn(server, [Rollout(long, 0, 50, 0), Rollout((*long, 5, 5, 5, 5), 0, 50, 0), Rollout(prefix, 0, 0, 0)])
        assert (len(found[0].ids), found[0].stop_reason) == (4, "context")
        assert ([found[i].ids for i in (1, 2)], [found[i].stop_reason for i in (1, 2)]) == ([[], []], ["context", "length"])
        assert any("at most 301 tokens" in one for one in server.remarks(WARM))

    ending = next(s for s in range(500) if expected(lm, Rollout(prefix, s, 40, 1)).stop_reason == "eos")

    def secret(body: dict, _: int, answer: dict) -> dict:
        choice = answer["choices"][0]
        if choice["finish_reason"] == "stop":
            choice["token_ids"].pop()
            if "logprobs" in choice:
                choice["logprobs"] = {k: v[:-1] for k, v in choice["logprobs"].items()}
        return answer

    with engine(lm, StandIn(lm, change=secret)) as server:
        one = drawn(server, [Rollout(prefix, ending, 40, 1)])[0]
        own = expected(lm, Rollout(prefix, ending, 40, 1))
        assert (one.ids, one.stop_reason) == (own.ids, "eos") and one.logprob[-1] is None and one.total is None


@pytest.mark.slow
def test_a_stop_text_that_the_server_alone_sees_is_no_end(lm) -> None:
    one, sampling = Rollout(prefix_of(lm), 0, 10, 1), Sampling(temperature=1.0, stop=("never comes",))

    def early(body: dict, _: int, answer: dict) -> dict:
        choice = answer["choices"][0]
        if "stop" in body:
            choice |= {"token_ids": choice["token_ids"][:4], "finish_reason": "stop", "stop_reason": "never comes"}
        return answer

    with engine(lm, StandIn(lm, change=early)) as server:
        assert drawn(server, [one], sampling)[0].ids == expected(lm, one, sampling).ids

    def own_reasons(body: dict, _: int, answer: dict) -> dict:
        if body["max_tokens"] == 10:
            answer["choices"][0] |= {"finish_reason": "repetition"}
        return answer

    with (
        engine(lm, StandIn(lm, change=own_reasons)) as server,
        pytest.raises(EngineError, match="a reason of its own: repetition"),
    ):
        drawn(server, [one])


@pytest.mark.slow
def test_text_that_goes_on_behind_a_stop_is_cut(lm) -> None:
    """A server that does not look for stop texts draws too much, and not otherwise."""
    rollouts = [Rollout(prefix_of(lm), s, 20, 5) for s in range(6)]
    sampling = Sampling(temperature=1.0, stop=("a", "0"))
    with engine(lm, StandIn(lm, deaf=("stop",))) as server:
        found = drawn(server, rollouts, sampling)
    owns = [expected(lm, one, sampling) for one in rollouts]
    assert "stop" in {own.stop_reason for own in owns}
    for i, own in enumerate(owns):
        assert (found[i].ids, found[i].stop_reason) == (own.ids, own.stop_reason)


@pytest.mark.slow
def test_given_texts_are_scored_by_the_server_where_it_can(lm) -> None:
    prefix, suffixes = prefix_of(lm), [[5, 6, 7], [], [9]]
    own = own_logprobs(lm, prefix, suffixes)
    for owner, change in (("vllm", None), ("echoing", echo_only)):
        stand_in = StandIn(lm, owner=owner, **({"change": change} if change else {}))
        with engine(lm, stand_in) as server:
            assert server.findings.scores == ("echo" if change else "prompt")
            n = len(stand_in.heard)
            for a, b in zip(suffix_logprobs(server, lm, prefix, suffixes), own, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)
            assert len(stand_in.heard) == n + 2, "by the server"
    with engine(lm, stand_in := StandIn(lm, scores=False)) as server:
        assert server.findings.scores is None and not server.identity["rescores"]
        n = len(stand_in.heard)
        for found in (suffix_logprobs(server, lm, prefix, suffixes), suffix_logprobs(LocalEngine(lm), lm, prefix, suffixes)):
            assert all(np.array_equal(a, b) for a, b in zip(found, own, strict=True))
        assert len(stand_in.heard) == n


def echo_only(body: dict, _: int, answer: dict) -> dict:
    """A server that knows OpenAI's way alone."""
    answer["choices"][0].pop("prompt_logprobs", None)
    return answer


@pytest.mark.slow
def test_processed_log_probs_are_known_from_raw_ones(lm) -> None:
    """A server that states them after the filters: they go where ours go, and no raw ones are made up."""
    stand_in = StandIn(lm)

    def processed(body: dict, _: int, answer: dict) -> dict:
        choice = answer["choices"][0]
        if body.get("logprobs") is not None and body["temperature"] > 0:
            choice["logprobs"]["token_logprobs"] = stand_in.drawn(body["prompt"], body, stand_in.sampling(body)).sample_logprob
        return answer

    stand_in.change = processed
    sampling = Sampling(temperature=0.7, top_k=20)
    with engine(lm, stand_in) as server:
        assert server.findings.logprobs == "processed"
        found = drawn(server, [Rollout(prefix_of(lm), 0, 8, 5)], sampling)[0]
        np.testing.assert_allclose(
            found.sample_logprob, expected(lm, Rollout(prefix_of(lm), 0, 8, 5), sampling).sample_logprob, atol=1e-5
        )
        assert set(found.logprob) == {None}


def test_a_server_without_log_probs_is_refused(lm) -> None:
    def none(body: dict, _: int, answer: dict) -> dict:
        answer["choices"][0].pop("logprobs", None)
        return answer

    with pytest.raises(EngineError, match="gives no log-probs"), engine(lm, StandIn(lm, scores=False, change=none)):
        pass


@pytest.mark.slow
def test_which_model_of_several_is_meant(lm, monkeypatch) -> None:
    monkeypatch.setenv("PROBE_ENGINE_KEY", "secret")
    with serving(stand_in := StandIn(lm, models=("a", "b"))) as url:
        with pytest.raises(EngineError, match="serves 2 models"):
            engine_of(lm, url)
        with pytest.raises(EngineError, match="does not serve 'c'"):
            engine_of(lm, f"{url}#c")
        assert engine_of(lm, f"{url}/v1#b").identity["model"] == "b"
    assert {body["model"] for body in stand_in.heard} == {"b"} and set(stand_in.keys) == {"Bearer secret"}


def test_engines_are_named(lm) -> None:
    assert engine_of(lm, "local").name == "local"
    for wrong in ("vllm", "ftp://there", "http://"):
        with pytest.raises(BadOption):
            engine_of(lm, wrong)
    with pytest.raises(EngineError, match="does not answer"):
        engine_of(lm, "http://127.0.0.1:9")
    with engine(lm) as server:
        with pytest.raises(BadOption, match="suppression needs activations"):
            in_process(server, "suppression")
        assert remarks(server, WARM) == []
    in_process(LocalEngine(lm), "suppression")


def test_orders_of_filters_that_differ_are_said() -> None:
    both = Sampling(temperature=1.0, top_p=0.9, min_p=0.1)
    assert "min-p before top-p" in order_remarks(both, "vllm")[0]
    for same in (Sampling(temperature=1.0, top_k=5, top_p=0.9), Sampling(temperature=1.0, top_k=5, min_p=0.1), WARM):
        assert order_remarks(same, "vllm") == []
    assert "not known" in order_remarks(Sampling(temperature=1.0, top_k=5, top_p=0.9), "sglang")[0]
    assert order_remarks(Sampling(temperature=1.0, top_k=5), "sglang") == []
