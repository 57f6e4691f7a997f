"""Runs that a server draws: resumed after it died they are whole, and what its noise allows is said where it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import probe
from probe.errors import EngineError
from probe.language_model import LanguageModel
from probe.serving.client import Patience
from tests.stand_in import StandIn, serving
from tests.test_rewind import same_tables

TEXTS = ["Two and two is four. So it is.", "Red and blue. Then green."]
HOW: dict[str, dict[str, Any]] = {"rewind": {"to": "-2", "append_wait": True}, "importance": {"method": "resampling,rescore"}}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def source(lm: LanguageModel) -> probe.Run:
    return probe.trace(lm, TEXTS, generate=5, split="token", out=None)


def drawn(verb: str, lm: LanguageModel, source: probe.Run, url: str, out: Path | None = None, **more: Any) -> probe.Run:
    run = getattr(probe, verb)
    return run(source, lm=lm, split="token", samples=8, max_new=5, engine=url, out=out, temperature=1.0, **HOW[verb], **more)


@pytest.mark.slow
@pytest.mark.parametrize("verb", HOW)
def test_a_run_goes_on_after_its_server_died(verb: str, lm, source, tmp_path: Path, monkeypatch) -> None:
    """It dies with some rollouts drawn: a stated error. Its follower at the same address draws the rest: the same tables."""
    monkeypatch.setattr(Patience, "before", lambda *_: 0.01)
    drawing: list[int] = []

    def dying(body: dict, _: int, answer: dict) -> dict:
        drawing.append(body["max_tokens"])
        stand_in.down = drawing.count(5) >= 12
        return answer

    with serving(stand_in := StandIn(lm, change=dying)) as url, pytest.raises(EngineError, match="does not answer"):
        drawn(verb, lm, source, url, tmp_path / "torn")
    with serving(StandIn(lm), port=int(url.rpartition(":")[2])) as same:
        assert same == url
        before = len(drawing)
        whole = drawn(verb, lm, source, url, tmp_path / "torn", resume=True)
        alone = drawn(verb, lm, source, url, tmp_path / "alone")
    assert before == len(drawing), "the follower is another"
    same_tables(whole, alone)
    assert whole.manifest["resolved"]["engine"]["kind"] == "vllm" and whole.manifest["resolved"]["engine"]["addressed_noise"]
    if verb == "rewind":
        tokens = whole.table("tokens")
        own = tokens[(tokens["branch"] > 0) & (tokens["segment"] == "completion")]
        assert len(own) and not own["logprob"].isna().any() and own["noise"].isna().all()


@pytest.mark.slow
def test_noise_that_no_seed_addresses_is_said_in_the_run(lm, source) -> None:
    turn = iter(range(10**6))
    with serving(StandIn(lm, seed_of=lambda _: next(turn))) as url:
        run = drawn("rewind", lm, source, url)
    assert run.manifest["resolved"]["engine"]["addressed_noise"] is False
    assert any("not compared in pairs" in one for one in run.manifest["warnings"])


@pytest.mark.slow
def test_edits_of_activations_stay_in_process(lm, source) -> None:
    with serving(StandIn(lm)) as url, pytest.raises(probe.ProbeError, match="activations") as caught:
        probe.rewind(source, lm=lm, to="-2", split="token", engine=url, edit="mlp_out@1=zero", out=None)
    assert "--engine" in caught.value.hint


def test_the_shell_says_in_one_line_that_nobody_answers(shell, lm) -> None:
    assert shell("trace", "Q: how many?", "-n", "4", "--model", "tiny:llama", "--out", "run", "--quiet").returncode == 0
    found = shell("rewind", "run", "--to", "-2", "--split", "token", "--engine", "http://127.0.0.1:9", "--quiet")
    assert found.returncode == 1 and "does not answer" in found.stderr and "Traceback" not in found.stderr
    assert "--engine" in shell("importance", "--help").stdout
