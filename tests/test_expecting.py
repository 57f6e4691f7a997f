"""What was expected of a run: read, checked before a model is loaded, kept before anything is computed, judged at the end."""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import probe
from probe.errors import BadExpectation, RunError
from probe.expecting import checked, verdict_of
from probe.requests import PatchSweep, Trace
from probe.tables import TABLES, bounds_of, schema

RULES: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip


def table_of(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema(name))


def judge(text: str, summary: dict[str, Any] | None = None, **tables: list[dict[str, Any]]) -> Any:
    made = {name: table_of(name, rows) for name, rows in tables.items()}
    return verdict_of(checked(text), summary or {}, made.get)


@pytest.mark.parametrize("comparison", RULES)
def test_an_interval_holds_where_all_of_it_does_and_fails_where_none_does(comparison: str) -> None:
    """Against the definition itself, over every pair of points on a grid of halves."""
    intervals = [(low / 2, high / 2) for low, high in itertools.combinations_with_replacement(range(5), 2)]
    for (a, b), (c, d) in itertools.product(intervals, repeat=2):
        summary = {"x": {"value": (a + b) / 2, "low": a, "high": b}, "y": {"value": (c + d) / 2, "ci_low": c, "ci_high": d}}
        grids = [[low + k / 4 for k in range(int((high - low) * 4) + 1)] for low, high in ((a, b), (c, d))]
        so = {RULES[comparison](*pair) for pair in itertools.product(*grids)}
        wanted = "held" if so == {True} else "failed" if so == {False} else "not resolved"
        assert judge(f"summary.x {comparison} summary.y", summary).verdict == wanted, (a, b, c, d)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1, 2, "held"), (0, 1, "not resolved"), (3.1, 4, "failed"), (0, 9, "not resolved")]
)
def test_a_range_and_a_tolerance(low: float, high: float, verdict: str) -> None:
    summary = {"x": (low + high) / 2, "x_low": low, "x_high": high}
    for text in ("summary.x in [1, 3]", "summary.x ~= 2 +- 1", "summary.x ~= 2 ± 1.0"):
        assert judge(text, summary).verdict == verdict


EFFECTS = [
    {"metric": "accuracy", "step": 1, "difference": 0.5, "ci_low": 0.25, "ci_high": 0.75},
    {"metric": "accuracy", "step": 2, "difference": 0.25, "ci_low": -0.25, "ci_high": 0.5},
    {"metric": "tv", "step": 1, "edited": 0.5, "null_high": 0.25},
]


@pytest.mark.parametrize(
    ("text", "verdict", "found"),
    [
        ("effects.difference > 0", "not resolved", 0.25),  # every row; that without a difference is none of them
        ("effects[step=1].difference > 0", "held", 0.5),
        ("effects.difference < 0", "failed", 0.5),
        ("any(effects.difference) > 0", "held", 0.5),
        ("any(effects.difference) > 1", "failed", 0.5),
        ("max(effects.difference) > 0.2", "held", 0.5),
        ("min(effects.difference) > 0.2", "not resolved", 0.25),
        ("mean(effects.difference) = 0.375", "held", 0.375),
        ("sum(effects[metric='accuracy'].step) = 3", "held", 3.0),
        ("count(effects) = 3", "held", 3),
        ("count(effects.difference) = 3", "failed", 2),
        ("count(effects[metric!=tv, step>=2]) = 1", "held", 1),
        ("effects[metric=tv].edited > effects[metric=tv].null_high", "held", 0.5),
        ("effects[metric=accuracy].ci_low < effects[metric=accuracy].ci_high", "held", 0.25),  # row by row
        ('effects[step=2].metric = "accuracy"', "held", "accuracy"),
        ("effects.metric = accuracy", "failed", "tv"),
        ("effects[step=7].difference > 0", "not resolved", None),
        ("effects[metric=tv].difference > 0", "not resolved", None),
        ("effects[metric=tv].edited > effects.step", "not resolved", None),
        ("summary.a.b[1] > 2", "held", 3.0),
        ('summary.a["18.6"] = "yes"', "held", "yes"),
        ("summary.a.c > 0", "not resolved", None),
        ("summary.a > 0", "not resolved", None),
        ("summary.x > 0", "not resolved", 1.0),
        ("head_kinds.induction > 0", "not resolved", None),
    ],
)
def test_what_is_found_in_tables_and_in_the_summary(text: str, verdict: str, found: Any) -> None:
    summary = {"a": {"b": [1, 3.0], "18.6": "yes"}, "x": {"mean": 1.0, "low": None, "high": None}}
    judged = judge(text, summary, effects=EFFECTS)
    assert (judged.verdict, judged.found) == (verdict, found)
    assert bool(judged.why) == (verdict == "not resolved")


def test_the_row_that_decided_is_named() -> None:
    judged = judge("effects.difference < 0.3", effects=EFFECTS)
    assert judged.verdict == "not resolved"
    judged = judge("effects.difference > 0.3", effects=[EFFECTS[0], {**EFFECTS[1], "ci_high": 0.25}])
    assert (judged.verdict, judged.rows, judged.at["step"], judged.low, judged.high) == ("failed", 2, 2, -0.25, 0.25)


def test_the_interval_of_a_column_is_the_one_that_its_table_has_for_it() -> None:
    found = {}
    for name, table in TABLES.items():
        names = [column.name for column in table.columns]
        found |= {f"{name}.{one}": bounds for one in names if (bounds := bounds_of(one, names)) is not None}
    columns = {"accuracy", "above", "coefficient", "difference", "effect", "estimate", "mean", "share"}
    assert {name.split(".")[1] for name in found} == columns
    assert found["importance_means.above"] == ("above_low", "above_high") and "top_histogram.count" not in found
    with_interval = {name for name, table in TABLES.items() if any(one.name == "ci_low" for one in table.columns)}
    assert with_interval <= {name.split(".")[0] for name in found}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("effects.diference > 0.1", "'diference' is no column of 'effects'", "'difference'"),
        ("efects.difference > 0.1", "'efects' is no table", "'effects'"),
        ("effects[stp=1].difference > 0.1", "'stp' is no column", "'step'"),
        ("effects.difference >", "⟨here⟩' cannot be read: a value", "such as"),
        ("effects.difference", "a comparison is wanted", "such as"),
        ("effects.difference > 0.1 or 1", "the end is wanted", "such as"),
        ("effects.difference in [2, 1]", "a greater number", "such as"),
        ("effects.difference ~= 2", "a tolerance", "such as"),
        ("0.1 < effects.difference", "what is measured", "such as"),
        ("__import__('os') > 1", "what is measured", "such as"),
        ("summary > 1", "cannot be read", "such as"),
        ("effects > 1", "what is measured", "such as"),
        ("effects.metric > 1", "compares text with number", "numbers"),
        ("effects.difference > big", "compares number with text", "numbers"),
        ("effects[step=one].difference > 1", "compares number with text", "numbers"),
        ("max(effects.metric) = tv", "compares text with number", "numbers"),
        ("effects[metric>tv].step > 1", "compares text with number", "numbers"),
        ("attention_rows.weights > 1", "'attention_rows' is too large", "probe.expect"),
        ("tokens.top_ids = x", "a list in each row", "single values"),
    ],
)
def test_what_cannot_be_expected_is_said_with_the_nearest_names(text: str, message: str, hint: str) -> None:
    command = "trace" if "attention" in text else None
    with pytest.raises(BadExpectation) as refused:
        checked(text, command)
    assert message in refused.value.message and hint in refused.value.hint


def test_a_table_of_another_verb_is_refused_when_the_options_are_given() -> None:
    with pytest.raises(BadExpectation, match="'patch_means' is no table"):
        Trace("a", expect_that="patch_means.effect > 0")
    assert PatchSweep(clean="a", corrupt="b", answer="c", expect_that="patch_means.effect > 0").arguments()["expect_that"]
    assert "expect_that" not in Trace("a").arguments()


def test_it_is_kept_before_anything_is_computed_and_judged_at_the_end(tmp_path: Path) -> None:
    lm, texts, that = probe.load("tiny:llama"), ["one two", "three"], ("count(prompts) = 2", "max(tokens.logprob) > 0")

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.trace(lm, texts, expect_that=that, out=tmp_path / "r", progress=stop)
    begun = json.loads((tmp_path / "r.partial" / "state.json").read_text())
    assert begun["arguments"]["expect_that"] == list(that) and "expectations" not in begun
    with pytest.raises(RunError, match="expect_that"):
        probe.trace(lm, texts, expect_that=that[:1], out=tmp_path / "r", resume=True)
    run = probe.trace(lm, texts, expect_that=that, out=tmp_path / "r", resume=True)
    assert [(one["that"], one["verdict"]) for one in run.manifest["expectations"]] == list(
        zip(that, ("held", "failed"), strict=True)
    )
    again = probe.replay(lm, run)
    assert again.manifest["expectations"] == run.manifest["expectations"]
    assert probe.expect(run, "max(tokens.logprob) <= 0").found == probe.open_run(tmp_path / "r").tokens.logprob.max()


@pytest.mark.slow
def test_exit_codes_and_words(shell, tmp_path: Path) -> None:
    words = ("trace", "one two", "-m", "tiny:llama")
    held = shell(*words, "--expect-that", "count(tokens) = 8", "--out", "held")
    assert held.returncode == 0 and "expected count(tokens) = 8: held, found 8" in held.stdout
    failed = shell(
        *words, "--expect-that", "count(tokens) = 8", "--expect-that", "summary.logprob > 0", "--json", "--out", "failed"
    )
    assert failed.returncode == 4
    assert [one["verdict"] for one in json.loads(failed.stdout)["expectations"]] == ["held", "failed"]
    assert shell(*words, "--expect-that", "summary.nothing > 0", "--quiet", "--out", "unresolved").returncode == 5
    assert "expected  " in shell("runs", "show", "unresolved", "--no-pictures").stdout
    wrong = shell(*words[:2], "-m", "no such model", "--dry-run", "--expect-that", "tokens.logprb > 0")
    assert wrong.returncode == 1 and "'logprb' is no column of 'tokens'" in wrong.stderr and "'logprob'" in wrong.stderr
    (tmp_path / "two.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "x" * 5000}))
    rows = ("trace", "-f", "two.jsonl", "-m", "tiny:llama", "--expect-that")
    assert shell(*rows, "count(prompts) = 2", "--out", "some").returncode == 3
    assert shell(*rows, "count(prompts) = 3", "--out", "more").returncode == 4
