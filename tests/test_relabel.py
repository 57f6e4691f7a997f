"""What a run has drawn, read again: the same as if it had been drawn with that rule."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import probe
from probe.errors import RunError
from probe.labelling import completions
from probe.outcomes import outcome_class
from probe.requests import Sampling
from probe.rewinding.rollouts import outcome_of
from probe.store import Run
from probe.texts import sequence_ids

TEXTS = ["one two", "three four five", "six"]
DRAWN = {"samples": 12, "max_new": 5, "sampling": Sampling(1.0, seed=3)}
RULES: list[dict[str, Any]] = [
    {"answer": "last-number", "expect": "1"}, {"answer": "regex=([a-z])"}, {"outcome": ["digit=/[0-9]/"], "expect": "digit"},
    {"outcome": ["a=/a/t", "b=/B/i"]},
]  # fmt: skip


@pytest.fixture(scope="module")
def lm() -> Any:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def run(lm: Any) -> Run:
    return probe.sample(lm, TEXTS, **DRAWN, expect="2")


def rows(run: Run, name: str) -> list[dict[str, Any]]:
    return run.table_arrow(name).drop(["run_id"]).to_pylist()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_reading_again_is_as_drawing_with_that_rule(lm: Any, run: Run, rule: dict[str, Any]) -> None:
    drawn = probe.sample(lm, TEXTS, **{**DRAWN, "expect": "2", **rule} if "outcome" not in rule else {**DRAWN, **rule})
    again = probe.relabel(run, **rule)
    for name in ("branches", "sampled", "sampled_means", "prompts"):
        assert rows(again, name) == rows(drawn, name), name
    moved = [(a["outcome"], b["outcome"]) for a, b in zip(rows(run, "branches"), rows(again, "branches"), strict=True)]
    changed = again.summary["changed"]
    assert changed["continuations"] == 36 and changed["changed"] == sum(a != b for a, b in moved)
    assert sum(one["n"] for one in changed["moved"]) == changed["changed"]
    assert again.manifest["parent"]["run"] == run.run_id and "tokens" not in again.tables


def test_it_needs_no_model_and_is_completed(run: Run, lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = probe.sample(lm, TEXTS, **DRAWN, expect="2", out=tmp_path / "sampled")
    monkeypatch.setattr("probe.language_model.model_of", lambda *a, **b: pytest.fail("a model was loaded"))

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.relabel(tmp_path / "sampled", answer="last-number", out=tmp_path / "again", progress=stop)
    found = probe.relabel(tmp_path / "sampled", answer="last-number", out=tmp_path / "again", resume=True)
    assert rows(found, "sampled") == rows(probe.relabel(made, answer="last-number"), "sampled")
    assert found.manifest["parent"]["path"] == str(tmp_path / "sampled")
    with pytest.raises(RunError, match="has no tokens") as caught:
        probe.relabel(found)
    assert str(tmp_path / "sampled") in caught.value.hint


def test_a_judge_reads_them_again(run: Run, tmp_path: Path) -> None:
    (tmp_path / "label.py").write_text(
        "import json, sys\nfor line in sys.stdin:\n    q = json.loads(line)\n"
        "    print(json.dumps({'outcome': q['completion'][:1], 'confidence': 'sure', 'answer': 'x'}))\n"
    )
    found = probe.relabel(run, judge=f"{sys.executable} {tmp_path / 'label.py'}", out=tmp_path / "judged")
    for row in rows(found, "branches"):
        assert row["outcome"] == (row["text"][:1]) and row["confidence"] == "sure" and row["answer"] == "x"
    assert [json.loads(row["more"]) for row in rows(found, "labels")] == [{"confidence": "sure", "answer": "x"}] * 36


def test_a_run_without_continuations_is_refused(lm: Any) -> None:
    with pytest.raises(RunError, match="a run of probe trace has no continuations"):
        probe.relabel(probe.trace(lm, "a b"))


def test_completions_are_those_of_the_tokens(lm: Any) -> None:
    """Of forks of all kinds, put together from the tables, against the tokenizer."""
    traced = probe.trace(lm, "Q: how many, and why? A b c.", generate=24, sampling=Sampling(1.0, seed=5))
    edits: list[dict[str, Any]] = [{"append_wait": True}, {"delete": True}, {"prompt_b": "What else?"}, {}]
    for edit in edits:
        run = probe.rewind(traced, to="step1", split="token", samples=4, max_new=4, lm=lm, seed=1, **edit)
        branches = run.table_arrow("branches")
        found = list(completions(branches, run.table_arrow("tokens")))
        assert len(found) == len(branches) > 4
        for row, prompt, completion, hidden in found:
            ids, n_prompt = sequence_ids(run, 0, int(row["branch"]))
            text = lm.pieces(ids).text
            assert prompt + completion == text and prompt == lm.pieces(ids[:n_prompt]).text, edit
            if row["arm"] != "original":
                read = outcome_of(lm, ids, n_prompt, row["stop_reason"], "regex=[a-z]")
                again = outcome_class(
                    completion, "regex=[a-z]", stop_reason=row["stop_reason"], ended=row["stop_reason"] == "eos", hidden=hidden
                )
                assert read == again


def test_the_end_token_is_no_part_of_what_is_said() -> None:
    """Whatever its shape: here [END], which no rule would know."""
    branches = pa.table({
        "branch": [1], "parent": [0], "arm": ["sample"], "step": pa.array([None], pa.int32()), "fork_pos": [1], "draw_pos": [1],
        "n_prompt": [1], "edit": [""], "text": ["7 [END]"], "stop_reason": ["eos"],
    })  # fmt: skip
    tokens = pa.table({
        "branch": [0, 1, 1], "pos": [0, 1, 2], "token": ["Q", "7 ", "[END]"], "text_start": [0, 1, 3], "text_end": [1, 3, 8],
    })  # fmt: skip
    ((_, prompt, completion, hidden),) = completions(branches, tokens)
    assert (prompt, completion) == ("Q", "7 [END]") and [completion[a:b] for a, b in hidden] == ["[END]"]


@pytest.fixture(scope="module")
def traced(lm: Any) -> Run:
    return probe.trace(lm, ["Q: how many, and why? A b c.", "one two three"], generate=12, sampling=Sampling(1.0, seed=5))


VERBS: dict[str, dict[str, Any]] = {
    "rewind": {"to": "step1", "append_wait": True, "split": "token"},
    "everywhere": {"to": "all", "delete": True, "split": "token"},
    "plain": {"to": "step1", "split": "token"},
    "importance": {"method": "resampling,rescore", "split": "token"},
}


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [None, 0], ids=["all", "one"])
@pytest.mark.parametrize("verb", VERBS)
def test_statistics_are_those_of_a_run_that_was_drawn_so(lm: Any, traced: Run, verb: str, prompt: int | None) -> None:
    function = probe.importance if verb == "importance" else probe.rewind
    asked = {**VERBS[verb], "samples": 6, "max_new": 4, "lm": lm, "sampling": Sampling(1.0, seed=2), "prompt_id": prompt}
    run = function(traced, **asked, expect="7")
    rule: dict[str, Any] = {"outcome": ["e=/[e-k]/", "a=/[a-d]/"], "expect": "e"}
    drawn, again = function(traced, **asked, **rule), probe.relabel(run, **rule)
    names = {"branches", "prompts", "effects", "rescored", "importance", "dependence"} & set(drawn.tables)
    assert names <= set(again.tables) and len(names) > 2 - (verb == "plain")
    for name in sorted(names):
        assert rows(again, name) == rows(drawn, name), name
    moved = rows(run, "branches")
    assert [row["outcome"] for row in moved] != [row["outcome"] for row in rows(again, "branches")]


@pytest.mark.slow
def test_methods_that_need_the_model_are_left_out_and_said(lm: Any, traced: Run) -> None:
    asked = {"samples": 12, "max_new": 4, "lm": lm, "split": "token", "prompt_id": 0}
    run = probe.importance(traced, method="counterfactual,early-answer,rescore", expect="7", **asked)
    again = probe.relabel(run, answer="last-number")
    assert set(again.importance["method"]) == {"rescore"}
    assert any("counterfactual and early-answer need the model" in text for text in again.manifest["warnings"])


JUDGE = (
    "import json, sys\nfor line in sys.stdin:\n    q = json.loads(line)\n"
    "    print(json.dumps({'outcome': 'long' if len(q['completion']) % 2 else 'short', 'branch': q['branch']}))\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["rewind", "everywhere", "importance"])
def test_a_judge_of_a_rewind_is_a_judge_of_what_it_drew(lm: Any, traced: Run, verb: str, tmp_path: Path) -> None:
    """Drawn with a judge, and drawn without and judged then: the same numbers, of the class that the original has."""
    (tmp_path / "label.py").write_text(JUDGE)
    judge = f"{sys.executable} {tmp_path / 'label.py'}"
    function = probe.importance if verb == "importance" else probe.rewind
    asked = {**VERBS[verb], "samples": 6, "max_new": 4, "lm": lm, "sampling": Sampling(1.0, seed=2)}
    drawn = function(traced, **asked, judge=judge, out=tmp_path / "judged")
    again = probe.relabel(function(traced, **asked), judge=judge)
    for name in sorted({"branches", "labels", "effects", "importance"} & set(drawn.tables)):
        assert rows(again, name) == rows(drawn, name), name
    own = {row["prompt_id"]: row["outcome"] for row in rows(drawn, "branches") if row["arm"] == "original"}
    told = drawn.summary["problems" if verb == "importance" else "places"]
    assert set(own.values()) <= {"long", "short"} and all(one["reference"] == own[one["prompt_id"]] for one in told)
    expected = function(traced, **asked, judge=judge, expect="long")
    told = expected.summary["problems" if verb == "importance" else "places"]
    assert {one["reference"] for one in told} == {"long"}
