"""Panels of scans, of means over problems, of sampled answers, and of runs that were made from one another."""

from __future__ import annotations

from pathlib import Path

import pytest

import probe
from probe import store
from probe.reporting.panels import sequence_views
from probe.reporting.views import Bars, Lines, Listing, OutcomeTree
from probe.store import Run
from tests.test_panels import panels, same_as_the_table
from tests.test_panels_of_changes import columns, is_wilson, leaves, texts
from tests.test_rewind import written

EDIT = {"to": "step0", "append_wait": True}


def test_a_scan_has_its_band_and_that_of_random_directions(tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    to, sets = tmp_path / "v.safetensors", {"positive": ["good", "fine"], "negative": ["bad", "poor"]}
    made = probe.make_direction(lm, **sets, at="resid_post@1", to=to)
    run = probe.steer(lm, to, prompts=["abc", "de"], answer="a", strengths="-2,0,2", controls=5)
    scan = panels(run)["steering"]
    assert isinstance(scan, Lines)
    same_as_the_table(run, scan)
    assert {m.column: m.band for m in scan.measures} == {
        "effect": ("ci_low", "ci_high"), "control_mean": ("control_low", "control_high"),
    }  # fmt: skip
    own = run.steering.assign(
        effect=lambda f: f["value"] - f["prompt_id"].map(f[f["strength"] == 0].set_index("prompt_id")["value"])
    )
    random = own[(own["control"] > 0)].groupby(["strength", "control"])["effect"].mean().groupby("strength")
    shown = scan.frame.set_index("strength")
    for strength in (-2.0, 2.0):
        assert shown["control_low"][strength] == pytest.approx(random.min()[strength], abs=1e-9)
        assert shown["control_high"][strength] == pytest.approx(random.max()[strength], abs=1e-9)
    for prompt in (0, 1):
        text = panels(run, prompt)["steering-text"]
        same_as_the_table(run, text)
        assert isinstance(text, Lines) and text.measures[0].band == ("random_low", "random_high")
        drawn = run.steering[(run.steering["prompt_id"] == prompt) & (run.steering["control"] > 0)]
        for row in text.frame.itertuples():
            values = drawn.loc[drawn["strength"] == row.strength, "value"]
            if len(values):  # at strength 0 there is nothing to draw
                assert (row.random_low, row.random_high) == (values.min(), values.max())
    projected = panels(made, 2)["projections"]
    same_as_the_table(made, projected)
    assert isinstance(projected, Bars) and projected.axis.labels == {0: "good", 1: "fine", 2: "bad", 3: "poor"}


def test_continuations_under_a_direction_are_listed(tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    probe.make_direction(lm, positive=["good"], negative=["bad"], at="resid_post@1", to=tmp_path / "v.safetensors")
    run = probe.steer(lm, tmp_path / "v.safetensors", prompts=["abc"], matching="a", generate=4, strengths="0,2", controls=3)
    found = panels(run)
    assert found["steering-texts"].frame["text"].tolist() == run.steering.sort_values(["control", "strength"])["text"].tolist()
    assert "over what is written" in found["steering-cost"].measures[0].title
    drawn = found["steering-tokens"].frame
    assert drawn["token"].tolist() == run.steering_tokens[run.steering_tokens["control"] == 0]["token"].tolist()


def over(problems: int) -> Run:
    """Means over problems of both kinds, curves and covariates."""
    writer = store.create(None, command="importance", arguments={})
    texts(writer, problems)
    groups = [("all", ""), ("kind", "fact"), ("kind", "end")]
    behind = {"problems": problems, "steps": 6, "rollouts": 12, "interval": "t"}
    with writer.unit("means"):
        rows = [{"method": m, "grouped_by": g, "value": v, "estimate": 0.1 * i, "ci_low": -1.0, "ci_high": 1.0,
                 "floor": 0.05 if m == "resampling" else None}
                for m in ("resampling", "rescore") for i, (g, v) in enumerate(groups)]  # fmt: skip
        writer.write("importance_means", {"unit": "u", **behind, **columns(rows)})
        rows = [{"metric": m, "grouped_by": g, "value": v, "difference": 0.2 * i, "ci_low": -1.0, "ci_high": 1.0,
                 "null_high": 0.3}
                for m in ("share", "flip_rate") for i, (g, v) in enumerate(groups)]  # fmt: skip
        writer.write("effect_means", {"edit": "delete", **behind, **columns(rows)})
        rows = [{"curve": c, "along": a, "share": s, "estimate": s, "ci_low": 0.0, "ci_high": 1.0}
                for c in ("early-answer", "rollouts") for a in ("steps", "tokens") for s in (0.0, 0.5, 1.0)]  # fmt: skip
        writer.write("curves", {"problems": problems, "interval": "t", **columns(rows)})
        writer.write("covariates", {"method": "resampling", "design": "covariates", "term": ["entropy", "length"], "unit": "u",
                                    "coefficient": [0.5, None], "halves": "crossed", **behind})  # fmt: skip
    area = {
        "curve": "rollouts",
        "what": "what it is",
        "along": "steps",
        "area_over_curve": 0.5,
        "ci_low": None,
        "ci_high": None,
    }
    return writer.finish(summary={"over_problems": {"areas": [area]}})


def test_what_holds_over_problems_stands_with_each_of_the_same_rows() -> None:
    run = over(3)
    views = [panels(run, prompt) for prompt in range(3)]
    (first, *_), whole = views, {view.prompt_id: {p.name: p for p in view.panels} for view in sequence_views(run)}
    kinds, effects, curve = first["importance-means-kind"], first["effect-means-kind"], first["curves-steps"]
    assert isinstance(kinds, Bars) and isinstance(effects, Bars) and isinstance(curve, Lines)
    for name in first:
        if name.startswith(("importance-", "effect-", "curves-", "covariates")):
            same_as_the_table(run, first[name])
            assert whole[0][name].frame is whole[2][name].frame
    assert (kinds.floor, effects.floor, kinds.measure.band) == ("floor", "null_high", ("ci_low", "ci_high"))
    assert set(kinds.frame["value"]) == {"fact", "end"} and "importance-means-all" in first
    assert curve.series == "curve" and curve.measures[0].band == ("ci_low", "ci_high")
    assert "Area over rollouts: 0.500." in curve.note and "0.500" not in first["curves-tokens"].note


def test_sampled_answers_are_counted_problem_by_problem() -> None:
    lm = probe.load("tiny:llama")
    run = probe.sample(lm, ["one two", "three"], samples=8, max_new=5, sampling=probe.Sampling(1.0, seed=3),
                       outcome=("digit=/[0-9]/", "upper=/[A-Z]/"), expect="digit")  # fmt: skip
    for prompt in (0, 1):
        found = panels(run, prompt)
        outcomes = found["outcomes"]
        own = run.branches[run.branches["prompt_id"] == prompt]
        assert outcomes.frame.set_index("outcome")["count"].to_dict() == own["outcome"].value_counts().to_dict()
        is_wilson(outcomes.frame)
        same_as_the_table(run, found["branches"])
        assert sorted(leaf["branch"] for leaf in leaves(found["tree"].root)) == sorted(own["branch"])
        for name in ("sampled", "sampled-accuracy", "sampled-means", "pass-at-k", "sampled-means-table"):
            same_as_the_table(run, found[name])


def test_a_trace_shows_its_steps_and_who_went_back_into_it(tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    source = written(lm)
    found = panels(source)
    assert "tree" not in found and "steps" not in found  # a run in memory stands in no folder; it has no table of steps
    traced = probe.trace(lm, "One. Two. Three.", generate=8, out=tmp_path / "trace")
    assert "tree" not in panels(traced)
    steps = panels(traced)["steps"]
    same_as_the_table(traced, steps)
    assert isinstance(steps, Listing) and {"kind", "text"} <= {c.name for c in steps.columns}
    went = probe.rewind(traced, **EDIT, samples=3, max_new=4, lm=lm, out=tmp_path / "went")
    tree = panels(traced)["tree"]
    assert isinstance(tree, OutcomeTree) and tree.table == "prompts"
    assert not list(leaves(tree.root))  # the branches are the other run's: a click cannot choose one here
    assert [child["label"].split(" ")[0] for child in tree.root["children"]] == ["went"]
    mine = panels(went)["tree"]
    assert sorted(leaf["branch"] for leaf in leaves(mine.root)) == sorted(went.branches["branch"][1:])


def test_a_damaged_run_beside_this_one_is_left_out_and_said(tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    traced = probe.trace(lm, "One. Two. Three.", generate=8, out=tmp_path / "trace")
    went = probe.rewind(traced, **EDIT, samples=3, max_new=4, lm=lm, out=tmp_path / "went")
    again = probe.rewind(went, **EDIT, samples=3, max_new=4, lm=lm, out=tmp_path / "again")
    assert again.path is not None
    (again.path / "branches.parquet").write_bytes(b"PAR1 no table PAR1")
    tree = panels(went)["tree"]
    assert "left out" in tree.note and "damaged" in tree.note
    assert isinstance(tree, OutcomeTree)
    assert sorted(leaf["branch"] for leaf in leaves(tree.root)) == sorted(went.branches["branch"][1:])
