"""The path of one token: every stage against Hugging Face's processors and against NumPy, every choice against decoding's."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import probe
from probe.decoding import Sampling
from probe.decoding.stages import stages
from probe.errors import BadOption, BadPlace, NonFinite, OutOfRange, RunError
from tests.test_cli_trace import TINY, failed

GRID = list(itertools.product((0.3, 1.0, 1.7), (None, 1, 5, 40), (None, 0.1, 0.9, 1.0), (None, 0.05, 0.5), (1.0, 1.3)))
WARM = Sampling(0.9, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=7)
ORDER = {
    "hf": ("penalty", "temperature", "top_k", "top_p", "min_p"),
    "vllm": ("penalty", "temperature", "min_p", "top_k", "top_p"),
    "llamacpp": ("penalty", "top_k", "top_p", "min_p", "temperature"),
}


def logits_of(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 3


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z[np.isfinite(z)].max())
    return p / p.sum()


def by_hand(z: np.ndarray, ids: list[int], sampling: Sampling, order: str) -> np.ndarray:
    """Probabilities after all stages, in float64: plain definitions, a token at a time."""
    z = z.astype(np.float64).copy()
    for name in ORDER[order]:
        p = softmax(z)
        best = sorted(range(len(z)), key=lambda t: -z[t])
        if name == "penalty":
            for t in set(ids[-64:] if order == "llamacpp" else ids):
                z[t] = z[t] * sampling.repetition_penalty if z[t] < 0 else z[t] / sampling.repetition_penalty
        elif name == "temperature":
            z = z / sampling.temperature
        elif name == "top_k" and sampling.top_k is not None:
            z[best[sampling.top_k :]] = -np.inf
        elif name == "top_p" and sampling.top_p is not None:
            before = 0.0
            for t in best:
                if before >= sampling.top_p:
                    z[t] = -np.inf
                before += p[t]
        elif name == "min_p" and sampling.min_p is not None:
            z[p < sampling.min_p * p.max()] = -np.inf
    return softmax(z)


def test_the_example_of_the_two_orders() -> None:
    """logits 3, 2, 1 with top-p 0.8 and temperature ½: temperature first keeps the top token alone, last keeps two."""
    sampling, logits, ids = Sampling(0.5, top_p=0.8), torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0])
    kept = {}
    for order in ORDER:
        last = stages(logits, ids, sampling, order)[-1].logprobs
        kept[order] = set(last.isfinite().nonzero()[:, 0].tolist())
    assert kept == {"hf": {0}, "vllm": {0}, "llamacpp": {0, 1}}


@pytest.mark.parametrize("order", ORDER)
def test_support_and_probabilities_are_those_of_the_definitions(order: str) -> None:
    logits = logits_of(300)
    ids = torch.randint(0, 300, (90,), generator=torch.Generator().manual_seed(1))
    for temperature, top_k, top_p, min_p, penalty in GRID:
        sampling = Sampling(temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
        own = stages(logits, ids, sampling, order)[-1].logprobs.exp().numpy()
        expected = by_hand(logits.numpy(), ids.tolist(), sampling, order)
        assert ((own > 0) == (expected > 0)).all(), sampling
        np.testing.assert_allclose(own, expected, atol=1e-6, err_msg=str(sampling))


def test_the_order_of_transformers_is_its_processors() -> None:
    logits = logits_of(300, seed=3)
    ids = torch.randint(0, 300, (20,), generator=torch.Generator().manual_seed(1))
    for temperature, top_k, top_p, min_p, penalty in GRID:
        theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)])
        theirs += [TopKLogitsWarper(top_k)] if top_k else []
        theirs += [TopPLogitsWarper(top_p)] if top_p else []
        theirs += [MinPLogitsWarper(min_p)] if min_p else []
        sampling = Sampling(temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
        own = stages(logits, ids, sampling, "hf")[-1].logprobs.exp()
        expected = theirs(ids[None], logits[None].clone())[0].double().softmax(-1)
        assert torch.equal(own > 0, expected > 0), sampling
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=0)


def test_what_llamacpp_does_otherwise_with_ties_and_old_tokens() -> None:
    flat, ids = torch.zeros(9), torch.tensor([3])
    assert int(stages(flat, ids, Sampling(1.0, top_k=2), "hf")[-1].logprobs.isfinite().sum()) == 9
    assert stages(flat, ids, Sampling(1.0, top_k=2), "llamacpp")[-1].logprobs.isfinite().nonzero()[:, 0].tolist() == [0, 1]
    long, sampling = torch.tensor([3] + [5] * 64), Sampling(1.0, repetition_penalty=2.0)
    logits = torch.ones(9)
    assert float(stages(logits, long, sampling, "hf")[-1].logprobs[3]) < float(
        stages(logits, long, sampling, "llamacpp")[-1].logprobs[3]
    )


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2", "tiny:gemma2", "tiny:gpt_neox", "tiny:mamba", "tiny:mixtral"])
def test_the_path_ends_at_the_token_that_decoding_chose(name: str) -> None:
    lm = probe.load(name)
    run = probe.trace(lm, ["Hello there", "Hi"], generate=12, sampling=WARM, explain="completion", order="all")
    assert not [said for said in run.manifest["warnings"] if "choose" in said]
    rows = run.candidates[run.candidates["order"] == "hf"]
    won = rows[rows["chosen"]].set_index(["prompt_id", "pos"])
    tokens = run.tokens[run.tokens["segment"] == "completion"].set_index(["prompt_id", "pos"])
    assert len(won) == len(tokens) > 12
    won = won.loc[tokens.index]
    assert won["token_id"].tolist() == tokens["token_id"].tolist() and won["actual"].all()
    np.testing.assert_array_equal(won["noise"], tokens["noise"])
    np.testing.assert_allclose(np.log(won["final_prob"]), tokens["sample_logprob"], atol=1e-4)
    last = run.stages[run.stages["order"] == "hf"].groupby(["prompt_id", "pos"]).last().loc[tokens.index]
    assert last["kept"].tolist() == tokens["kept"].tolist() and (last["name"] == "min_p").all()
    assert (won["race"] == rows.groupby(["prompt_id", "pos"])["race"].min().loc[tokens.index]).all()


def test_every_stage_of_a_real_token_from_a_plain_forward(smollm2) -> None:
    text = "The capital of France is"
    run = probe.trace(smollm2, text, sampling=Sampling(0.7, top_k=12, top_p=0.6), explain="tok= France")
    ids = smollm2.encode(text).ids
    pos = 3
    z = smollm2.model(torch.tensor([ids[:pos]])).logits[0, -1].double().numpy()
    p, cool = softmax(z), softmax(z / 0.7)
    best = np.argsort(-z)
    twelve = cool[best[:12]] / cool[best[:12]].sum()
    n = int((np.cumsum(twelve) - twelve < 0.6).sum())
    assert run.stages["name"].tolist() == ["logits", "temperature", "top_k", "top_p"]
    assert run.stages["kept"].tolist() == [len(z), len(z), 12, n] and run.stages["pos"].unique().tolist() == [pos]
    masses = [1, 1, cool[best[:12]].sum(), twelve[:n].sum()]
    np.testing.assert_allclose(run.stages["kept_mass"], masses, atol=1e-5)
    np.testing.assert_allclose(run.stages["raw_mass"], [1, 1, p[best[:12]].sum(), p[best[:n]].sum()], atol=1e-5)
    np.testing.assert_allclose(run.stages["entropy"].iloc[0], -(p * np.log(p)).sum(), atol=1e-4)
    np.testing.assert_allclose(run.stages["prob"].iloc[:2], [p[ids[pos]], cool[ids[pos]]], rtol=1e-4)
    assert run.stages["rank"].iloc[0] == (z > z[ids[pos]]).sum()
    assert run.stages["removed_ids"].iloc[3].tolist() == best[n:12][:10].tolist()
    assert run.candidates["chosen"].isna().all() and run.candidates["noise"].isna().all()
    killed = run.candidates.set_index("token_id")["removed_by"]
    assert all(killed[t] == "top_p" for t in best[n : min(12, 10)]) and killed[best[: min(n, 10)]].isna().all()


def test_greedy_shows_the_penalty_at_work() -> None:
    lm = probe.load("tiny:llama")
    run = probe.trace(lm, "aaaa", generate=5, sampling=Sampling(repetition_penalty=3.0), explain="completion")
    won = run.candidates[run.candidates["chosen"]]
    assert won["actual"].all() and len(won) == 5 and won["noise"].isna().all()
    assert set(run.stages["name"]) == {"logits", "penalty"}


def test_a_run_can_be_explained_later_with_its_edits(tmp_path) -> None:
    lm = probe.load("tiny:gpt2")
    what = {"generate": 6, "sampling": WARM, "edit": ["mlp_out@1=zero", "logits:9=scale:0.5"]}
    now = probe.trace(lm, "Hello there", explain="8..11", order="vllm", out=tmp_path / "run", **what)
    later = probe.explain(tmp_path / "run", "8..11", order="vllm", lm=lm)
    again = probe.replay(lm, later)
    for table in ("stages", "candidates"):
        pd.testing.assert_frame_equal(*(run.table(table).drop(columns="run_id") for run in (again, later)))
    for table in ("stages", "candidates"):
        a, b = (run.table(table).drop(columns="run_id") for run in (now, later))
        assert a.to_json() == b.to_json()
    plain = probe.trace(lm, "Hello there", explain="8..11", order="vllm", generate=6, sampling=WARM)
    assert plain.stages["prob"].tolist() != now.stages["prob"].tolist()
    with pytest.raises(RunError, match="explain"):
        probe.explain(later, 9)
    with pytest.raises(RunError, match="prompt 4"):
        probe.explain(now, 9, prompt_id=4, lm=lm)


def test_a_reading_sees_an_edit_of_logits_at_any_position() -> None:
    """Only the last position's logits were compared with the model's, and an edit of earlier ones was read as nothing."""
    lm = probe.load("tiny:llama")
    run = probe.trace(lm, "Hello world", edit="logits:3=zero")
    flat = -np.log(lm.anatomy.d_vocab)
    assert run.tokens["logprob"].iloc[4] == pytest.approx(flat, abs=1e-5)
    assert run.tokens["logprob"].iloc[5] != pytest.approx(flat, abs=1e-5)


def test_what_cannot_be_explained_is_said() -> None:
    lm, warm = probe.load("tiny:llama"), Sampling(1.0, top_k=5)
    for error, what in (
        (OutOfRange, {"explain": 0}),
        (OutOfRange, {"explain": 99}),
        (OutOfRange, {"explain": "completion"}),
        (BadPlace, {"explain": "some"}),
        (BadPlace, {"explain": "3..5..7"}),
        (BadOption, {"order": "vllm"}),
        (BadOption, {"explain": 1, "order": "vllm"}),
        (BadOption, {"explain": 1, "order": "ollama", "sampling": warm}),
    ):
        with pytest.raises(error):
            probe.trace(lm, "Hello", **what)
    with pytest.raises(BadOption, match="300 tokens"):
        probe.trace(lm, "x" * 300, explain="all")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFinite):
            stages(torch.tensor([0.0, bad]), torch.tensor([0]), warm, "hf")
    with pytest.raises(NonFinite):
        stages(torch.full((3,), -torch.inf), torch.tensor([0]), warm, "hf")


def test_the_command_shows_the_path(shell) -> None:
    words = ("Hello", *TINY, "-n", "3", "-t", "1", "--top-k", "4", "--top-p", "0.7", "--seed", "2", "--explain", "-2")
    done = shell("trace", *words, "--order", "llamacpp", "--out", "a")
    assert done.returncode == 0, done.stderr
    assert "token 7, " in done.stdout and "in the order of llama.cpp: " in done.stdout and "wins" in done.stdout
    said = json.loads(shell("trace", *words, "--json", "--out", "b").stdout)["summary"]["explained"]
    assert [stage["name"] for stage in said[0]["stages"]] == ["logits", "top_k", "top_p"] and len(said) == 1
    assert sum(c["chosen"] for c in said[0]["candidates"]) == 1 and said[0]["chosen"] == said[0]["token"]
    failed(shell("trace", "Hello", *TINY, "--explain", "0"), 1, "first")
    failed(shell("trace", "Hello", *TINY, "--explain", "1", "--order", "vllm"), 1, "--temperature")
