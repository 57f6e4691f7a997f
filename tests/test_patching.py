"""Sweeps: the fast engine gives what plain torch hooks on full forwards give; effects, alignment, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import probe
from probe.errors import BadOption, BadPlace, BadPrompt, NonFinite, OutOfRange, SiteAbsent, UnknownSite
from probe.patching.cells import cells_of
from probe.patching.exact import exact, prepare_pair
from probe.patching.metrics import effects, logprobs_of, read_out
from probe.patching.pairs import PairTexts, aligned, make_pair
from probe.patching.planning import rows_at_once
from probe.patching.reading import values
from probe.patching.sources import generator
from probe.requests import PatchSweep
from probe.requests.groups import parse_memory
from probe.targets import AnswerTarget, Contrast

CLEAN, CORRUPT = "abcdef Mary gh", "abXdef John gh"
ASKED = {"clean": CLEAN, "corrupt": CORRUPT, "answer": "a", "against": "b"}
MARY = "When Mary and John went to the store, John gave a drink to"
JOHN = "When Mary and John went to the store, Mary gave a drink to"


def ids_of(lm, text):
    return torch.tensor([lm.encode(text).ids])


def hooked(lm, module, change, *, side, ids):
    """Last logits of a full forward in which a plain torch hook changes what goes into or comes out of a module."""
    if side == "input":
        handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:

        def hook(_, __, output):
            return change(output) if torch.is_tensor(output) else (change(output[0]), *output[1:])

        handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad():
            return lm.model(ids).logits[0, -1].double()
    finally:
        handle.remove()


def seen(lm, module, *, side, ids):
    """What a plain hook sees there."""
    kept = []
    hooked(lm, module, lambda value: kept.append(value.clone()) or value, side=side, ids=ids)
    return kept[0]


def slow_sweep(lm, site, *, side):
    """(layer, pos) logit differences, one full forward for each cell."""
    clean, corrupt = ids_of(lm, CLEAN), ids_of(lm, CORRUPT)
    a, b = lm.ids_of("a")[0], lm.ids_of("b")[0]
    found = np.zeros((lm.anatomy.n_layers, clean.shape[1]))
    for layer in range(lm.anatomy.n_layers):
        path = lm.anatomy.layers[layer].block if site == "resid_pre" else lm.anatomy.tap(site, layer).path
        module = lm.model.get_submodule(path)
        source = seen(lm, module, side=side, ids=clean)
        for pos in range(clean.shape[1]):

            def change(value, pos=pos, source=source):
                new = value.clone()
                new[:, pos] = source[:, pos]
                return new

            logits = hooked(lm, module, change, side=side, ids=corrupt)
            found[layer, pos] = logits[a] - logits[b]
    return found


def grid(run, site):
    rows = run.patches[run.patches["site"] == site]
    return rows.pivot(index="layer", columns="pos", values="patched").to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "mixtral", "falcon_h1", "mamba", "bloom"])
def test_a_fast_sweep_is_the_slow_one(family):
    lm = probe.load(f"tiny:{family}")
    run = probe.patch(lm, **ASKED, sites=["resid_pre", "attn_out"])
    for site, side in (("resid_pre", "input"), ("attn_out", "output")):
        slow = slow_sweep(lm, site, side=side)
        assert np.abs(slow - slow[0, 0]).max() > 0.01, "patching changes something"
        np.testing.assert_allclose(grid(run, site), slow, atol=2e-5)
    assert not any("whole forward" in text for text in run.manifest["warnings"])
    assert run.patches["passed"].sum() < len(run.patches)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_head_sweeps_are_the_slow_ones(family):
    """z of one head at all positions at once: what goes into the matrix after it."""
    lm = probe.load(f"tiny:{family}")
    run = probe.patch(lm, **ASKED, sites="z")
    clean, corrupt = ids_of(lm, CLEAN), ids_of(lm, CORRUPT)
    a, b = lm.ids_of("a")[0], lm.ids_of("b")[0]
    for row in run.patches.itertuples():
        module = lm.model.get_submodule(lm.anatomy.tap("z", row.layer).path)
        d = lm.anatomy.layers[row.layer].d_head
        source, mine = seen(lm, module, side="input", ids=clean), slice(row.head * d, (row.head + 1) * d)

        def change(value, source=source, mine=mine):
            new = value.clone()
            new[..., mine] = source[..., mine]
            return new

        logits = hooked(lm, module, change, side="input", ids=corrupt)
        assert row.patched == pytest.approx(float(logits[a] - logits[b]), abs=2e-5)
        assert row.pos == -1 and row.positions == clean.shape[1]


def test_every_budget_gives_the_same():
    lm = probe.load("tiny:llama")
    runs = [probe.patch(lm, **ASKED, sites=["resid_mid", "k", "mlp_post"], by="pos", memory=m) for m in ("1kB", "1GB")]
    np.testing.assert_allclose(runs[0].patches["patched"], runs[1].patches["patched"], atol=2e-5)


def test_a_patch_of_a_run_with_itself_is_exactly_nothing():
    lm = probe.load("tiny:llama")
    pair = make_pair(lm, PairTexts(CLEAN, CORRUPT, "a", "b"))
    view = prepare_pair(lm, pair, "denoise")
    for part in cells_of(lm, pair, PatchSweep(sites=("resid_pre", "z"))):
        own = values(lm, pair.corrupt, [(part.site, part.layer)]).values[part.site, part.layer]
        found = exact(view, part, own, own.clone(), budget=10**9)
        assert not found.passed.any()
        assert np.array_equal(found.readout.logit_diff, np.repeat(view.baselines.start.logit_diff, len(part.locations)))
        logits = view.base.partial_forward(1, [], layer=1, start=3)
        torch.testing.assert_close(logits[0], view.base.logits, atol=1e-5, rtol=0)


def test_cells_before_the_first_difference_are_as_unpatched():
    lm = probe.load("tiny:llama")
    cells = probe.patch(lm, **ASKED).patches
    before = cells[cells["pos"] < 3]  # a BOS, then "ab"
    assert len(before) == 3 * 3 and not before["passed"].any()
    assert (before["effect"] == 0).all() and (before["patched"] == before["corrupt"]).all()


def test_noising_mirrors_denoising():
    lm = probe.load("tiny:llama")
    noised = probe.patch(lm, **ASKED, direction="noise").patches
    other = probe.patch(lm, clean=CORRUPT, corrupt=CLEAN, answer="a", against="b").patches
    np.testing.assert_allclose(noised["patched"], other["patched"], atol=1e-6)
    np.testing.assert_allclose(noised["effect"], other["effect"], atol=1e-6)
    for direction in ("denoise", "noise"):
        whole = probe.patch(lm, **ASKED, direction=direction, by="head", layers="0").patches
        assert whole["effect"].tolist() == pytest.approx([1.0], abs=1e-5)


@pytest.mark.parametrize("source", ["zero", "mean", "noise", "resample"])
def test_other_sources(source):
    """A head's z at all positions by what the source says, against a plain hook."""
    lm = probe.load("tiny:llama")
    run = probe.patch(lm, **ASKED, sites="z@1.2", source=source, seed=3)
    module, ids = lm.model.get_submodule(lm.anatomy.tap("z", 1).path), ids_of(lm, CLEAN)
    assert run.summary["direction"] == "noise"
    if source in ("zero", "mean"):
        both = torch.cat([seen(lm, module, side="input", ids=ids_of(lm, t))[0] for t in (CLEAN, CORRUPT)])
        d = lm.anatomy.layers[1].d_head

        def change(value):
            new = value.clone()
            new[..., 2 * d : 3 * d] = 0.0 if source == "zero" else both.mean(0)[2 * d : 3 * d]
            return new

        logits = hooked(lm, module, change, side="input", ids=ids)
        expected = float(logits[lm.ids_of("a")[0]] - logits[lm.ids_of("b")[0]])
        assert run.patches["patched"].item() == pytest.approx(expected, abs=2e-5)
    again = probe.patch(lm, **ASKED, sites="z@1.2", source=source, seed=3).patches
    assert again["patched"].tolist() == run.patches["patched"].tolist()
    if source in ("noise", "resample"):
        assert probe.patch(lm, **ASKED, sites="z@1.2", source=source, seed=4).patches["patched"].tolist() != (
            run.patches["patched"].tolist()
        )


def test_edits_hold_in_every_run():
    """With an edit of a lower and of a higher layer than the patch: as with plain hooks for all three."""
    lm = probe.load("tiny:llama")
    run = probe.patch(lm, **ASKED, sites="resid_pre@1:7", edit=["mlp_out@0=zero", "mlp_out@2=zero", "embed:5=zero"])
    blocks, handles = lm.model.model.layers, []
    for layer in (0, 2):
        handles.append(blocks[layer].mlp.register_forward_hook(lambda _, __, out: torch.zeros_like(out)))

    def blank(_, __, out):
        out = out.clone()
        out[:, 5] = 0
        return out

    handles.append(lm.model.model.embed_tokens.register_forward_hook(blank))
    try:
        source = seen(lm, blocks[1], side="input", ids=ids_of(lm, CLEAN))

        def change(value):
            new = value.clone()
            new[:, 7] = source[:, 7]
            return new

        logits = hooked(lm, blocks[1], change, side="input", ids=ids_of(lm, CORRUPT))
    finally:
        for handle in handles:
            handle.remove()
    assert run.patches["patched"].item() == pytest.approx(
        float(logits[lm.ids_of("a")[0]] - logits[lm.ids_of("b")[0]]), abs=2e-5
    )
    assert lm.model._forward_hooks == {} and all("forward" not in vars(block) for block in blocks)


def test_the_model_is_left_as_it_was_by_a_failure():
    lm = probe.load("tiny:llama")
    ids = ids_of(lm, CLEAN)
    with torch.no_grad():
        before = lm.model(ids).logits

    def stop(what, done, total):
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.patch(lm, **ASKED, progress=stop)
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, before)


def test_metrics_are_those_of_float64():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 50, generator=rng) * 5
    found = read_out(logits[:, None], Contrast(AnswerTarget(((3,),), ""), AnswerTarget(((7,),), "")), logprobs_of(logits[0]))
    wide = logits.double().numpy()
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(found.logit_diff, wide[:, 3] - wide[:, 7], rtol=1e-6)
    np.testing.assert_allclose(found.prob, p[:, 3], rtol=1e-5)
    np.testing.assert_allclose(found.logprob, np.log(p[:, 3]), rtol=1e-5)
    np.testing.assert_allclose(found.kl, (p[0] * np.log(p[0] / p)).sum(1), rtol=1e-4, atol=1e-6)


def test_an_effect_without_a_scale_is_undefined():
    assert np.isnan(effects(np.array([1.0, 2.0]), 1.5, 1.5, "denoise")).all()
    assert effects(np.array([1.0, 3.0]), 3.0, 1.0, "denoise").tolist() == [0.0, 1.0]
    assert effects(np.array([1.0, 3.0]), 3.0, 1.0, "noise").tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("direction", "seed"), [("denoise", 0), ("noise", 3)])
def test_the_floor_is_what_random_patches_do(direction, seed):
    """Plain hooks before each block, which add vectors as long as the texts' values differ by, in random directions."""
    lm = probe.load("tiny:llama")
    run = probe.patch(lm, **ASKED, direction=direction, seed=seed, layers="0", positions="last")
    base, other = (ids_of(lm, text) for text in ((CORRUPT, CLEAN) if direction == "denoise" else (CLEAN, CORRUPT)))
    a, b = lm.ids_of("a")[0], lm.ids_of("b")[0]
    with torch.no_grad():
        plain = lm.model(base).logits[0, -1].double()
    moved, first = [], int((base != other)[0].nonzero()[0])
    for layer, block in enumerate(lm.model.model.layers):
        old, new = (seen(lm, block, side="input", ids=ids)[0, first:] for ids in (base, other))
        length = (new - old).norm(dim=-1, keepdim=True)
        drawn = torch.randn((4, *old.shape), generator=generator(f"{seed} 0 floor {layer}"))
        for direction_ in drawn / drawn.norm(dim=-1, keepdim=True):
            put = torch.cat([seen(lm, block, side="input", ids=base)[0, :first], old + length * direction_])[None]
            logits = hooked(lm, block, lambda _, put=put: put, side="input", ids=base)
            moved.append(abs(float((logits[a] - logits[b]) - (plain[a] - plain[b]))))
    floor = run.patches["floor"].unique()
    assert len(floor) == 1 and floor[0] == pytest.approx(np.quantile(moved, 0.95), abs=2e-5) and floor[0] > 1e-3
    small = abs(run.summary["clean"] - run.summary["corrupt"]) < floor[0]
    assert run.summary["small"] == ([0] if small else [])
    assert any("random patches" in text for text in run.manifest["warnings"]) == small


def test_differences_are_shown_where_the_texts_hardly_differ(shell, tmp_path: Path):
    """Texts that differ at their first token alone, far from the answer of a random model."""
    lm = probe.load("tiny:llama")
    words = ("--clean", "Xbcdefghijklmnop", "--corrupt", "abcdefghijklmnop", "--answer", "a", "--against", "b")
    done = shell("patch", *words, "--model", "tiny:llama", "--out", "p")
    assert done.returncode == 0, done.stderr
    run = probe.open_run(tmp_path / "p")
    rows, span = run.patches, abs(run.summary["clean"] - run.summary["corrupt"])
    assert run.summary["small"] == [0] and span < run.summary["floor"]
    assert "random patches of the same norm" in done.stderr and "100 x effect" not in done.stdout
    assert "100 x change of logit-diff" in done.stdout and lm.name in run.manifest["model"]["name"]
    np.testing.assert_allclose(rows["change"], rows["effect"] * span, atol=1e-6)


def test_undefined_effects_are_said_and_kept_as_null():
    """A model whose logits do not depend on what differs: only the last token is read."""
    lm = probe.load("tiny:llama")
    for layer in lm.model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    run = probe.patch(lm, **ASKED)
    assert run.patches["effect"].isna().all() and run.patches["patched"].notna().all()
    assert run.summary["undefined"] == [0] and run.summary["strongest"] == []
    assert run.manifest["warnings"] == ["pair 0: clean and corrupt have the same logit-diff, so no effect is defined"]


def test_alignment():
    assert aligned([1, 2, 3], [1, 5, 3], None) == ((0, 0), (1, 1), (2, 2))
    assert aligned([1, 2, 3], [1, 2], "left") == ((0, 0), (1, 1))
    assert aligned([1, 2, 3], [2, 3], "right") == ((1, 0), (2, 1))
    assert aligned([1, 2, 8, 9], [1, 5, 6, 8, 9], "ends") == ((0, 0), (2, 3), (3, 4))
    assert aligned([1, 1], [1, 1, 1], "ends") == ((0, 0), (1, 1))


def test_texts_of_different_length():
    lm = probe.load("tiny:llama")
    what = {"clean": "abc Mary gh", "corrupt": "abc Jonathan gh", "answer": "a", "against": "b"}
    with pytest.raises(BadOption, match="the clean text has 12 tokens and the corrupt one 16"):
        probe.patch(lm, **what)
    cells = probe.patch(lm, **what, align="ends", layers="0").patches
    assert dict(zip(cells["pos"], cells["source_pos"], strict=True)) == {**{i: i for i in range(5)}, 13: 9, 14: 10, 15: 11}
    source = seen(lm, lm.model.model.layers[0], side="input", ids=ids_of(lm, what["clean"]))

    def change(value):
        new = value.clone()
        new[:, 14] = source[:, 10]
        return new

    logits = hooked(lm, lm.model.model.layers[0], change, side="input", ids=ids_of(lm, what["corrupt"]))
    patched = cells.set_index("pos").loc[14, "patched"]
    assert patched == pytest.approx(float(logits[lm.ids_of("a")[0]] - logits[lm.ids_of("b")[0]]), abs=2e-5)


@pytest.mark.slow
def test_several_pairs_are_averaged(tmp_path: Path):
    lm = probe.load("tiny:llama")
    texts = [("abc Mary", "abc John"), ("xyz Mary", "xyz Josh"), ("qqq Carl", "qqq Josh")]
    rows = [{"clean": a, "corrupt": b, "answer": "a", "against": "b"} for a, b in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "pairs.csv").write_text("clean,corrupt,answer,against\n" + "\n".join(f"{a},{b},a,b" for a, b in texts))
    run = probe.patch(lm, pairs=tmp_path / "pairs.jsonl")
    same = probe.patch(lm, pairs=tmp_path / "pairs.csv")
    alone = [probe.patch(lm, **row).patches["effect"].to_numpy() for row in rows]
    means = run.patch_means
    np.testing.assert_allclose(means["effect"], np.mean(alone, axis=0), atol=1e-5)
    assert (means["n"] == 3).all() and (means["ci_low"] <= means["effect"]).all()
    assert run.patches["patched"].tolist() == same.patches["patched"].tolist()
    longer = probe.patch(lm, pairs=[texts[0] + ("a", "b"), ("w xyz Mary", "w xyz Josh", "a", "b")]).patch_means
    assert longer["pos"].min() == -11 and longer["n"].value_counts().to_dict() == {2: 27, 1: 6}


def test_runs_stand_for_their_texts(tmp_path: Path):
    lm = probe.load("tiny:llama")
    clean, corrupt = (probe.trace(lm, text, attention="none") for text in (CLEAN, CORRUPT))
    found = probe.patch(lm, clean=clean, corrupt=corrupt, answer="a", against="b").patches
    assert found["patched"].tolist() == probe.patch(lm, **ASKED).patches["patched"].tolist()
    other = probe.trace(probe.load("tiny:gpt2"), CLEAN, attention="none")
    with pytest.raises(probe.ProbeError, match="run of another model"):
        probe.patch(lm, clean=other, corrupt=corrupt, answer="a", against="b")
    with pytest.raises(probe.ProbeError, match="no table 'prompts'"):  # two runs compared hold no text
        probe.patch(lm, clean=probe.compare(clean, clean), corrupt=corrupt, answer="a", against="b")


def test_an_answer_of_several_tokens_is_its_first():
    lm = probe.load("tiny:llama")
    run = probe.patch(lm, **{**ASKED, "answer": "ab", "against": "ba"})
    assert run.patches["patched"].tolist() == probe.patch(lm, **ASKED).patches["patched"].tolist()
    assert run.manifest["warnings"][0] == "--answer 'ab' is 2 tokens: the first, 'a', is used"


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"against": "a"}, BadOption, "are the same"),
        ({"answer": "ab", "against": "ac"}, BadOption, "begin with the same token"),
        ({"answer": ""}, BadOption, "--answer is empty"),
        ({"answer": None}, BadOption, "--answer is missing"),
        ({"against": None}, BadOption, "needs two answers"),
        ({"corrupt": CLEAN}, BadPrompt, "the same tokens"),
        ({"sites": "resid_pree"}, UnknownSite, "resid_pree"),
        ({"sites": "pattern"}, BadOption, "cannot be patched"),
        ({"layers": "7"}, OutOfRange, "no layer 7"),
        ({"positions": "99"}, OutOfRange, "no position 99"),
        ({"positions": "tok=zz"}, BadPlace, "no token"),
        ({"sites": "z", "heads": "9"}, OutOfRange, "no head 9"),
        ({"heads": "1"}, BadOption, "no site that was asked for has heads"),
        ({"sites": "z@0.1", "by": "pos"}, BadOption, "only some heads"),
        ({"by": "row"}, BadOption, "unknown axis"),
        ({"by": "step"}, BadOption, "have no steps"),
        ({"source": "dirty"}, BadOption, "unknown source"),
        ({"direction": "up"}, BadOption, "unknown direction"),
        ({"metric": "auc"}, BadOption, "unknown metric"),
        ({"align": "up"}, BadOption, "unknown alignment"),
        ({"memory": "much"}, BadOption, "no size of memory"),
        ({"pairs": [("a b", "a c", "a", "b")]}, BadOption, "given twice"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(changed, error, match):
    lm = probe.load("tiny:llama")
    with pytest.raises(error, match=match):
        probe.patch(lm, **{**ASKED, **changed})


def test_what_a_model_lacks_is_refused():
    with pytest.raises(SiteAbsent):
        probe.patch(probe.load("tiny:gpt_neox"), **ASKED, sites="resid_mid@1")
    with pytest.raises(SiteAbsent, match="no layers were found"):
        probe.patch(probe.load("tiny:gemma3n_text"), **ASKED)
    broken = probe.load("tiny:llama")
    assert broken.anatomy.n_layers == 3  # found while the weights are whole
    torch.nn.init.constant_(broken.model.model.layers[1].mlp.down_proj.weight, math.nan)
    with pytest.raises(NonFinite):
        probe.patch(broken, **ASKED)


def test_memory():
    lm = probe.load("tiny:llama")
    assert parse_memory("500MB") == 500_000_000 and parse_memory("2 GiB") == 2_000_000_000 and parse_memory(7) == 7
    assert rows_at_once(lm, new=1000, n=1000, budget=10) == 1
    assert rows_at_once(lm, new=8, n=8, budget=10**6) <= rows_at_once(lm, new=8, n=8, budget=10**9)


@pytest.mark.slow
def test_the_command_line(shell, tmp_path: Path):
    words = ("patch", "--model", "tiny:llama", "--clean", CLEAN, "--corrupt", CORRUPT, "--answer", "a", "--against", "b")
    done = shell(*words, "--out", "r", "--sites", "resid_pre", "--sites", "z")
    assert done.returncode == 0, done.stderr
    assert 'tokens that differ: 3 "c" / "X"' in done.stdout and "strongest places" in done.stdout
    assert "Patching resid_pre, by layer and token\n" in done.stdout and "Patching z, by layer and head" in done.stdout
    assert "change of logit-diff towards the other run (logits)\n" in done.stdout
    shown = json.loads(shell(*words, "--json", "--layers", "0..1").stdout)
    assert shown["command"] == "patch" and shown["summary"]["cells"] == 30 and len(shown["summary"]["strongest"]) == 10
    planned = json.loads(shell(*words, "--dry-run", "--json").stdout)
    assert planned["tables"]["patches"]["rows"] == len(probe.open_run(tmp_path / "r").patches) - 12
    failed = shell(*words[:-1], "a")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[0] == "error: --answer 'a' and --against 'a' are the same"
    assert failed.stderr.splitlines()[1].startswith("hint: ")


@pytest.mark.slow
def test_the_well_known_picture(smollm2):
    """The name's second mention holds the answer in early layers, the last token in late ones (Wang et al. 2022)."""
    run = probe.patch(smollm2, clean=MARY, corrupt=JOHN, answer=" Mary", against=" John")
    effect = run.patches.pivot(index="layer", columns="pos", values="effect").to_numpy()
    assert (effect[:19, 9] > 0.95).all() and (np.abs(effect[:19, 13]) < 0.05).all()
    assert (effect[25:, 13] > 0.85).all() and (np.abs(effect[25:, 9]) < 0.05).all()
    assert (effect[:, :9] == 0).all()
    assert run.summary["small"] == [] and 1.0 < run.summary["floor"] < (run.summary["clean"] - run.summary["corrupt"]) / 2
    ids, source = ids_of(smollm2, JOHN), None
    block = smollm2.model.model.layers[21]
    source = seen(smollm2, block, side="input", ids=ids_of(smollm2, MARY))
    a, b = smollm2.ids_of(" Mary")[0], smollm2.ids_of(" John")[0]
    for pos in (9, 10, 13):

        def change(value, pos=pos):
            new = value.clone()
            new[:, pos] = source[:, pos]
            return new

        logits = hooked(smollm2, block, change, side="input", ids=ids)
        patched = run.patches.query(f"layer == 21 and pos == {pos}")["patched"].item()
        assert patched == pytest.approx(float(logits[a] - logits[b]), abs=1e-4)


def test_patch_sweep_is_another_name_of_patch() -> None:
    assert probe.patch_sweep is probe.patch


@pytest.mark.parametrize("sites", ["z", ["resid_pre", "z", "q", "mlp_out"]], ids=str)
def test_each_text_is_read_once_whatever_is_patched(sites: str | list[str]) -> None:
    """Cells before the first difference take no forward: what is left is one for each text, and the floor's, one a layer."""
    lm = probe.load("tiny:llama")
    asked = {"clean": "abcab", "corrupt": "abcbb", "answer": "a", "against": "b", "sites": sites, "positions": "0..2"}
    probe.patch(lm, **asked, by="pos")  # what is tried once a model is tried
    forwards = []
    lm.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    run = probe.patch(lm, **asked, by="pos")
    assert run.summary["passed"] == 0 and len(forwards) == 2 + lm.anatomy.n_layers
