"""`probe.rewind`: null edits are nothing, arms share noise, a kill loses nothing, numbers agree with fresh forwards."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import probe
from probe.decoding.teacher_forced import Prefix
from probe.errors import BadOption, OutOfRange, ProbeError, RunError
from probe.instrument import recording
from probe.language_model.following import ids_after
from probe.registries.step_edits import NUMERAL, STEP_EDITS
from probe.requests import Rewind
from probe.rewinding.arms import find_target, respelled
from probe.rewinding.preparing import opened_for, origin_of, plans_of
from probe.rewinding.teacher_forced import off_policy, rescore
from probe.texts import trajectory

TEXT = "First we count all apples here. There are 12 apples. Then we add 7 more. So there are 19 apples in all."


def written(lm, text: str = TEXT, prompt: str = "Q: how many?\n", stop: tuple[str, ...] = ()):
    """A run whose completion is a given text: a model's own generation, as far as a rewind can tell."""
    from probe.store import create
    from probe.texts import token_columns

    ids = list(lm.encode(prompt).ids)
    n_prompt = len(ids)
    ids += lm.ids_of(text)
    with create(
        None, command="trace", arguments={"generate": 24, "sampling": {"temperature": 1.0, "stop": list(stop)}}
    ) as writer:
        with writer.unit("all"):
            writer.write("prompts", {"prompt_id": [0], "text": [prompt], "n_tokens": [n_prompt], "error": [""]})
            writer.write("tokens", token_columns(0, ids, lm.pieces(ids), n_prompt))
        return writer.finish(summary={}, model=lm.identity)


def prepared(lm, run, **what):
    """The plan of a rewind."""
    request = Rewind(run, lm=lm, **what)
    opened = opened_for(request)
    (plan,) = plans_of(origin_of(opened, opened.prompts[0]), request)
    return plan


def same_tables(ours, theirs) -> None:
    """The same rows, tokens and texts; log-probs to fp32 rounding, since other rows ran beside them."""
    assert ours.tables == theirs.tables
    for name in theirs.tables:
        a, b = (run.table(name).drop(columns=["run_id"]) for run in (ours, theirs))
        pd.testing.assert_frame_equal(a, b, check_exact=False, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def run(tiny):
    return written(tiny)


def test_places(run, tiny) -> None:
    original = trajectory(run, tiny)
    assert [s.text.strip() for s in original.steps] == [
        "First we count all apples here.", "There are 12 apples.", "Then we add 7 more.", "So there are 19 apples in all.",
    ]  # fmt: skip
    text = lambda to: tiny.pieces(original.ids[(t := find_target(original, to)).start : t.end]).text  # noqa: E731
    assert text("step1").strip() == text("step-3").strip() == "There are 12 apples."
    assert "19" in text("tok=19") and "12" in text("regex=/\\d+/") and text("tok=apples#2").strip() == "apples"
    at = original.steps[2].start
    assert find_target(original, str(at))[:3] == (at, at + 1, 2)
    for to, error, said in (
        ("step4", OutOfRange, "0..3"), ("step-5", OutOfRange, "0..3"), ("0", OutOfRange, "generated"),
        ("tok=pears", OutOfRange, "pears"),
        ("tok=apples", BadOption, "3 times"), ("tok=apples#9", OutOfRange, "3 times"), ("regex=/(/", BadOption, "regular"),
        ("regex=/zebra/", OutOfRange, "zebra"), ("stepx", BadOption, "step4"), ("tok=", BadOption, "step4"),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            find_target(original, to)
        assert said in caught.value.message + caught.value.hint, to


def test_own_spans(run, tiny, tmp_path: Path) -> None:
    text = trajectory(run, tiny).completion
    middle = text.index("Then")
    (tmp_path / "own.json").write_text(json.dumps([[0, middle], [middle, len(text)]]))
    steps = trajectory(run, tiny, split=f"spans:{tmp_path / 'own.json'}").steps
    assert [step.text for step in steps] == [text[:middle], text[middle:]]
    for spans, said in (
        ([[0, 5]], "end at 5"), ([[0, 5], [7, len(text)]], "gap"), ([["a", 2]], "no spans"), ({}, "no spans"), ([], "no spans"),
    ):  # fmt: skip
        (tmp_path / "own.json").write_text(json.dumps(spans))
        with pytest.raises(BadOption, match=said):
            trajectory(run, tiny, split=f"spans:{tmp_path / 'own.json'}")
    with pytest.raises(BadOption, match="cannot read"):
        trajectory(run, tiny, split="spans:nowhere.json")


def test_words_are_spelled_in_context(tiny, smollm2) -> None:
    for lm in (tiny, smollm2):
        before = lm.encode("Alice has 3 app").ids
        for text in ("les and", " pears.", "\n\nSo", " naïve 𝄞", "7", " 12,345"):
            assert lm.pieces([*before, *ids_after(lm, before, text)]).text == lm.pieces(before).text + text
        old = lm.ids_of(" Then 3 - 4 = 5 apples.\n\n")
        new = respelled(lm, before, old, " Then 3 - 4 = 6 apples.\n\n")
        assert len(new) == len(old) and sum(a != b for a, b in zip(old, new, strict=True)) == 1


def edited_number(lm, text: str, seed: int) -> tuple[str, int]:
    """The last step after `--numbers`, and by how many tokens it is longer."""
    plan = prepared(lm, written(lm, text), to="step-1", numbers=True, seed=seed)
    return lm.pieces(plan.arms.new).text, len(plan.arms.new) - len(plan.arms.old)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_a_number_can_always_be_another_one(model: str, request) -> None:
    lm = request.getfixturevalue(model)
    free, every, wide = ("We add 3 and 4. It is 7.", "We see 0 1 2 3 4 5 6 8 9 here. It is 7.", "It is 12 or 34. So it is 56.")
    for seed in range(8):
        (said, longer), number = edited_number(lm, free, seed), lambda text: NUMERAL.findall(text)[-1]
        assert number(said) not in ("3", "4", "7") and longer == 0
        (said, longer) = edited_number(lm, every, seed)
        assert number(said) != "7" and len(number(said)) == 1 and longer == 0
        (said, longer) = edited_number(lm, wide, seed)
        assert number(said) not in ("12", "34", "56") and len(number(said)) == 2 and longer == 0


def test_a_swapped_step_is_of_the_prompt_branch_and_cut_that_were_named(tiny, tmp_path: Path) -> None:
    probe.trace(tiny, ["One prompt.", "And another."], generate=24, out=tmp_path / "two:runs")
    two = probe.open_run(tmp_path / "two:runs")
    drawn = probe.rewind(two, lm=tiny, to="step0", prompt_id=1, samples=2, max_new=20, out=tmp_path / "drawn")
    here = written(tiny)
    for other, what in (
        (two, {"swap_prompt": 1}), (drawn, {"swap_branch": 1}), (drawn, {"swap_branch": 4}),
        (two, {"swap_prompt": 0, "swap_split": "regex:[a-z]"}),
    ):  # fmt: skip
        plan = prepared(tiny, here, to="step1", swap=f"{other.path}:step0", **what)
        there = trajectory(
            other,
            tiny,
            prompt_id=what.get("swap_prompt"),
            branch=what.get("swap_branch", 0),
            split=what.get("swap_split", "sentence"),
        )
        step = there.steps[0]
        assert list(plan.arms.new) == [i for i in there.ids[step.start : step.end] if i not in tiny.eos_ids]
        assert plan.request.arguments()["swap_branch"] == what.get("swap_branch")
    with pytest.raises(RunError, match="2 prompts"):
        prepared(tiny, here, to="step1", swap=f"{two.path}:step0")
    with pytest.raises(BadOption, match="--swap-branch is for --swap"):
        prepared(tiny, here, to="step1", swap_branch=1)


def test_spans_that_do_not_fit_are_refused_before_anything_is_drawn(run, tiny, tmp_path: Path, monkeypatch) -> None:
    own = tmp_path / "own.json"
    text = trajectory(run, tiny).completion
    own.write_text(json.dumps([[0, 40], [40, len(text)]]))
    what = {"lm": tiny, "to": "step1", "split": f"spans:{own}", "samples": 20, "max_new": 4}
    assert probe.rewind(run, replace="Now we add 8.", **what).summary["off_policy"]["own_steps"] >= 20
    probe.rewind(run, resample_until_different=True, **what)
    own.write_text(json.dumps([[0, 40], [40, 3 + len(text)]]))  # a prompt's text begins with <s>
    probe.trace(tiny, text, split=f"spans:{own}", attention="none")

    def drawn(*a, **b):
        raise AssertionError("drew")

    monkeypatch.setattr("probe.tracing.recording.decode", drawn)
    monkeypatch.setattr("probe.tracing.recording.read_sequences", drawn)
    with pytest.raises(BadOption, match="not written yet"):
        probe.trace(tiny, text, generate=4, split=f"spans:{own}", out=tmp_path / "a")
    with pytest.raises(BadOption, match="the text at"):
        probe.trace(tiny, text + " more", split=f"spans:{own}", out=tmp_path / "a")
    assert not list(tmp_path.glob("a*"))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [" in all.", "all.", "."])
def test_nothing_is_drawn_after_a_stop_text(stop: str, tiny) -> None:
    """A run that ended by --stop ends there again: its last boundary is over, others are not."""
    from probe.decoding import Sampling
    from probe.step_importance import boundaries

    text = "First we count all apples here\n\nThere are 12 apples\n\nSo there are 19 apples in all."
    sampling = Sampling(1.0, stop=(stop,), seed=3)
    for run in (written(tiny, text, stop=(stop,)), written(tiny, text)):  # stop texts of the run's, or given now
        original = trajectory(run, tiny)
        rollout = prepared(tiny, run, to="step0", sampling=sampling, max_new=8).rollout
        over = [rollout.is_over(tiny, arm.prefix, arm.n_prompt) for arm in boundaries.arms(tiny, original)]
        assert over == [False, False, False, True]
        done = probe.importance(run, lm=tiny, method="resampling", samples=4, max_new=8, sampling=sampling)
        last = done.branches[done.branches["arm"] == "boundary-3"]
        assert set(last["stop_reason"]) == {"stop"} and set(last["n_tokens"]) == {0} and set(last["outcome"]) == {"19"}
        assert (done.branches.loc[done.branches["arm"] == "boundary-2", "n_tokens"] > 0).all()
        kept = probe.rewind(run, lm=tiny, to="step2", append_wait=True, samples=4, max_new=8, sampling=sampling).branches
        assert set(kept.loc[kept["arm"] == "control", "n_tokens"]) == {0}
        assert (kept.loc[kept["arm"] == "edited", "n_tokens"] > 0).all()


def test_a_stop_text_that_is_given_now_ends_no_older_step(tiny) -> None:
    """`--stop "\\n\\n"` asks for one more paragraph, from a place where one has just ended."""
    from probe.decoding import Sampling
    from probe.step_importance import boundaries

    run = written(tiny, "First we count\n\nThen we add\n\n")
    original = trajectory(run, tiny)
    rollout = prepared(tiny, run, to="step0", sampling=Sampling(1.0, stop=("\n\n",)), max_new=8).rollout
    over = [rollout.is_over(tiny, arm.prefix, arm.n_prompt) for arm in boundaries.arms(tiny, original)]
    assert over == [False, False, True]


def test_steps_of_what_a_rewind_drew(run, tiny) -> None:
    from probe.texts import steps_of

    done = probe.rewind(run, lm=tiny, to="step1", replace="Now we add 8.", samples=2, max_new=9)
    table = steps_of(done)
    assert set(table["branch"]) == {0, *done.branches["branch"]}
    for branch in (0, 1, 2, 4, 5):
        whole = trajectory(done, tiny, branch=branch)
        own = steps_of(done, branch=branch)
        pd.testing.assert_frame_equal(own, table[table["branch"] == branch].reset_index(drop=True))
        assert own["text"].tolist() == [step.text for step in whole.steps]
        assert own[["start", "end"]].values.tolist() == [[step.start, step.end] for step in whole.steps]
    drawn = table[table["branch"] == 1].iloc[-1]
    assert pd.isna(drawn["logprob"]) and pd.isna(drawn["mean_entropy"])  # they were drawn, and not scored
    with pytest.raises(RunError, match="branch 99"):
        steps_of(done, branch=99)
    again = probe.rewind(done, lm=tiny, to="-1", branch=1, samples=2, max_new=3)
    assert "".join(steps_of(again, branch=1)["text"]) == trajectory(again, tiny, branch=1).completion


@pytest.mark.parametrize("split", ["sentence", "line", "paragraph", "token", "regex:a"])
def test_a_cut_never_changes_the_ids(split: str, run, tiny) -> None:
    """Steps are spans over tokens that are there: cut in any way, ids, offsets and text stay, and steps tile them."""
    from probe.texts import steps_of

    ids, text = list(trajectory(run, tiny).ids), trajectory(run, tiny).text
    before = run.tokens.copy()
    cut = trajectory(run, tiny, split=split)
    assert list(cut.ids) == ids and cut.text == text
    assert [i for step in cut.steps for i in ids[step.start : step.end]] == ids[cut.n_prompt :]
    assert "".join(step.text for step in cut.steps) == cut.completion
    assert steps_of(run, split=split)[["start", "end"]].values.tolist() == [[s.start, s.end] for s in cut.steps]
    pd.testing.assert_frame_equal(run.tokens, before)


def test_a_null_edit_is_exactly_nothing(run, tiny) -> None:
    text = trajectory(run, tiny).steps[1].text
    done = probe.rewind(run, lm=tiny, to="step1", replace=text, samples=12, max_new=10)
    branches = done.branches.set_index(["arm", "sample"])
    assert done.summary["old"] == done.summary["new"]
    for sample in range(12):
        assert branches.loc[("control", sample), "text"] == branches.loc[("edited", sample), "text"]
    effects = done.effects.set_index(["metric", "outcome"])
    assert (effects.loc["share", ["difference"]] == 0).all().all()
    for metric in ("total_variation", "jensen_shannon", "kl_jeffreys", "flip_rate", "tokens"):
        assert float(effects.loc[(metric, ""), "difference"]) == 0.0
    assert (done.rescored["difference"] == 0).all()


def test_a_branch_is_what_decoding_its_prefix_gives(run, tiny) -> None:
    from probe.decoding import decode

    plan = prepared(tiny, run, to="step2", replace="Then we add 8 more.", samples=5, max_new=9)
    done = probe.rewind(run, lm=tiny, to="step2", replace="Then we add 8 more.", samples=5, max_new=9)
    for row in done.branches[done.branches["arm"] == "edited"].itertuples():
        (alone,) = decode(tiny, [plan.arms.edited], max_new=9, sampling=plan.rollout.sampling, samples=[row.sample])
        own = done.tokens[(done.tokens["branch"] == row.branch)].sort_values("pos")
        assert own["pos"].tolist() == list(range(row.fork_pos, row.fork_pos + len(own)))
        assert own["token_id"].tolist() == [*plan.arms.new, *alone.ids]
        assert own["segment"].tolist() == ["edit"] * len(plan.arms.new) + ["completion"] * len(alone.ids)
        assert row.logprob == pytest.approx(sum(alone.sample_logprob), abs=1e-4)


def test_rescoring_is_a_fresh_forward(run, tiny) -> None:
    done = probe.rewind(run, lm=tiny, to="step1", numbers=True, samples=2, max_new=4)
    plan = prepared(tiny, run, to="step1", numbers=True)
    tail = plan.origin.original.ids[len(plan.arms.control) :]
    for prefix, column in ((plan.arms.control, "logprob"), (plan.arms.edited, "logprob_edited")):
        with torch.no_grad():
            rows = tiny.model(torch.tensor([[*prefix, *tail]])).logits[0].double().log_softmax(-1)[len(prefix) - 1 : -1]
        expected = rows.gather(1, torch.tensor(tail)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(done.rescored.sort_values("pos")[column], expected, atol=1e-5)
    assert done.rescored["pos"].min() == len(plan.arms.control)


def test_other_prompts_share_nothing(tiny) -> None:
    kept, changed = rescore(Prefix(tiny, [5, 6]), [5, 6, 7], [9, 6, 7], [8, 10])
    for prefix, own in (([5, 6, 7], kept), ([9, 6, 7], changed)):
        with torch.no_grad():
            rows = tiny.model(torch.tensor([[*prefix, 8, 10]])).logits[0].double().log_softmax(-1)
        np.testing.assert_allclose(own, [rows[2, 8], rows[3, 10]], atol=1e-5)


@pytest.mark.parametrize("kind", [*STEP_EDITS, "none"])
def test_every_edit(kind: str, run, tiny, tmp_path: Path) -> None:
    path = tmp_path / "source"
    if kind == "swap":
        probe.trace(tiny, "Another one.", generate=12, out=path)
    value = {"replace": "Then we add 8 more.", "insert": "Let us see.", "swap": f"{path}:step0", "prompt_b": "Q: who?\n"}
    given = {} if kind == "none" else {kind: value.get(kind, True)}
    step = "step0" if kind == "negate" else "step2"
    text = TEXT.replace("we count", "it is that we count") if kind == "negate" else TEXT
    source = written(tiny, text) if kind == "negate" else run
    done = probe.rewind(source, lm=tiny, to=step, samples=3, max_new=6, **given)
    arms = set(done.branches["arm"])
    assert {"original", "control"} <= arms and ("edited" in arms) == (kind != "none")
    assert (done.branches.loc[done.branches["arm"] == "control", "n_tokens"] > 0).all()
    assert done.summary["samples"] == 3 and ("effects" in done.tables) == (kind != "none")
    if kind in ("replace", "insert", "numbers", "negate", "filler", "swap", "resample_until_different"):
        assert done.summary["off_policy"]["own_steps"] >= 20
    # a branch can be rewound in its turn
    again = probe.rewind(done, lm=tiny, to="-1", branch=1, samples=2, max_new=3)
    assert again.manifest["parent"]["branch"] == 1 and again.manifest["parent"]["run"] == done.run_id
    stem = done.tokens[(done.tokens["branch"] == 0)].sort_values("pos")["token_id"].tolist()
    row = done.branches.set_index("branch").loc[1]
    own = done.tokens[(done.tokens["branch"] == 1)].sort_values("pos")["token_id"].tolist()
    first = again.tokens[again.tokens["branch"] == 0].sort_values("pos")["token_id"].tolist()
    assert first == stem[: row["fork_pos"]] + own


@pytest.mark.slow
def test_own_words_of_the_edits_length_are_what_an_edit_is_compared_with(tiny) -> None:
    """z from plain forwards; and as an edit, the model's own words have z of sd 1, whether they are one token or twelve."""
    from probe.decoding import Sampling, branch

    before = tiny.ids_of("Q: how many?\n")
    (found,) = branch(tiny, [before], range(60), max_new=12, sampling=Sampling(temperature=1.0))
    drawn = [one.ids for one in found if len(one.ids) == 12]
    assert len(drawn) >= 40

    def mean(ids: list[int]) -> float:
        with torch.no_grad():
            rows = tiny.model(torch.tensor([[*before, *ids]])).logits[0].double().log_softmax(-1)[len(before) - 1 : -1]
        return float(rows.gather(1, torch.tensor(ids)[:, None]).mean())

    edit, stem = tiny.ids_of("zebra"), Prefix(tiny, before[:-1])
    own = [mean(ids[: len(edit)]) for ids in drawn]
    said = off_policy(stem, before, edit, drawn)
    assert (said["tokens"], said["own_steps"]) == (len(edit), len(drawn))
    assert said["z"] == pytest.approx((mean(edit) - np.mean(own)) / np.std(own, ddof=1), abs=1e-3)
    assert said["lower"] == pytest.approx(np.mean(np.asarray(own) <= mean(edit)))
    for n in (1, 12):
        z = [off_policy(stem, before, ids[:n], drawn[:i] + drawn[i + 1 :])["z"] for i, ids in enumerate(drawn)]
        assert 0.9 < np.std(z) < 1.15  # leaving one out makes it a little more than 1
    # an edit longer than what was drawn is compared as far as 20 draws go; too few draws say nothing
    long = off_policy(stem, before, edit * 9, [ids[:7] for ids in drawn])
    assert long["tokens"] == 7 and long["edit_logprob"] == pytest.approx(mean((edit * 9)[:7]), abs=1e-4)
    assert off_policy(stem, before, edit, drawn[:19]) is None


def test_greedy_arms_are_drawn_once(run, tiny) -> None:
    """A z-score of the edit needs continuations that differ: greedy ones are all the same, and none is drawn for it."""
    done = probe.rewind(run, lm=tiny, to="step1", numbers=True, samples=1, max_new=4, temperature=0)
    assert done.branches.arm.astype(str).value_counts().to_dict() == dict.fromkeys(
        ("original", "before", "control", "edited"), 1
    )
    assert done.summary["off_policy"] is None


def test_the_room_of_a_continuation(run, tiny) -> None:
    """Half as many tokens again as the original still needed from the step on, in every arm; cut-off ones are counted."""
    done = probe.rewind(run, lm=tiny, to="step0", delete=True, samples=2)
    original = trajectory(run, tiny)
    needed = len(original.ids) - original.steps[0].start
    assert done.summary["max_new"] == int(np.ceil(1.5 * needed)) > 64
    for name, arm in done.summary["arms"].items():
        rows = done.branches[done.branches["arm"] == name]
        assert arm["cut_off"] == (rows["outcome"] == "<truncated>").sum()
    eos = min(tiny.eos_ids)
    whole = written(tiny, TEXT + tiny.tokenizer.decode([eos]))  # this one came to its end
    n = len(trajectory(whole, tiny).ids) - trajectory(whole, tiny).steps[0].start
    assert trajectory(whole, tiny).ids[-1] == eos and n == len(tiny.ids_of(TEXT)) + 1
    assert prepared(tiny, whole, to="step0").rollout.max_new == int(np.ceil(1.5 * n))
    last = len(trajectory(whole, tiny).steps) - 1
    assert prepared(tiny, whole, to=f"step{last}").rollout.max_new == 64
    # the other fills its budget of 24, so it was cut off: its last step has no more room than that
    assert prepared(tiny, run, to="step3").rollout.max_new == max(
        24, int(np.ceil(1.5 * (len(original.ids) - original.steps[3].start)))
    )
    assert prepared(tiny, run, to="step3", max_new=5).rollout.max_new == 5


READ_ONCE = [
    {"replace": "Then we add 8 more."}, {"delete": True}, {"append_wait": True}, {"insert": "Let us see."}, {"numbers": True},
    {"resample_until_different": True}, {"replace": "Then we add 8 more.", "until": 0.2}, {},
]  # fmt: skip


@pytest.mark.parametrize("what", READ_ONCE, ids=lambda what: "-".join(what) or "none")
def test_what_stands_before_the_step_is_read_once(what, run, tiny) -> None:
    """Control, edited and what else is drawn, the edit's score and the re-scored tail go on from one reading of it: no
    forward but one holds a token of the prompt. Counted by what the model's own embedding is given."""
    start = trajectory(run, tiny).steps[2].start
    before = trajectory(run, tiny).ids[:start]
    read = []

    def count(path, module, args, kwargs, output) -> None:
        if path.endswith("embed_tokens"):
            read.extend(map(tuple, args[0].tolist()))

    with recording(tiny.model, count):
        done = probe.rewind(run, lm=tiny, to="step2", samples=6, max_new=6, **what)
    assert done.summary["arms"]["control"]["n"] >= 6 and len(read) > 6
    assert [row[:start] == before for row in read].count(True) == 1
    assert sum(row[:2] == before[:2] for row in read) == 1  # nor any other beginning of the text


def test_activations_changed_from_the_fork_on(run, tiny) -> None:
    nothing = probe.rewind(run, lm=tiny, to="step1", edit="resid_post@1=noise:0", samples=6, max_new=8)
    arms = {name: list(rows["text"]) for name, rows in nothing.branches.groupby("arm", observed=True)}
    assert arms["edited"] == arms["control"] and (nothing.rescored["difference"] == 0).all()
    done = probe.rewind(run, lm=tiny, to="step1", edit=["mlp_out@all=zero", "attn_out@0=zero"], samples=6, max_new=8)
    arms = {name: list(rows["text"]) for name, rows in done.branches.groupby("arm", observed=True)}
    assert arms["edited"] != arms["control"] and "mlp_out" in done.summary["edit"]
    # the prefix keeps its own activations: an independent forward whose modules are zeroed from its last token on
    plan = prepared(tiny, run, to="step1")
    first, tail = len(plan.arms.control) - 1, plan.origin.original.ids[len(plan.arms.control) :]

    def zeroed(module, args, output):
        whole = output[0] if isinstance(output, tuple) else output
        whole[:, first:] = 0
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    layers = tiny.model.model.layers
    hooks = [m.register_forward_hook(zeroed) for m in (*(layer.mlp for layer in layers), layers[0].self_attn)]
    with torch.no_grad():
        rows = tiny.model(torch.tensor([[*plan.arms.control, *tail]])).logits[0].double().log_softmax(-1)[first:-1]
    for hook in hooks:
        hook.remove()
    expected = rows.gather(1, torch.tensor(tail)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(done.rescored.sort_values("pos")["logprob_edited"], expected, atol=1e-5)
    with pytest.raises(ProbeError, match="before the fork"):
        probe.rewind(run, lm=tiny, to="step1", edit="resid_post@1:0=zero", samples=2, max_new=2)


def test_merged_answers(run, tiny) -> None:
    import pyarrow as pa

    from probe.rewinding.rewinding import _merged

    plan = prepared(tiny, run, to="step1", delete=True, merge_answers=True, expect="1+x")
    drawn = pa.table({"outcome": pa.array(["x+1", "1+x", "7", "<none>"]).dictionary_encode(), "n": [1, 2, 3, 4]})
    merged, new = _merged(drawn, plan)
    assert merged["outcome"].to_pylist() == [new.reference, new.reference, "7", "<none>"]
    assert new.reference == new.expected and new.reference in ("x+1", "1+x") and merged["n"].to_pylist() == [1, 2, 3, 4]
    assert _merged(drawn, prepared(tiny, run, to="step1", delete=True))[0] is drawn


def test_until_draws_on(run, tiny, monkeypatch) -> None:
    from probe.rewinding import rounds

    done = probe.rewind(run, lm=tiny, to="step2", delete=True, samples=4, max_new=3, until=0.2)
    row = done.summary["difference"]
    assert done.summary["samples"] > 4 and (row["ci_high"] - row["ci_low"]) / 2 <= 0.2
    assert done.summary["resolution"] == f"known to ±0.2 at n = {row['n']}" == f"{row['stopped']} at n = {row['n']}"
    # as much as may be drawn is not enough: it says so
    monkeypatch.setattr(rounds, "MOST", 8)
    done = probe.rewind(run, lm=tiny, to="step2", delete=True, samples=4, max_new=3, until=0.01)
    assert done.summary["samples"] == 8 and done.summary["difference"]["p_value"] > 0.05
    assert done.summary["resolution"] == "not resolved at n = 8, which is as many as may be drawn"


def test_a_killed_rewind_goes_on_to_the_same_tables(run, tiny, tmp_path: Path, monkeypatch) -> None:
    from probe.rewinding import rollouts

    what = {"to": "step1", "numbers": True, "samples": 6, "max_new": 6}
    whole = probe.rewind(run, lm=tiny, out=tmp_path / "whole", **what)
    real, left = rollouts._write, [7]

    def dying(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(rollouts, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        probe.rewind(run, lm=tiny, out=tmp_path / "torn", **what)
    monkeypatch.setattr(rollouts, "_write", real)
    assert not (tmp_path / "torn").exists()
    resumed = probe.rewind(run, lm=tiny, out=tmp_path / "torn", resume=True, **what)
    same_tables(resumed, whole)


BAD = [
    ({"to": "step9"}, OutOfRange, "0..3"),
    ({"to": "step1", "replace": "x", "delete": True}, BadOption, "two edits"),
    ({"to": "step1", "replace": ""}, BadOption, "empty"),
    ({"to": "step1", "samples": 0}, BadOption, "at least 1"),
    ({"to": "step1", "max_new": 0}, BadOption, "at least 1"),
    ({"to": "step1", "until": 2.0}, BadOption, "between 0 and 1"),
    ({"to": "step0", "numbers": True}, BadOption, "no number"),
    ({"to": "step1", "swap": "nowhere"}, BadOption, "RUN:step3"),
    ({"to": "step1", "answer": "best"}, BadOption, "last-number"),
    ({"to": "step1", "answer": "regex=("}, BadOption, "regular"),
    ({"to": "step1", "prompt_id": 7}, RunError, "prompt 7"),
    ({"to": "step1", "branch": 3}, RunError, "branch 3"),
    ({"to": "step1", "split": "chapter"}, BadOption, "sentence"),
    ({"to": "step1", "resume": True}, BadOption, "--out"),
    ({"to": "step1", "edit": "resid_post@99=zero"}, OutOfRange, "0..2"),
]


@pytest.mark.parametrize(("what", "error", "said"), BAD, ids=lambda v: str(v)[:50])
def test_bad_input(what, error, said, run, tiny) -> None:
    with pytest.raises(error) as caught:
        probe.rewind(run, lm=tiny, **what)
    assert said in caught.value.message + caught.value.hint


@pytest.mark.slow
def test_an_edit_is_one_function(shell, tmp_path: Path) -> None:
    """Declared in one place, it is an option with its sentence, it runs, and the plan and the summary call it by its name."""
    assert shell("trace", "Count: one.", "--model", "tiny:llama", "--generate", "30", "--out", "run").returncode == 0
    code = (
        "import sys\n"
        "from probe.registries.step_edits import step_edit\n"
        "@step_edit('say_it', 'Say this, twice.', metavar='WORDS', place='before')\n"
        "def say_it(fork, text):\n    return fork.spelled(f' {text} {text}')\n"
        "from probe.cli.main import app\n"
        "app(sys.argv[1:])\n"
    )

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, "rewind", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = run("--help")
    assert "--say-it" in shown and "WORDS" in shown and "Say this, twice." in " ".join(shown.split())
    words = ("run", "--to", "step0", "--say-it", "well", "-n", "2", "--max-new", "3")
    assert json.loads(run(*words, "--dry-run", "--json"))["edit"] == "say-it: well"
    run(*words, "--out", "new")
    done = probe.open_run(tmp_path / "new")
    assert done.summary["edit"] == "say-it: well" and done.summary["new"] == " well well"
    assert done.manifest["arguments"]["say_it"] == "well"


def test_what_editors_see_of_the_edits_is_the_registry() -> None:
    """The class that only type checkers read has the names and types of the declarations, in their order."""
    tree = ast.parse((Path(probe.__file__).parent / "requests" / "rewind.py").read_text())
    (stub,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "EditOptions")
    seen = [ast.unparse(line) for line in stub.body]
    assert seen == [
        f"{edit.name}: str | None = None" if edit.metavar else f"{edit.name}: bool = False" for edit in STEP_EDITS.values()
    ]


def test_an_edit_that_there_is_not_is_a_type_error(run, tiny) -> None:
    with pytest.raises(TypeError, match=r"rewind\(\).*leave_out"):
        probe.rewind(run, lm=tiny, to="step1", leave_out=True)


def test_a_run_by_another_model_is_refused(run, tiny) -> None:
    other = probe.load("tiny:gpt2")
    with pytest.raises(RunError, match="another model"):
        probe.rewind(run, lm=other, to="step1")
    # the tiny families share a tokenizer, so that another model can be meant
    done = probe.rewind(run, lm=other, to="step1", delete=True, samples=2, max_new=3, other_model=True)
    assert done.manifest["model"]["name"] == "tiny:gpt2"


def test_a_run_without_a_generation_is_refused(tiny) -> None:
    with pytest.raises(RunError, match="no generation"):
        probe.rewind(probe.trace(tiny, "Only a prompt.", out=None), lm=tiny, to="step0")


def test_the_context_ends_a_rollout(tiny) -> None:
    limit = tiny.context_length
    source = written(tiny, "One more step of it. " * 200)
    original = trajectory(source, tiny)
    last = next(i for i, s in enumerate(original.steps) if s.end > limit - 12) - 1
    done = probe.rewind(source, lm=tiny, to=f"step{last}", samples=2, max_new=64)
    drawn = done.branches[done.branches["arm"] == "control"]
    assert set(drawn["stop_reason"]) <= {"context", "eos"} and "context" in set(drawn["stop_reason"])
    assert (drawn.loc[drawn["stop_reason"] == "context", "outcome"] == "<truncated>").all()
    with pytest.raises(ProbeError, match="context"):
        probe.rewind(source, lm=tiny, to=f"step{last + 20}", samples=2)


@pytest.mark.slow
def test_the_command_line(shell, tmp_path: Path) -> None:
    tiny = ("--model", "tiny:llama")
    assert shell("trace", "Count: one.", *tiny, "--generate", "30", "--out", "run").returncode == 0
    done = shell("rewind", "run", "--to", "step0", "--filler", "-n", "3", "--max-new", "5", "--out", "new", "--explain-answer")
    assert done.returncode == 0, done.stderr
    assert "off-policy z" in done.stdout and "total variation" in done.stdout and "run: new" in done.stdout
    said = json.loads(shell("rewind", "run", "--to", "step0", "-n", "3", "--max-new", "5", "--json").stdout)
    assert said["command"] == "rewind" and said["summary"]["arms"]["control"]["n"] == 3
    plan = json.loads(shell("rewind", "run", "--to", "step0", "--delete", "-n", "8", "--dry-run", "--json").stdout)
    assert plan["continuations"] == 16 and plan["half_width"] == pytest.approx(0.412, abs=1e-3)
    assert plan["tells_from_0"] == 0.81
    assert shell("runs", "check", "new").returncode == 0
    for words, said in (
        (("rewind", "run", "--to", "step77"), "0.."), (("rewind", "nowhere", "--to", "step0"), "nowhere"),
        (("rewind", "run", "--to", "step0", "--top-p", "0.5"), "--temperature"),
    ):  # fmt: skip
        failed = shell(*words)
        assert failed.returncode == 1 and said in failed.stderr and "Traceback" not in failed.stderr, failed.stderr


def test_trees(tiny, tmp_path: Path) -> None:
    from probe.trees import drawn, newick, tree

    source = probe.trace(tiny, "Count: one.", generate=20, out=tmp_path / "source")
    with pytest.raises(RunError, match="no branches"):
        tree(source)
    first = probe.rewind(source, lm=tiny, to="-8", delete=True, samples=3, max_new=4, out=tmp_path / "first")
    again = probe.rewind(first, lm=tiny, to="-1", branch=2, samples=2, max_new=2, out=tmp_path / "again")
    beside = probe.rewind(first, lm=tiny, to="-2", samples=2, max_new=2, out=tmp_path / "beside")
    probe.importance(source, lm=tiny, method="rescore", split="token", out=tmp_path / "zero draws")
    whole = tree(source)
    made, bare = whole["children"]
    assert bare["name"] == "zero draws" and bare["children"] == []
    # a run that went back into branch 2 hangs under that branch, one that went back into the original beside its arms
    assert made["name"] == "first" and [c["name"] for c in made["children"]] == ["control", "edited", "beside"]
    for arm in made["children"][:2]:
        rows = first.branches[first.branches["arm"] == arm["name"]]
        assert sum(arm["outcomes"].values()) == arm["n"] == len(rows) == 3
        assert [b["branch"] for b in arm["branches"]] == rows.sort_values("sample")["branch"].tolist()
    under = {b["branch"]: [c["name"] for c in b["children"]] for arm in made["children"][:2] for b in arm["branches"]}
    assert under == {**{key: [] for key in under}, 2: ["again"]}
    assert again.manifest["parent"]["branch"] == 2 and beside.manifest["parent"]["branch"] == 0
    # what a run went back into is there already: every outcome is counted once
    assert made["outcomes"] == {} and made["n"] == 0
    (inside,) = next(b for b in made["children"][1]["branches"] if b["branch"] == 2)["children"]
    assert inside["outcomes"] == {} and inside["position"] == again.manifest["parent"]["position"] > 0
    lines = drawn(whole)
    assert lines[0].startswith("source: ") and lines[0].endswith(" ×1") and sum("control" in line for line in lines) == 3
    at = next(i for i, line in enumerate(lines) if "branch 2:" in line)
    assert "edited" in lines[at - 1] and "again at token" in lines[at + 1]
    text = newick(whole)
    runs = (first, again, beside)
    assert text.endswith(";") and text.count("(") == text.count(")") and "'zero draws':" in text
    assert text.count("b") - text.count("beside") == sum(len(run.branches) - 1 for run in runs)


def test_a_tree_counts_what_was_compared(run, tiny, tmp_path: Path) -> None:
    """An insertion's control is drawn from before the step: 20 times for the z-score, of which 8 are compared."""
    from probe.trees import drawn, tree

    done = probe.rewind(run, lm=tiny, to="step1", insert="Let us see.", samples=8, max_new=4, out=tmp_path / "run")
    assert (done.branches["arm"] == "control").sum() == 20
    arms = {arm["name"]: arm for arm in tree(done)["children"]}
    assert {name: arm["n"] for name, arm in arms.items()} == {"control": 8, "edited": 8, "more from before the step": 12}
    assert [b["sample"] for b in arms["control"]["branches"]] == list(range(8))
    assert sum(len(arm["branches"]) for arm in arms.values()) == len(done.branches) - 1
    assert arms["control"]["outcomes"] == {row["outcome"]: row["count"] for row in done.summary["arms"]["control"]["outcomes"]}
    assert len(drawn(tree(done))) == 4


@pytest.mark.slow
def test_selftest_passes_and_can_fail(shell, tiny, monkeypatch) -> None:
    from probe.laws import laws

    assert all(law.holds or law.skipped for law in laws(tiny))
    assert sum(law.holds for law in laws(tiny)) >= 9
    broken, calls = probe.load("tiny:llama"), [0]
    plain = broken.model.lm_head.forward

    def drifting(hidden):
        calls[0] += 1
        return plain(hidden) + 0.01 * calls[0] * hidden.mean(-1, keepdim=True)

    monkeypatch.setattr(broken.model.lm_head, "forward", drifting)
    assert {law.name for law in laws(broken) if not law.holds} >= {"capturing changes nothing"}
    said = json.loads(shell("selftest", "tiny:gpt2", "--json").stdout)
    assert said["command"] == "selftest" and all(law["holds"] or law["skipped"] for law in said["summary"]["laws"])


@pytest.mark.slow
def test_selftest_tries_several_models_and_goes_on_after_one_that_is_not_there(shell) -> None:
    several = shell("selftest", "tiny:gpt2", "tiny:nosuch", "tiny:llama", "--json")
    assert several.returncode == 1 and several.stderr.startswith("error: tiny:nosuch was not tried")
    summary = json.loads(several.stdout)["summary"]
    assert [(e["model"], "nosuch" in e["error"]) for e in summary["errors"]] == [("tiny:nosuch", True)]
    assert {law["model"] for law in summary["laws"] if law["holds"]} == {"tiny:gpt2", "tiny:llama"}
    lines = shell("selftest", "tiny:gpt2", "tiny:llama").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["tiny:gpt2", "pass"], ["tiny:llama", "pass"]]


@pytest.mark.slow
def test_the_tree_is_exported(shell) -> None:
    assert shell("trace", "Q: how many?", "-n", "12", "--model", "tiny:llama", "--out", "base", "-q").returncode == 0
    words = ("rewind", "base", "--to", "15", "-n", "2", "--max-new", "4", "--out", "went", "-q")
    assert shell(*words).returncode == 0
    exported = shell("runs", "export", "went", "--newick")
    assert exported.returncode == 0 and exported.stdout == shell("runs", "tree", "went", "--newick").stdout
    assert exported.stdout.count("(") == exported.stdout.count(")") == 2 and exported.stdout.endswith(";\n")
    (control,) = json.loads(shell("runs", "export", "went", "--json").stdout)["summary"]["children"]
    assert (control["name"], control["n"], len(control["branches"])) == ("control", 2, 2)
    assert shell("runs", "export", "went").returncode == 2


def test_an_outcome_is_read_without_thinking_and_special_tokens() -> None:
    """Tokens that the tokenizer calls special are no part of an answer, whatever their shape; a budget that ends inside the
    thinking leaves no answer."""
    from types import SimpleNamespace

    from probe.rewinding.rollouts import outcome_of

    words = ["ask", "<think>", " 41", "</think>", " So 42", " END7", "<eos>"]

    def pieces(ids):
        text = "".join(words[i] for i in ids)
        ends = np.cumsum([len(words[i]) for i in ids])
        return SimpleNamespace(text=text, offsets=[(end - len(words[i]), end) for end, i in zip(ends, ids, strict=True)])

    lm = SimpleNamespace(pieces=pieces, tokenizer=SimpleNamespace(all_special_ids=[5, 6]), eos_ids={6})
    assert outcome_of(lm, [0, 1, 2, 3, 4, 5, 6], 2, "eos", "auto") == ("42", "42", "last-number", "low")
    assert outcome_of(lm, [0, 1, 2, 3, 4], 2, "stop", "auto").key == "42"
    assert outcome_of(lm, [0, 1, 2, 3, 4], 2, "length", "auto").key == "<truncated>"
    assert outcome_of(lm, [0, 1, 2], 2, "eos", "auto").key == outcome_of(lm, [0, 1, 2], 1, "eos", "auto").key == "<truncated>"
    assert outcome_of(lm, [0, 1, 2, 6], 2, "eos", "auto") == ("<none>", None, None, None)
