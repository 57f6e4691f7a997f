"""Tables over problems against loops over the rows they are made of, and against what was planted in them."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.stats as reference
from probe.cli.over_problems import _bar as bar
from probe.cli.over_problems import show_over_problems

import probe
from probe import stats, store, tables
from probe.over_problems import OverProblems, effect_tables, importance_tables
from probe.over_problems.curves import FORMULAS
from probe.over_problems.means import operation
from probe.texts import steps_of

KINDS = ("computation", "plan", "check")
PROMPT = 7  # tokens of every prompt


class Rows(NamedTuple):
    """Tables of a run, as data frames."""

    importance: pd.DataFrame
    branches: pd.DataFrame
    steps: pd.DataFrame
    prompts: pd.DataFrame


def made(
    random: np.random.Generator, problems: int, *, samples: int = 16, law: Any = None, most: int = 9, paired: bool = True
) -> Rows:
    """Problems of 3 to `most` steps. law(problem, boundaries) -> P(each of 3 classes) (boundary, class); by default one
    distribution for all boundaries of a problem: no step does anything."""
    importance, branches, steps = [], [], []
    for problem in range(problems):
        n = int(random.integers(3, most + 1))
        lengths = random.integers(2, 12, n)
        edges = PROMPT + np.concatenate([[0], np.cumsum(lengths)])
        shares = np.tile(random.dirichlet([0.7] * 3), (n + 1, 1)) if law is None else law(problem, n + 1)
        noise = random.random((1 if paired else n + 1, samples)).repeat(n + 1 if paired else 1, axis=0)
        noise = np.where(random.random((n + 1, samples)) < 0.5, noise, random.random((n + 1, samples)))
        drawn = (noise[..., None] > shares.cumsum(axis=1)[:, None, :-1]).sum(axis=-1)
        outcomes = np.array(["a", "b", "<truncated>"])[drawn]
        branches.append({"prompt_id": problem, "arm": "original", "sample": -1, "draw_pos": PROMPT, "edit": "", "outcome": "a"})
        branches += [
            {
                "prompt_id": problem,
                "arm": f"boundary-{k}",
                "sample": s,
                "draw_pos": edges[k],
                "edit": "",
                "outcome": outcomes[k, s],
            }
            for k in range(n + 1)
            for s in range(samples)
        ]
        for step in range(n):
            kind = str(random.choice(KINDS))
            steps.append(
                {"prompt_id": problem, "branch": 0, "step": step, "start": edges[step], "end": edges[step + 1], "kind": kind}
            )
            without, kept = outcomes[step], outcomes[step + 1]
            p = stats.paired(without == "a", kept == "a").p_value
            both = stats.shift(list(without), list(kept), stats.tv, paired=True, seed=0, draws=100)
            row = {"prompt_id": problem, "step": step, "kind": kind, "text": "…", "control": None, "unit": "u", "n": samples}
            importance += [
                {**row, "method": "resampling", "estimate": (kept == "a").mean() - (without == "a").mean(), "floor": None,
                 "p_value": p},
                {**row, "method": "resampling_tv", "estimate": both.value, "floor": both.null_mean, "p_value": both.p_value},
                {**row, "method": "rescore", "estimate": random.normal() if step else None, "floor": None, "p_value": None,
                 "control": 0.5},
            ]  # fmt: skip
    prompts = pd.DataFrame({"prompt_id": range(problems), "error": ""})
    frame = pd.DataFrame(branches).assign(step=pd.array([None] * len(branches), dtype="Int32"))
    return Rows(pd.DataFrame(importance), frame, pd.DataFrame(steps), prompts)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return made(np.random.default_rng(0), 14)


@pytest.fixture(scope="module")
def found(rows: Rows) -> OverProblems:
    return importance_tables(*rows, seed=0)


def frame(found: OverProblems, table: str) -> pd.DataFrame:
    columns = found.tables[table]
    declared = {column.name for column in tables.TABLES[table].columns}
    assert set(columns) == declared
    assert not any(isinstance(value, float) and math.isnan(value) for own in columns.values() for value in own)
    result = pd.DataFrame(columns)
    assert not result.duplicated(list(tables.TABLES[table].keys)).any()
    return result


def test_means_are_means_of_problems_means(rows: Rows, found: OverProblems) -> None:
    means = frame(found, "importance_means").set_index(["method", "grouped_by", "value"])
    length = {p: own["end"].max() - PROMPT for p, own in rows.steps.groupby("prompt_id")}
    begin = {(s.prompt_id, s.step): (s.start - PROMPT) / length[s.prompt_id] for s in rows.steps.itertuples()}
    for method, own in rows.importance.groupby("method"):
        chosen = {("all", ""): lambda row: True}
        chosen |= {("kind", kind): lambda row, kind=kind: row.kind == kind for kind in KINDS}
        chosen |= {
            ("quarter", f"{25 * q:02d}–{25 * q + 25} %"): lambda row, q=q: q / 4 <= begin[row.prompt_id, row.step] < (q + 1) / 4
            for q in range(4)
        }
        for (by, value), holds in chosen.items():
            per: dict[int, list[float]] = {}
            for row in own.itertuples():
                if holds(row) and row.estimate == row.estimate:
                    per.setdefault(row.prompt_id, []).append(row.estimate)
            mean = means.loc[(method, by, value)]
            assert mean["estimate"] == pytest.approx(np.mean([np.mean(values) for values in per.values()]))
            assert (mean["problems"], mean["steps"]) == (len(per), sum(map(len, per.values())))
            if len(per) >= 8:
                assert mean["interval"].startswith("bootstrap") and mean["ci_low"] < mean["estimate"] < mean["ci_high"]
    assert {by for _, by, _ in means.index} == {"all", "kind", "quarter", "tenth"}


def test_floor_control_discoveries_and_rollouts_stand_beside_a_mean(rows: Rows, found: OverProblems) -> None:
    means = frame(found, "importance_means").set_index(["method", "grouped_by", "value"])
    distance = rows.importance[rows.importance["method"] == "resampling_tv"]
    row = means.loc[("resampling_tv", "all", "")]
    floor = distance.groupby("prompt_id")["floor"].mean().mean()
    assert row["floor"] == pytest.approx(floor) and row["above"] == pytest.approx(row["estimate"] - floor)
    assert row["above_low"] < row["above"] < row["above_high"]
    q = reference.false_discovery_control(distance["p_value"].to_numpy(float))
    assert row["discovered"] == (q <= 0.05).sum()
    assert math.isnan(means.loc[("resampling", "all", "")]["above"])
    assert means.loc[("rescore", "all", "")]["control"] == 0.5
    boundaries = len(rows.steps) + 14
    assert (
        row["rollouts"] == boundaries * 16 == found.summary["rollouts"] and means.loc[("rescore", "all", "")]["rollouts"] == 0
    )
    own = rows.steps[rows.steps["kind"] == "plan"]
    places = {(s.prompt_id, at) for s in own.itertuples() for at in (s.start, s.end)}
    assert means.loc[("resampling", "kind", "plan")]["rollouts"] == len(places) * 16
    assert found.summary["problems"] == 14 and found.summary["steps"] == len(rows.steps) and found.summary["intervals_hold"]


def test_other_numbers_of_problems_and_another_order_of_rows_change_nothing(rows: Rows, found: OverProblems) -> None:
    random = np.random.default_rng(5)
    names = random.permutation(100)[:14]
    mixed = [table.assign(prompt_id=names[table["prompt_id"]]).sample(frac=1, random_state=1) for table in rows]
    again = importance_tables(*mixed, seed=0)
    for name, columns in found.tables.items():
        pd.testing.assert_frame_equal(pd.DataFrame(again.tables[name]), pd.DataFrame(columns), rtol=1e-9)
    assert again.summary["problems"] == found.summary["problems"]


def test_a_problem_alone_has_the_numbers_and_no_intervals(rows: Rows) -> None:
    alone = [table[table["prompt_id"] == 3] for table in rows]
    means = frame(importance_tables(*alone, seed=0), "importance_means").set_index(["method", "grouped_by", "value"])
    row = means.loc[("resampling", "all", "")]
    own = rows.importance[(rows.importance["prompt_id"] == 3) & (rows.importance["method"] == "resampling")]
    assert row["estimate"] == pytest.approx(own["estimate"].mean()) and row["problems"] == 1
    assert means["interval"].isna().all() and means["ci_low"].isna().all()


def regressed(found: OverProblems, method: str, design: str = "covariates") -> pd.DataFrame:
    own = frame(found, "covariates")
    return own[(own["method"] == method) & (own["design"] == design)].set_index("term")


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_where_no_step_does_anything_nothing_goes_along_with_entropy(paired: bool) -> None:
    """Entropy and importance that were read from the same draws hang together, though the draws are noise."""
    rows = made(np.random.default_rng(3), 110, most=6, paired=paired)
    found = importance_tables(*rows, seed=0)
    for method in ("resampling", "resampling_tv"):
        row = regressed(found, method).loc["entropy"]
        assert row["ci_low"] <= 0 <= row["ci_high"] and row["halves"] == "crossed"
    same = rows.importance[rows.importance["method"] == "resampling_tv"]
    entropy = [entropy_at(rows, r.prompt_id, r.step) for r in same.itertuples()]
    x = np.column_stack([np.ones(len(same)), entropy])
    excess = (same["estimate"] - same["floor"]).to_numpy(float)
    naive = stats.cluster_regression(excess, x, same["prompt_id"].to_numpy(), seed=0).coefficients[1]
    assert paired or naive.high < 0  # noise that they share takes some of it away


def entropy_at(rows: Rows, problem: int, step: int) -> float:
    own = rows.branches[(rows.branches["prompt_id"] == problem) & (rows.branches["arm"] == f"boundary-{step}")]
    return float(reference.entropy(own["outcome"].value_counts()))


@pytest.mark.slow
def test_what_was_planted_is_found_and_kinds_are_told_after_it() -> None:
    """Distances grow with the entropy before a step, whatever its kind: kinds explain nothing more."""
    random = np.random.default_rng(1)

    def law(problem: int, n: int) -> np.ndarray:
        """At every other step an open outcome becomes another open one; a settled problem stays as it is."""
        if problem % 2:
            return np.tile([0.97, 0.03, 0.0], (n, 1))
        return np.array([[0.75, 0.25, 0.0] if k % 2 else [0.25, 0.75, 0.0] for k in range(n)])

    rows = made(random, 40, samples=48, law=law)
    found = importance_tables(*rows, seed=0)
    row = regressed(found, "resampling_tv").loc["entropy"]
    assert row["ci_low"] > 0.5 and row["partial_r2"] > 0.4
    own = rows.importance[rows.importance["method"] == "resampling_tv"]
    by_kind = regressed(found, "resampling_tv", "kinds")
    assert -0.03 < by_kind.loc["all kinds", "partial_r2"] < 0.03
    above = (own["estimate"] - own["floor"]).mean()
    for kind in KINDS:
        assert by_kind.loc[f"kind: {kind}", "coefficient"] == pytest.approx(above, abs=0.1)
        assert by_kind.loc[f"kind: {kind}", "ci_low"] > 0


@pytest.mark.slow
def test_what_does_not_vary_has_no_coefficient_and_what_was_not_drawn_is_said(rows: Rows) -> None:
    uncut = rows._replace(branches=rows.branches.replace({"outcome": {"<truncated>": "c"}}).assign(max_new=40))
    found = importance_tables(*uncut, seed=0)
    cut = regressed(found, "resampling").loc["truncated"]
    budget = regressed(found, "resampling").loc["budget"]
    for row in (cut, budget):
        assert math.isnan(row["coefficient"]) and pd.isna(row["interval"])
    assert regressed(found, "rescore").loc["position", "halves"] == "none"
    nothing = rows._replace(importance=rows.importance[rows.importance["method"] == "rescore"], branches=None)
    bare = regressed(importance_tables(*nothing, seed=0), "rescore")
    assert math.isnan(bare.loc["entropy", "coefficient"]) and not math.isnan(bare.loc["length", "coefficient"])
    renamed = rows.importance.replace({"method": {"resampling_tv": "counterfactual_tv"}})
    assert set(regressed(importance_tables(renamed, *rows[1:], seed=0), "counterfactual_tv")["halves"]) == {"shared"}


@pytest.mark.slow
def test_covariates_are_what_they_are_called(rows: Rows) -> None:
    room = rows._replace(branches=rows.branches.assign(max_new=(100 - rows.branches["draw_pos"]) ** 1.5))
    found = regressed(importance_tables(*room, seed=0), "rescore")
    length = {p: own["end"].max() - PROMPT for p, own in rows.steps.groupby("prompt_id")}
    x, y, own = [], [], []
    steps = rows.steps.set_index(["prompt_id", "step"])
    for row in rows.importance[rows.importance["method"] == "rescore"].dropna(subset="estimate").itertuples():
        s = steps.loc[(row.prompt_id, row.step)]
        of = rows.branches[rows.branches["prompt_id"] == row.prompt_id]
        cut = np.mean([(of[of["arm"] == f"boundary-{row.step + i}"]["outcome"] == "<truncated>").mean() for i in (0, 1)])
        at = (s["start"] - PROMPT) / length[row.prompt_id]
        entropy = entropy_at(rows, row.prompt_id, row.step)
        x.append([1.0, entropy, at, s["end"] - s["start"], cut, (100 - s["start"]) ** 1.5])
        y.append(row.estimate)
        own.append(row.prompt_id)
    expected = stats.cluster_regression(np.array(y), np.array(x), np.array(own), seed=0)
    terms = ["intercept", "entropy", "position", "length", "truncated", "budget"]
    assert found.loc[terms, "coefficient"].tolist() == pytest.approx([c.estimate for c in expected.coefficients])
    assert found.loc[terms[1:], "partial_r2"].tolist() == pytest.approx(list(expected.partial_r2[1:]))
    assert (found["r2"] - expected.r2).abs().max() < 1e-9 and set(found["steps"]) == {len(y)}


def test_a_curve_and_the_area_over_it() -> None:
    """Two problems by hand, of 2 and 4 steps."""
    edges = {0: (5, 6, 9), 1: (4, 9, 14, 19, 24)}
    steps = pd.DataFrame([
        {"prompt_id": p, "branch": 0, "step": i, "start": a, "end": b, "kind": "plan"}
        for p, own in edges.items()
        for i, (a, b) in enumerate(pairwise(own))
    ])  # fmt: skip
    matches, chances = {0: (0, 0, 1), 1: (0, 1, 0, 1, 1)}, {0: (0.1, 0.2, 0.9), 1: (None,) * 5}
    early = pd.DataFrame([
        {"prompt_id": p, "boundary": k, "answer": "", "match": bool(m), "chance": chances[p][k]}
        for p, own in matches.items()
        for k, m in enumerate(own)
    ])  # fmt: skip
    importance = pd.DataFrame([
        {"prompt_id": p, "method": "early-answer", "step": 0, "estimate": 0.1, "floor": None, "control": None, "p_value": None,
         "unit": "u"} for p in (0, 1)
    ])  # fmt: skip
    prompts = pd.DataFrame({"prompt_id": [0, 1, 2]})
    found = importance_tables(importance, None, steps, prompts, early_answers=early, seed=0)
    curve = frame(found, "curves").set_index(["curve", "along", "share"])["estimate"]
    # halfway: after 1 of 2 steps 0, after 2 of 4 steps 0; three quarters: ½ of the way from 0 to 1, and 1
    assert curve["early-answer", "steps", 0.5] == 0.0 and curve["early-answer", "steps", 1.0] == 1.0
    assert curve["early-answer", "steps", 0.8] == pytest.approx((0.6 + 1) / 2)
    assert curve["early-answer", "tokens", 0.5] == pytest.approx((1 / 3 + 0) / 2)  # tokens: 0 at ¼, 1 at 1
    assert curve["early-answer chance", "steps", 0.5] == pytest.approx(0.2)  # of the one problem that has it
    area = {(row["curve"], row["along"]): row for row in found.summary["areas"]}
    assert area["early-answer", "steps"]["area_over_curve"] == pytest.approx(((1 - 1 / 3) + (1 - 3 / 5)) / 2)
    assert area["early-answer", "tokens"]["area_over_curve"] == pytest.approx(((1 - 3 / 4) + (1 - 3 / 4)) / 2)
    assert area["early-answer", "steps"]["formula"] == FORMULAS["steps"]
    assert found.summary["left_out"] == 1 and not found.summary["intervals_hold"]


def rewound(random: np.random.Generator, problems: int) -> tuple[pd.DataFrame, Rows]:
    """Every step of every problem edited: `effects`, and the rows of the run."""
    base = made(random, problems, samples=8)
    branches, effects = [base.branches[base.branches["arm"] == "original"]], []
    for s in base.steps.itertuples():
        for arm, at, edit in (("control", s.end, ""), ("before", s.start, ""), ("edited", s.end, "prompt-b: hint")):
            outcomes = random.choice(["a", "b"], 8)
            branches.append(pd.DataFrame({
                "prompt_id": s.prompt_id, "arm": arm, "sample": range(8), "draw_pos": at, "edit": edit, "outcome": outcomes,
                "step": s.step,
            }))  # fmt: skip
            if arm == "control":
                control = (outcomes == "a").mean()
        edited = (outcomes == "a").mean()
        row = {"prompt_id": s.prompt_id, "step": s.step, "edit": f"prompt-b: hint {s.prompt_id}", "null_high": None, "n": 8}
        effects += [
            {**row, "metric": "share", "outcome": "a", "control": control, "edited": edited, "difference": edited - control,
             "p_value": random.random()},
            {**row, "metric": "share", "outcome": "b", "control": 0.0, "edited": 9.0, "difference": 9.0, "p_value": 1e-9},
            {**row, "metric": "total_variation", "outcome": "", "control": None, "edited": None,
             "difference": abs(edited - control), "p_value": None, "null_high": 0.5},
        ]  # fmt: skip
    return pd.DataFrame(effects), base._replace(branches=pd.concat(branches, ignore_index=True))


def test_effects_over_problems_are_of_the_original_answer() -> None:
    effects, rows = rewound(np.random.default_rng(2), 9)
    found = effect_tables(effects, *rows[1:], seed=0)
    means = frame(found, "effect_means").set_index(["edit", "metric", "grouped_by", "value"])
    assert set(means.index.get_level_values(0)) == {"prompt-b"} and set(means.index.get_level_values(1)) == {
        "share",
        "total_variation",
    }
    own = effects[(effects["metric"] == "share") & (effects["outcome"] == "a")]
    row = means.loc[("prompt-b", "share", "all", "")]
    for column in ("control", "edited", "difference"):
        assert row[column] == pytest.approx(own.groupby("prompt_id")[column].mean().mean())
    assert row["ci_low"] < row["difference"] < row["ci_high"] and (row["problems"], row["steps"]) == (9, len(rows.steps))
    assert row["rollouts"] == 24 * len(rows.steps)
    assert means.loc[("prompt-b", "total_variation", "all", "")]["null_high"] == 0.5
    assert row["discovered"] == (reference.false_discovery_control(own["p_value"]) <= 0.05).sum()
    areas = {(a["curve"], a["along"]): a["area_over_curve"] for a in found.summary["areas"]}
    assert areas["prompt-b", "steps"] == pytest.approx(1 - row["edited"])
    weights = rows.steps.assign(weight=rows.steps["end"] - rows.steps["start"]).merge(own, on=["prompt_id", "step"])
    by_tokens = [1 - np.average(o["edited"], weights=o["weight"]) for _, o in weights.groupby("prompt_id")]
    assert areas["prompt-b", "tokens"] == pytest.approx(np.mean(by_tokens))


def test_an_answer_that_never_comes_has_a_share_of_nothing() -> None:
    """Its steps have no row of that answer; without them the mean would be of the others alone."""
    effects, rows = rewound(np.random.default_rng(2), 9)
    never = (effects["metric"] == "share") & (effects["outcome"] == "a") & (effects["step"] == 0)
    nothing = effects.assign(**{name: effects[name].where(~never, 0.0) for name in ("control", "edited", "difference")})
    zero, bare = (effect_tables(some, *rows[1:], seed=0) for some in (nothing, effects[~never]))
    means = [frame(found, "effect_means").query("metric == 'share'").drop(columns="discovered") for found in (zero, bare)]
    pd.testing.assert_frame_equal(*means)
    assert zero.summary["areas"] == bare.summary["areas"] and means[0].iloc[0]["steps"] == len(rows.steps)


def test_one_step_a_problem_has_means_and_no_curve() -> None:
    effects, rows = rewound(np.random.default_rng(3), 9)
    drawn = rows.branches[(rows.branches["step"].isna() | (rows.branches["step"] == 1)) & (rows.branches["arm"] != "before")]
    found = effect_tables(effects[effects["step"] == 1], drawn, rows.steps, rows.prompts, seed=0)
    assert set(found.tables) == {"effect_means"}
    assert (frame(found, "effect_means").query("grouped_by == 'all'")["steps"] == 9).all()
    plain = effect_tables(effects.iloc[:0], rows.branches[rows.branches["arm"] != "edited"], rows.steps, rows.prompts, seed=0)
    assert set(plain.tables) == {"curves"} and set(plain.tables["curves"]["curve"]) == {"rollouts"}


def test_the_name_of_an_edit_is_told_from_its_text() -> None:
    assert operation("prompt-b: a: b") == "prompt-b" and operation("replace: x") == "replace"
    assert operation("numbers") == "numbers" and operation("zero(z@5.3)") == "zero(z@5.3)"


def as_run(command: str, found: OverProblems) -> store.Run:
    writer = store.create(None, command=command, arguments={})
    with writer.unit("over problems"):
        for name, columns in found.tables.items():
            writer.write(name, columns)
    return writer.finish(summary={"over_problems": found.summary})


def lines_of(text: str, block: str) -> dict[str, list[str]]:
    """Cells of a block's lines by their first; cells stand two spaces apart."""
    rows = text.split(f"\n{block}", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {cells[0]: cells for row in rows if (cells := [cell for cell in re.split(r"  +", row) if cell])}


def test_the_page_says_what_stands_in_the_tables(found: OverProblems, capsys: pytest.CaptureFixture[str]) -> None:
    run = as_run("importance", found)
    show_over_problems(run)
    text = capsys.readouterr().out
    assert "over 14 problems" in text and "an interval holds only" not in text
    means = run.importance_means.set_index(["method", "grouped_by", "value"])
    shown = lines_of(text, "resampling: u")
    assert set(shown) == {"all steps", *KINDS, *(f"{25 * q:02d}–{25 * q + 25} %" for q in range(4))}
    for value in ("all steps", "plan"):
        row = means.loc[("resampling", "all", "") if value == "all steps" else ("resampling", "kind", value)]
        assert shown[value][1:3] == [f"{row['estimate']:+.3f}", f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"]
        assert shown[value][-3:] == [str(row["problems"]), str(row["steps"]), f"{row['rollouts']:,}"]
    covariates = run.covariates.query("method == 'resampling' and design == 'covariates'").set_index("term")
    (line,) = (line for line in text.split("resampling goes along with")[1].split("\n\n")[0].splitlines() if "a nat" in line)
    assert f"{covariates.loc['entropy', 'partial_r2']:.2f}" in line and "shared" not in text
    (area,) = (a for a in found.summary["areas"] if a["along"] == "tokens")
    assert f"{area['area_over_curve']:.3f} [{area['ci_low']:.2f}, {area['ci_high']:.2f}]" in text and area["formula"] in text
    effects, rows = rewound(np.random.default_rng(2), 5)
    show_over_problems(as_run("rewind", effect_tables(effects, *rows[1:], seed=0)))
    text = capsys.readouterr().out
    assert "prompt-b: share" in text and "prompt-b: total variation" in text and "an interval holds only" in text


def test_a_bar_has_the_interval_zero_and_the_estimate() -> None:
    assert bar(0.5, 0.25, 1.0, 0.0, 1.0) == "│" + " " * 7 + "─" * 7 + "●" + "─" * 15
    assert bar(-1.0, math.nan, math.nan, -1.0, 1.0) == "●" + " " * 14 + "│" + " " * 15
    assert bar(0.0, math.nan, math.nan, 0.0, 0.0) == "●" + " " * 30
    assert bar(0.5, -9.0, 9.0, 0.0, 1.0) == "‹" + "─" * 14 + "●" + "─" * 14 + "›"


@pytest.mark.slow
def test_the_steps_of_all_prompts_or_of_some(shell: Any, tmp_path: Path) -> None:
    run = probe.trace(probe.load("tiny:llama"), [f"Count {n}.\n" for n in range(4)], generate=12, out=tmp_path / "run")
    own = [steps_of(run, prompt_id=prompt) for prompt in range(4)]
    pd.testing.assert_frame_equal(steps_of(run), pd.concat(own, ignore_index=True))
    pd.testing.assert_frame_equal(steps_of(run, prompt_id="all"), steps_of(run))
    pd.testing.assert_frame_equal(steps_of(run, prompt_id="0,2..3"), pd.concat([own[0], own[2], own[3]], ignore_index=True))
    for words, prompts in (((), {0, 1, 2, 3}), (("--prompt", "all"), {0, 1, 2, 3}), (("--prompt", "1,3..9"), {1, 3})):
        said = json.loads(shell("steps", "run", *words, "--json").stdout)["summary"]["steps"]
        assert {step["prompt_id"] for step in said} == prompts
        rows = shell("steps", "run", *words).stdout.splitlines()[1:]
        assert {int(row.split()[0]) for row in rows} == prompts and len(rows) == len(said)
    for wrong, message in (("9", "no tokens of prompt 9"), ("x", "cannot read the prompts")):
        failed = shell("steps", "run", "--prompt", wrong)
        assert failed.returncode == 1 and message in failed.stderr


@pytest.mark.slow
def test_a_run_over_problems_has_them_all(shell: Any, tmp_path: Path) -> None:
    """From the rows of real runs: what was drawn, asked early and measured of each problem; the page, JSON, and the tree."""
    lm = probe.load("tiny:llama")
    source = probe.trace(lm, [f"Count {n}.\n" for n in range(3)], generate=5, out=tmp_path / "source")
    what = {"lm": lm, "samples": 4, "max_new": 4, "split": "token"}
    run = probe.importance(
        source, method="resampling,early-answer", candidates=("1", "2"), expect="1", out=tmp_path / "i", **what
    )
    assert set(run.branches["max_new"].dropna()) == {4} and run.branches["max_new"].isna().sum() == 3
    for one in run.summary["problems"]:
        early = run.early_answers[run.early_answers["prompt_id"] == one["prompt_id"]]
        said = one["early_answer"]
        assert early["answer"].tolist() == said["answers"] and early["match"].tolist() == said["matches"]
        column = said["candidates"].index("1")
        assert early["chance"].tolist() == pytest.approx([row[column] for row in said["chances"]], abs=1e-6)
    area = next(a for a in run.summary["over_problems"]["areas"] if (a["curve"], a["along"]) == ("early-answer", "steps"))
    assert area["area_over_curve"] == pytest.approx(
        np.mean([1 - np.mean(o["match"]) for _, o in run.early_answers.groupby("prompt_id")])
    )
    means = run.importance_means.set_index(["method", "grouped_by"]).loc[("resampling", "all")]
    own = run.importance[run.importance["method"] == "resampling"]
    assert means["estimate"].item() == pytest.approx(own.groupby("prompt_id")["estimate"].mean().mean())
    assert means["rollouts"].item() == len(run.branches) - 3 and set(run.tables) >= {"covariates", "curves"}
    went = probe.rewind(source, to="all", delete=True, out=tmp_path / "went", **what)
    of_answer = went.effect_means.query("metric == 'share' and grouped_by == 'all'")
    assert of_answer["problems"].item() == 3 and of_answer["steps"].item() == len(
        went.effects.drop_duplicates(["prompt_id", "step"])
    )
    found = json.loads(shell("runs", "tree", "went", "--json").stdout)["summary"]
    assert [one["prompt_id"] for one in found["children"]] == [0, 1, 2]
    for one in found["children"]:
        drawn = went.branches[(went.branches["prompt_id"] == one["prompt_id"]) & (went.branches["arm"] != "original")]
        assert sum(arm["n"] for place in one["children"] for arm in place["children"]) == len(drawn)
    words = ("importance", "source", "--model", "tiny:llama", "--split", "token", "-n", "2", "--max-new", "2", "--out")
    assert "over 3 problems" in (text := shell(*words, "page").stdout) and "AOC by tokens" in text
    said = json.loads(shell(*words, "json", "--json").stdout)["summary"]
    assert said["over_problems"]["problems"] == 3 and said["over_problems"]["means"]
