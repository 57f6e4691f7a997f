"""A first look tells of planted parts and of nothing else; its numbers are those of plain forwards of the test's own."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pandas as pd
import pytest
import torch

import probe
from probe.errors import BadOption
from probe.looking import causes
from probe.looking.causes import spans_of
from tests.planted import copying, lookup

TEXT = "When Mary and John went to the store, John gave a drink to"


def logprob(lm: probe.LanguageModel, ids: list[int], answer: int, mask: torch.Tensor | None = None) -> float:
    given = {} if mask is None else {"attention_mask": mask}
    with torch.no_grad():
        return float(lm.model(torch.tensor([ids]), **given).logits[0, -1].log_softmax(-1)[answer])


@pytest.fixture(scope="module")
def planted() -> tuple[object, pd.DataFrame]:
    circuit = copying()
    return circuit, probe.look(circuit.lm, circuit.clean, answer=circuit.answer, against=circuit.against).findings


def test_a_planted_circuit_is_told_of(planted) -> None:
    """The heads that carry the answer are the writers, what it leans on is the word that it copies."""
    circuit, findings = planted
    told = {(row.layer, row.head) for row in findings[findings["kind"] == "writer"].itertuples() if row.head >= 0}
    assert told and told <= set(circuit.heads)
    causes = findings[findings["kind"] == "cause"]
    assert len(causes) == 1
    assert causes["token"].iloc[0].strip('" ') == circuit.answer


def test_a_fact_that_is_looked_up_is_written_by_its_mlp() -> None:
    circuit = lookup()
    findings = probe.look(circuit.lm, circuit.clean, answer=circuit.answer, against=circuit.against).findings
    told = findings[findings["kind"] == "writer"]
    assert {row.layer for row in told.itertuples() if row.place.startswith("mlp_out")} == set(circuit.mlps)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_random_weights_write_nothing_that_stands_out(family: str) -> None:
    """The threshold is of the largest of all parts: one look in twenty may tell of some. Sinks and massive places are none."""
    lm = probe.load(f"tiny:{family}")
    found = [probe.look(lm, f"{TEXT} {i}", controls=16, seed=i).findings for i in range(6)]
    assert sum(bool((one["kind"] == "writer").any()) for one in found) <= 2
    assert not any(one["kind"].isin(["massive", "sink"]).any() for one in found)


def test_what_a_token_costs_is_what_a_mask_without_it_costs() -> None:
    """METHODS M12: later tokens do not see it. By a plain forward with a mask of the test's own, on random weights."""
    lm = probe.load("tiny:llama")
    run = probe.look(lm, TEXT)
    causes = run.findings[run.findings["kind"] == "cause"]
    assert len(causes)
    ids = run.tokens["token_id"].tolist()
    answer = int(run.lens_positions["final_id"].iloc[-1])
    plain = logprob(lm, ids, answer)
    for row in causes.itertuples():
        mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
        mask[row.pos + 1 :, row.pos] = -torch.inf
        assert plain - logprob(lm, ids, answer, mask[None, None]) == pytest.approx(row.value, abs=2e-4)


@pytest.mark.parametrize(("family", "causes_told"), [("llama", True), ("gemma2", False)])
def test_a_long_text_costs_what_masks_say(family: str, causes_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text that fills a batch keys and values are left out, where the model can skip positions: the same findings."""
    lm = probe.load(f"tiny:{family}")
    short = probe.look(lm, TEXT).findings
    monkeypatch.setattr(causes, "BATCH_TOKENS", 8)
    long = probe.look(lm, TEXT).findings
    assert long["place"].tolist() == short["place"].tolist() and (long["kind"] == "cause").any() == causes_told
    np.testing.assert_allclose(long["value"], short["value"], atol=1e-5)
    np.testing.assert_allclose(long["control"], short["control"], atol=1e-5)


@pytest.mark.slow
def test_smollm2_looks_as_plain_hooks_see_it(smollm2) -> None:
    """Its massive place, its sinks, what it leans on and what a writer at its mean costs, each computed once more."""
    run = probe.look(smollm2, TEXT)
    findings = run.findings
    ids = run.tokens["token_id"].tolist()
    answer = smollm2.ids_of(" Mary")[0]
    assert run.summary["answer"] == " Mary"
    cause = findings[findings["kind"] == "cause"].iloc[0]
    assert ids[cause["pos"]] == answer and cause["value"] > 1
    with torch.no_grad():
        out = smollm2.model(torch.tensor([ids]), output_hidden_states=True)
    massive = findings[findings["kind"] == "massive"].iloc[0]
    stream = out.hidden_states[massive["layer"] + 1][0].abs()
    assert massive["value"] == pytest.approx(float(stream.max()), rel=1e-5)
    assert massive["control"] == pytest.approx(float(stream.flatten().quantile(0.5)), rel=1e-2)
    writer = findings[(findings["kind"] == "writer") & (findings["head"] >= 0)].iloc[0]
    exact = probe.attribute(smollm2, TEXT, answer=" Mary", against=run.summary["against"]).attribution
    mine = exact[(exact["layer"] == writer["layer"]) & (exact["head"] == writer["head"])]["contribution"].iloc[0]
    assert writer["value"] == pytest.approx(mine, abs=1e-6)


def test_surprises_are_beyond_what_the_model_expected() -> None:
    run = probe.look(probe.load("tiny:mixtral"), TEXT)
    told = run.findings[run.findings["kind"] == "surprise"]
    tokens = run.tokens
    beyond = tokens["surprisal"] > tokens["entropy"] + 3 * np.sqrt(tokens["varentropy"])
    assert len(told) and set(told["pos"]) <= set(tokens["pos"][beyond])
    assert told["value"].tolist() == tokens.set_index("pos").loc[told["pos"], "surprisal"].tolist()


def test_every_next_command_can_be_typed(shell) -> None:
    done = shell("look", TEXT, "--model", "tiny:mixtral", "--out", "seen", "--json", "--no-progress")
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["summary"]["findings"]
    assert [row["rank"] for row in findings] == list(range(len(findings)))
    for command in {row["command"].partition("--position")[0]: row["command"] for row in findings}.values():
        again = shell(*shlex.split(command)[1:], "--no-progress", "--quiet")
        assert again.returncode == 0, (command, again.stderr)


def test_spans_tile_the_text_but_its_ends() -> None:
    for n in (2, 3, 5, 66, 67, 500):
        spans = spans_of(n)
        assert len(spans) <= 64
        assert [i for span in spans for i in range(span.start, span.end)] == list(range(1, n - 1))


def test_a_short_text_and_bad_options_are_said() -> None:
    lm = probe.load("tiny:llama")
    short = probe.look(lm, "a")
    assert {one["kind"] for one in short.summary["findings"]} <= {"writer", "uncertain", "surprise"}
    for wrong in ({"position": "all"}, {"controls": 2}, {"against": "a"}):
        with pytest.raises(BadOption):
            probe.look(lm, TEXT, **wrong)
