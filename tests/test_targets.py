"""Answers that are sets of tokens: log-sum-exp by a plain forward, in the sweeps of patch and in the scans of steer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.errors import BadOption
from probe.requests.answering import AnswerOptions
from probe.targets import NO_SETS, AnswerTarget, Contrast, contrast_after, token_set

CLEAN, CORRUPT = "abcdef Mary gh", "abXdef John gh"
DIGITS, LETTERS = "re:^[5-9]$", "re:^[a-c]$"


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def lm(request):
    found = probe.load(f"tiny:{request.param}")
    found.model.double()
    return found


def plain(lm, text: str) -> torch.Tensor:
    """Logits (d_vocab,) after a text."""
    with torch.no_grad():
        return lm.model(torch.tensor([lm.encode(text).ids])).logits[0, -1].double()


def ids(lm, words: str) -> list[int]:
    return [lm.ids_of(word)[0] for word in words]


def test_a_sweep_follows_sets(lm):
    """Both ends by plain forwards, for each metric; a patch of the whole stream before the first block is the clean run."""
    some, others = ids(lm, "56789"), ids(lm, "abc")
    ends = []
    for text in (CLEAN, CORRUPT):
        logits = plain(lm, text)
        p = logits.softmax(-1)[some].sum()
        ends.append((float(logits[some].logsumexp(-1) - logits[others].logsumexp(-1)), float(p.log()), float(p)))
    for column, metric in enumerate(("logit-diff", "logprob", "prob")):
        run = probe.patch(
            lm, clean=CLEAN, corrupt=CORRUPT, answer_set=DIGITS, against_set=LETTERS, metric=metric, layers="0",
            positions="all", by="head", out=None,
        )  # fmt: skip
        row = run.patches.iloc[0]
        np.testing.assert_allclose([row["clean"], row["corrupt"]], [end[column] for end in ends], atol=1e-6)
        assert row["patched"] == pytest.approx(ends[0][column], abs=1e-6)
        assert ("set" in run.summary["unit"]) and run.summary["answer"] == DIGITS
        assert any("5 tokens: '5', '6', '7', '8', … 1 more" in said for said in run.manifest["warnings"])


def test_an_estimate_of_a_set_is_its_slope(lm):
    """Attribution's gradient of log P(set) against a finite difference of plain forwards, at the embedding."""
    some, end = ids(lm, "56789"), lm.encode(CORRUPT).ids
    run = probe.patch(
        lm, clean=CLEAN, corrupt=CORRUPT, answer_set=DIGITS, metric="logprob", layers="0", method="attribution", sample=0,
        out=None,
    )  # fmt: skip
    with torch.no_grad():
        table = lm.model.get_input_embeddings()
        streams = [table(torch.tensor([lm.encode(text).ids])) for text in (CLEAN, CORRUPT)]

        def at(step: float, pos: int) -> float:
            moved = streams[1].clone()
            moved[0, pos] += step * (streams[0] - streams[1])[0, pos]
            logits = lm.model(inputs_embeds=moved).logits[0, -1].double()
            return float(logits.log_softmax(-1)[some].logsumexp(-1))

        for row in run.patches.itertuples():
            if row.pos not in (2, len(end) - 5):
                continue
            slope = (at(0.01, row.pos) - at(-0.01, row.pos)) / 0.02  # some norms compute in fp32
            assert row.patched - row.corrupt == pytest.approx(slope, rel=5e-3, abs=1e-5)


def test_a_set_of_one_token_is_the_token(lm):
    asked = {"clean": CLEAN, "corrupt": CORRUPT, "layers": "0", "out": None}
    one = probe.patch(lm, answer="a", against="b", **asked).patches
    same = probe.patch(lm, answer_set="a", against_set="re:^b$", **asked).patches
    for name in ("logit_diff", "logprob", "prob", "effect"):
        assert np.array_equal(one[name], same[name], equal_nan=True)


def test_what_is_no_set_is_said(lm):
    after = lm.encode(CLEAN).ids
    for written, why in (("re:^qq$", "no token matches"), ("re:.|\\s", "every token matches"), ("re:(", "not a regular")):
        with pytest.raises(BadOption, match=why):
            token_set(lm, written, "answer", after=after)
    with pytest.raises(BadOption, match="2 tokens there, not one"):
        token_set(lm, "a|bc", "answer", after=after)
    for options in (
        {"answer": "a", "answer_set": "b"},
        {"answer_set": "a||b"},
        {"answer_set": "a", "against": "b", "against_set": "c"},
    ):
        with pytest.raises(BadOption):
            probe.requests.PatchSweep(clean=CLEAN, corrupt=CORRUPT, **options)
    with pytest.raises(BadOption, match="are the same"):
        contrast_after(lm, AnswerOptions(answer_set="a", against_set="re:^a$"), None, None, after=after)
    _, notes = contrast_after(lm, AnswerOptions(answer_set="a|b", against_set="b|c"), None, None, after=after)
    assert "in both sets: 1 tokens" in notes[-1]


def test_specials_and_parts_of_characters_never_match(lm):
    found = set(token_set(lm, "re:[^a]", "answer", after=[])[0].steps[0])
    assert not found & {lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id, *lm.ids_of("é"), lm.ids_of("a")[0]}
    assert set(ids(lm, "bcd ")) <= found and max(found) < lm.anatomy.d_vocab


def test_a_whole_answer_adds_up_over_its_steps():
    scores = torch.randn(2, 3, 11, dtype=torch.float64)
    whole = AnswerTarget(((4,), (9,), (1, 2)), "")
    wanted = scores[:, 0, 4] + scores[:, 1, 9] + scores[:, 2, 1:3].exp().sum(-1).log()
    torch.testing.assert_close(whole.of(scores), wanted)
    assert whole.tail == (4, 9) and Contrast(whole, AnswerTarget(((7,),), "")).tails == ((4, 9),)
    apart = Contrast(AnswerTarget(((7,), (1,)), ""), whole)
    assert apart.tails == ((7,), (4, 9)) and apart.rows == (0, 1) and not apart.by_logits


def test_a_scan_follows_sets(lm, tmp_path):
    made = tmp_path / "v.safetensors"
    probe.make_direction(lm, ["ab", "cd"], ["xy", "zw"], at="resid_post@1", to=made, out=None)
    run = probe.steer(
        lm, made, CLEAN, answer_set=DIGITS, against_set=LETTERS, strengths="-1,1", controls=1, out=None
    )  # fmt: skip
    logits = plain(lm, CLEAN)
    wanted = logits[ids(lm, "56789")].logsumexp(-1) - logits[ids(lm, "abc")].logsumexp(-1)
    rows = run.steering[run.steering["strength"] == 0.0]
    assert rows["value"].iloc[0] == pytest.approx(float(wanted), abs=1e-5)


def test_a_scan_takes_whole_answers(lm, tmp_path):
    """Answers of three tokens and of one, each after the text, under a direction that is added at all positions."""
    made = tmp_path / "v.safetensors"
    probe.make_direction(lm, ["ab", "cd"], ["xy", "zw"], at="resid_post@1", to=made, out=None)
    run = probe.steer(
        lm, made, CLEAN, answer=" 57", against="b", whole_answer=True, strengths="-1,2", controls=1, out=None
    )  # fmt: skip
    text, three, one = lm.encode(CLEAN).ids, lm.ids_of(" 57"), lm.ids_of("b")
    vector = probe.interventions.load_direction(made, lm=lm).vector.double()
    block = lm.model.get_submodule(lm.anatomy.layers[1].block)
    for row in run.steering[run.steering["control"] == 0].itertuples():

        def push(_, __, output, strength=row.strength):
            if torch.is_tensor(output):
                return output + strength * vector
            return (output[0] + strength * vector, *output[1:])

        handle, total = block.register_forward_hook(push), 0.0
        try:
            for sign, answer in ((1, three), (-1, one)):
                with torch.no_grad():
                    found = lm.model(torch.tensor([[*text, *answer]])).logits[0].double().log_softmax(-1)
                total += sign * sum(float(found[len(text) - 1 + i, token]) for i, token in enumerate(answer))
        finally:
            handle.remove()
        assert len(three) > 1 and row.value == pytest.approx(total, abs=1e-4)
    assert "whole answer" in run.summary["metric"]


def test_the_parts_of_a_set_sum_to_its_log_sum_exp(lm):
    run = probe.attribute(lm, CLEAN, answer_set=DIGITS, against_set="a", position="3,last", out=None)
    with torch.no_grad():
        logits = lm.model(torch.tensor([lm.encode(CLEAN).ids])).logits[0].double()
    cap = lm.anatomy.readout.cap
    raw = logits if cap is None else cap * (logits / cap).atanh()
    some, (a,) = ids(lm, "56789"), ids(lm, "a")
    wanted = raw[:, some].logsumexp(-1) - raw[:, a]
    for row in run.summary["positions"]:
        assert row["sum"] == pytest.approx(float(wanted[row["pos"]]), abs=1e-4) == row["before_cap"]
    rows = run.attribution
    last = rows[(rows["component"] == "set_entropy") & (rows["pos"] == rows["pos"].max())]["contribution"].iloc[0]
    assert last == pytest.approx(float(torch.special.entr(raw[-1, some].softmax(-1)).sum()), abs=1e-4)


def test_one_token_is_what_it_was(lm):
    target, notes = contrast_after(lm, NO_SETS, "ab", "b", after=lm.encode(CLEAN).ids)
    assert target is not None and target.answer.is_token and target.by_logits and "is 2 tokens: the first" in notes[0]
    whole, _ = contrast_after(lm, NO_SETS, "ab", "b", after=lm.encode(CLEAN).ids, whole=True)
    assert whole is not None and len(whole.answer.steps) == 2
