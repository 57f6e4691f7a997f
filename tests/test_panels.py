"""What the panels show is what the tables of the run say: compared by pandas, on runs of every kind that has them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import probe
from probe.errors import BadOption
from probe.reporting.panels import sequence_views
from probe.reporting.panels.comparing import finite_high
from probe.reporting.views import Axis, Bars, Listing, Panel, TokenStrip
from probe.store import Run, open_run


@pytest.fixture(scope="module")
def lm():
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def traced(lm, tmp_path_factory) -> Run:
    """Two prompts, one of them broken, with half characters; sampled."""
    prompts = ["Ünï 😀 and </script>", ""]
    sampling = probe.Sampling(temperature=1.0, seed=3)
    out = tmp_path_factory.mktemp("look") / "traced"
    return probe.trace(lm, prompts, generate=6, sampling=sampling, out=out)


@pytest.fixture(scope="module")
def full(lm, tmp_path_factory) -> Run:
    """A trace with everything that a trace can hold."""
    return probe.trace(
        lm, "ab ab ab", generate=4, sampling=probe.Sampling(temperature=0.9, top_k=20, top_p=0.8, seed=1), lens=True,
        attention="full", capture=["resid_post@all", "z@1", "embed"], explain="completion", order="all",
        answers=["x", "yz"], calibrate=True, out=tmp_path_factory.mktemp("look") / "full",
    )  # fmt: skip


def panels(run: Run, prompt: int = 0, **options) -> dict[str, Panel]:
    (view,) = sequence_views(run, prompts=[prompt], **options)
    names = [panel.name for panel in view.panels]
    assert len(set(names)) == len(names)
    return {panel.name: panel for panel in view.panels}


def same_as_the_table(run: Run, panel: Panel) -> None:
    """The panel's own columns are the rows of the table that `where` names, in some order."""
    table = run.table(panel.table)
    for column, value in panel.where.items():
        table = table[table[column].isin(value) if isinstance(value, list | tuple) else table[column] == value]
    own = [name for name in panel.frame if name not in panel.derived]
    assert set(own) <= set(table)
    keys = [k for k in own if k in probe.tables.TABLES[panel.table].keys]
    left, right = (f[own].sort_values(keys, kind="stable", ignore_index=True) for f in (panel.frame, table))
    pd.testing.assert_frame_equal(left, right, check_categorical=False, check_like=True)


def test_the_strip_is_the_table_of_tokens(traced: Run) -> None:
    strip = panels(traced)["tokens"]
    assert isinstance(strip, TokenStrip)
    same_as_the_table(traced, strip)
    numbers = {m.column for m in strip.measures}
    assert numbers >= {"logprob", "entropy", "rank", "prob", "surprisal", "sample_logprob", "kept", "noise"}
    assert strip.measures[0].unit == "nats"


def test_alternatives_are_texts_by_the_runs_own_tokenizer(traced: Run, lm) -> None:
    strip = panels(traced)["tokens"]
    assert isinstance(strip, TokenStrip)
    assert strip.alternatives == ("top_tokens", "top_logprobs")
    for ids, texts in zip(strip.frame["top_ids"], strip.frame["top_tokens"], strict=True):
        assert (ids is None) == (texts is None)
        assert ids is None or texts == [lm.token_text(i) for i in ids]


def test_half_characters_stand_as_their_bytes(traced: Run, lm) -> None:
    strip = panels(traced)["tokens"].frame
    labels = lm.labels(strip["token_id"].tolist())
    assert strip["shown"].fillna(strip["token"]).tolist() == labels
    assert "<0xF0>" in labels and "<0x80>" in labels


def test_a_prompt_that_failed_stands_with_its_reason(traced: Run) -> None:
    strip = panels(traced, 1)["tokens"]
    same_as_the_table(traced, strip)
    assert traced.prompts["error"][1] in strip.note


def test_without_the_tokenizer_tokens_are_ids_and_the_note_says_so(traced: Run) -> None:
    elsewhere = open_run(traced.path)
    elsewhere.manifest["model"] = {**elsewhere.manifest["model"], "name": "nobody/has-this"}
    strip = panels(elsewhere)["tokens"]
    assert strip.frame["top_tokens"][1] == [f"#{i}" for i in strip.frame["top_ids"][1]]
    assert "nobody/has-this" in strip.note


def test_another_tokenizer_under_the_same_name_is_not_used(traced: Run) -> None:
    """Its ids would mean other texts."""
    other = open_run(traced.path)
    other.manifest["model"] = {**other.manifest["model"], "tokenizer_sha256": "0" * 64}
    assert "not the one that made the run" in panels(other)["tokens"].note


def test_a_run_in_memory_has_the_same_panels(lm) -> None:
    run = probe.trace(lm, "a b", out=None)
    assert run.path is None
    same_as_the_table(run, panels(run)["tokens"])


def test_prompts_are_chosen_and_others_are_refused(traced: Run) -> None:
    assert [view.prompt_id for view in sequence_views(traced)] == [0, 1]
    assert [view.prompt_id for view in sequence_views(traced, prompts=[1])] == [1]
    with pytest.raises(BadOption, match="no prompt 7"):
        sequence_views(traced, prompts=[7])


def test_a_strip_of_the_real_model_reads_back_its_text(smollm2, tmp_path: Path) -> None:
    run = probe.trace(smollm2, "The capital of France is", out=tmp_path / "r")
    strip = panels(run)["tokens"]
    assert "".join(strip.frame["token"]) == run.text()
    ids = torch.tensor([strip.frame["token_id"].tolist()])
    best = smollm2.model(ids).logits[0, :-1].argmax(-1)
    assert [texts[0] for texts in strip.frame["top_tokens"][1:]] == [smollm2.tokenizer.decode([i]) for i in best]


def test_every_panel_of_a_full_trace_is_its_table(full: Run) -> None:
    shown = panels(full)
    for panel in shown.values():
        same_as_the_table(full, panel)
    kinds = {name: panel.kind for name, panel in shown.items()}
    assert kinds == {
        "tokens": "tokens", "stages": "listing", "candidates": "bars", "candidate-list": "listing", "answers": "bars",
        "answer-list": "listing", "lens": "grid", "heads": "grid", "patterns": "patterns", "attention-rows": "grid",
        "attention-shares": "lines", "norms": "lines", "norms-resid-post": "grid", "norms-embed": "grid",
        "norms-z-heads": "grid", "table-prompts": "listing",
        "steps": "listing", "step-entropy": "bars",
    }  # fmt: skip
    assert {panel.table for panel in shown.values()} == set(full.tables)


def test_columns_that_panels_name_are_there(full: Run) -> None:
    """Measures, axes, texts and what they follow: a page would draw nothing of a column that is not."""
    for panel in panels(full).values():
        named = [m.column for m in getattr(panel, "measures", ())] + list(panel.derived) + list(panel.follows.values())
        for part in ("rows", "columns", "axis"):
            axis = getattr(panel, part, None)
            named += [axis.column] if isinstance(axis, Axis) else []
        if isinstance(panel, Listing):
            named += [column.name for column in panel.columns]
        if isinstance(panel, Bars):
            named += [panel.measure.column]
        assert set(named) <= set(panel.frame), panel.name


def test_the_lens_says_what_a_plain_model_says(full: Run, lm) -> None:
    """Each layer's stream, as the model itself gives it, through its norm and head, in float64."""
    frame = panels(full)["lens"].frame
    ids = torch.tensor([full.tokens["token_id"].tolist()])
    model = copy.deepcopy(lm.model).double()
    with torch.no_grad():
        streams: list[torch.Tensor] = []
        hooks = [layer.register_forward_hook(lambda _, __, out: streams.append(out)) for layer in model.model.layers]
        model(ids)
        for hook in hooks:
            hook.remove()
        for layer, stream in enumerate(streams):
            chances = model.lm_head(model.model.norm(stream))[0].softmax(-1)
            rows = frame[frame["layer"] == layer].sort_values("pos")
            np.testing.assert_allclose(rows["top_prob"], chances.max(-1).values, rtol=1e-4)
            assert rows["top"].tolist() == [lm.token_text(int(i)) for i in chances.argmax(-1)]
            of_next = chances[:-1].gather(-1, ids[0, 1:, None])[:, 0]
            np.testing.assert_allclose(rows["prob_of_target"][:-1], of_next, rtol=1e-4)
            greater = (chances[:-1] > of_next[:, None]).sum(-1)
            assert rows["rank_of_target"][:-1].tolist() == greater.tolist()
            assert rows[["prob_of_target", "rank_of_target", "target"]].iloc[-1].isna().all()


def test_bytes_that_a_stage_took_out_are_named(full: Run, lm) -> None:
    stages = panels(full)["stages"].frame
    cut = stages[stages["name"] == "top_k"]
    assert len(cut)
    for ids, named in zip(cut["removed_ids"], cut["first_removed"], strict=True):
        assert named.startswith(", ".join(repr(lm.token_text(i)) for i in ids[:8]))


def test_top_k_attention_says_how_much_it_kept(lm, tmp_path: Path) -> None:
    run = probe.trace(lm, "some words to look at", attention="topk:2", out=tmp_path / "r")
    whole = probe.trace(lm, "some words to look at", attention="full", out=tmp_path / "w")
    kept = [sum(sorted(weights)[-2:]) for weights in whole.table("attention")["weights"]]
    panel = panels(run)["patterns"]
    assert f"The 2 largest weights of each row were kept: {np.mean(kept):.0%} of its mass on average" in panel.note
    assert f"{min(kept):.0%} in the worst row" in panel.note
    assert "all there" in panels(whole)["patterns"].note


def test_a_head_that_cannot_tell_its_keys_apart_looks_at_all_alike(lm, tmp_path: Path) -> None:
    """Planted: without queries every score is 0, and a row of q + 1 keys has weights 1 / (q + 1) and entropy ln(q + 1)."""
    run = probe.trace(lm, "abcdefg", attention="full", edit=["q@1=zero"], out=tmp_path / "r")
    shown = panels(run)
    patterns = shown["patterns"].frame
    for row in patterns[patterns["layer"] == 1].itertuples():
        np.testing.assert_allclose(row.weights, 1 / (row.query + 1), rtol=1e-6)
    rows = shown["attention-rows"].frame
    flat = rows[rows["layer"] == 1]
    np.testing.assert_allclose(flat["entropy"], np.log(flat["query"] + 1.0), atol=1e-6)
    card = shown["heads"].frame
    n = len(run.tokens)
    np.testing.assert_allclose(card[card["layer"] == 1]["sink"], np.mean(1 / np.arange(2.0, n + 1)), rtol=1e-5)


def test_an_edit_shows_from_its_layer_on(lm, tmp_path: Path) -> None:
    """Planted: what is done to layer 1 leaves layer 0 as it was, to the last bit."""
    run = probe.compare(lm, lm, "planted text", edit=["mlp_out@1=zero"], out=tmp_path / "r")
    apart = panels(run)["distance-resid-post"].frame.set_index("layer")["distance"]
    assert apart[0] == 0.0 and apart[1] > 0.0 and apart[2] > 0.0


def test_a_draft_that_is_the_target_is_accepted_throughout(lm, tmp_path: Path) -> None:
    run = probe.speculate(lm, "abc", draft=lm, generate=12, block="3", out=tmp_path / "r")
    strip = panels(run)["tokens"].frame
    drawn = strip[strip["segment"] == "completion"]
    assert set(drawn["verdict"]) == {"accepted", "bonus"}
    assert (drawn.loc[drawn["verdict"] == "accepted", "accept_prob"] == 1.0).all()


def test_no_vector_and_no_pattern_is_read_that_is_not_shown(full: Run, monkeypatch) -> None:
    """Of 5,000 tokens all patterns are 13 GB."""
    scans = []
    scan = Run.scan

    def watched(run: Run, name: str, *, columns=None, **where):
        scans.append((name, columns, where))
        return scan(run, name, columns=columns, **where)

    monkeypatch.setattr(Run, "scan", watched)
    sequence_views(full, heads=[(1, 2)])
    of_patterns = [where for name, columns, where in scans if name == "attention" and (columns is None or "weights" in columns)]
    assert of_patterns == [{"prompt_id": 0, "branch": 0, "layer": 1, "head": [2]}]
    assert all(columns and "vector" not in columns for name, columns, _ in scans if name == "activations")


def test_heads_are_those_asked_for(full: Run) -> None:
    panel = panels(full, heads=[(1, None), (2, 0)])["patterns"]
    there = set(zip(panel.frame["layer"], panel.frame["head"], strict=True))
    n_heads = int(full.heads["head"].max()) + 1
    assert there == {(1, head) for head in range(n_heads)} | {(2, 0)}
    assert f"{n_heads + 1} of the {3 * n_heads} heads" in panel.note
    same_as_the_table(full, panels(full, heads=[(1, 1)])["patterns"])
    with pytest.raises(BadOption, match=r"no attention pattern of 9\.all"):
        sequence_views(full, heads=[(9, None)])


def test_of_more_heads_than_fit_those_stand_that_look_least_at_the_first_token(full: Run, monkeypatch) -> None:
    n = len(full.tokens)
    monkeypatch.setattr("probe.reporting.panels.attention.WEIGHTS", 3 * n * (n + 1) // 2)
    frame = panels(full)["patterns"].frame
    there = set(zip(frame["layer"], frame["head"], strict=True))
    least = full.heads.nsmallest(3, "sink")
    assert there == set(zip(least["layer"], least["head"], strict=True))


def test_norms_are_lengths_of_the_activations(full: Run) -> None:
    frame = panels(full)["norms-resid-post"].frame
    assert "vector" not in frame
    for layer in range(3):
        rows = frame[frame["layer"] == layer].sort_values("pos")
        lengths = np.linalg.norm(full.activation("resid_post", layer).astype(np.float64), axis=-1)
        np.testing.assert_allclose(rows["norm"], lengths, rtol=1e-5)


def test_of_a_chat_the_strip_says_what_the_template_wrote(smollm2, tmp_path: Path) -> None:
    run = probe.trace(smollm2, "Hi", chat=True, out=tmp_path / "r")
    strip = panels(run)["tokens"]
    assert isinstance(strip, TokenStrip)
    assert "template" in {measure.column for measure in strip.measures}
    own = strip.frame[strip.frame["template"] == False]  # noqa: E712
    assert "".join(own["token"]) == "Hi"


def test_of_a_compared_text_the_strip_is_the_comparison(lm, tmp_path: Path) -> None:
    run = probe.compare(lm, lm, ["a text é", "another"], edit=["mlp_out@1=zero"], out=tmp_path / "r")
    for prompt in (0, 1):
        shown = panels(run, prompt)
        assert next(iter(shown)) == "tokens"
        for panel in shown.values():
            same_as_the_table(run, panel)
        by = shown["differing"].frame["js"].dropna()
        assert by.is_monotonic_decreasing and by.iloc[0] > 0
        assert "B - A" in shown["tokens"].note and "mlp_out@1=zero" in shown["tokens"].note
    first, second = (panels(run, prompt)["similarity"] for prompt in (0, 1))
    assert first.frame.equals(second.frame)
    views = sequence_views(run)
    one, other = ({p.name: p.frame for p in view.panels} for view in views)
    assert one["similarity-resid-post"] is other["similarity-resid-post"]  # a page holds it once
    best = shown["tokens"].frame
    assert best["top_b_token"].iloc[1:].tolist() == [lm.token_text(int(i)) for i in best["top_b"].iloc[1:]]


def test_of_two_vocabularies_the_strip_is_the_segments(lm, smollm2, tmp_path: Path) -> None:
    run = probe.compare(smollm2, lm, "one two three", out=tmp_path / "r")
    shown = panels(run)
    same_as_the_table(run, shown["differing"])
    strip = shown["tokens"]
    assert "".join(strip.frame["token"]) == " two three"  # nothing predicts a first token
    assert strip.frame["pos"].tolist() == list(range(len(run.segments)))


def test_a_text_that_could_not_be_compared_stands_with_its_reason(lm, tmp_path: Path) -> None:
    run = probe.compare(lm, lm, ["ok then", ""], out=tmp_path / "r")
    assert run.prompts["error"][1] in panels(run, 1)["tokens"].note


def test_an_infinite_divergence_leaves_the_scale_finite() -> None:
    """A draft that cannot say what the target can: KL is infinite there, and the others are still to be told apart."""
    assert finite_high(pd.Series([0.5, np.inf, 2.0, np.nan])) == 2.0
    assert finite_high(pd.Series([np.inf])) is None


def test_verdicts_stand_at_the_tokens_that_they_decided(lm, tmp_path: Path) -> None:
    sampling = probe.Sampling(temperature=1.0, seed=5)
    run = probe.speculate(lm, "abc", draft="layers:1", generate=24, block="3", sampling=sampling, out=tmp_path / "r")
    shown = panels(run)
    for panel in shown.values():
        same_as_the_table(run, panel)
    strip = shown["tokens"].frame.set_index("pos")
    proposals = run.proposals
    assert strip.loc[strip["segment"] == "prompt", "verdict"].isna().all()
    drawn = strip[strip["segment"] == "completion"]
    assert {"accepted", "rejected"} <= set(drawn["verdict"])
    for pos, row in drawn.iterrows():
        (one,) = [p for p in proposals[proposals["pos"] == pos].itertuples() if p.verdict != "discarded"]
        stands = one.correction_id if one.verdict == "rejected" else one.token_id
        assert row["verdict"] == one.verdict and row["token_id"] == stands


def test_an_attribution_says_which_way_is_up_and_its_sources_sum_to_the_heads(lm, tmp_path: Path) -> None:
    run = probe.attribute(lm, "abc de", answer="x", against="y", by_source=True, out=tmp_path / "r")
    shown = panels(run)
    for name, panel in shown.items():
        if name != "tokens":
            same_as_the_table(run, panel)
    note = shown["attribution-heads"].note
    assert "'x'" in note and "less that of 'y'" in note and "towards the answer" in note
    strip = shown["tokens"].frame
    assert "".join(strip["token"][1:]) == "abc de"
    heads = run.attribution[run.attribution["head"] >= 0]["contribution"].sum()
    np.testing.assert_allclose(strip["read_here"].sum(), heads, rtol=1e-6)
    assert (shown["attribution-strongest"].frame["contribution"].abs().diff().dropna() <= 0).all()


def test_of_several_positions_the_cursor_says_which(lm, tmp_path: Path) -> None:
    run = probe.attribute(lm, "abc", answer="x", position="all", out=tmp_path / "r")
    shown = panels(run)
    assert shown["attribution-heads"].follows == {"token": "pos"}
    same_as_the_table(run, shown["attribution-heads"])


def test_a_run_without_tokens_has_those_of_its_parent_or_its_text(lm, full: Run, tmp_path: Path) -> None:
    run = probe.attribute(lm, full, answer="x", out=tmp_path / "r")
    strip = panels(run)["tokens"]
    assert strip.frame["token"].tolist() == full.tokens["token"].tolist()
    assert full.run_id in strip.note
    assert isinstance(strip, TokenStrip) and {"logprob", "entropy"} <= {measure.column for measure in strip.measures}
    np.testing.assert_array_equal(strip.frame["logprob"], full.tokens["logprob"])
    alone = open_run(run.path)
    alone.manifest["parent"] = {"run": "other", "path": str(tmp_path / "gone")}
    alone.manifest["model"] = {**alone.manifest["model"], "name": "nobody/has-this"}
    whole = panels(alone)["tokens"]
    assert whole.frame["token"].tolist() == [full.prompts["rendered"][0]]
    assert "no tokens" in whole.note


def test_a_branch_that_was_read_has_its_own_tokens(lm, full: Run, tmp_path: Path) -> None:
    """Not those of the original, which is the branch that the parent's strip shows."""
    rewound = probe.rewind(full, lm=lm, to="step0", replace="new", samples=2, max_new=3, out=tmp_path / "rewound")
    branch = int(rewound.branches["branch"].max())
    run = probe.attribute(lm, rewound, answer="x", branch=branch, out=tmp_path / "r")
    strip = panels(run)["tokens"].frame
    assert strip["token_id"].tolist() == run.manifest["resolved"]["ids"]
    assert strip["token_id"].tolist() != full.tokens["token_id"].tolist()


def test_the_only_prompt_of_a_run_can_have_any_number(lm, tmp_path: Path) -> None:
    traced = probe.trace(lm, ["first", "second"], out=tmp_path / "two")
    run = probe.attribute(lm, traced, answer="x", prompt_id=1, out=tmp_path / "r")
    (view,) = sequence_views(run)
    assert view.prompt_id == 1 and view.title == "second"
    assert "".join(view.panels[0].frame["token"][1:]) == "second"


def test_what_no_panel_draws_stands_as_a_list(lm, tmp_path: Path) -> None:
    run = probe.trace(lm, "abc", capture=["scores@0"], out=tmp_path / "r")
    listed = panels(run)["table-scores"]
    assert len(listed.frame) == len(run.table("scores"))
    assert "scores" not in listed.frame  # a list of numbers is no cell
    same_as_the_table(run, listed)


def test_a_run_that_kept_no_best_tokens_offers_none(lm, tmp_path: Path) -> None:
    run = probe.trace(lm, "abc", top=0, lens=True, out=tmp_path / "r")
    shown = panels(run)
    strip, grid = shown["tokens"], shown["lens"]
    assert isinstance(strip, TokenStrip) and strip.alternatives is None
    assert "top_prob" not in {measure.column for measure in grid.measures} and grid.frame["top"].isna().all()
    same_as_the_table(run, grid)


def test_frames_of_several_prompts_are_their_own(lm, tmp_path: Path) -> None:
    run = probe.trace(lm, ["one", "another text"], lens=True, attention="topk:3", out=tmp_path / "r")
    for prompt in (0, 1):
        for panel in panels(run, prompt).values():
            same_as_the_table(run, panel)
            assert set(panel.frame["prompt_id"]) == {prompt}
