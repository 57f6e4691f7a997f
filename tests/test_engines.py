"""A real server (vLLM on a CPU) draws what the server engine takes it to draw; `recipes/engines` makes and starts it."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe.recipes.engines.vllm_cpu import Unavailable, start, stop
from scipy.stats import chi2_contingency

from probe.decoding.rollouts import Engine, LocalEngine, Rollout
from probe.decoding.teacher_forced import suffix_logprobs as own_logprobs
from probe.errors import EngineError
from probe.language_model import LanguageModel
from probe.requests import Sampling
from probe.serving import suffix_logprobs
from probe.serving.client import Patience
from probe.serving.server import ServerEngine

ENV = "PROBE_ENGINE_ENV"  # the virtual environment that `python -m recipes.engines make` made
WARM = Sampling(temperature=1.0)
DRAWS = 2000
SOON = Patience(answer=120.0, tries=3, pause=0.1)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get(ENV), reason=f"{ENV} names no environment with vllm-cpu: see recipes/engines"),
]


@dataclass
class Vllm:
    """A server that can be killed and started again at its address."""

    where: Path
    process: subprocess.Popen[bytes]
    address: str

    def kill(self) -> None:
        stop(self.process, at_once=True)

    def again(self) -> None:
        self.process, self.address = start(self.where, port=int(self.address.rpartition(":")[2]))


@pytest.fixture(scope="module")
def vllm() -> Iterator[Vllm]:
    where = Path(os.environ[ENV])
    try:
        found = Vllm(where, *start(where))
    except Unavailable as error:
        pytest.skip(str(error))
    yield found
    stop(found.process)


@pytest.fixture(scope="module")
def server(vllm: Vllm, smollm2: LanguageModel) -> ServerEngine:
    return ServerEngine(smollm2, vllm.address, patience=SOON)


def drawn(engine: Engine, rollouts: Sequence[Rollout], sampling: Sampling = WARM, **more: Any) -> list[Any]:
    found: dict[int, Any] = {}
    engine.draw(rollouts, sampling, done=found.__setitem__, **more)
    return [found[i] for i in sorted(found)]


def ids(lm: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(lm.encode(text).ids)


def test_it_is_the_same_model(server: ServerEngine) -> None:
    """fp32 here and there: the same log-probs to rounding, raw ones, and those of given texts."""
    assert server.identity == {
        "kind": "vllm", "model": "smollm2", "version": server.served.version, "context": 2048, "exact": True,
        "logprobs": "raw", "rescores": True, "addressed_noise": True,
    }  # fmt: skip
    assert server.findings.differs[1] < 1e-3


def test_the_null_edit_is_identical(server: ServerEngine, smollm2: LanguageModel) -> None:
    """One prefix and seed give the same tokens in another order, beside other texts, and alone."""
    one, other = ids(smollm2, "Q: What is 12 + 30?\nA: Let me think."), ids(smollm2, "Once upon a time there was")
    rollouts = [Rollout(prefix, s, 24, 7) for prefix in (one, other) for s in range(12)]
    first = drawn(server, rollouts)
    second = drawn(server, rollouts[::-1])[::-1]
    assert [a.ids for a in first] == [b.ids for b in second]
    for i in (0, 5, 20):
        assert drawn(server, [rollouts[i]])[0].ids == first[i].ids
    assert len({tuple(a.ids) for a in first[:12]}) == 12, "other samples are other texts"


def test_noise_is_shared_across_an_edit(server: ServerEngine, smollm2: LanguageModel) -> None:
    """One number changed: the first tokens of a pair with one seed agree far more often than those of strangers."""
    before = ids(smollm2, "Tom has 17 apples and buys 23 more. Then he")
    after = ids(smollm2, "Tom has 17 apples and buys 24 more. Then he")
    n = 200
    kept, edited = (drawn(server, [Rollout(p, s, 1, 3) for s in range(n)]) for p in (before, after))
    first, second = ([one.ids[0] for one in arm] for arm in (kept, edited))
    paired = np.mean([a == b for a, b in zip(first, second, strict=True)])
    strangers = np.mean([a == b for a, b in zip(first, second[1:], strict=False)])
    assert paired > 0.9 and paired > strangers + 0.2, (paired, strangers)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.9, top_p=0.95), Sampling(temperature=1.2, top_k=20, repetition_penalty=1.2, suppress=(7042, 2))],
    ids=["top-p", "others"],
)
def test_answers_are_distributed_as_in_process(server: ServerEngine, smollm2: LanguageModel, sampling: Sampling) -> None:
    """2,000 first words each: χ² of the two samples does not tell them apart, and tells a temperature 0.15 higher."""
    prefix = ids(smollm2, "The best animal is the")
    rollouts = [Rollout(prefix, s, 2, 11) for s in range(DRAWS)]
    local = LocalEngine(smollm2)
    there, here = (classes(smollm2, drawn(engine, rollouts, sampling)) for engine in (server, local))
    assert compared(there, here) > 1e-3
    hotter = Sampling(**{**vars(sampling), "temperature": sampling.temperature + 0.15})
    assert compared(classes(smollm2, drawn(local, [r._replace(seed=12) for r in rollouts], hotter)), here) < 1e-3


def classes(lm: LanguageModel, found: Sequence[Any]) -> Counter[str]:
    return Counter(lm.pieces(one.ids).text.strip().lower() for one in found)


def compared(a: Counter[str], b: Counter[str]) -> float:
    """P of a difference so large between two samples of one distribution; rare classes are one."""
    often = [key for key in a | b if a[key] + b[key] >= 20]
    counts = np.array([[one[key] for key in often] for one in (a, b)])
    rest = DRAWS - counts.sum(-1, keepdims=True)
    assert len(often) >= 5, "classes to compare"
    return float(chi2_contingency(np.hstack([counts, rest]) if rest.sum() else counts).pvalue)


def test_texts_end_where_ours_end(server: ServerEngine, smollm2: LanguageModel) -> None:
    """Greedy: the same tokens and reasons as in process, with a stop text inside a token, an end token, no room."""
    chat = tuple(smollm2.render_chat("Say hello.").ids)
    plain = ids(smollm2, "One, two, three, four, five,")
    for rollout, stop_texts in (
        (Rollout(chat, 0, 40, 0), ()),
        (Rollout(plain, 0, 30, 0), ("ine",)),
        (Rollout(plain, 0, 9, 0), ()),
    ):
        sampling = Sampling(stop=stop_texts)
        (there,), (here,) = drawn(server, [rollout], sampling), drawn(LocalEngine(smollm2), [rollout], sampling)
        assert (there.ids, there.stop_reason) == (here.ids, here.stop_reason)
    long = (plain * 400)[:2040]
    assert [(len(one.ids), one.stop_reason) for one in drawn(server, [Rollout(long, 0, 50, 0)], Sampling())] == [(8, "context")]


def test_given_texts_are_scored(server: ServerEngine, smollm2: LanguageModel) -> None:
    prefix, suffixes = ids(smollm2, "The capital of France is"), [ids(smollm2, " Paris."), (), ids(smollm2, " the city")]
    for a, b in zip(
        suffix_logprobs(server, smollm2, prefix, suffixes), own_logprobs(smollm2, prefix, suffixes), strict=True
    ):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_it_dies_and_what_is_left_is_drawn_by_its_follower(
    server: ServerEngine, vllm: Vllm, smollm2: LanguageModel
) -> None:  # fmt: skip
    """Killed with a third of the rollouts drawn: a stated error; started again: the same texts as without that."""
    rollouts = [Rollout(ids(smollm2, "The first thing she saw was"), s, 40, 5) for s in range(48)]
    whole = [one.ids for one in drawn(server, rollouts)]
    server.client.in_flight = 8
    found: dict[int, Any] = {}

    def until(place: int, one: Any) -> None:
        found[place] = one
        if len(found) == 16:
            vllm.kill()

    with pytest.raises(EngineError, match="does not answer"):
        server.draw(rollouts, WARM, done=until)
    assert 16 <= len(found) < 48
    vllm.again()
    follower = ServerEngine(smollm2, vllm.address, patience=SOON)
    assert follower.identity == server.identity
    follower.draw(rollouts, WARM, done=found.__setitem__, kept=lambda i: i in found)
    assert [found[i].ids for i in range(48)] == whole
