"""A rewind's two arms as a pair: the same tokens up to the answer, one step apart, patched step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import probe
from probe.errors import BadOption, RunError
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
    run = probe.patch_sweep(lm, rewind=rewound, against="2")
    before = TEXT[: TEXT.index(ANSWER)]
    changed = before.replace("There are 12 apples.", "There are 21 apples.")
    assert [text.endswith(part) for text, part in zip(run.prompts["rendered"], (before, changed), strict=True)] == [
        True,
        True,
    ]
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
    run = probe.patch_sweep(lm, rewind=rewound, against="2")
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


def test_a_step_of_another_length_needs_a_word(lm):
    longer = probe.rewind(written(lm), to="step1", replace="There are only 21 apples. ", lm=lm, samples=2, max_new=4)
    with pytest.raises(BadOption, match="tokens and the corrupt one"):
        probe.patch_sweep(lm, rewind=longer, against="2")
    for direction in ("denoise", "noise"):
        run = probe.patch_sweep(lm, rewind=longer, against="2", align="ends", direction=direction, layers="0")
        assert set(run.patches["step"]) == {0, 1, 2, 3}


def test_what_is_no_pair_is_refused(lm, rewound):
    with pytest.raises(RunError, match="not the run of a rewind"):
        probe.patch_sweep(lm, rewind=written(lm))
    with pytest.raises(RunError, match="no edited arm"):
        probe.patch_sweep(lm, rewind=probe.rewind(written(lm), to="step1", lm=lm, samples=2, max_new=4))
    with pytest.raises(BadOption, match="brings its own texts"):
        probe.patch_sweep(lm, rewind=rewound, clean="a")
    with pytest.raises(BadOption, match="the answer itself"):
        probe.patch_sweep(lm, rewind=rewound, against="1")


def test_from_the_command_line(lm, shell, tmp_path: Path):
    """The model is the one that made the run, unless another is named."""
    source = probe.rewind(
        written(lm), to="step1", replace="There are 21 apples. ", lm=lm, samples=2, max_new=4, out=tmp_path / "r"
    )
    assert source.path is not None
    done = shell("patch", "--from-rewind", "r", "--against", "2", "--out", "p")
    assert done.returncode == 0, done.stderr
    assert 'step1 "There are 12 apples. "' in done.stdout
    assert probe.open_run(tmp_path / "p").manifest["model"]["name"] == "tiny:llama"
