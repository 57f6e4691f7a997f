"""Attribution patching: slopes by autograd by hand and by finite differences; equal to exact patches where all is linear."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probe
from probe.errors import BadModel, BadOption, SiteAbsent
from probe.interventions import Patch, Scale, applying, cells
from probe.language_model import LanguageModel
from probe.patching.attribution import products, slopes
from probe.patching.reading import SiteLayer, values
from probe.sites import Cell, Positions
from tests.planted import copying

CLEAN, CORRUPT = "abcdef Mary gh", "abXdef John gh"
ASKED = {"clean": CLEAN, "corrupt": CORRUPT, "answer": "a", "against": "b"}
EVERY = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "z", "q", "k", "v")


@functools.cache
def loaded(family: str) -> LanguageModel:
    return probe.load(f"tiny:{family}")


def difference(lm: LanguageModel) -> Callable[[Tensor], Tensor]:
    a, b = lm.ids_of("a")[0], lm.ids_of("b")[0]
    return lambda logits: logits[:, -1, a].double() - logits[:, -1, b].double()


def texts(lm: LanguageModel) -> tuple[list[int], list[int]]:
    return list(lm.encode(CLEAN).ids), list(lm.encode(CORRUPT).ids)


def wheres_of(lm: LanguageModel) -> list[SiteLayer]:
    a = lm.anatomy
    return [("embed", -1), *((s, i) for s in EVERY for i in range(a.n_layers) if a.has(s, i))]


# ---- the slopes


def test_slopes_are_those_of_autograd_by_hand_in_float64() -> None:
    """Plain hooks on GPT-2's own modules, their tensors kept with `retain_grad`."""
    lm = probe.load("tiny:gpt2")
    model = lm.model.double()
    _, corrupt = texts(lm)
    blocks, kept = model.transformer.h, {}

    def keep(where: SiteLayer) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            value = inputs[0] if where[0] == "z" else output[0] if isinstance(output, tuple) else output
            value.retain_grad()
            kept[where] = value

        return hook

    handles = [model.transformer.wte.register_forward_hook(lambda _m, _i, out: out.detach().requires_grad_())]
    for i, block in enumerate(blocks):
        for site, module in (("attn_out", block.attn), ("mlp_out", block.mlp), ("z", block.attn.c_proj), ("resid_post", block)):
            handles.append(module.register_forward_hook(keep((site, i))))
    metric = difference(lm)(model(torch.tensor([corrupt])).logits)[0]
    metric.backward()
    for handle in handles:
        handle.remove()
    read = slopes(lm, corrupt, list(kept), difference(lm))
    for where, value in kept.items():
        torch.testing.assert_close(read.slopes[where].flatten(1), value.grad[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(read.values[where].flatten(1), value.detach()[0], rtol=1e-12, atol=1e-12)
    assert read.slopes["z", 1].abs().max() > 1e-3
    # two forwards in float64 may add in another order: the last digits depend on the processor
    assert float(metric.detach()) == pytest.approx(float(difference(lm)(read.logits[None])), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "mixtral", "mamba", "falcon_h1", "bloom", "gpt_oss"])
def test_slopes_are_finite_differences(family: str) -> None:
    """Each site moved a little towards the clean text's value, there and back, by an edit of the whole forward.

    By little: a longer step may send a token to another expert, where a slope tells nothing."""
    lm = loaded(family)
    clean, corrupt = texts(lm)
    wheres, metric, step = wheres_of(lm), difference(lm), 1e-3
    read, other = slopes(lm, corrupt, wheres, metric), values(lm, clean, wheres).values
    ids = torch.tensor([corrupt])
    checked = 0
    for site, layer in wheres:
        change = products(read, (site, layer), other[site, layer]).sum(-1)
        for p in (2, len(corrupt) - 1):
            moved = []
            for sign in (step, -step):
                new = read.values[site, layer] + sign * (other[site, layer] - read.values[site, layer])
                edit = Patch(Cell(site, layer, None, Positions((str(p),))), new[p : p + 1])
                with torch.no_grad(), applying(lm, [edit], ids=ids):
                    moved.append(float(metric(lm.model(ids).logits)))
            wanted, found = (moved[0] - moved[1]) / (2 * step), float(change[p].sum())
            assert found == pytest.approx(wanted, rel=0.05, abs=5e-3), (site, layer, p)
            checked += abs(wanted) > 0.01
    assert checked > 5


def test_slopes_hold_under_edits() -> None:
    lm = loaded("llama")
    _, corrupt = texts(lm)
    (cell,) = cells(lm, "mlp_out@1")
    edited = slopes(lm, corrupt, [("resid_pre", 1)], difference(lm), edits=[Scale(cell, 0.5)])
    plain = slopes(lm, corrupt, [("resid_pre", 1)], difference(lm))
    with torch.no_grad(), applying(lm, [Scale(cell, 0.5)], ids=torch.tensor([corrupt])):
        wanted = lm.model(torch.tensor([corrupt])).logits[0, -1:]
    torch.testing.assert_close(edited.logits, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(edited.slopes["resid_pre", 1], plain.slopes["resid_pre", 1], rtol=0.01)


def test_nothing_is_left_on_the_model_and_nothing_is_run_twice() -> None:
    """Two forwards for every site of every layer, counted at the model; parameters that ask for gradients get none."""
    lm = probe.load("tiny:llama")
    weight = lm.model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    _ = lm.anatomy
    probe.patch(lm, **ASKED, sites=list(EVERY), method="attribution", sample=0)  # what is tried once a model
    forwards = []
    handle = lm.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    probe.patch(lm, **ASKED, sites=list(EVERY), method="attribution", sample=0)
    handle.remove()
    assert len(forwards) == 2
    assert weight.requires_grad and weight.grad is None
    assert all(p.grad is None and (p is weight or not p.requires_grad) for p in lm.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


# ---- what is estimated


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("metric", ["logit-diff"])
def test_it_is_the_exact_patch_where_all_that_follows_is_linear(direction: str, metric: str) -> None:
    """The planted model's final norm is the identity: what its last layer leaves reaches the logits linearly."""
    circuit = copying()
    asked = {
        "clean": circuit.clean, "corrupt": circuit.corrupt, "answer": circuit.answer, "against": circuit.against,
        "sites": ["resid_post@2", "mlp_out@2"], "direction": direction, "metric": metric,
    }  # fmt: skip
    exact = probe.patch(circuit.lm, **asked).patches
    guess = probe.patch(circuit.lm, **asked, method="attribution").patches
    assert exact["effect"].abs().max() > 0.9
    np.testing.assert_allclose(guess["patched"], exact["patched"], atol=2e-4)
    np.testing.assert_allclose(guess["effect"], exact["effect"], atol=1e-4)


@pytest.mark.parametrize("metric", ["logit-diff", "logprob", "prob", "kl"])
def test_each_metric_is_estimated_by_its_own_slope(metric: str) -> None:
    """A small step: the clean text is the corrupt one under an edit that moves it little, so first order is enough."""
    lm = loaded("gpt2")
    clean, corrupt = texts(lm)
    from probe.patching.metrics import logprobs_of, measure_of, read_out
    from probe.targets import Contrast, token_target

    target = Contrast(token_target(lm, lm.ids_of("a")[0]), token_target(lm, lm.ids_of("b")[0]))
    far = logprobs_of(values(lm, clean, []).logits[0])
    read = slopes(lm, corrupt, [("resid_pre", 1)], measure_of(metric, target, far))
    step = 1e-3 * torch.randn(read.values["resid_pre", 1].shape, generator=torch.Generator().manual_seed(0))
    cell = Cell("resid_pre", 1, None, Positions())
    ids, ends = torch.tensor([corrupt]), []
    for sign in (1, -1):
        with torch.no_grad(), applying(lm, [Patch(cell, read.values["resid_pre", 1] + sign * step)], ids=ids):
            ends.append(read_out(lm.model(ids).logits[:, -1:], target, far).of(metric)[0])
    estimated_change = float(products(read, ("resid_pre", 1), read.values["resid_pre", 1] + step).sum())
    assert (ends[0] - ends[1]) / 2 == pytest.approx(estimated_change, rel=0.02)
    assert abs(estimated_change) > 0


def test_integrated_gradients_of_the_embedding_add_up_to_the_whole_difference() -> None:
    """Completeness (Sundararajan et al. 2017): over all positions they are m(clean) - m(corrupt)."""
    lm = loaded("llama")
    asked = {**ASKED, "sites": "embed", "method": "attribution", "sample": 0}
    many = probe.patch(lm, **asked, ig=64).patches
    one = probe.patch(lm, **asked).patches
    assert many["effect"].sum() == pytest.approx(1, abs=0.02)
    assert abs(one["effect"].sum() - 1) > 0.05


def test_the_sample_is_run_and_its_correlation_is_stored() -> None:
    lm = loaded("gpt2")
    asked = {**ASKED, "sites": ["resid_pre", "mlp_out"]}
    guess, exact = (probe.patch(lm, **asked, method="attribution", sample=12, seed=3), probe.patch(lm, **asked))
    frame = guess.patches
    tried = frame["exact"].notna()
    assert tried.sum() == 12 and (frame["passed"] == tried).all()
    np.testing.assert_allclose(frame["exact"][tried], exact.patches["patched"][tried], atol=1e-5)
    found, both = guess.summary["agreement"], frame[tried]
    assert found["n"] == 12
    assert found["spearman"] == pytest.approx(both["patched"].corr(both["exact"], method="spearman"))
    assert found["pearson"] == pytest.approx(both["patched"].corr(both["exact"]))
    assert frame["logprob"].isna().all() and frame["logit_diff"].notna().all()
    other = probe.patch(lm, **asked, method="attribution", sample=12, seed=4).patches
    assert not (other["exact"].notna() == tried).all()


def test_zeros_are_estimated_too() -> None:
    lm = loaded("gpt2")
    run = probe.patch(lm, **ASKED, sites="z", source="zero", method="attribution", sample=0)
    clean, _ = texts(lm)
    read = slopes(lm, clean, [("z", 1)], difference(lm))
    wanted = -(read.values["z", 1] * read.slopes["z", 1]).double().sum((0, 2))
    found = run.patches[run.patches["layer"] == 1].set_index("head")["patched"] - run.patches["clean"].iloc[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# ---- what is refused


def test_a_part_without_gradients_is_refused_by_name() -> None:
    lm = probe.load("tiny:llama")
    mlp = lm.model.model.layers[1].mlp
    _ = lm.anatomy
    mlp.forward = torch.no_grad()(mlp.forward)
    with pytest.raises(BadModel, match=r"gives no gradients: a part of model.layers.1") as caught:
        probe.patch(lm, **ASKED, method="attribution")
    assert "exact" in caught.value.hint
    lm.model.forward = torch.no_grad()(lm.model.forward)
    with pytest.raises(BadModel, match="its forward is computed without them"):
        probe.patch(lm, **ASKED, method="attribution")


def test_a_site_that_is_absent_is_refused() -> None:
    with pytest.raises(SiteAbsent):
        probe.patch(loaded("mamba"), **ASKED, sites="z", method="attribution")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"method": "guess"}, "unknown method"),
        ({"ig": 4}, "is for gradients"),
        ({"sample": 4}, "is for gradients"),
        ({"method": "attribution", "ig": -1}, "count from 0"),
        ({"method": "attribution", "ig": 4, "source": "zero"}, "from one text to the other"),
        ({"method": "attribution", "metric": "kl", "direction": "noise"}, "no slope at the clean run"),
        ({"method": "attribution", "ig": 4, "clean": CLEAN + "!", "align": "left"}, "texts of one length"),
    ],
)
def test_options_that_do_not_go_together(what: dict[str, object], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        probe.patch(loaded("gpt2"), **{**ASKED, **what})


@pytest.mark.slow
def test_the_shell_does_it_too(shell) -> None:
    words = ["patch", "-m", "tiny:gpt2", "--clean", CLEAN, "--corrupt", CORRUPT, "--answer", "a", "--against", "b"]
    done = shell(*words, "--sites", "z", "--method", "attribution", "--ig", "2", "--sample", "5", "--out", "r", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert "estimated from the gradient, averaged over 2 points" in done.stdout
    assert "exact patches of 5 random cells" in done.stdout and "Spearman" in done.stdout
    plan = shell(*words, "--method", "attribution", "--sample", "0", "--dry-run", "--json")
    assert json.loads(plan.stdout)["passes"] == 3
    bad = shell(*words, "--ig", "2")
    assert bad.returncode == 1 and bad.stderr.splitlines()[-2].startswith("error: --ig is for gradients")
