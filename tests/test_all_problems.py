"""`rewind` and `importance` over all problems of a run: each has the numbers that it has alone, in any order, torn or whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import probe
from probe.decoding import Sampling, decode
from probe.decoding.rollouts import problem_seed
from probe.errors import BadOption, OutOfRange, RunError
from tests.test_kill_rewind import killed, whole_again
from tests.test_rewind import same_tables

TEXTS = ("So it goes a", "xyz", "How many? 12", "The cat sat on")
HOW = {"samples": 6, "max_new": 5, "split": "token", "answer": "regex=[a-z0-9]", "sampling": Sampling(temperature=1.0, seed=3)}
OVER = {"importance_means", "effect_means", "covariates", "curves"}
SUMS = ("run_id", "q_value")  # what says which run it is, and what is over all problems


@pytest.fixture(scope="module")
def tiny():
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def run(tiny):
    return probe.trace(tiny, list(TEXTS), generate=6)


def importance(run, lm, **more):
    return probe.importance(
        run, lm=lm, method="resampling,rescore,early-answer", candidates=("a", "b"), expect="a", **HOW, **more
    )


def of_prompt(run, table: str, prompt: int) -> pd.DataFrame:
    rows = run.table(table)
    own = rows[rows["prompt_id"] == prompt]
    return own.drop(columns=[name for name in SUMS if name in own]).reset_index(drop=True)


def same_problem(whole, alone, prompt: int, *, as_prompt: int | None = None, rounding: float = 1e-5) -> None:
    """Every row of a problem: ids, texts and outcomes alike; log-probs to fp32 rounding, for other rows ran beside them."""
    for table in sorted(set(whole.tables) - OVER):
        ours, theirs = of_prompt(whole, table, prompt), of_prompt(alone, table, prompt if as_prompt is None else as_prompt)
        assert len(theirs) or not len(ours), table
        pd.testing.assert_frame_equal(
            ours.drop(columns="prompt_id"), theirs.drop(columns="prompt_id"), check_exact=False, rtol=rounding,
            atol=rounding, check_categorical=False,
        )  # fmt: skip


@pytest.mark.slow
def test_every_number_of_all_prompts_is_that_of_the_problem_alone(run, tiny) -> None:
    whole = importance(run, tiny)
    assert set(whole.importance["prompt_id"]) == set(range(len(TEXTS)))
    for prompt in range(len(TEXTS)):
        same_problem(whole, importance(run, tiny, prompt_id=prompt), prompt)


@pytest.mark.slow
def test_every_rewind_of_all_prompts_is_that_of_the_problem_alone(run, tiny) -> None:
    whole = probe.rewind(run, lm=tiny, to="50%", replace="z", **HOW)
    for prompt in range(len(TEXTS)):
        same_problem(whole, probe.rewind(run, lm=tiny, to="50%", replace="z", prompt_id=str(prompt), **HOW), prompt)


@pytest.mark.slow
def test_a_problem_is_the_same_in_another_order(run, tiny) -> None:
    order = [2, 0, 3, 1]
    shuffled = importance(probe.trace(tiny, [TEXTS[i] for i in order], generate=6), tiny)
    whole = importance(run, tiny)
    for place, prompt in enumerate(order):
        same_problem(whole, shuffled, prompt, as_prompt=place)
    for table in OVER & set(whole.tables):
        pd.testing.assert_frame_equal(
            whole.table(table).drop(columns="run_id"), shuffled.table(table).drop(columns="run_id"), rtol=1e-5, atol=1e-6
        )


@pytest.mark.slow
def test_problems_do_not_share_their_noise(run, tiny) -> None:
    """A continuation is what `decode` gives with the noise of its problem, which is another for each."""
    whole = importance(run, tiny)
    tokens, seeds = whole.tokens, set()
    for prompt in range(len(TEXTS)):
        own = whole.branches[(whole.branches["prompt_id"] == prompt) & (whole.branches["arm"] == "boundary-0")]
        rows = tokens[tokens["prompt_id"] == prompt]
        prefix = rows[(rows["branch"] == 0) & (rows["segment"] == "prompt")]["token_id"].tolist()
        seed = problem_seed(3, prefix)
        seeds.add(seed)
        plain = decode(tiny, [prefix] * 6, max_new=5, sampling=Sampling(temperature=1.0, seed=seed))
        for row in own.itertuples():
            drawn = rows[(rows["branch"] == row.branch) & (rows["pos"] >= row.draw_pos)]["token_id"].tolist()
            assert drawn == plain[row.sample].ids
    assert len(seeds) == len(TEXTS)


@pytest.mark.slow
def test_a_step_of_all_steps_is_that_step_alone(run, tiny) -> None:
    whole = probe.rewind(run, lm=tiny, to="all", prompt_id=1, replace="z", **HOW)
    steps = sorted(set(whole.effects["step"]))
    assert steps == list(range(6))
    for step in steps:
        alone = probe.rewind(run, lm=tiny, to=f"step{step}", prompt_id=1, replace="z", **HOW)
        for table, keys in (("effects", ["metric", "outcome"]), ("branches", ["arm", "sample"])):
            ours, theirs = whole.table(table), alone.table(table)
            ours = ours[ours["step"] == step]
            theirs = theirs[theirs["step"] == step]
            dropped = ["run_id", "branch"] if table == "branches" else ["run_id"]
            a, b = (t.drop(columns=dropped).sort_values(keys).reset_index(drop=True) for t in (ours, theirs))
            pd.testing.assert_frame_equal(a, b, check_exact=False, rtol=1e-5, atol=1e-5, check_categorical=False)
    assert not whole.branches.duplicated(["prompt_id", "branch"]).any()


@pytest.mark.slow
def test_q_values_are_over_all_steps_of_all_problems(run, tiny) -> None:
    rows = importance(run, tiny).importance.query("method == 'resampling_tv'").sort_values("p_value")
    p, n = rows["p_value"].to_numpy(), len(rows)
    expected = np.minimum.accumulate((p * n / np.arange(1, n + 1))[::-1])[::-1]  # Benjamini and Hochberg by hand
    assert n == 6 * len(TEXTS)
    np.testing.assert_allclose(rows["q_value"].to_numpy(), np.minimum(expected, 1.0), rtol=1e-12)


def test_a_problem_without_the_place_is_a_row_with_its_reason(tiny) -> None:
    run = probe.trace(tiny, ["So it goes a", "xyz"], generate=6)
    lengths = run.tokens.groupby("prompt_id").size()
    assert lengths[0] > lengths[1]
    at = str(int(lengths[0]) - 1)  # a position that the shorter one lacks
    done = probe.rewind(run, lm=tiny, to=at, replace="z", **HOW)
    errors = done.prompts.set_index("prompt_id")["error"]
    assert errors[0] == "" and f"no generated token at {at}" in errors[1]
    assert set(done.effects["prompt_id"]) == {0} and done.summary["errors"] == 1
    assert any("left out" in text for text in done.manifest["warnings"])
    with pytest.raises(OutOfRange):
        probe.rewind(run, lm=tiny, to=at, replace="z", prompt_id=1, **HOW)
    with pytest.raises(OutOfRange):  # of all of them it is an error too
        probe.rewind(run, lm=tiny, to="9999", **HOW)


def test_a_problem_that_no_method_can_take_is_a_row_with_its_reason(tiny) -> None:
    """What is found out after its own rows were written stands there too."""
    run = probe.trace(tiny, ["So it goes a", "xyz"], generate=6)
    silent = probe.importance(run, lm=tiny, method="early-answer", **{**HOW, "answer": "regex=zzz"}, expect="b", prompt_id=0)
    assert silent.summary["reference"] == "B"
    with pytest.raises(BadOption, match="no answer to look for"):
        probe.importance(run, lm=tiny, method="early-answer", prompt_id=0, **{**HOW, "answer": "regex=zzz"})
    done = probe.importance(run, lm=tiny, method="early-answer,rescore", **{**HOW, "answer": "regex=zzz"})
    errors = done.prompts["error"].tolist()
    assert len(errors) == 2 and all("no answer to look for" in error for error in errors) and done.summary["errors"] == 2


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [("1..", BadOption, "prompts"), ("x", BadOption, "prompts"), ("7", RunError, "prompt 7"), ("3..1", BadOption, "prompts")],
)
def test_prompts_that_cannot_be_chosen(run, tiny, wanted: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        probe.importance(run, lm=tiny, prompt_id=wanted, **HOW)


def test_some_of_the_prompts(run, tiny) -> None:
    done = probe.importance(run, lm=tiny, method="rescore", prompt_id="0,2..3", split="token")
    assert set(done.importance["prompt_id"]) == {0, 2, 3} == set(done.prompts["prompt_id"])


@pytest.mark.slow
def test_a_problem_has_its_own_right_answer(tiny, tmp_path: Path) -> None:
    rows = [{"prompt": text, "expect": right, "level": i} for i, (text, right) in enumerate(zip(TEXTS, "abcd", strict=True))]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = of_own_answers(probe.trace(tiny, tmp_path / "problems.jsonl", generate=6), tiny)
    assert [one["reference"] for one in done.summary["problems"]] == list("ABCD")  # as answers are read
    assert done.prompts["level"].tolist() == [0, 1, 2, 3]


def test_the_text_of_an_edit_is_each_problems_own(tiny, tmp_path: Path) -> None:
    rows = [
        {"prompt": "So it goes a", "other": "So it went b"},
        {"prompt": "xyz", "other": None},
        {"prompt": "abc", "other": "q"},
    ]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = probe.trace(tiny, tmp_path / "problems.jsonl", generate=6)
    done = probe.rewind(run, lm=tiny, to="50%", prompt_b="column:other", **HOW)
    assert done.prompts.set_index("prompt_id")["error"].str.contains("no text in its column 'other'").tolist() == [0, 1, 0]
    for prompt, other in ((0, "So it went b"), (2, "q")):
        alone = probe.rewind(run, lm=tiny, to="50%", prompt_b=other, prompt_id=prompt, **HOW)
        same_problem(done, alone, prompt)
    with pytest.raises(BadOption, match="no column 'hint'"):
        probe.rewind(run, lm=tiny, to="50%", prompt_b="column:hint", **HOW)


def of_own_answers(run, lm):
    return probe.importance(run, lm=lm, method="resampling", **HOW)


@pytest.mark.slow
def test_blocks_of_problems_change_nothing(run, tiny, monkeypatch) -> None:
    whole = importance(run, tiny)
    monkeypatch.setattr("probe.rewinding.rollouts.BLOCK", 50)  # each problem in a block of its own
    same_tables(whole, importance(run, tiny))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["importance", "rewind"])
def test_kill_9_and_resume_over_problems(verb: str, shell, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(TEXTS))
    assert shell("trace", "--file", "p.txt", "-n", "8", "--model", "tiny:llama", "--out", "run", "--quiet").returncode == 0
    more = {"importance": ("--method", "resampling,rescore"), "rewind": ("--to", "all", "--append-wait")}[verb]
    words = (verb, "run", *more, "--split", "token", "--samples", "24", "--max-new", "12", "--quiet")
    assert killed(tmp_path, words, times=3, within=0.8, seed=1)
    whole_again(shell, words, tmp_path)


@pytest.mark.slow
def test_twelve_problems_on_smollm2(tmp_path: Path) -> None:
    """Each problem's numbers are its own, and the tables over them say what stands behind them."""
    pairs = [(3, 4), (12, 5), (7, 8), (20, 6), (9, 9), (15, 2), (30, 11), (8, 5), (14, 14), (2, 19), (6, 7), (10, 25)]
    rows = [{"prompt": f"Q: What is {a} + {b}? Think step by step.\nA:", "expect": str(a + b)} for a, b in pairs]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lm = probe.load("smollm2")
    run = probe.trace(lm, tmp_path / "problems.jsonl", generate=32)
    how = {"lm": lm, "method": "resampling", "samples": 4, "max_new": 24, "temperature": 0.8}
    whole = probe.importance(run, **how)
    assert whole.summary["over_problems"]["problems"] + whole.summary["errors"] == 12
    for prompt in whole.importance["prompt_id"].unique()[:3]:
        # a log-prob of this model has an error of up to 4e-5 nats, and a branch is the sum of 24
        same_problem(whole, probe.importance(run, prompt_id=int(prompt), **how), int(prompt), rounding=1e-3)
    means = whole.importance_means.query("method == 'resampling' and grouped_by == 'all'").iloc[0]
    own = whole.importance.query("method == 'resampling'").groupby("prompt_id")["estimate"].mean()
    assert means["estimate"] == pytest.approx(own.mean()) and means["problems"] == len(own)
    assert means["steps"] == len(whole.importance.query("method == 'resampling'"))


@pytest.mark.slow
def test_activations_are_changed_in_the_rows_that_refill_a_batch(run, tiny) -> None:
    """More continuations than run side by side, of other lengths: each is what it is alone under the same change."""
    from probe.decoding.rollouts import PLACES
    from probe.interventions import applying, parse_edits

    n = PLACES + 40
    done = probe.rewind(
        run, lm=tiny, to="step2", prompt_id=0, edit="mlp_out@1=zero", samples=n, max_new=9, split="token",
        answer="regex=[a-z0-9]", temperature=1.0, seed=3, stop=("e", "o", "t"),
    )  # fmt: skip
    own = done.branches[done.branches["arm"] == "edited"].set_index("sample")
    assert len(own) == n and own["n_tokens"].nunique() > 2 and own["stop_reason"].astype(str).nunique() > 1
    tokens = done.tokens.sort_values("pos")
    original = tokens[tokens["branch"] == 0]["token_id"].tolist()
    prompt = original[: int(own["n_prompt"].iloc[0])]
    how = Sampling(temperature=1.0, seed=problem_seed(3, prompt), stop=("e", "o", "t"))
    with applying(tiny, parse_edits(tiny, [f"mlp_out@1:{int(own['draw_pos'].iloc[0]) - 1}..=zero"])):
        for sample in (0, 1, PLACES - 1, PLACES, PLACES + 7, n - 1):
            prefix = original[: int(own["draw_pos"][sample])]
            (alone,) = decode(tiny, [prefix], max_new=9, sampling=how, samples=[sample])
            drawn = tokens[(tokens["branch"] == own["branch"][sample]) & (tokens["pos"] >= len(prefix))]["token_id"]
            assert drawn.tolist() == alone.ids
