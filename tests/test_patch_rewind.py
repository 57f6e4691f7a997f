"""A rewind's two arms as a pair: the same tokens up to the answer, one step apart, patched step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import probe
from probe.errors import BadOption, OutOfRange, RunError
from probe.texts import trajectory
from tests.test_rewind import TEXT, written

ANSWER = "19"
PROMPT = "Q: how many?\n"


@pytest.fixture(scope="module")
def lm():
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def rewound(lm):
    return probe.rewind(written(lm), to="step1", replace="There are 21 apples. ", lm=lm, samples=2, max_new=4)


def test_the_arms_of_a_rewind_are_a_pair(lm, rewound):
    run = probe.patch(lm, rewind=rewound, against="2", measure_at="answer")
    before = TEXT[: TEXT.index(ANSWER)]
    changed = before.replace("There are 12 apples.", "There are 21 apples.")
    assert [text.endswith(part) for text, part in zip(run.prompts["rendered"], (before, changed), strict=True)] == [True, True]
    assert (run.summary["answer"], run.summary["against"]) == ("1", "2")
    assert run.steps["text"].tolist() == [
        "First we count all apples here. ", "There are 12 apples. ", "Then we add 7 more. ", "So there are ",
    ]  # fmt: skip
    cells = run.patches
    assert set(cells["step"]) == {0, 1, 2, 3} and (cells["pos"] == -1).all()
    assert not cells[cells["step"] == 0]["passed"].any()
    first = cells[(cells["layer"] == 0) & (cells["step"] == 1)]
    # fp32: logits of two forwards differ by up to 1e-5
    assert first["patched"].item() == pytest.approx(first["clean"].item(), abs=2e-5), "the step is all that differs"


def test_a_step_is_patched_whole(lm, rewound):
    """By a plain hook that puts the clean block's input at the step's tokens."""
    run = probe.patch(lm, rewind=rewound, against="2", measure_at="answer")
    steps, block, kept = run.steps.set_index("step"), lm.model.model.layers[1], []
    clean, corrupt = (
        torch.tensor([run.tokens[run.tokens["prompt_id"] == p].sort_values("pos")["token_id"].tolist()]) for p in (0, 1)
    )
    handle = block.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
    with torch.no_grad():
        lm.model(clean)
    handle.remove()
    for step in (1, 2, 3):
        where = slice(steps.loc[step, "start"], steps.loc[step, "end"])

        def put(_, args, where=where):
            new = args[0].clone()
            new[:, where] = kept[0][:, where]
            return (new, *args[1:])

        handle = block.register_forward_pre_hook(put)
        with torch.no_grad():
            logits = lm.model(corrupt).logits[0, -1]
        handle.remove()
        patched = run.patches.query(f"layer == 1 and step == {step}")["patched"].item()
        assert patched == pytest.approx(float(logits[lm.ids_of("1")[0]] - logits[lm.ids_of("2")[0]]), abs=2e-5)


def variations(lm, clean: list[int], corrupt: list[int], n_tail: int) -> tuple[np.ndarray, np.ndarray]:
    """Total variation (place,) of what two plain forwards predict from the end of the step on, and the change (place, d_vocab)
    of the probabilities."""
    with torch.no_grad():
        p, q = (lm.model(torch.tensor([ids])).logits[0, -n_tail - 1 :].double().softmax(-1) for ids in (clean, corrupt))
    return ((p - q).abs().sum(-1) / 2).numpy(), (p - q).numpy()


@pytest.mark.parametrize("parted", [0.02, 0.1, 0.9])
def test_the_arms_are_measured_where_they_part(lm, rewound, monkeypatch, parted):
    """Two plain forwards: the first place after the step with so much total variation, else that with the most."""
    monkeypatch.setattr("probe.patching.rewind_pairs.DIVERGED", parted)
    monkeypatch.setattr("probe.patching.rewind_pairs.DIVERGED", parted)
    monkeypatch.setattr("probe.patching.rewind_pairs._ROWS", 5)
    whole = trajectory(written(lm), lm)
    begin = int(rewound.branches.query("arm == 'control'")["draw_pos"].iloc[0])
    new = rewound.tokens.query("segment == 'edit'")
    new = new[new["branch"] == new["branch"].iloc[0]].sort_values("pos")
    first = int(new["pos"].iloc[0])
    tail = list(whole.ids[begin:])
    corrupt = [*whole.ids[:first], *new["token_id"], *tail]
    apart, change = variations(lm, list(whole.ids), corrupt, len(tail))
    place = int((apart >= parted).argmax()) if (apart >= parted).any() else int(apart.argmax())
    run = probe.patch(lm, rewind=rewound, layers="0")
    measured = run.summary["measured"]
    assert measured["pos"] == begin + place and measured["total_variation"] == pytest.approx(apart[place], abs=1e-6)
    assert run.summary["answer"] == lm.token_text(int(change[place].argmax()))
    assert run.summary["against"] == lm.token_text(int(change[place].argmin()))
    assert run.summary["clean"] > run.summary["corrupt"], "the one is likelier in the clean text, the other in the corrupt"
    assert measured["outcome"] == rewound.summary["difference"]
    assert any("hardly changes" in text for text in run.manifest["warnings"]) == bool(apart.max() < parted)
    there = probe.patch(lm, rewind=rewound, layers="0", measure_at=begin + place)
    pd.testing.assert_frame_equal(there.patches.drop(columns="run_id"), run.patches.drop(columns="run_id"))


@pytest.mark.slow
def test_a_step_of_another_length_needs_a_word(lm):
    longer = probe.rewind(written(lm), to="step1", replace="There are only 21 apples. ", lm=lm, samples=2, max_new=4)
    with pytest.raises(BadOption, match="tokens and the corrupt one"):
        probe.patch(lm, rewind=longer, against="2", measure_at="answer")
    for direction in ("denoise", "noise"):
        run = probe.patch(lm, rewind=longer, against="2", measure_at="answer", align="ends", direction=direction, layers="0")
        assert set(run.patches["step"]) == {0, 1, 2, 3}


def test_what_is_no_pair_is_refused(lm, rewound):
    with pytest.raises(RunError, match="not the run of a rewind"):
        probe.patch(lm, rewind=written(lm))
    with pytest.raises(RunError, match="no edited arm"):
        probe.patch(lm, rewind=probe.rewind(written(lm), to="step1", lm=lm, samples=2, max_new=4))
    with pytest.raises(BadOption, match="brings its own texts"):
        probe.patch(lm, rewind=rewound, clean="a")
    with pytest.raises(BadOption, match="the answer itself"):
        probe.patch(lm, rewind=rewound, against="1", measure_at="answer")
    with pytest.raises(OutOfRange, match="not after the step"):
        probe.patch(lm, rewind=rewound, measure_at=2)
    with pytest.raises(BadOption, match="unknown place 'late'"):
        probe.patch(lm, rewind=rewound, measure_at="late")
    with pytest.raises(BadOption, match="arms of a rewind"):
        probe.patch(lm, clean="ab", corrupt="bb", answer="a", against="b", measure_at="answer")


@pytest.mark.slow
def test_from_the_command_line(lm, shell, tmp_path: Path):
    """The model is the one that made the run, unless another is named."""
    source = probe.rewind(
        written(lm), to="step1", replace="There are 21 apples. ", lm=lm, samples=2, max_new=4, out=tmp_path / "r"
    )
    assert source.path is not None
    done = shell("patch", "--from-rewind", "r", "--against", "2", "--measure-at", "answer", "--out", "p")
    assert done.returncode == 0, done.stderr
    assert "1: There are 12 apples." in done.stdout
    assert probe.open_run(tmp_path / "p").manifest["model"]["name"] == "tiny:llama"
