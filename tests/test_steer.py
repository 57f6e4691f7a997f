"""A direction is the difference of two means, worked out by plain hooks; its evidence is a loop that leaves each text out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.errors import BadEdit, BadOption, BadPlace, BadPrompt
from probe.interventions import load_direction, save_direction
from probe.steering.making import leave_one_out, separation

PLUS, MINUS = ["I love it", "so good", "very nice day", "great"], ["I hate it", "so bad", "a very ugly day", "awful"]


@pytest.fixture(scope="module")
def lm() -> probe.LanguageModel:
    return probe.load("tiny:llama")


def last(lm: probe.LanguageModel, text: str, *, everywhere: bool = False) -> np.ndarray:
    """resid_post of layer 1 by a hook of our own, float64."""
    seen: list[torch.Tensor] = []
    handle = lm.model.model.layers[2].register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    with torch.no_grad():
        lm.model(torch.tensor([lm.encode(text).ids]))
    handle.remove()
    return (seen[0].mean(0) if everywhere else seen[0][-1]).numpy()


@pytest.mark.parametrize("everywhere", [False, True])
def test_it_is_the_difference_of_means(lm: probe.LanguageModel, tmp_path: Path, everywhere: bool) -> None:
    place = "resid_post@1:all" if everywhere else "resid_post@1"
    run = probe.make_direction(lm, PLUS, MINUS, at=place, to=tmp_path / "v.safetensors")
    means = [np.mean([last(lm, text, everywhere=everywhere) for text in texts], axis=0) for texts in (PLUS, MINUS)]
    saved = load_direction(tmp_path / "v.safetensors", lm=lm)
    np.testing.assert_allclose(saved.vector, means[0] - means[1], atol=1e-5)
    assert (saved.site, saved.layer, saved.head) == ("resid_post", 1, None) and "difference of means" in saved.made
    assert run.summary["norm"] == pytest.approx(float(np.linalg.norm(means[0] - means[1])), abs=1e-4)
    if not everywhere:
        norms = [np.linalg.norm(last(lm, text)) for text in (*PLUS, *MINUS)]
        assert run.summary["relative_norm"] == pytest.approx(run.summary["norm"] / np.mean(norms), rel=1e-4)
    steered = probe.trace(lm, "so", edit=f"resid_post@1=add:{tmp_path}/v.safetensors:4")
    assert not np.allclose(steered.tokens["entropy"].iloc[-1], probe.trace(lm, "so").tokens["entropy"].iloc[-1])


def test_left_out_texts_are_judged_by_the_others_only() -> None:
    random = np.random.default_rng(1)
    x, labels = random.normal(size=(9, 5)), np.asarray([True] * 4 + [False] * 5)
    x[labels, 0] += 2.0
    wanted = []
    for i in range(9):
        rest = np.arange(9) != i
        plus, minus = x[rest & labels].mean(0), x[rest & ~labels].mean(0)
        nearer = np.linalg.norm(x[i] - plus) < np.linalg.norm(x[i] - minus)
        wanted.append(nearer == labels[i])
    assert leave_one_out(x, labels).tolist() == wanted
    apart = np.concatenate([x[:4] + 50, x[4:]])
    found = separation(apart, labels, seed=0)
    assert found is not None and found.accuracy == 1.0 and found.p_value < 0.05 and found.shuffled < 0.8
    noise = separation(random.normal(size=(40, 5)), np.arange(40) < 20, seed=0)
    assert noise is not None and noise.p_value > 0.05
    assert separation(x[:5], labels[:5], seed=0) is None


def test_bad_input(lm: probe.LanguageModel, tmp_path: Path) -> None:
    to = tmp_path / "v.safetensors"
    with pytest.raises(BadOption, match="the direction is zero"):
        probe.make_direction(lm, PLUS, PLUS, at="resid_post@1", to=to)
    with pytest.raises(BadOption, match="not one vector"):
        probe.make_direction(lm, PLUS, MINUS, at="resid_post@all", to=to)
    with pytest.raises(BadOption, match="not one vector"):
        probe.make_direction(lm, PLUS, MINUS, at="z@1", to=to)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(BadPrompt, match="no prompt"):
        probe.make_direction(lm, tmp_path / "empty.txt", MINUS, at="resid_post@1", to=to)
    assert not to.exists()
    probe.make_direction(lm, PLUS, MINUS, at="z@1.2", to=to)
    assert load_direction(to).head == 2
    with pytest.raises(BadEdit, match="has 64"):
        probe.trace(lm, "so", edit=f"resid_post@1=add:{to}:4")
    with pytest.raises(BadEdit, match="made with another model"):
        load_direction(to, lm=probe.load("tiny:gpt2"))


def test_the_command_line_is_the_library(lm: probe.LanguageModel, shell: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(PLUS))
    (tmp_path / "b.txt").write_text("\n".join(MINUS))
    done = shell(
        "steer", "--make", "a.txt", "b.txt", "--at", "resid_post@1", "-o", "v.safetensors", "-m", "tiny:llama", "--json"
    )
    assert done.returncode == 0, done.stderr
    own = probe.make_direction(lm, PLUS, MINUS, at="resid_post@1", to=tmp_path / "w.safetensors").summary
    assert {**json.loads(done.stdout)["summary"], "direction": ""} == {**own, "direction": ""}
    assert torch.equal(*(load_direction(tmp_path / f"{name}.safetensors").vector for name in "vw"))


def pushed(lm: probe.LanguageModel, text: str | list[int], vector: torch.Tensor, strength: float) -> torch.Tensor:
    """Log-probs (pos, d_vocab), float64, with the vector added to what layer 1 gives, by a hook of our own."""
    block = lm.model.model.layers[1]
    handle = block.register_forward_hook(lambda _, args, out: out + strength * vector)
    with torch.no_grad():
        logits = lm.model(torch.tensor([lm.encode(text).ids if isinstance(text, str) else text])).logits[0]
    handle.remove()
    return logits.double().log_softmax(-1)


@pytest.fixture
def direction(lm: probe.LanguageModel, tmp_path: Path) -> Path:
    vector = torch.randn(lm.width("resid_post", 1), generator=torch.Generator().manual_seed(5))
    save_direction(tmp_path / "d.safetensors", lm, vector, site="resid_post", layer=1)
    return tmp_path / "d.safetensors"


def test_a_scan_is_a_forward_with_the_vector_added(lm: probe.LanguageModel, direction: Path) -> None:
    vector, texts = load_direction(direction).vector, ["so good", "I hate it all"]
    run = probe.steer(lm, direction, texts, answer="a", against="b", strengths=[-2, 3], controls=4)
    rows = run.steering.set_index(["prompt_id", "control", "strength"])
    assert len(rows) == 2 * (1 + 5 * 2)
    (a,), (b,) = lm.ids_of("a"), lm.ids_of("b")
    for number, text in enumerate(texts):
        ids, plain = lm.encode(text).ids, pushed(lm, text, vector, 0.0)
        for strength in (-2.0, 0.0, 3.0):
            own, row = pushed(lm, text, vector, strength), rows.loc[(number, 0, strength)]
            assert row["value"] == pytest.approx(float(own[-1, a] - own[-1, b]), abs=1e-5)
            assert row["kl"] == pytest.approx(float((plain[-1].exp() * (plain[-1] - own[-1])).sum()), abs=1e-5)
            lost = np.mean([float(plain[t, i] - own[t, i]) for t, i in enumerate(ids[1:])])
            assert row["lost"] == pytest.approx(lost, abs=1e-5)
        assert rows.loc[(number, 0, 0.0)][["kl", "lost"]].tolist() == [0.0, 0.0]
    means = run.steering_means.set_index("strength")

    def effect(control: int) -> float:
        return float(np.mean([rows.loc[(n, control, 3.0)]["value"] - rows.loc[(n, 0, 0.0)]["value"] for n in range(2)]))

    assert means.loc[3.0, "effect"] == pytest.approx(effect(0)) and means.loc[0.0, "effect"] == 0.0
    assert means.loc[3.0, "ci_low"] <= means.loc[3.0, "effect"] <= means.loc[3.0, "ci_high"]
    others = [effect(control) for control in range(1, 5)]
    assert len(set(others)) == 4 and means.loc[3.0, "control_high"] == pytest.approx(max(others))
    assert means.loc[3.0, "p_value"] == pytest.approx((1 + sum(abs(x) >= abs(effect(0)) for x in others)) / 5)


def test_a_scan_of_what_is_written_is_an_edited_trace(lm: probe.LanguageModel, direction: Path) -> None:
    run = probe.steer(lm, direction, "so good", matching=".", generate=6, strengths=[40], controls=2)
    rows = run.steering.set_index(["control", "strength"])
    for strength in (0.0, 40.0):
        more = {"edit": f"resid_post@1=add:{direction}:{strength}"} if strength else {}
        traced = probe.trace(lm, "so good", generate=6, **more).tokens
        wanted = traced[traced["segment"] == "completion"]["token_id"].tolist()
        assert rows.loc[(0, strength), "text"] == lm.pieces(wanted).text
    assert rows.loc[(0, 40.0), "text"] != rows.loc[(0, 0.0), "text"]


def test_a_scan_is_measured_after_a_named_token(lm: probe.LanguageModel, direction: Path) -> None:
    """A whole answer in the place of what follows there; another token in each text."""
    vector, texts = load_direction(direction).vector, ["so good", "I hate it"]
    asked = {"answer": " 57", "whole_answer": True, "against": "b", "strengths": [3], "controls": 1}
    run = probe.steer(lm, direction, texts, measure_at=3, **asked)
    rows = run.steering.set_index(["prompt_id", "control", "strength"])
    (b,), whole = lm.ids_of("b"), lm.ids_of(" 57")
    for number, text in enumerate(texts):
        before = lm.encode(text).ids[:4]
        plain, own, longer = (pushed(lm, ids, vector, by) for ids, by in ((before, 0), (before, 3), ([*before, *whole], 3)))
        wanted = sum(float(longer[3 + i, token]) for i, token in enumerate(whole)) - float(own[3, b])
        row = rows.loc[(number, 0, 3.0)]
        assert len(whole) > 1 and row["value"] == pytest.approx(wanted, abs=2e-5)
        assert row["kl"] == pytest.approx(float((plain[-1].exp() * (plain[-1] - own[-1])).sum()), abs=1e-5)
        lost = np.mean([float(plain[t, i] - own[t, i]) for t, i in enumerate(before[1:])])
        assert row["lost"] == pytest.approx(lost, abs=1e-5)
    with pytest.raises(BadOption, match="after the token that is measured"):
        probe.steer(lm, direction, texts, measure_at=3, at="resid_post@1:last", **asked)
    with pytest.raises(BadOption, match="prompt 1: no token is 'g'") as told:
        probe.steer(lm, direction, texts, measure_at="tok=g", **asked)
    assert told.value.hint
    with pytest.raises(BadPlace, match="is 2 positions"):
        probe.steer(lm, direction, texts[:1], measure_at="3..4", **asked)


def test_what_is_written_is_measured_at_each_token_and_by_the_plain_model(lm: probe.LanguageModel, direction: Path) -> None:
    vector, before = load_direction(direction).vector, lm.encode("so good").ids
    asked = {"answer_set": "re:^[5-9]$", "against": "b", "generate": 5, "strengths": [-30], "controls": 1}
    run = probe.steer(lm, direction, "so good", **asked)
    some, (b,) = [lm.ids_of(digit)[0] for digit in "56789"], lm.ids_of("b")
    written = run.steering_tokens.groupby(["control", "strength"])
    rows = run.steering.set_index(["control", "strength"])
    costs = {}
    for strength in (0.0, -30.0):
        tokens = written.get_group((0, strength))
        drawn, first = tokens["token_id"].tolist(), len(before) - 1
        own, plain = (pushed(lm, [*before, *drawn], vector, by)[first:-1] for by in (strength, 0.0))
        assert drawn == own.argmax(-1).tolist() and tokens["pos"].tolist() == list(range(len(before), len(before) + 5))
        chosen = torch.tensor(drawn)[:, None]
        answer, kl = own[:, some].exp().sum(-1).log(), (plain.exp() * (plain - own)).sum(-1)
        for name, wanted in (
            ("logprob", own.gather(1, chosen)[:, 0]), ("plain_logprob", plain.gather(1, chosen)[:, 0]), ("kl", kl),
            ("answer_logprob", answer), ("against_logprob", own[:, b]),
        ):  # fmt: skip
            np.testing.assert_allclose(tokens[name], wanted, atol=2e-5, err_msg=name)
        costs[strength] = -float(plain.gather(1, chosen).mean())
        row = rows.loc[(0, strength)]
        assert row["value"] == pytest.approx(float((answer - own[:, b]).mean()), abs=2e-5)
        assert row["kl"] == pytest.approx(float(kl.mean()), abs=2e-5) and row["text"] == lm.pieces(drawn).text
        assert row["lost"] == pytest.approx(costs[strength] - costs[0.0], abs=2e-5)
    assert costs[-30.0] > costs[0.0] and "5 written tokens" in run.summary["metric"]
    matched = probe.steer(lm, direction, "so good", matching=".", generate=5, strengths=[-30], controls=1)
    assert matched.steering["lost"].tolist() == pytest.approx(run.steering["lost"].tolist(), abs=1e-6)
    assert matched.steering_tokens["answer_logprob"].isna().all()
    with pytest.raises(BadOption, match="after the prompt"):
        probe.steer(lm, direction, "so", answer="a", whole_answer=True, generate=3)
    older = {"direction": str(direction), "prompts": "so", "answer": "a", "generate": 24}
    assert probe.requests.Steer.from_arguments(older).written == 0
    assert probe.requests.Steer.from_arguments({**older, "answer": None, "matching": "a"}).written == 24


@pytest.mark.slow
def test_scans_from_the_shell(shell: Callable[..., Any], direction: Path) -> None:
    words = ["steer", "--scan", str(direction), "so good", "--strengths", "-1,1", "--controls", "2", "-m"]
    done = shell(*words, "tiny:llama", "--answer", "a", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["strength"] for row in json.loads(done.stdout)["summary"]["strengths"]] == [-1.0, 0.0, 1.0]
    assert "2 random directions" in shell(*words, "tiny:llama", "--answer", "a").stdout
    for more, said in (
        (["--answer", "a", "--strengths", "0"], "strengths other than 0"),
        (["--answer", "a", "--strengths", "inf"], "strengths other than 0"),
        (["--answer", "a", "--against", "a"], "are the same"),
        (["--answer", ""], "--answer is empty"),
        ([], "what is to be measured"),
        (["--answer", "a", "--at", "resid_post@9"], "no layer 9"),
        (["--answer", "a", "--at", "mlp_post@1"], "was made at another site"),
    ):
        failed = shell(*words, "tiny:llama", *more)
        assert failed.returncode == 1 and said in failed.stderr + failed.stdout and "hint:" in failed.stderr, failed.stderr
    other = shell(*words, "tiny:gpt2", "--answer", "a")
    assert other.returncode == 1 and "made with another model" in other.stderr
    assert shell("steer", "so good", "-m", "tiny:llama").returncode == 2
