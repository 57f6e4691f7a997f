"""Answers that are given, scored after a prompt: against plain forwards of the model over prompt and answer together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from probe.cli.main import app
from scipy.stats import binomtest
from typer.testing import CliRunner

import probe
from probe.errors import BadOption
from probe.language_model import LanguageModel
from probe.replaying import replay
from probe.requests import Trace
from probe.tracing.accuracy import answers_summary
from probe.tracing.answers import CUT_ANEW, NOT_THERE, right_answer

FAMILIES = ["llama", "gpt2", "gemma2", "mamba", "bloom", "jamba"]
PROMPT, ANSWERS = "The capital of France is", (" Paris", " the city of London", "n't")


def sums(lm: LanguageModel, ids: list[int], start: int) -> float:
    """log p of ids from `start` on, by one plain forward over all of them, in float64."""
    with torch.inference_mode():
        logits = lm.model(torch.tensor([ids])).logits[0].double()
    logprobs = logits.log_softmax(-1)
    return float(sum(logprobs[i - 1, ids[i]] for i in range(start, len(ids))))


@pytest.fixture(scope="module")
def smol() -> LanguageModel:
    return probe.load("smollm2")


def check(lm: LanguageModel, run: probe.Run) -> None:
    """Every answer of a run of one prompt without a chat is what the plain model gives to the ids of both together."""
    prompt = list(lm.encode(run.prompts["text"][0]).ids)
    for row in run.answers.itertuples():
        ids = list(lm.encode(run.prompts["text"][0] + row.lead + row.text).ids)
        assert ids[: row.start] == prompt[: row.start] and list(row.token_ids) == ids[row.start :]
        assert row.start == len(prompt) or ids[row.start] != prompt[row.start]
        assert row.logprob == pytest.approx(sums(lm, ids, row.start), abs=2e-4)
        assert row.logprob == pytest.approx(np.sum(row.logprobs, dtype=np.float64))
        assert row.per_token == pytest.approx(row.logprob / (len(ids) - row.start))
        assert row.per_character == pytest.approx(row.logprob / len(row.text))
        assert row.per_byte == pytest.approx(row.logprob / len(row.text.encode()))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_what_the_plain_model_gives_to_it(family: str) -> None:
    lm = probe.load(f"tiny:{family}")
    run = probe.trace(lm, PROMPT, answers=[*ANSWERS, " Zürich"], attention="none")
    check(lm, run)
    assert len(run.answers) == 4 and (run.answers["error"] == "").all() and run.answers["correct"].isna().all()


@pytest.mark.slow
def test_answers_of_a_trained_model(smol: LanguageModel) -> None:
    run = probe.trace(smol, PROMPT, answers=ANSWERS, attention="none", generate=3)
    check(smol, run)
    assert run.answers["logprob"].idxmax() == 0 and run.answers["start"].tolist() == [5, 5, 4]  # " isn", "'t"
    assert run.summary["answers"]["accuracy"] == []


def test_a_prompt_whose_end_is_cut_anew(smol: LanguageModel) -> None:
    """ "is " + "Paris" is " is", " Paris": the space is no token of its own then, and is for " x" after it."""
    run = probe.trace(smol, PROMPT + " ", answers=["Paris", "  x"], attention="none")
    check(smol, run)
    prompt = smol.encode(PROMPT + " ").ids
    cut, whole = (run.answers.loc[i] for i in (0, 1))
    assert cut.start == len(prompt) - 1 and cut.before == 0.0
    assert CUT_ANEW in run.manifest["warnings"]
    if whole.start == len(prompt):
        assert whole.before == pytest.approx(sums(smol, list(prompt), len(prompt) - 1), abs=1e-4)
    same = probe.trace(smol, PROMPT, answers=[" Paris"], attention="none").answers.loc[0]
    assert cut.logprob == pytest.approx(same.logprob, abs=1e-4)


def test_what_is_compared_begins_at_one_token(smol: LanguageModel) -> None:
    """An answer that keeps the prompt's last token has that token's log-prob beside its own."""
    run = probe.trace(smol, PROMPT, answers=["n't", " Paris"], attention="none")
    starts = run.answers["start"].tolist()
    assert starts == [4, 5] and CUT_ANEW in run.manifest["warnings"]
    ids = list(smol.encode(PROMPT + " Paris").ids)
    joint = run.answers["logprob"] + run.answers["before"]
    assert joint[1] == pytest.approx(sums(smol, ids, 4), abs=1e-4) and joint[1] < run.answers["logprob"][1]


def test_the_prompt_is_read_once_for_all_its_answers(smol: LanguageModel) -> None:
    probe.trace(smol, PROMPT, answers=[" Paris"], attention="none")  # how the model goes on is tried on a few tokens, once
    widths: list[int] = []
    hook = smol.model.register_forward_pre_hook(lambda _, args, kwargs: widths.append(args[0].numel()), with_kwargs=True)
    try:
        probe.trace(smol, PROMPT * 9, answers=[f" {i} apples" for i in range(6)], attention="none")
    finally:
        hook.remove()
    n = len(smol.encode(PROMPT * 9).ids)
    assert widths[:2] == [n, n] and sum(widths[2:]) < n  # the reading of the trace, the prefix, and the answers alone


@pytest.mark.slow
def test_calibrated_by_the_token_that_begins_a_text(smol: LanguageModel) -> None:
    run = probe.trace(smol, PROMPT, answers=ANSWERS, calibrate=True, attention="none")
    for row in run.answers.itertuples():
        assert smol.bos_id is not None
        own = row.token_ids if row.start == 5 else smol.ids_of(row.text)
        assert row.prior == pytest.approx(sums(smol, [smol.bos_id, *own], 1), abs=2e-4)
        assert row.calibrated == pytest.approx(row.logprob + row.before - row.prior)


def test_calibrated_by_a_neutral_prompt() -> None:
    lm = probe.load("tiny:qwen2")
    run = probe.trace(lm, PROMPT, answers=ANSWERS, calibrate=True, premise="Answer:", attention="none")
    for row in run.answers.itertuples():
        ids = list(lm.encode("Answer:" + row.text).ids)
        assert row.prior == pytest.approx(sums(lm, ids, len(lm.encode("Answer:").ids)), abs=2e-4)


def test_a_model_without_a_first_token_needs_a_premise() -> None:
    lm = probe.load("tiny:llama")
    lm.tokenizer.bos_token = None
    with pytest.raises(BadOption, match="no token that begins a text"):
        probe.trace(lm, "a", answers=[" b"], calibrate=True)


def test_edits_hold_while_answers_are_scored() -> None:
    lm = probe.load("tiny:llama")
    run = probe.trace(lm, PROMPT, answers=ANSWERS, edit="mlp_out@1=zero", attention="none")
    plain = probe.trace(lm, PROMPT, answers=ANSWERS, attention="none")
    mlp = lm.model.get_submodule("model.layers.1.mlp")
    hook = mlp.register_forward_hook(lambda _, args, output: torch.zeros_like(output))
    try:
        check(lm, run)
    finally:
        hook.remove()
    assert np.abs(run.answers["logprob"] - plain.answers["logprob"]).min() > 1e-3


@pytest.mark.slow
def test_in_a_chat_the_answer_is_the_assistants(smol: LanguageModel) -> None:
    run = probe.trace(smol, "Capital of France?", answers=["Paris", "London"], chat=True, attention="none")
    ids = list(smol.render_chat("Capital of France?").ids)
    for row in run.answers.itertuples():
        assert row.start == len(ids) and list(row.token_ids) == smol.ids_of(row.text)
        assert row.logprob == pytest.approx(sums(smol, [*ids, *row.token_ids], len(ids)), abs=2e-4)


def problems(n: int = 8) -> list[dict[str, Any]]:
    """Sums with four choices each, of which one is right, said by its text or by its letter."""
    found = []
    for i in range(n):
        choices = [str(i + k) for k in (3, 1, 2, 11)]
        found.append({"prompt": f"{i} + 2 =", "choices": choices, "expect": choices[2] if i % 2 else "C"})
    return found


@pytest.mark.slow
def test_accuracy_over_problems_is_counted_again(smol: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in problems()))
    run = probe.trace(smol, file, calibrate=True, premise="Number:", attention="none", out=tmp_path / "run")
    about = run.summary["answers"]
    assert (about["answers"], about["problems"], about["counted"], about["errors"], about["chance"]) == (32, 8, 8, 0, 0.25)
    right = dict.fromkeys(("total", "per_token", "per_character", "per_byte", "calibrated"), 0)
    for row in problems():
        scores: dict[str, list[float]] = {name: [] for name in right}
        start, neutral = len(smol.encode(row["prompt"]).ids), len(smol.encode("Number:").ids)
        for choice in row["choices"]:
            ids = list(smol.encode(f"{row['prompt']} {choice}").ids)
            total = sums(smol, ids, start)
            prior = sums(smol, list(smol.encode(f"Number: {choice}").ids), neutral)
            for name, value in zip(
                scores,
                (total, total / (len(ids) - start), total / len(choice), total / len(choice), total - prior),
                strict=True,
            ):
                scores[name].append(value)
        for name, values in scores.items():
            right[name] += int(np.argmax(values)) == 2
    assert {one["by"]: one["right"] for one in about["accuracy"]} == right
    for one in about["accuracy"]:
        wanted = binomtest(one["right"], 8).proportion_ci(method="wilson")
        assert (one["ci_low"], one["ci_high"]) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
        assert one["accuracy"] == one["right"] / one["n"]
    assert run.answers.query("correct")["answer"].tolist() == [2] * 8 and (run.answers["lead"] == " ").all()


@pytest.mark.slow
def test_a_problem_is_the_same_alone_and_in_any_order(smol: LanguageModel, tmp_path: Path) -> None:
    rows = problems(3)
    together = probe.trace(smol, rows, attention="none").answers
    turned = probe.trace(smol, rows[::-1], attention="none").answers
    numbers = ["text", "logprob", "per_byte", "correct"]
    for i, row in enumerate(rows):
        own = together.query("prompt_id == @i")[numbers].reset_index(drop=True)
        alone = probe.trace(smol, [row], attention="none").answers[numbers]
        pd.testing.assert_frame_equal(own, alone)
        pd.testing.assert_frame_equal(own, turned.query(f"prompt_id == {2 - i}")[numbers].reset_index(drop=True))


def test_a_replayed_trace_scores_the_same(tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    first = probe.trace(lm, problems(3), calibrate=True, attention="none", out=tmp_path / "first")
    again = replay(lm, first)
    drop = ["run_id"]
    pd.testing.assert_frame_equal(again.answers.drop(columns=drop), first.answers.drop(columns=drop))
    other = probe.trace(lm, problems(3), answers=" 5", attention="none")
    assert other.answers["text"].tolist() == [" 5"] * 3  # the option's answers come before the file's


def test_what_cannot_be_scored_says_why() -> None:
    lm = probe.load("tiny:llama")
    long = "x" * (lm.context_length or 0)
    rows = [{"prompt": "a", "choices": ["b", "", long], "expect": "b"}, {"prompt": "a", "choices": ["b", "c"], "expect": "c"}]
    run = probe.trace(lm, rows, attention="none")
    errors = run.answers["error"].tolist()
    assert errors[0] == errors[3] == errors[4] == "" and errors[1] == "the answer is empty" and "context holds" in errors[2]
    assert run.answers["logprob"].isna().tolist() == [False, True, True, False, False]
    about = run.summary["answers"]
    assert (about["errors"], about["problems"], about["counted"]) == (2, 2, 1)
    check(lm, probe.trace(lm, "a", answers=["b"], attention="none"))


def test_an_expected_answer_that_is_no_choice_is_told() -> None:
    lm = probe.load("tiny:llama")
    run = probe.trace(lm, [{"prompt": "a", "choices": ["b", "c"], "expect": "1"}], attention="none")
    assert run.answers["correct"].isna().all() and run.manifest["warnings"] == [NOT_THERE]
    assert run.summary["answers"]["counted"] == 0


@pytest.mark.parametrize(
    ("expect", "texts", "right"),
    [
        ("Paris", ["Rome", " Paris"], 1), ("B", ["Rome", "Paris"], 1), ("(b)", ["Rome", "Paris"], 1), ("b.", ["x", "y"], 1),
        ("A", ["B", "A"], 1), ("C", ["x", "y"], None), ("1", ["x", "y"], None), ("1", ["2", "1"], 1), (None, ["x"], None),
        ("", ["x"], None), ("é", ["x", "y"], None),
    ],
)  # fmt: skip
def test_which_answer_is_right(expect: str | None, texts: list[str], right: int | None) -> None:
    assert right_answer(expect, texts) == right


def test_the_lead_of_choices() -> None:
    lm = probe.load("tiny:llama")
    for prompt, more, lead in (
        ("a:", {}, " "),
        ("a:\n", {}, ""),
        ("a:", {"choice_lead": "-"}, "-"),
        ("a:", {"choice_lead": ""}, ""),
    ):
        run = probe.trace(lm, [{"prompt": prompt, "choices": ["b", "c"]}], attention="none", **more)
        assert (run.answers["lead"] == lead).all() and (run.answers["characters"] == 1).all()
        check(lm, run)


def test_the_first_of_equals_is_chosen() -> None:
    import pyarrow as pa

    rows = [
        {"prompt_id": p, "answer": a, "text": "x", "tokens": 1, "characters": 1, "bytes": 1, "logprob": -1.0, "before": 0.0,
         "per_token": -1.0, "per_character": -1.0, "per_byte": -1.0, "calibrated": None, "correct": a == p, "error": ""}
        for p in (0, 1) for a in (0, 1)
    ]  # fmt: skip
    found = answers_summary(pa.Table.from_pylist(rows))
    assert [one["right"] for one in found["accuracy"]] == [1] * 4 and found["chance"] == 0.5


def test_refused() -> None:
    for wrong in ({"answers": [""]}, {"premise": "x"}, {"answers": ["a"], "calibrate": True, "edit": "z@1=zero"}):
        with pytest.raises(BadOption):
            Trace("a", **wrong)
    with pytest.raises(BadOption, match="the premise cannot be run"):
        probe.trace(probe.load("tiny:llama"), "a", answers=["b"], calibrate=True, premise="x" * 10_000)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in problems(3)))
    run = CliRunner().invoke
    tiny = ["-m", "tiny:llama", "--attention", "none", "--no-progress"]
    shown = run(app, ["trace", "a b", "--answer", " c", "--answer", " dd", "--calibrate", *tiny, "--out", str(tmp_path / "a")])
    assert shown.exit_code == 0 and '" dd"' in shown.stdout and "calibrated" in shown.stdout
    shown = run(app, ["trace", "--file", str(file), *tiny, "--out", str(tmp_path / "b")])
    assert shown.exit_code == 0 and "of 3" in shown.stdout and "chance 0.250" in shown.stdout
    done = run(app, ["trace", "a b", "--answer", " c", *tiny, "--json", "--out", str(tmp_path / "c")])
    assert json.loads(done.stdout)["summary"]["answers"]["first"][0]["text"] == " c"
    file.write_text(json.dumps({"prompt": "a", "choices": ["b", ""], "expect": "b"}))
    some = run(app, ["trace", "--file", str(file), *tiny, "--out", str(tmp_path / "d")])
    assert some.exit_code == 3 and "1 of 2 answers could not be scored" in some.stderr and "the answer is empty" in some.stdout
    file.write_text("".join(json.dumps(row) + "\n" for row in problems(3)))
    plan = run(app, ["trace", "--file", str(file), *tiny, "--dry-run", "--json"])
    assert json.loads(plan.stdout)["tables"]["answers"]["rows"] == 12


TEXTS, DIGITS, LETTERS = ("abc def", "1+1=2, a b c d"), "re:^[5-9]$", "a|b"


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_set_is_scored_after_the_prompt_and_in_the_place_of_every_token(family: str) -> None:
    """A batch of two lengths, each continued: log-sum-exp over the set, by plain forwards in float64; and by the layers."""
    lm = probe.load(f"tiny:{family}")
    run = probe.trace(
        lm, list(TEXTS), answer_set=DIGITS, against_set=LETTERS, answers=" 57", generate=3, lens=True, calibrate=True
    )  # fmt: skip
    sets = {"answer_logprob": [lm.ids_of(c)[0] for c in "56789"], "against_logprob": [lm.ids_of(c)[0] for c in "ab"]}
    with torch.no_grad():
        neutral = lm.model(torch.tensor([[lm.bos_id]])).logits[0, -1].double().log_softmax(-1)
    found = []
    for prompt, text in enumerate(TEXTS):
        tokens = run.tokens[run.tokens["prompt_id"] == prompt]
        n, ids = len(lm.encode(text).ids), tokens["token_id"].tolist()
        with torch.no_grad():
            logprobs = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        rows = run.answers[run.answers["prompt_id"] == prompt].set_index("answer")
        assert len(ids) == n + 3 and rows["set"].tolist() == [False, True, True]
        assert rows["text"].tolist() == [" 57", DIGITS, LETTERS]
        for number, (column, own) in enumerate(sets.items(), 1):
            wanted = logprobs[:, own].exp().sum(-1).log()
            np.testing.assert_allclose(tokens[column].iloc[1:], wanted[:-1], atol=2e-5)
            assert np.isnan(tokens[column].iloc[0])
            row = rows.loc[number]
            assert row["logprob"] == pytest.approx(float(wanted[n - 1]), abs=2e-5) and row["start"] == n
            assert list(row["token_ids"]) == sorted(own)
            np.testing.assert_allclose(row["logprobs"], logprobs[n - 1, sorted(own)], atol=2e-5)
            prior = float(neutral[own].exp().sum().log())
            assert row["prior"] == pytest.approx(prior, abs=2e-5)
            assert row["calibrated"] == pytest.approx(float(wanted[n - 1]) - prior, abs=5e-5)
            last = run.lens[(run.lens["prompt_id"] == prompt) & (run.lens["layer"] == lm.anatomy.n_layers - 1)]
            np.testing.assert_allclose(last.sort_values("pos")[column], wanted, atol=2e-5)
        found.append(rows["logprob"].tolist()[1:])
    about, means = run.summary["answers"], np.mean(found, axis=0)
    assert [row["logprob"] for row in about["sets"]] == pytest.approx([*means, means[0] - means[1]], abs=1e-5)
    assert about["texts"] == 2 and about["answers"] == 6 and about["accuracy"] == []
    replayed = replay(lm, run)
    pd.testing.assert_frame_equal(run.answers.drop(columns="run_id"), replayed.answers.drop(columns="run_id"))


def test_a_set_that_cannot_be_written_is_a_row_that_says_so_and_an_edit_is_at_work() -> None:
    lm = probe.load("tiny:llama")
    run = probe.trace(lm, "abc", answer_set="a|bc", answers="d")
    row = run.answers.iloc[1]
    assert "tokens there, not one" in row["error"] and np.isnan(row["logprob"]) and run.answers["error"].iloc[0] == ""
    assert run.tokens["answer_logprob"].isna().all() and run.summary["answers"]["errors"] == 1
    plain, edited = (
        probe.trace(lm, "abc", answer_set="a", edit=edit).answers["logprob"].iloc[0] for edit in ((), "mlp_out@0=zero")
    )
    handle = lm.model.model.layers[0].mlp.register_forward_hook(lambda _, args, out: torch.zeros_like(out))
    wanted = sums(lm, [*lm.encode("abc").ids, lm.ids_of("a")[0]], len(lm.encode("abc").ids))
    handle.remove()
    assert edited == pytest.approx(wanted, abs=2e-5) and abs(edited - plain) > 1e-3
    for options, why in (({"against_set": "a"}, "against which set"), ({"answer_set": "a||b"}, "is empty")):
        with pytest.raises(BadOption, match=why) as told:
            probe.trace(lm, "abc", **options)
        assert told.value.hint


@pytest.mark.slow
def test_greater_than_is_asked_of_a_real_model(smol: LanguageModel, tmp_path: Path) -> None:
    """Of the last digits of a year, the later ones have the odds; the command says so."""
    text = "The war lasted from the year 1732 to the year 17"
    run = probe.trace(smol, text, answer_set="re:^[4-9]$", against_set="re:^[0-2]$", attention="none")
    with torch.no_grad():
        logits = smol.model(torch.tensor([smol.encode(text).ids])).logits[0, -1].double()
    wanted = [float(logits.log_softmax(-1)[[smol.ids_of(c)[0] for c in some]].exp().sum().log()) for some in ("456789", "012")]
    assert run.answers["logprob"].tolist() == pytest.approx(wanted, abs=1e-4) and wanted[0] - wanted[1] > 1
    done = CliRunner().invoke(
        app, ["trace", text, "--answer-set", "re:^[4-9]$", "--against-set", "re:^[0-2]$", "--no-progress", "--out",
              str(tmp_path / "run")],
    )  # fmt: skip
    assert done.exit_code == 0 and "re:^[4-9]$" in done.stdout and f"{wanted[0]:.3f}" in done.stdout
