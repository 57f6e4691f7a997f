"""Heat maps of sweeps: each against its table, on models whose circuits were planted, along the tokens of either text."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.reporting.panels import sequence_views
from probe.reporting.views import Grid
from probe.store import Run
from tests.planted import copying, induction, lookup
from tests.test_panels import panels, same_as_the_table

NAMES = ("Mary", "John", "Anna")
PAIRS = [(f"then {a} went in the store", f"then {b} went in the store", a, b) for a, b in itertools.pairwise(NAMES)]
LENGTHS = {"clean": "then the Mary went in the store", "corrupt": "then John went in the store", "answer": "Mary",
           "against": "John"}  # fmt: skip
CIRCUITS = {"induction": induction, "copying": copying, "lookup": lookup}


@pytest.fixture(scope="module", params=CIRCUITS)
def swept(request: pytest.FixtureRequest) -> tuple[Any, Run]:
    """Heads at positions, and the stream, of a model whose circuit is known."""
    found = CIRCUITS[request.param]()
    run = probe.patch(found.lm, clean=found.clean, corrupt=found.corrupt, answer=found.answer, against=found.against,
                      sites="z,resid_pre", heads="all", by="head,pos")  # fmt: skip
    return found, run


def patch_grids(run: Run, prompt: int) -> dict[str, Grid]:
    return {name: panel for name, panel in panels(run, prompt).items() if isinstance(panel, Grid)}


def of_each_prompt(run: Run) -> list[dict[str, Grid]]:
    """The same of all prompts, made together."""
    return [{p.name: p for p in view.panels if isinstance(p, Grid)} for view in sequence_views(run)]


def test_planted_heads_are_what_the_heat_maps_show(swept: tuple[Any, Run]) -> None:
    circuit, run = swept
    for prompt in (0, 1):
        grids = patch_grids(run, prompt)
        heads = grids["patch-z-head"]
        same_as_the_table(run, heads)
        strong = heads.frame[heads.frame["effect"].abs() > 0.2]
        column = heads.follows["token"]
        seen = {head: set(own[column]) for head, own in strong.groupby(["layer", "head"])}
        assert seen == dict(circuit.heads)
        assert (heads.rows.cursor, heads.columns.cursor, heads.upwards) == ("layer", "head", True)
        by_token = grids["patch-z-pos"]
        assert by_token.follows == {"head": "head"} and by_token.frame is heads.frame


def test_the_stream_is_a_map_of_layers_and_tokens_of_both_texts(swept: tuple[Any, Run]) -> None:
    circuit, run = swept
    for prompt in (0, 1):
        grid = patch_grids(run, prompt)["patch-resid-pre-pos"]
        same_as_the_table(run, grid)
        shown = grid.frame.pivot_table(index=grid.rows.column, columns=grid.columns.column, values="effect")
        table = run.patches[run.patches["site"] == "resid_pre"].pivot_table(index="layer", columns="pos", values="effect")
        assert np.array_equal(shown.to_numpy(), table.to_numpy())
        assert {tuple(p) for p in np.argwhere(shown.to_numpy() > 0.2)} == {
            (layer, pos) for layer, positions in enumerate(circuit.stream) for pos in positions
        }
        words = [["<s>", *text.split()] for text in (circuit.clean, circuit.corrupt)]
        labels = grid.columns.labels
        assert labels is not None
        for pos, (a, b) in enumerate(zip(*words, strict=True)):
            assert [w.strip() for w in labels[pos].split(" / ")] == ([a] if a == b else [a, b])
        assert ("clean text" in grid.columns.title, "corrupt text" in grid.columns.title) == (prompt == 0, prompt == 1)


def test_scales_are_centred_and_the_floor_is_said(swept: tuple[Any, Run]) -> None:
    _, run = swept
    grids = patch_grids(run, 1).values()
    floor = run.patches["floor"].iloc[0]
    assert floor > 0
    for grid in grids:
        measures = {m.column: m for m in grid.measures}
        assert list(measures)[:3] == ["effect", "change", "change_in_floors"]
        for name in ("effect", "change", "change_in_floors"):
            one = measures[name]
            assert one.scaling == "diverging" and one.low is not None and one.high is not None and one.low == -one.high
            assert one.high >= grid.frame[name].abs().max()
        assert np.allclose(grid.frame["change_in_floors"], grid.frame["change"] / floor, rtol=1e-12)
        assert f"{floor:.3f}" in grid.note and f"clean {run.patches['clean'].iloc[0]:+.3f}" in grid.note
        assert "Clean put into the corrupt run: 0 is as corrupt, 1 as clean." in grid.note
    assert len({m.high for grid in grids for m in grid.measures if m.column == "effect"}) == 1  # colours can be compared


def test_texts_of_two_lengths_each_have_their_own_positions() -> None:
    lm = copying().lm
    run = probe.patch(lm, **LENGTHS, align="right")
    clean, corrupt = (grids["patch-resid-pre-pos"] for grids in of_each_prompt(run))
    assert (clean.columns.column, corrupt.columns.column) == ("source_pos", "pos")
    assert clean.frame is corrupt.frame  # stands in a page once
    assert clean.columns.labels is not None and corrupt.columns.labels is not None
    assert (clean.frame["source_pos"] == clean.frame["pos"] + 1).all()
    assert clean.columns.labels[3].split(" / ") == corrupt.columns.labels[2].split(" / ") == [" Mary", " John"]
    noised = probe.patch(lm, **LENGTHS, align="right", direction="noise")
    assert [patch_grids(noised, p)["patch-resid-pre-pos"].columns.column for p in (0, 1)] == ["pos", "source_pos"]
    assert "Corrupt put into the clean run: 0 is as clean, 1 as corrupt." in patch_grids(noised, 0)["patch-resid-pre-pos"].note


def test_several_pairs_have_their_mean_with_intervals() -> None:
    circuit = copying()
    run = probe.patch(circuit.lm, pairs=PAIRS, sites="resid_pre,z", heads="all", by="head")
    views = of_each_prompt(run)
    assert len(views) == 4
    for number, grids in enumerate(views):
        own = grids["patch-z-head"]
        same_as_the_table(run, own)
        assert own.where["pair"] == number // 2 and f"of ' {PAIRS[number // 2][2]}' against" in own.note
        mean = grids["patch-means-z-head"]
        same_as_the_table(run, mean)
        assert mean.measures[0].column == "effect" and mean.measures[0].band == ("ci_low", "ci_high")
        assert mean.frame is views[0]["patch-means-z-head"].frame  # stands in a page once
    each = run.patches[run.patches["site"] == "z"].groupby(["layer", "head"])["effect"].mean()
    shown = views[0]["patch-means-z-head"].frame.set_index(["layer", "head"])["effect"]
    assert np.allclose(shown.sort_index(), each.sort_index(), rtol=1e-12)
    strongest = shown.abs().idxmax()
    assert strongest == next(iter(circuit.heads))


def test_means_along_tokens_name_those_of_the_pairs() -> None:
    circuit = copying()
    run = probe.patch(circuit.lm, pairs=PAIRS)
    labels = patch_grids(run, 0)["patch-means-resid-pre-pos"].columns.labels
    assert labels is not None and [one.strip() for one in labels[2].split("|")] == [
        "John",
        "Anna",
    ]  # of the texts that are patched
    assert labels[1] == " then"


@pytest.mark.parametrize("path", ["z@1.3->logits", "z@all->q@2.1", "z@all->q@2.0..3"])
def test_paths_are_shown_as_such_with_their_receivers(path: str) -> None:
    circuit = copying()
    texts = {"clean": circuit.clean, "corrupt": circuit.corrupt, "answer": circuit.answer, "against": circuit.against}
    run = probe.patch(circuit.lm, **texts, path=path)
    grids = patch_grids(run, 1)
    receivers = set(map(str, run.patches["receiver"]))
    assert receivers and "" not in receivers
    for panel in grids.values():
        same_as_the_table(run, panel)
        assert panel.title.startswith("Path") and "direct path alone" in panel.note
    if len(receivers) > 3:
        (panel,) = grids.values()
        assert (panel.rows.column, panel.columns.column) == ("sender", "receiver")
        shown = panel.frame.set_index(["sender", "receiver"])["effect"].to_dict()
        table = {(f"{r.site}@{r.layer}.{r.head}", r.receiver): r.effect for r in run.patches.itertuples()}
        assert shown == table
    else:
        assert {str(panel.where["receiver"]) for panel in grids.values()} == receivers
        assert all(str(panel.where["receiver"]) in panel.title for panel in grids.values())


def test_an_undefined_effect_leaves_the_change_and_says_why() -> None:
    """A model whose logits do not depend on what differs: only the last token is read."""
    lm = probe.load("tiny:llama")
    for layer in lm.model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    run = probe.patch(lm, clean="abcdef", corrupt="abXdef", answer="a", against="b")
    for prompt in (0, 1):
        grid = patch_grids(run, prompt)["patch-resid-pre-pos"]
        assert "effect" not in {m.column for m in grid.measures} and "no effect is defined" in grid.note
        assert grid.measures[0].column == "change" and grid.measures[0].high == run.patches["floor"].iloc[0]  # not rounding


def test_where_texts_hardly_differ_the_change_comes_first() -> None:
    lm = probe.load("tiny:llama")
    run = probe.patch(lm, clean="Xbcdefghijklmnop", corrupt="abcdefghijklmnop", answer="a", against="b")
    assert run.summary["small"] == [0]
    grid = patch_grids(run, 0)["patch-resid-pre-pos"]
    assert [m.column for m in grid.measures][:2] == ["change", "effect"] and "look at the change" in grid.note


def test_zeros_say_that_they_are_put_in() -> None:
    run = probe.patch(probe.load("tiny:llama"), clean="abcd", corrupt="abXd", answer="a", metric="kl", source="zero")
    assert "Zeros put into the clean run" in patch_grids(run, 0)["patch-resid-pre-pos"].note


def test_an_estimate_from_a_gradient_says_so() -> None:
    circuit = copying()
    run = probe.patch(circuit.lm, clean=circuit.clean, corrupt=circuit.corrupt, answer=circuit.answer, against=circuit.against,
                      method="attribution", sample=10)  # fmt: skip
    grid = patch_grids(run, 1)["patch-resid-pre-pos"]
    assert "Estimated from the gradient" in grid.note and "10 exact patches" in grid.note
    assert "exact" in {m.column for m in grid.measures} and grid.frame["exact"].notna().sum() == 10
