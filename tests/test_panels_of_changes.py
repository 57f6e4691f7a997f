"""Panels of what was changed: each against its table, counts by pandas, intervals by SciPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from probe import store
from probe.reporting.views import Bars, Grid, Lines, Listing, OutcomeTree, Panel, TokenStrip
from probe.store import Run
from tests.test_panels import panels, same_as_the_table

STEPS = ["Three apples. ", "Four more. ", "So seven. "]
N = 5  # tokens of a prompt
OUTCOMES = ["7", "8", "<none>", "</script>"]


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def texts(writer: store.Writer, prompts: int) -> None:
    """Prompts of three steps of two tokens each."""
    for prompt in range(prompts):
        ends = N + 2 * np.arange(1, 4)
        with writer.unit(f"text {prompt}"):
            writer.write("prompts", {"prompt_id": [prompt], "text": [f"problem {prompt}"], "n_tokens": [N], "error": [""]})
            writer.write("tokens", {
                "prompt_id": prompt, "branch": 0, "pos": range(N + 6), "token_id": 1, "token": [f"t{i}" for i in range(N + 6)],
                "segment": ["prompt"] * N + ["completion"] * 6, "step": [None] * N + [0, 0, 1, 1, 2, 2],
                "text_start": 0, "text_end": 1,
            })  # fmt: skip
            writer.write("steps", {
                "prompt_id": prompt, "branch": 0, "step": range(3), "start": ends - 2, "end": ends,
                "kind": ["fact", "fact", "end"], "text": STEPS, "mid_token": False, "text_start": 0, "text_end": 1,
            })  # fmt: skip


def rewound(random: np.random.Generator, where: dict[int, list[int | None]], *, samples: int = 9, extra: int = 4) -> Run:
    """A rewind of several problems, at several steps; `extra` samples more of control than were compared."""
    writer = store.create(None, command="rewind", arguments={})
    texts(writer, len(where))
    places = []
    for prompt, steps in where.items():
        branches = [{"branch": 0, "parent": -1, "arm": "original", "sample": -1, "step": None, "outcome": "7", "edit": ""}]
        effects = []
        for step in steps:
            for arm, n in (("control", samples + extra), ("edited", samples), ("before", 5)):
                branches += [
                    {"branch": len(branches) + i, "parent": 0, "arm": arm, "sample": i, "step": step,
                     "outcome": str(random.choice(OUTCOMES)), "edit": "delete" if arm == "edited" else ""}
                    for i in range(n)
                ]  # fmt: skip
            low, value, high = sorted(random.normal(size=3))
            row = {"step": step, "edit": "delete", "control": 0.5, "edited": 0.5, "difference": value, "ci_low": low,
                   "ci_high": high, "p_value": 0.25, "null_high": None, "n": samples, "method": "m", "outcome": ""}  # fmt: skip
            effects += [{**row, "metric": "share", "outcome": name} for name in OUTCOMES[:3]]
            effects += [{**row, "metric": "total_variation", "control": None, "edited": None, "ci_low": None, "ci_high": None,
                         "null_high": 0.31}]  # fmt: skip
            effects += [{**row, "metric": "flip_rate", "control": None, "edited": None, "p_value": None}]
            places.append({"prompt_id": prompt, "step": step, "samples": samples, "reference": "7", "expected": None})
        with writer.unit(f"drawn {prompt}"):
            more = {"fork_pos": N, "draw_pos": N, "n_prompt": N, "text": "…", "n_tokens": 3}
            writer.write("branches", {"prompt_id": prompt, **columns(branches), **more})
            writer.write("effects", {"prompt_id": prompt, **columns(effects)})
    places = [
        {"prompt_id": p, "step": s, "samples": samples, "reference": "7", "expected": None}
        for p, own in where.items()
        for s in own
    ]
    return writer.finish(summary={"places": places})


@pytest.fixture(scope="module")
def went() -> Run:
    return rewound(np.random.default_rng(0), {0: [1], 1: [0, 2]})


def counts_of(run: Run, panel: Panel, compared: int | None) -> pd.Series:
    """How often each outcome came, by pandas: a cross table of the arms of each step, zeros too."""
    rows = run.table("branches")
    rows = rows[(rows["prompt_id"] == panel.where["prompt_id"]) & rows["arm"].isin(panel.where["arm"])].astype({"arm": str})
    if compared is not None:
        rows = rows[(rows["sample"] < compared) | ~rows["arm"].isin(["control", "edited"])]
    each = [
        pd.crosstab([own["step"].fillna(-1), own["arm"]], own["outcome"]).stack()
        for _, own in rows.groupby("step", dropna=False)
    ]
    return pd.concat(each)


def is_wilson(frame: pd.DataFrame) -> None:
    assert len(frame)
    for row in frame.itertuples():
        theirs = scipy.stats.binomtest(int(row.count), int(row.drawn)).proportion_ci(method="wilson")
        assert (row.share, row.ci_low, row.ci_high) == pytest.approx(
            (row.count / row.drawn, theirs.low, theirs.high), abs=1e-12
        )


@pytest.mark.parametrize("prompt", [0, 1])
def test_outcomes_are_counted_as_pandas_counts_them(went: Run, prompt: int) -> None:
    panel = panels(went, prompt)["outcomes"]
    assert isinstance(panel, Bars) and panel.series == "arm" and panel.measure.band == ("ci_low", "ci_high")
    assert panel.follows == ({"step": "step"} if prompt else {})
    assert panel.axis.labels == {"7": "7 (original)"}
    frame = panel.frame.assign(step=panel.frame["step"].fillna(-1), arm=panel.frame["arm"].astype(str))
    ours = frame.set_index(["step", "arm", "outcome"])["count"].sort_index()
    theirs = counts_of(went, panel, 9).rename_axis(["step", "arm", "outcome"]).sort_index()
    assert ours.to_dict() == theirs.to_dict() and (ours == 0).any()
    totals = frame.groupby(["step", "arm"])["count"].sum()
    assert totals.to_dict() == frame.groupby(["step", "arm"])["drawn"].first().to_dict()
    assert set(frame["drawn"]) == {9, 5}  # what was drawn beyond those that were compared does not count
    assert "4 continuations" in panel.note or "8 continuations" in panel.note
    is_wilson(frame)


@pytest.mark.parametrize("prompt", [0, 1])
def test_both_arms_stand_beside_one_another_and_nothing_is_lost(went: Run, prompt: int) -> None:
    found = panels(went, prompt)
    arms, others = found["arms"], found["branches"]
    assert isinstance(arms, Listing) and isinstance(others, Listing)
    for panel in (arms, others):
        same_as_the_table(went, panel)
        assert panel.text == "text" and [c.name for c in panel.columns if c.cursor == "branch"] == ["branch"]
    assert arms.beside == "arm" and set(arms.frame["arm"]) == {"control", "edited"}
    assert arms.frame["sample"].is_monotonic_increasing  # those that share noise are next to one another
    table = went.branches
    assert len(arms.frame) + len(others.frame) == (table["prompt_id"] == prompt).sum()


def leaves(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for child in node["children"]:
        yield from leaves(child)
    if "branch" in node:
        yield node


def test_the_tree_holds_every_branch_and_counts_them(went: Run) -> None:
    for prompt in (0, 1):
        panel = panels(went, prompt)["tree"]
        assert isinstance(panel, OutcomeTree)
        own = went.branches[went.branches["prompt_id"] == prompt]
        drawn = own[own["arm"] != "original"]
        found = list(leaves(panel.root))
        assert sorted(leaf["branch"] for leaf in found) == sorted(drawn["branch"])
        outcomes = dict(zip(drawn["branch"], drawn["outcome"], strict=True))
        assert all(leaf["outcomes"] == {outcomes[leaf["branch"]]: 1} for leaf in found)
        below = panel.root["children"]
        assert panel.root["outcomes"] == own["outcome"].value_counts().to_dict() and panel.root["n"] == len(own)
        places = below if prompt == 0 else [arm for step in below for arm in step["children"]]
        for arm in places:
            assert arm["n"] == sum(arm["outcomes"].values()) == len(list(leaves(arm)))
            classes = {c["label"]: c["n"] for c in arm["children"] if "branch" not in c}
            assert all(arm["outcomes"][outcome] == n for outcome, n in classes.items())


def test_effects_have_their_intervals_and_floors(went: Run) -> None:
    for prompt in (0, 1):
        found = panels(went, prompt)
        for name in ("effects", "effect-by-outcome", "effects-table", "effect-on-answer"):
            same_as_the_table(went, found[name])
        bars, answer, by = (found[name] for name in ("effects", "effect-on-answer", "effect-by-outcome"))
        assert isinstance(bars, Bars) and isinstance(answer, Bars) and isinstance(by, Bars)
        assert (bars.floor, bars.facet, bars.measure.band) == ("null_high", "measure", ("ci_low", "ci_high"))
        assert set(bars.frame["measure"]) == {"total variation", "flip rate"}
        assert bars.axis.cursor == "step" and bars.span == ("start", "end")
        assert set(answer.frame["outcome"]) == {"7"} and len(answer.frame) == 1 + prompt
        assert by.follows == ({"step": "step"} if prompt else {})
        where = went.steps[went.steps["prompt_id"] == prompt].set_index("step")
        for row in bars.frame.itertuples():
            assert (row.start, row.end) == (where["start"][row.step], where["end"][row.step])


def test_a_place_in_no_step_has_bars_too() -> None:
    run = rewound(np.random.default_rng(1), {0: [None]})
    found = panels(run)
    for name in ("effects", "effect-on-answer"):
        panel = found[name]
        same_as_the_table(run, panel)
        assert isinstance(panel, Bars) and panel.axis.column == "place" and panel.span is None
        assert set(panel.frame["place"]) == {"in no step"} and len(panel.frame)
    assert found["outcomes"].follows == {} and len(found["outcomes"].frame)


def rescored(edited: list[int]) -> Run:
    writer = store.create(None, command="rewind", arguments={})
    texts(writer, 1)
    rows = [
        {"edited_step": step, "pos": pos, "token": f"t{pos}", "step": (pos - N) // 2, "logprob": -1.0,
         "logprob_edited": -1.5 - step, "difference": -0.5 - step}
        for step in edited for pos in range(N + 2 * step + 2, N + 6)
    ]  # fmt: skip
    with writer.unit("rescored"):
        writer.write("rescored", {"prompt_id": 0, "token_id": 1, **columns(rows)})
    return writer.finish(summary={})


def test_rescored_tokens_are_a_text_or_a_grid_of_several_steps() -> None:
    one, several = rescored([0]), rescored([0, 1])
    strip, grid = panels(one)["rescored"], panels(several)["rescored"]
    assert isinstance(strip, TokenStrip) and isinstance(grid, Grid)
    same_as_the_table(one, strip)
    same_as_the_table(several, grid)
    assert (grid.rows.column, grid.columns.column, grid.columns.cursor) == ("edited_step", "pos", "token")
    assert strip.measures[0].column == grid.measures[0].column == "difference"
    assert strip.measures[0].scaling == "diverging"


def important(random: np.random.Generator) -> Run:
    """Two methods, one of which could not measure the first step; a matrix; boundaries; early answers, one without a chance."""
    writer = store.create(None, command="importance", arguments={})
    texts(writer, 1)
    rows = [
        {"method": method, "step": step, "estimate": None if method == "rescore" and step == 0 else random.normal(),
         "ci_low": -2.0 if method == "resampling" else None, "ci_high": 2.0 if method == "resampling" else None,
         "floor": 0.1 if method == "resampling" else None, "control": 0.2, "n": 6, "unit": f"unit of {method}", "kind": "fact",
         "text": STEPS[step]}
        for method in ("rescore", "resampling") for step in range(3)
    ]  # fmt: skip
    drawn = [
        {"branch": 1 + 6 * k + i, "arm": f"boundary-{k}", "sample": i, "outcome": str(random.choice(OUTCOMES[:2]))}
        for k in (0, 2, 10) for i in range(6)
    ]  # fmt: skip
    original = {"branch": 0, "arm": "original", "sample": -1, "outcome": "7"}
    with writer.unit("importance"):
        writer.write("importance", {"prompt_id": 0, **columns(rows)})
        matrix = [(0, 1, 0.5), (0, 2, -0.25), (1, 2, 1.5)]
        source, target, value = zip(*matrix, strict=True)
        writer.write("dependence", {"prompt_id": 0, "method": "rescore", "source": source, "target": target, "value": value})
        writer.write("branches", {"prompt_id": 0, "parent": 0, "fork_pos": N, "draw_pos": N, "n_prompt": N, "text": "…",
                                  "edit": "", "n_tokens": 3, **columns([original, *drawn])})  # fmt: skip
        writer.write("early_answers", {"prompt_id": 0, "boundary": [1, 0, 2], "pos": [7, 5, 9], "answer": ["7", "8", "<none>"],
                                       "match": [True, False, False], "chance": [0.75, 0.25, None]})  # fmt: skip
    return writer.finish(summary={"reference": "7", "samples": 6})


def test_importance_stands_under_its_tokens_with_intervals_and_floors() -> None:
    run = important(np.random.default_rng(0))
    found = panels(run)
    bars, table = found["importance"], found["importance-table"]
    same_as_the_table(run, bars)
    same_as_the_table(run, table)
    assert isinstance(bars, Bars)
    assert (bars.facet, bars.span, bars.floor, bars.measure.band) == (
        "method",
        ("start", "end"),
        "floor",
        ("ci_low", "ci_high"),
    )
    assert "unit of rescore (1 steps not measured)." in bars.note and "unit of resampling." in bars.note
    steps = run.steps.set_index("step")
    assert bars.frame["start"].tolist() == steps["start"][bars.frame["step"]].tolist()
    grid = found["dependence-rescore"]
    assert isinstance(grid, Grid)
    assert grid.columns.labels == {i: f"{i}: {text.strip()}" for i, text in enumerate(STEPS)}
    assert {c.name for c in table.columns} >= {"estimate", "ci_low", "ci_high", "control", "floor", "n"}
    assert "p_value" not in {c.name for c in table.columns}  # nothing stands in it


def test_step_by_step_matrices_are_the_table() -> None:
    run = important(np.random.default_rng(0))
    grid = panels(run)["dependence-rescore"]
    same_as_the_table(run, grid)
    assert isinstance(grid, Grid)
    shown = grid.frame.pivot_table(index=grid.rows.column, columns=grid.columns.column, values=grid.measures[0].column)
    assert shown.loc[2, 0] == -0.25 and shown.loc[1, 0] == 0.5 and np.isnan(shown.loc[1, 1])
    assert grid.measures[0].scaling == "diverging"


def test_outcomes_of_boundaries_are_counted_in_their_order() -> None:
    run = important(np.random.default_rng(3))
    grid = panels(run)["outcomes-by-boundary"]
    assert isinstance(grid, Grid)
    rows = run.branches[run.branches["arm"] != "original"].astype({"arm": str})
    theirs = pd.crosstab(rows["arm"].str.removeprefix("boundary-").astype(int), rows["outcome"]).stack().to_dict()
    assert grid.frame.set_index(["boundary", "outcome"])["count"].to_dict() == theirs
    assert list(dict.fromkeys(grid.frame["boundary"])) == [0, 2, 10]
    is_wilson(grid.frame)


def test_early_answers_are_a_curve_and_a_list() -> None:
    run = important(np.random.default_rng(0))
    found = panels(run)
    curve, listing = found["early-answers"], found["early-answers-table"]
    assert isinstance(curve, Lines)
    for panel in (curve, listing):
        same_as_the_table(run, panel)
        assert panel.frame["boundary"].tolist() == [0, 1, 2]
    assert curve.frame["chance"].tolist()[:2] == [0.25, 0.75] and np.isnan(curve.frame["chance"].tolist()[2])
