"""Answers of several tokens in the sweeps of patch and the parts of attribute: plain forwards with hooks written here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.errors import BadOption, BadPlace, BadPrompt, OutOfRange
from probe.patching import plan_patch
from probe.patching.exact import prepare_pair
from probe.patching.pairs import PairTexts, make_pair
from tests.planted import naming

CLEAN, CORRUPT = "abcdef Mary gh", "abXdef John gh"
ANSWER, AGAINST = "abc", "dX"  # three tokens, and two others: two continuations
ASKED = {"clean": CLEAN, "corrupt": CORRUPT, "answer": ANSWER, "against": AGAINST, "whole_answer": True, "out": None}
Change = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module", params=["mistral", "gemma2"])
def lm(request):
    """Both have fewer heads of keys than of queries; one of them sandwich norms, a window and a cap."""
    found = probe.load(f"tiny:{request.param}")
    found.model.double()
    layer = found.anatomy.layers[0]
    assert layer.n_kv_heads < layer.n_heads
    return found


def ids(lm, text: str) -> list[int]:
    return list(lm.encode(text).ids)


def tokens(lm, text: str) -> list[int]:
    return list(lm.ids_of(text))


@torch.no_grad()
def plain(lm, row: Sequence[int], module=None, change: Change | None = None, *, side: str = "in") -> Tensor:
    """Logits (pos, d_vocab) of one whole forward, with what goes into or comes out of a module changed."""
    handles = []
    if module is not None and side == "in":
        handles.append(module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:])))
    elif module is not None:
        handles.append(module.register_forward_hook(lambda _, __, out: change(out)))
    try:
        return lm.model(torch.tensor([list(row)])).logits[0].double()
    finally:
        for handle in handles:
            handle.remove()


def logprob(lm, text: Sequence[int], answer: Sequence[int], module=None, change: Change | None = None, **side) -> float:
    """Of the whole answer: each of its tokens after the text and those before it."""
    logits = plain(lm, [*text, *answer[:-1]], module, change, **side)[len(text) - 1 :]
    return float(sum(logits[i].log_softmax(-1)[token] for i, token in enumerate(answer)))


def seen(lm, row: Sequence[int], module) -> Tensor:
    """(pos, d) of what goes into a module."""
    kept: list[Tensor] = []
    plain(lm, row, module, lambda value: kept.append(value.clone()) or value)
    return kept[0][0]


def put(positions: Sequence[int], new: Tensor, columns: slice = slice(None)) -> Change:
    """new (pos, d): takes the place of what stands at the positions."""

    def change(value: Tensor) -> Tensor:
        found = value.clone()
        found[0, list(positions), columns] = new[list(positions), columns].to(value)
        return found

    return change


def both(lm, text: Sequence[int], module, change: Change, **side) -> tuple[float, float]:
    return tuple(logprob(lm, text, tokens(lm, answer), module, change, **side) for answer in (ANSWER, AGAINST))


# ---- patch


def test_cells_are_measured_over_the_whole_answer(lm):
    """The stream position by position, and heads: each of the metrics, and the same with little memory."""
    clean, corrupt = ids(lm, CLEAN), ids(lm, CORRUPT)
    run = probe.patch(lm, **ASKED, sites=["resid_pre", "z@1", "resid_post@2"], positions="2,9..12,last", by=None)
    checked = 0
    for row in run.patches.itertuples():
        layer = lm.anatomy.layers[row.layer]
        block = lm.model.get_submodule(layer.block)
        if row.site == "z":
            module, own = block.self_attn.o_proj, slice(row.head * layer.d_head, (row.head + 1) * layer.d_head)
            where = [2, 9, 10, 11, 12, len(clean) - 1]
        else:  # what comes out of the last block is what goes into the norm behind it
            module = block if row.site == "resid_pre" else lm.model.model.norm
            own, where = slice(None), [row.pos]
        one, other = both(lm, corrupt, module, put(where, seen(lm, clean, module), own))
        assert [row.logprob, row.prob, row.logit_diff] == pytest.approx([one, np.exp(one), one - other], abs=1e-5)
        first = plain(lm, corrupt, module, put(where, seen(lm, clean, module), own))[-1].log_softmax(-1)
        before = plain(lm, clean)[-1].log_softmax(-1)
        assert row.kl == pytest.approx(float((before.exp() * (before - first)).sum()), abs=1e-5)
        checked += abs(row.change) > 1e-3
    assert checked > 10
    assert run.summary["unit"] == "nats, log-prob of the whole answer - against"
    tight = probe.patch(lm, **ASKED, sites=["resid_pre", "z@1", "resid_post@2"], positions="2,9..12,last", memory="1KB").patches
    np.testing.assert_allclose(tight["patched"], run.patches["patched"], atol=1e-5)


@pytest.mark.parametrize("source", ["zero", "mean"])
def test_what_is_put_in_is_of_the_texts_alone(lm, source):
    """A mean over both texts, without what is given after them."""
    clean, corrupt = ids(lm, CLEAN), ids(lm, CORRUPT)
    run = probe.patch(lm, **ASKED, sites="mlp_out@0", positions="4,last", source=source, metric="logprob")
    module, kept = lm.model.get_submodule(lm.anatomy.tap("mlp_out", 0).path), []
    for text in (clean, corrupt):
        plain(lm, text, module, lambda value: kept.append(value[0].clone()) or value, side="out")
    new = torch.cat(kept).mean(0).expand(len(clean), -1) * (source == "mean")
    for row in run.patches.itertuples():
        wanted = logprob(lm, clean, tokens(lm, ANSWER), module, put([row.pos], new), side="out")
        assert row.patched == pytest.approx(wanted, abs=1e-5) and abs(row.change) > 1e-4


def test_edits_are_of_the_text(lm):
    """Its last position is not that of what is given after it."""
    clean, module = ids(lm, CLEAN), lm.model.get_submodule(lm.anatomy.tap("mlp_out", 1).path)
    asked = {**ASKED, "layers": "0", "positions": "3", "edit": "mlp_out@1:last=zero"}
    change = put([len(clean) - 1], torch.zeros(len(clean), lm.anatomy.d_model))
    one, other = both(lm, clean, module, change, side="out")
    for method in ("exact", "attribution"):
        found = probe.patch(lm, **asked, method=method, sample=None if method == "exact" else 0)
        assert found.summary["clean"] == pytest.approx(one - other, abs=1e-5)
    pair = make_pair(lm, PairTexts(CLEAN, CORRUPT, ANSWER, AGAINST), whole=True)
    shortcuts = [base.shortcut for base in prepare_pair(lm, pair, "denoise").bases]
    assert shortcuts == [(True, True)] * 2  # neither takes whole forwards


def test_an_estimate_is_the_slope_of_the_whole_answer(lm):
    """Against finite differences of plain forwards, through both continuations; the sampled cells are run whole too."""
    clean, corrupt = ids(lm, CLEAN), ids(lm, CORRUPT)
    run = probe.patch(lm, **ASKED, sites="mlp_out@0", positions="3,9,last", method="attribution", sample=3)
    module = lm.model.get_submodule(lm.anatomy.tap("mlp_out", 0).path)
    values: list[Tensor] = []
    for text in (clean, corrupt):
        plain(lm, text, module, lambda value: values.append(value[0].clone()) or value, side="out")

    def at(step: float, pos: int) -> float:
        one, other = both(lm, corrupt, module, put([pos], values[1] + step * (values[0] - values[1])), side="out")
        return one - other

    exact = probe.patch(lm, **ASKED, sites="mlp_out@0", positions="3,9,last").patches
    np.testing.assert_allclose(run.patches["exact"], exact["patched"], atol=1e-5)
    for row in run.patches.itertuples():
        slope = (at(0.01, row.pos) - at(-0.01, row.pos)) / 0.02  # some norms compute in fp32
        assert row.patched - row.corrupt == pytest.approx(slope, rel=5e-3, abs=1e-5)
        assert abs(slope) > 1e-4


def test_integrated_gradients_add_up_to_the_whole_difference(lm):
    found = probe.patch(lm, **ASKED, sites="embed", method="attribution", sample=0, ig=32).patches
    assert found["effect"].sum() == pytest.approx(1, abs=0.03)


def test_what_is_sent_along_a_path_is_measured_over_the_whole_answer(lm):
    """Attention of layer 0 into the values of layer 1: all else that is written held at the corrupt run, by plain hooks."""
    clean, corrupt = ids(lm, CLEAN), ids(lm, CORRUPT)
    run = probe.patch(lm, **ASKED, path="attn_out@0->v@1.1")
    blocks = [lm.model.get_submodule(layer.block) for layer in lm.anatomy.layers]
    attention, mlp = (lm.model.get_submodule(lm.anatomy.tap(site, 0).path) for site in ("attn_out", "mlp_out"))
    written: list[Tensor] = []
    for text, module in ((clean, attention), (corrupt, mlp)):
        kept: list[Tensor] = []

        def keep(out, kept=kept):
            kept.append(out[0] if isinstance(out, tuple) else out)
            return out

        plain(lm, text, module, keep, side="out")
        written.append(kept[0])
    handle = mlp.register_forward_hook(lambda *_: written[1])
    values: list[Tensor] = []
    watch = blocks[1].self_attn.v_proj.register_forward_hook(lambda _, __, out: values.append(out[0]))
    plain(lm, corrupt, attention, lambda out: (written[0], *out[1:]) if isinstance(out, tuple) else written[0], side="out")
    handle.remove()
    watch.remove()
    size = lm.anatomy.layers[1].d_head
    change = put(range(len(corrupt)), values[0], slice(size, 2 * size))
    one, other = both(lm, corrupt, blocks[1].self_attn.v_proj, change, side="out")
    assert run.patches["patched"].item() == pytest.approx(one - other, abs=1e-5)
    assert abs(run.patches["change"].item()) > 1e-4
    ends = probe.patch(lm, **ASKED, path="mlp_out@2->logits").patches["patched"].item()
    assert ends == pytest.approx(
        probe.patch(lm, **ASKED, sites="mlp_out@2", positions="last").patches["patched"].item(), abs=1e-5
    )


def test_the_place_that_gives_the_second_word_is_found_in_the_whole_answer_alone():
    circuit = naming()
    asked = {"clean": circuit.clean, "corrupt": circuit.corrupt, "answer": circuit.answer, "against": circuit.against}
    found = {}
    for whole in (False, True):
        for method in ("exact", "attribution"):
            run = probe.patch(
                circuit.lm, **asked, whole_answer=whole, sites=["resid_pre", "v"], by="pos,head", method=method, out=None
            )  # fmt: skip
            rows = run.patches[run.patches["effect"].abs() > 0.1]
            found[whole, method] = {(row.site, row.layer, row.head, row.pos) for row in rows.itertuples()}
            if whole and method == "exact":
                np.testing.assert_allclose(rows["effect"], 0.5, atol=0.1)
    person = {("resid_pre", 0, -1, 2), ("resid_pre", 1, -1, 2), ("v", 1, 3, 2)}
    place = {("resid_pre", 0, -1, 5), ("resid_pre", 1, -1, 5), ("v", 1, 1, 5)}
    assert found[False, "exact"] == person and found[True, "exact"] == person | place
    assert {one for one in found[False, "attribution"] if one[0] == "v"} == {("v", 1, 3, 2)}
    assert {one for one in found[True, "attribution"] if one[0] == "v"} == {("v", 1, 3, 2), ("v", 1, 1, 5)}


# ---- where it is measured, and what a row of a file names


def test_a_metric_is_read_at_a_named_position(lm):
    """By forwards of the whole texts, whose logits are read there: what comes later changes nothing."""
    clean, corrupt = ids(lm, CLEAN), ids(lm, CORRUPT)
    asked = {"clean": CLEAN, "corrupt": CORRUPT, "answer": "a", "against": "b", "layers": "1", "out": None}
    run = probe.patch(lm, **asked, measure_at=5)
    (a,), (b,) = tokens(lm, "a"), tokens(lm, "b")
    block = lm.model.get_submodule(lm.anatomy.layers[1].block)
    for row in run.patches.itertuples():
        logits = plain(lm, corrupt, block, put([row.pos], seen(lm, clean, block)))[5]
        assert row.patched == pytest.approx(float(logits[a] - logits[b]), abs=1e-5)
    assert len(run.patches) == 6 and run.summary["at"] == {"measure_at": "5", "pos": 5, "token": lm.labels(clean)[5]}
    assert run.patches["change"].abs().max() > 1e-3
    named = probe.patch(lm, **asked, measure_at="tok=" + lm.pieces(clean).tokens[5]).patches
    assert named["patched"].tolist() == run.patches["patched"].tolist()
    whole = probe.patch(lm, **{**asked, **ASKED}, measure_at=5).patches  # what is given follows there
    one = logprob(lm, clean[:6], tokens(lm, ANSWER)) - logprob(lm, clean[:6], tokens(lm, AGAINST))
    assert whole["clean"].iloc[0] == pytest.approx(one, abs=1e-5)
    longer = {**asked, "clean": "ab" + CLEAN, "align": "right"}
    shifted = probe.patch(lm, **longer, measure_at=7)
    assert shifted.summary["clean"] != run.summary["clean"] and shifted.summary["corrupt"] == pytest.approx(
        run.summary["corrupt"]
    )


def test_a_run_is_measured_at_the_end_of_a_step(lm):
    some = {"generate": 12, "split": "regex:.{4}", "attention": "none", "out": None}
    clean, corrupt = (probe.trace(lm, text, **some) for text in ("abc. def. ", "abc. dXf. "))
    asked = {"clean": clean, "corrupt": corrupt, "answer": "a", "against": "b", "layers": "0", "align": "left", "out": None}
    end = int(clean.steps["end"].iloc[0])
    run = probe.patch(lm, **asked, measure_at="step0")
    assert run.summary["at"]["pos"] == end - 1 and len(run.patches) == end > 10
    assert run.patches["step"].tolist() == [-1] * 11 + [0] * (end - 11)


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"measure_at": 99}, OutOfRange, "no position 99"),
        ({"measure_at": "late"}, BadPlace, "no position"),
        ({"measure_at": "4,5"}, BadPlace, "is 2 positions"),
        ({"measure_at": "parting"}, BadOption, "arms of a rewind"),
        ({"measure_at": "step1"}, OutOfRange, "no step"),
        ({"measure_at": 1}, BadOption, "both texts are the same"),
        ({"measure_at": 5, "positions": "6"}, OutOfRange, "no position 6"),
        ({"answer": None, "against": None, "answer_set": "a|b"}, BadOption, "followed whole"),
        ({"answer": "ab", "against": "ab"}, BadOption, "are the same"),
        ({"answer": "a" * 600}, BadOption, "longer than the context"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said(lm, changed, error, match):
    with pytest.raises(error, match=match):
        probe.patch(lm, **{**ASKED, **changed})


def test_rows_of_a_file_name_sets_of_their_own(lm, tmp_path):
    path = tmp_path / "pairs.jsonl"
    texts = {"clean": CLEAN, "corrupt": CORRUPT}
    rows = [{**texts, "answer_set": "a|b", "against_set": "c|d"}, {**texts, "answer": "e"}, texts]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    some = {"layers": "0", "positions": "2", "out": None}
    run = probe.patch(lm, pairs=path, answer_set="f", against="h", **some)
    each = [
        probe.patch(lm, **texts, **some, **answers).patches["patched"].item()
        for answers in (
            {"answer_set": "a|b", "against_set": "c|d"},
            {"answer": "e", "against": "h"},
            {"answer_set": "f", "against": "h"},
        )
    ]
    np.testing.assert_allclose(run.patches["patched"], each, atol=1e-6)
    assert len(set(each)) == 3
    same = probe.patch(lm, pairs=rows, answer_set="f", against="h", **some)
    assert same.patches["patched"].tolist() == run.patches["patched"].tolist()
    for row, match in (({"answer": "a", "answer_set": "b"}, "both answer and answer_set"), ({"answer_set": 5}, "not a text")):
        path.write_text(json.dumps({**texts, **row}))
        with pytest.raises(BadPrompt, match=match):
            probe.patch(lm, pairs=path, **some)


def test_a_plan_counts_both_continuations(lm):
    one, two = (
        plan_patch(lm, probe.requests.PatchSweep(**{**ASKED, "against": against}, sites="z", metric="logprob"))
        for against in (None, AGAINST)
    )
    assert two["passes"] == 2 * one["passes"] and two["pass_memory_bytes"] > one["pass_memory_bytes"]


# ---- attribute


@torch.no_grad()
def by_hand(lm, answer: str, layer: int) -> tuple[float, float, float]:
    """What the MLP of a layer wrote towards the whole answer's logits, with the final norm's scale at its real value; the
    normalizers; and the log-prob before the cap: from what plain hooks see on the model's own modules."""
    text, following = ids(lm, CLEAN), tokens(lm, answer)
    kept: dict[str, Tensor] = {}
    model, where = lm.model, slice(len(text) - 1, None)
    modules = {"mlp": lm.anatomy.tap("mlp_out", layer).path, "norm": "model.norm", "head": "lm_head"}

    def keep(name: str):
        def hook(_, args, out):
            kept[name], kept[f"{name} reads"] = out[0, where].double(), args[0][0, where].double()

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(name)) for name, path in modules.items()]
    plain(lm, [*text, *following[:-1]])
    for handle in handles:
        handle.remove()
    gained = kept["norm"] / kept["norm reads"]  # scale x gain, as it was there
    part = (kept["mlp"] * gained * model.lm_head.weight.double()[following]).sum()
    total = kept["head"].log_softmax(-1)[range(len(following)), following].sum()
    return float(part), float(kept["head"].logsumexp(-1).sum()), float(total)


def test_the_parts_of_a_whole_answer_sum_to_its_log_prob(lm):
    """Both answers, two continuations; each part by hand."""
    run = probe.attribute(
        lm, CLEAN, answer=ANSWER, against=AGAINST, whole_answer=True, by_source=True, out=None
    )  # fmt: skip
    frame, (at,) = run.attribution, run.summary["positions"]
    one, other = (by_hand(lm, answer, 1) for answer in (ANSWER, AGAINST))
    found = frame.set_index(["component", "layer"])["contribution"]
    assert found["mlp", 1].item() == pytest.approx(one[0] - other[0], abs=1e-5) and abs(one[0] - other[0]) > 1e-3
    assert found["log_normalizer", -1].item() == pytest.approx(other[1] - one[1], abs=1e-5)
    assert frame["contribution"].sum() == pytest.approx(at["before_cap"], abs=1e-5)
    assert at["before_cap"] == pytest.approx(one[2] - other[2], abs=1e-5)
    text = ids(lm, CLEAN)
    assert at["logit"] == pytest.approx(
        logprob(lm, text, tokens(lm, ANSWER)) - logprob(lm, text, tokens(lm, AGAINST)), abs=1e-5
    )
    assert (frame["pos"] == len(text) - 1).all() and run.summary["of"] == "log-prob"
    read = run.attribution_sources.groupby(["layer", "head"])["contribution"].sum()
    heads = frame[frame["head"] >= 0].set_index(["layer", "head"])["contribution"]
    assert len(read) == 12 and run.attribution_sources["source"].max() == len(text) + len(tokens(lm, ANSWER)) - 2
    np.testing.assert_allclose(heads.loc[read.index], read, atol=1e-5)


def test_whole_answers_of_one_token_are_their_logits(lm):
    """The normalizer cancels; alone, an answer has the log-prob of its one token."""
    for against in ("b", None):
        asked = {"answer": "a", "against": against, "out": None}
        logits, whole = (probe.attribute(lm, CLEAN, **asked, whole_answer=one).attribution for one in (False, True))
        same = logits.merge(whole, on=["component", "layer", "head"])
        np.testing.assert_allclose(same["contribution_x"], same["contribution_y"], atol=1e-9)
        assert len(same) == len(logits) == len(whole) - (against is None)
    asked = {"answer": ANSWER, "whole_answer": True, "by": "neuron", "top": 2, "out": None}
    single = probe.attribute(lm, CLEAN, **asked)
    wanted = by_hand(lm, ANSWER, 1)[2]
    assert single.attribution["contribution"].sum() == pytest.approx(wanted, abs=1e-5)
    assert (single.attribution["neuron"] >= 0).sum() == 2 * lm.anatomy.n_layers
    with pytest.raises(BadOption, match="chosen in one continuation"):
        probe.attribute(lm, CLEAN, **asked, against=AGAINST)
    with pytest.raises(BadOption, match="one position"):
        probe.attribute(lm, CLEAN, answer="ab", whole_answer=True, position="all", out=None)


def test_heads_that_name_are_found_in_the_whole_answer():
    circuit, found = naming(), {}
    for whole in (False, True):
        run = probe.attribute(circuit.lm, circuit.clean, answer=circuit.answer, whole_answer=whole, out=None)
        rows = run.attribution[run.attribution["head"] >= 0]
        found[whole] = {(row.layer, row.head) for row in rows.itertuples() if row.contribution > 2}
    assert found == {False: {(1, 3)}, True: {(1, 3), (1, 1)}}


@pytest.mark.slow
def test_a_real_answer_of_two_words(smollm2):
    """Both cities are two tokens: the same sums by plain forwards with hooks, and parts that sum to them."""
    lm = smollm2
    texts = [f"He was born in {place}, and so he grew up in the city of" for place in ("Manhattan", "Hollywood")]
    cities = [lm.ids_of(city) for city in (" New York", " Los Angeles")]
    assert list(map(len, cities)) == [2, 2]
    asked = {"answer": " New York", "against": " Los Angeles", "whole_answer": True, "out": None}
    run = probe.patch(lm, clean=texts[0], corrupt=texts[1], **asked, layers="0,15", positions="4,last")
    clean, corrupt = (ids(lm, text) for text in texts)
    for row in run.patches.itertuples():
        block = lm.model.model.layers[row.layer]
        change = put([row.pos], seen(lm, clean, block))
        one, other = (logprob(lm, corrupt, city, block, change) for city in cities)
        assert row.patched == pytest.approx(one - other, abs=2e-3)
    moved = run.patches.set_index(["layer", "pos"])["effect"]
    assert moved[0, 4] == pytest.approx(1, abs=1e-3) and moved[15, 4] > 0.5 > moved[15, 14]
    parts = probe.attribute(lm, texts[0], **asked)
    wanted = logprob(lm, clean, cities[0]) - logprob(lm, clean, cities[1])
    assert parts.attribution["contribution"].sum() == pytest.approx(wanted, abs=1e-3)
