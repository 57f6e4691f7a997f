"""Many answers to each problem: what is drawn, what is said of it, what is kept, and that it can be gone on with."""

from __future__ import annotations

import json
import math
import random
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probe
from probe.decoding import branch
from probe.decoding.rollouts import problem_seed
from probe.errors import BadJudge, BadOption, BadPrompt, RunError
from probe.requests import Sample, Sampling
from probe.requests.sample import parse_counts, parse_percents
from probe.sampling import plan_sample
from probe.sampling.screening import screen
from probe.sampling.statistics import Attempts, mean_rows, sampled_row
from probe.store import Run
from tests.test_cli_trouble import started
from tests.test_rewind import same_tables

TEXTS = ["one two", "three four five", "six"]
CLASSES = ("digit=/[0-9]/", "upper=/[A-Z]/")
DRAWN = {"samples": 12, "max_new": 5, "sampling": Sampling(1.0, seed=3), "outcome": CLASSES, "expect": "digit"}


@pytest.fixture(scope="module")
def lm() -> Any:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def run(lm: Any) -> Run:
    return probe.sample(lm, TEXTS, **DRAWN)


def rows(run: Run, name: str, prompt: int | None = None) -> list[dict[str, Any]]:
    found = run.table_arrow(name).drop(["run_id"]).to_pylist()
    return [row for row in found if prompt is None or row.pop("prompt_id") == prompt]


def alike(*several: list[dict[str, Any]]) -> bool:
    """The same rows; log-probs to fp32 rounding, since other rows ran beside them."""

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in row.items() if not isinstance(v, float)}

    for one in several[1:]:
        assert [plain(row) for row in one] == [plain(row) for row in several[0]]
        for a, b in zip(one, several[0], strict=True):
            assert {k: v for k, v in a.items() if k not in plain(a)} == pytest.approx(
                {k: v for k, v in b.items() if k not in plain(b)}, rel=1e-4, abs=1e-4
            )
    return True


def without_sum(run: Run) -> dict[str, list[dict[str, Any]]]:
    return {name: rows(run, name) for name in run.tables}


def test_answers_are_what_the_decoder_draws_from_the_prompt(lm: Any, run: Run) -> None:
    for prompt, text in enumerate(TEXTS):
        ids = lm.encode(text).ids
        sampling = replace(DRAWN["sampling"], seed=problem_seed(3, ids))
        (drawn,) = branch(lm, [ids], range(12), max_new=5, sampling=sampling)
        own = rows(run, "branches", prompt)
        assert [row["sample"] for row in own] == list(range(12)) and {row["arm"] for row in own} == {"sample"}
        for row, one in zip(own, drawn, strict=True):
            tokens = run.scan("tokens", prompt_id=prompt, branch=row["branch"]).sort_by("pos")["token_id"].to_pylist()
            assert tokens == one.ids and row["n_tokens"] == len(one.ids) and row["fork_pos"] == len(ids)
            assert run.text(prompt, 0) == lm.pieces(ids).text
            assert row["text"] == lm.pieces([*ids, *one.ids]).text[len(lm.pieces(ids).text) :]


def outcome(text: str, stop_reason: str) -> str:
    """By `CLASSES`, the first first."""
    said = re.sub(r"<[^>]*>", "", text)
    other = "<truncated>" if stop_reason == "length" else "<other>"
    return "digit" if re.search("[0-9]", said) else "upper" if re.search("[A-Z]", said) else other


def test_what_is_said_of_a_problem_is_so(run: Run) -> None:
    for row in rows(run, "sampled"):
        own = rows(run, "branches", row["prompt_id"])
        assert [one["outcome"] for one in own] == [outcome(one["text"], one["stop_reason"]) for one in own]
        counts = Counter(one["outcome"] for one in own)
        shares = np.asarray(list(counts.values())) / 12
        assert row["n"] == 12 and row["correct"] == counts["digit"] and row["accuracy"] == counts["digit"] / 12
        assert row["ci_low"] <= row["accuracy"] <= row["ci_high"]
        assert row["entropy"] == pytest.approx(float(-(shares * np.log(shares)).sum()))
        assert row["classes"] == len(counts) and row["truncated"] == counts["<truncated>"] / 12
        assert row["k"] == [1, 4]
        miss = math.comb(12 - counts["digit"], 4) / math.comb(12, 4)
        assert row["pass_at_k"] == pytest.approx([counts["digit"] / 12, 1 - miss])
        votes = {name: n for name, n in counts.items() if name not in ("<truncated>", "<none>")}
        assert row["votes"] == max(votes.values()) and votes[row["majority"]] == row["votes"]
        assert row["tied"] == list(votes.values()).count(row["votes"])
        assert row["tokens"] == pytest.approx(np.mean([one["n_tokens"] for one in own]))


def test_means_are_over_problems(run: Run) -> None:
    by_problem = rows(run, "sampled")
    found = {(row["metric"], row["k"]): row for row in rows(run, "sampled_means")}
    assert found["accuracy", 0]["estimate"] == pytest.approx(np.mean([row["accuracy"] for row in by_problem]))
    assert found["pass_at_k", 4]["estimate"] == pytest.approx(np.mean([row["pass_at_k"][1] for row in by_problem]))
    assert found["accuracy", 0]["problems"] == 3 and found["accuracy", 0]["rollouts"] == 36
    assert all(row["ci_low"] is None or 0 <= row["ci_low"] <= row["estimate"] <= row["ci_high"] for row in found.values())


@pytest.mark.slow
def test_a_problem_is_the_same_alone_and_in_any_order(lm: Any, run: Run) -> None:
    turned = probe.sample(lm, TEXTS[::-1], **DRAWN)
    for prompt, text in enumerate(TEXTS):
        alone = probe.sample(lm, text, **DRAWN)
        for name in ("branches", "sampled", "tokens"):
            assert alike(rows(run, name, prompt), rows(alone, name, 0), rows(turned, name, 2 - prompt)), name
    assert rows(turned, "sampled_means") == rows(run, "sampled_means")


def test_prompts_of_a_run_are_drawn_from_as_they_are(lm: Any, run: Run, tmp_path: Path) -> None:
    traced = probe.trace(lm, TEXTS, generate=4, out=tmp_path / "traced")
    again = probe.sample(lm, tmp_path / "traced", **DRAWN)
    for name in ("branches", "sampled", "tokens"):
        drop = {"template", "step", "logprob", "entropy"} if name == "tokens" else set()
        plain = [{k: v for k, v in row.items() if k not in drop} for row in rows(again, name)]
        assert plain == [{k: v for k, v in row.items() if k not in drop} for row in rows(run, name)]
    assert {row["completion"] for row in rows(again, "prompts")} == {None}
    assert again.manifest["parent"]["run"] == traced.run_id
    assert probe.sample(lm, traced, max_new=None, **{k: v for k, v in DRAWN.items() if k != "max_new"}).summary["max_new"] == 4
    one = probe.sample(lm, traced, prompt_id="1", **DRAWN)
    assert rows(one, "sampled") == [row for row in rows(run, "sampled") if row["prompt_id"] == 1]
    with pytest.raises(BadOption, match="no problem 7"):
        probe.sample(lm, traced, prompt_id=7, **DRAWN)
    with pytest.raises(BadOption, match="has its chat template applied"):
        probe.sample(lm, traced, chat=True, **DRAWN)


def test_without_a_word_it_is_drawn_as_rewind_draws(lm: Any) -> None:
    found = probe.sample(lm, "one", samples=2, max_new=2, seed=4)
    assert {k: found.summary["sampling"][k] for k in ("temperature", "top_p", "seed")} == {
        "temperature": 0.6, "top_p": 0.95, "seed": 4,
    }  # fmt: skip


def test_a_row_that_cannot_be_run_is_a_row(lm: Any, run: Run) -> None:
    texts = [TEXTS[0], "x" * 5000, TEXTS[2]]
    found = probe.sample(lm, texts, **DRAWN)
    assert [bool(row["error"]) for row in rows(found, "prompts")] == [False, True, False]
    assert rows(found, "sampled", 0) == rows(run, "sampled", 0) and rows(found, "sampled", 2) == rows(run, "sampled", 2)
    assert found.summary["errors"] == 1 and any("1 problems were left out" in one for one in found.manifest["warnings"])
    with pytest.raises(BadPrompt, match="holds"):
        probe.sample(lm, ["x" * 5000], **DRAWN)


def test_nan_of_one_problem_is_its_own(lm: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from probe.errors import NonFinite
    from probe.sampling import sampling

    real = sampling.draw

    def draw(made: Any, engine: Any, wanted: Any) -> None:
        if any(one.rollout.prompt_id == 1 for one in wanted):
            raise NonFinite("NaN", hint="")
        real(made, engine, wanted)

    monkeypatch.setattr(sampling, "draw", draw)
    found = probe.sample(lm, TEXTS, **DRAWN)
    assert [row["error"] for row in rows(found, "prompts")] == ["", "NaN", ""]
    assert [row["prompt_id"] for row in rows(found, "sampled")] == [0, 2]
    assert rows(found, "sampled", 2) == rows(run, "sampled", 2)


@pytest.mark.parametrize("after", [1, 9, 20, 35])
def test_a_run_that_was_cut_short_is_completed(lm: Any, run: Run, after: int, tmp_path: Path) -> None:
    left = iter(range(after))

    def stop(what: str, done: int, total: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.sample(lm, TEXTS, out=tmp_path / "r", progress=stop, **DRAWN)
    drawn = []
    completed = probe.sample(
        lm, TEXTS, out=tmp_path / "r", resume=True, progress=lambda what, done, total: drawn.append(done), **DRAWN
    )
    assert without_sum(completed) == without_sum(run) and len(drawn) <= 36 - after + 1
    assert probe.sample(lm, TEXTS, out=tmp_path / "r", resume=True, **DRAWN).summary == completed.summary
    with pytest.raises(RunError, match="samples"):
        probe.sample(lm, TEXTS, out=tmp_path / "r", resume=True, **{**DRAWN, "samples": 13})


def script(tmp_path: Path, body: str) -> str:
    """A judge that notes what it is asked."""
    log = tmp_path / "asked.jsonl"
    (tmp_path / "label.py").write_text(
        f"import json, sys\nlog = open({str(log)!r}, 'a')\nfor line in sys.stdin:\n    q = json.loads(line)\n"
        f"    log.write(line); log.flush()\n{body}"
    )
    return f"{sys.executable} {tmp_path / 'label.py'}"


LONG = "    print(json.dumps({'outcome': 'long' if len(q['completion']) > 5 else 'short', 'why': q['branch']}))\n"


def judged(lm: Any, tmp_path: Path, judge: str, **more: Any) -> Run:
    drawn = {k: v for k, v in DRAWN.items() if k not in ("outcome", "expect")}
    return probe.sample(lm, TEXTS, **drawn, expect="long", judge=judge, out=tmp_path / "judged", **more)


def test_a_judge_says_what_answers_come_to(lm: Any, run: Run, tmp_path: Path) -> None:
    found = judged(lm, tmp_path, script(tmp_path, LONG))
    own = rows(found, "branches")
    assert [row["outcome"] for row in own] == ["long" if len(row["text"]) > 5 else "short" for row in own]
    assert {row["rule"] for row in own} == {"judge"} and [row["text"] for row in own] == [
        r["text"] for r in rows(run, "branches")
    ]
    assert [json.loads(row["more"]) for row in rows(found, "labels")] == [{"why": row["branch"]} for row in own]
    for row in rows(found, "sampled"):
        mine = [one["outcome"] for one in own if one["prompt_id"] == row["prompt_id"]]
        assert row["expected"] == "long" and row["correct"] == mine.count("long")
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    assert [(q["prompt_id"], q["branch"], q["prompt"], q["completion"]) for q in asked] == [
        (row["prompt_id"], row["branch"], TEXTS[row["prompt_id"]], row["text"]) for row in own
    ]
    identity = found.manifest["resolved"]["judge"]
    assert identity["command"].endswith("label.py") and next(iter(identity["files"].values()))


def test_a_judge_that_fails_is_asked_only_for_the_rest(lm: Any, tmp_path: Path) -> None:
    """It dies in the middle; what was drawn and what it said is kept, and a resume draws nothing."""
    gone = tmp_path / "gone"
    body = f"    import os\n    if q['prompt_id'] == 1 and q['branch'] == 5 and not os.path.exists({str(gone)!r}):\n"
    command = script(tmp_path, body + f"        open({str(gone)!r}, 'w'); sys.exit(3)\n" + LONG)
    with pytest.raises(BadJudge, match=r"exit 3\) after 16 answers"):
        judged(lm, tmp_path, command)
    before = len((tmp_path / "asked.jsonl").read_text().splitlines())
    told = []
    found = judged(lm, tmp_path, command, resume=True, progress=lambda what, done, total: told.append((what, total)))
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    again = Counter((q["prompt_id"], q["branch"]) for q in asked)
    assert before == 17 and len(asked) == 37 and [key for key, n in again.items() if n > 1] == [(1, 5)]
    assert set(told) == {("judging", 20)} or ("judging", 20) in told
    own = rows(found, "branches")
    assert [row["outcome"] for row in own] == ["long" if len(row["text"]) > 5 else "short" for row in own]
    (tmp_path / "label.py").write_text("# another\n" + (tmp_path / "label.py").read_text())
    with pytest.raises(RunError, match="judge = "):
        judged(lm, tmp_path, command, resume=True)


def test_labels_of_a_file_are_outcomes(lm: Any, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    lines = [f"{p},{b},{'good' if b % 3 else 'bad'}" for p in range(3) for b in range(1, 13) if (p, b) != (2, 7)]
    path.write_text("prompt_id,branch,outcome\n" + "\n".join([*lines, "9,1,good"]))
    drawn = {k: v for k, v in DRAWN.items() if k not in ("outcome", "expect")}
    found = probe.sample(lm, TEXTS, **drawn, expect="good", labels=path)
    outcomes = {(row["prompt_id"], row["branch"]): row["outcome"] for row in rows(found, "branches")}
    assert outcomes.pop((2, 7)) == "<unlabelled>"
    assert all(outcome == ("good" if b % 3 else "bad") for (_, b), outcome in outcomes.items())
    assert rows(found, "sampled", 0)[0]["accuracy"] == pytest.approx(8 / 12)
    assert [one for one in found.manifest["warnings"] if "1 of 36 continuations have no label" in one]
    assert [one for one in found.manifest["warnings"] if "1 labels are of no continuation" in one]


def test_the_screen_keeps_what_is_neither_always_right_nor_always_wrong() -> None:
    drawn = {i: Attempts(("r",) * right + ("w",) * (8 - right), (1,) * 8) for i, right in enumerate((0, 2, 4, 6, 8))}
    expected = {**dict.fromkeys(range(5), "r"), 5: "r", 6: "r"}
    found = screen({**drawn, 6: Attempts(("r",) * 8, (1,) * 8)}, {**expected, 6: None}, range(7), (0.25, 0.75), hold_out=False)
    assert found.kept == (1, 2, 3) and found.accuracy == pytest.approx(0.5) and found.held_out is None
    assert found.counts == {"kept": 3, "above": 1, "below": 1, "unknown": 1, "failed": 1}
    halves = screen({0: Attempts(("r", "w", "w", "w"), (1,) * 4)}, {0: "r"}, [0], (0.5, 0.5), hold_out=True)
    assert halves.kept == (0,) and halves.accuracy == 0.5 and halves.held_out == 0.0


def test_what_is_chosen_by_a_noisy_measure_is_nearer_to_the_middle_than_it_is() -> None:
    """Regression to the mean, by simulation: of problems that are right nine times in ten those that pass a screen of 25..75
    seem to be right in 0.7; the half that did not choose them says what they are."""
    random = np.random.default_rng(0)
    drawn = {i: Attempts(tuple(np.where(random.random(16) < 0.9, "r", "w")), (1,) * 16) for i in range(4000)}
    found = screen(drawn, dict.fromkeys(drawn, "r"), list(drawn), (0.25, 0.75), hold_out=True)
    assert found.accuracy is not None and found.accuracy < 0.75
    assert found.held_out == pytest.approx(0.9, abs=0.01)


def test_the_kept_problems_are_a_file_that_can_be_read(lm: Any, run: Run, tmp_path: Path) -> None:
    accuracy = {row["prompt_id"]: row["accuracy"] for row in rows(run, "sampled")}
    low, high = sorted(accuracy.values())[:2]
    asked = {"keep_accuracy": f"{100 * low:.4f}..{100 * high + 0.01:.4f}", "keep": tmp_path / "kept.jsonl"}
    found = probe.sample(lm, TEXTS, **DRAWN, **asked)
    kept = [i for i, share in accuracy.items() if low - 1e-6 <= share <= high + 1e-4]
    lines = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [TEXTS[i] for i in kept] and found.summary["kept"]["kept"] == kept
    again = probe.sample(lm, tmp_path / "kept.jsonl", **DRAWN)
    for new, old in enumerate(kept):
        assert rows(again, "sampled", new) == rows(run, "sampled", old)


def test_some_problems_of_a_file_keep_its_columns(lm: Any, tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i} is", "level": i}) + "\n" for i in range(4)))
    found = rows(probe.sample(lm, file, samples=1, max_new=1, temperature=1.0, prompt_id="1,3"), "prompts")
    assert [(row["prompt_id"], row["level"]) for row in found] == [(1, 1), (3, 3)]
    with pytest.raises(BadOption, match="no problem 9") as refused:
        probe.sample(lm, file, samples=1, max_new=1, temperature=1.0, prompt_id="9")
    assert refused.value.hint == "there are 0..3"


def test_a_plan_says_what_it_takes(lm: Any) -> None:
    plan = plan_sample(lm, Sample(TEXTS, **DRAWN))
    assert (plan["problems"], plan["continuations"], plan["tokens"]) == (3, 36, 180)
    assert plan["half_width"] == pytest.approx(0.245, abs=0.01) and plan["half_width_mean"] == pytest.approx(0.566, abs=0.001)
    assert plan["seconds"] >= 0 and plan["tables"]["branches"]["rows"] == 36


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0}, "samples is 0"), ({"max_new": 0}, "max-new is 0"), ({"pass_at": "1,32"}, "pass@32 of 16"),
        ({"pass_at": "0"}, "cannot read the counts"), ({"pass_at": "a"}, "cannot read the counts"),
        ({"temperature": 0.0}, "greedy answers are all the same"), ({"keep": "x"}, "belong together"),
        ({"keep_accuracy": "1..2"}, "belong together"), ({"hold_out": True}, "nothing is held out"),
        ({"keep": "x", "keep_accuracy": "75..25"}, "cannot read the range"),
        ({"outcome": "a=/b/", "expect": "c"}, "no outcome is called 'c'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadOption, match=said):
        Sample("x", **options)


def test_counts_and_percents() -> None:
    assert parse_counts("4, 1,4") == (1, 4) and parse_counts([16, 2]) == (2, 16)
    assert parse_percents("25..75") == parse_percents(" 25%..75% ") == (0.25, 0.75) and parse_percents("0..100") == (0.0, 1.0)
    assert Sample("x", samples=8).ks == (1, 4) and Sample("x", samples=8, pass_at="2,8").ks == (2, 8)


def test_where_nothing_is_expected_nothing_is_right() -> None:
    row = sampled_row(0, Attempts(("a", "b", "b", "<none>"), (1, 2, 3, 4)), None, (1, 4))
    assert row["accuracy"] is row["pass_at_k"] is row["correct"] is row["majority_correct"] is None
    assert row["majority"] == "b" and row["none"] == 0.25 and row["classes"] == 3
    assert {one["metric"] for one in mean_rows([row], seed=0)} == {"entropy", "truncated", "none", "tokens"}


def test_a_tie_is_right_by_chance() -> None:
    row = sampled_row(0, Attempts(("a", "b", "b", "a"), (1,) * 4), "a", (1,))
    assert row["tied"] == 2 and row["majority"] == "a" and row["majority_correct"] == 0.5


def test_an_answer_can_be_gone_back_into(lm: Any, run: Run) -> None:
    asked = {"to": "step1", "split": "token", "samples": 3, "max_new": 3, "lm": lm}
    found = probe.rewind(run, branch=4, **asked)
    for prompt in range(3):
        (own,) = run.scan("branches", prompt_id=prompt, branch=4).to_pylist()
        original = rows(found, "branches", prompt)[0]
        assert original["arm"] == "original" and original["text"] == own["text"]
    with pytest.raises(RunError, match="no generation to go back into") as caught:
        probe.rewind(run, **asked)
    assert "--branch 1" in caught.value.hint


def test_the_manifest_makes_it_again(lm: Any, run: Run) -> None:
    assert without_sum(probe.replay(lm, run)) == without_sum(run)


SUMS = [(3, 4), (12, 5), (6, 9), (20, 22), (7, 8), (1, 1), (15, 6), (9, 9), (30, 12), (2, 5), (11, 13), (40, 4)]


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A file of 12 problems of arithmetic, and a row that is none."""
    lines = [json.dumps({"prompt": f"What is {a} + {b}?", "expect": a + b, "id": f"sum-{a}"}) for a, b in SUMS]
    (tmp_path / "sums.jsonl").write_text("\n".join([*lines[:5], "{broken", *lines[5:]]))
    return tmp_path / "sums.jsonl"


@pytest.mark.slow
def test_a_file_of_arithmetic(smollm2: Any, sums: Path, tmp_path: Path) -> None:
    asked = {"samples": 8, "max_new": 24, "chat": True}
    found = probe.sample(smollm2, sums, **asked, keep_accuracy="1..99", keep=tmp_path / "kept.jsonl")
    by_problem = {row["prompt_id"]: row for row in rows(found, "sampled")}
    assert sorted(by_problem) == [*range(5), *range(6, 13)] and found.summary["errors"] == 1
    texts = {row["prompt_id"]: row for row in rows(found, "prompts")}
    for prompt, row in by_problem.items():
        a, b = SUMS[prompt - (prompt > 5)]
        own = [one for one in rows(found, "branches") if one["prompt_id"] == prompt]
        right = [one["answer"] is not None and probe_number(one["answer"]) == a + b for one in own if one["outcome"][0] != "<"]
        assert row["expected"] == str(a + b) == texts[prompt]["expect"] and row["correct"] == sum(right)
        assert texts[prompt]["id"] == f"sum-{a}"
    assert 0 < sum(row["correct"] for row in by_problem.values()) < 96
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [line["id"] for line in kept] == [texts[p]["id"] for p, row in by_problem.items() if 0 < row["correct"] < 8]
    alone = probe.sample(smollm2, f"What is {SUMS[3][0]} + {SUMS[3][1]}?", **asked, expect="42")
    assert alike(rows(alone, "branches", 0), rows(found, "branches", 3))
    assert rows(alone, "sampled", 0) == rows(found, "sampled", 3)
    lines = sums.read_text().splitlines()
    (tmp_path / "turned.jsonl").write_text("\n".join(lines[::-1]))
    turned = probe.sample(smollm2, tmp_path / "turned.jsonl", **asked)
    assert rows(turned, "sampled_means") == rows(found, "sampled_means")
    for prompt in by_problem:
        assert rows(turned, "sampled", 12 - prompt) == rows(found, "sampled", prompt)


def probe_number(text: str) -> float | None:
    """The number that a written answer is."""
    digits = re.sub(r"[^0-9.]", "", text).strip(".")
    return float(digits) if digits else None


@pytest.mark.slow
def test_kill_9_at_random_moments_and_resume(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"problem {i}" for i in range(20)))
    command = script(tmp_path, LONG)
    words = ("sample", "p.txt", "--model", "tiny:llama", "-n", "24", "--max-new", "16", "--judge", command, "--quiet")
    draw, killed = random.Random(1), 0
    for attempt in range(3):
        process = started(tmp_path, *words, "--out", "torn", *(["--resume"] if attempt else []))
        try:
            deadline = time.monotonic() + 200
            while not (tmp_path / "torn.partial" / "lock").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(draw.uniform(0.0, 1.0))
        finally:
            process.kill()
            process.communicate()
        killed += process.returncode == -9 and not (tmp_path / "torn").exists()
    assert killed >= 2
    assert shell(*words, "--out", "torn", "--resume").returncode == 0
    assert shell(*words, "--out", "alone").returncode == 0
    same_tables(probe.open_run(tmp_path / "torn"), probe.open_run(tmp_path / "alone"))


@pytest.mark.slow
def test_the_command_says_what_was_drawn_and_kept(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        "\n".join(json.dumps({"prompt": text, "expect": "digit"}) for text in [*TEXTS, "x" * 5000])
    )
    words = ["sample", "p.jsonl", "-m", "tiny:llama", "-n", "12", "--max-new", "5", "-t", "1", "--seed", "3"]
    words += [part for one in CLASSES for part in ("--outcome", one)]
    done = shell(*words, "--out", "r", "--keep-accuracy", "10..90", "--keep", "kept.jsonl", "--hold-out")
    assert done.returncode == 3 and "1 of 4 problems could not be run" in done.stderr, done.stderr
    assert "mean over problems" in done.stdout and "maj@12" in done.stdout and "half that was held out" in done.stdout
    assert "temperature 1, top-p none, at most 5 tokens" in done.stdout
    again = shell("answers", "r", "--answer", "last-number", "--out", "again")
    assert again.returncode == 0 and "continuations come to another outcome" in again.stdout
    document = json.loads(shell("answers", "r", "--outcome", "x=/a/", "--out", "third", "--json").stdout)
    assert document["summary"]["changed"]["continuations"] == 36
    plan = json.loads(shell(*words, "--dry-run", "--json").stdout)
    assert plan["continuations"] == 36 and plan["failed"] == 1
    lost = shell("sample", "q.jsonl", "-m", "tiny:llama")
    assert lost.returncode == 1 and "there is no file 'q.jsonl'" in lost.stderr
    bad = shell("sample", "p.jsonl", "-m", "tiny:llama", "--judge", "no-such-judge", "-n", "2", "--max-new", "2", "--out", "b")
    assert bad.returncode == 1 and "does not start" in bad.stderr and (tmp_path / "b.partial").exists()
