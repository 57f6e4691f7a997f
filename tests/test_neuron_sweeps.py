"""Sweeps of single neurons: exact effects are those of plain hooks, estimates those of autograd by hand, and the neurons that
are chosen those with the largest estimates of all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import probe
from probe.errors import BadOption, OutOfRange, SiteAbsent
from probe.language_model import LanguageModel
from probe.patching import plan_patch
from probe.requests import PatchSweep
from tests.planted import lookup
from tests.test_panels import panels, same_as_the_table

CLEAN, CORRUPT = "abcdef Mary gh", "abXdef John gh"
ASKED: dict[str, Any] = {"clean": CLEAN, "corrupt": CORRUPT, "answer": "a", "against": "b"}
WORDS: dict[str, Any] = {
    "clean": "The capital of France is", "corrupt": "The capital of Italy is", "answer": " Paris", "against": " Rome",
}  # fmt: skip
PLACES = ["mlp_post@0.n3", "mlp_post@1.n0..2"]
SLOW = pytest.param("smollm2", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def lm(request: Any) -> LanguageModel:
    """In float64, so that estimates can be compared to the last digits."""
    found = probe.load(request.param if request.param == "smollm2" else f"tiny:{request.param}")
    found.model.double()
    return found


def asked_of(lm: LanguageModel) -> dict[str, Any]:
    """Texts of one length in the model's own tokens."""
    return WORDS if lm.name == "smollm2" else ASKED


class Plain:
    """The model with hooks of the test's own on what goes into the last matrix of its MLPs."""

    def __init__(self, lm: LanguageModel, clean: str = "", corrupt: str = "") -> None:
        asked = asked_of(lm)
        clean, corrupt = clean or asked["clean"], corrupt or asked["corrupt"]
        self.lm, self.n_layers = lm, lm.anatomy.n_layers
        self.modules = [lm.model.get_submodule(lm.anatomy.tap("mlp_post", i).path) for i in range(self.n_layers)]
        self.clean, self.corrupt = (torch.tensor([lm.encode(text).ids]) for text in (clean, corrupt))
        self.pair = [lm.ids_of(asked[name])[0] for name in ("answer", "against")]

    def difference(self, ids: Tensor, change: Callable[[int, Tensor], Tensor | None], *, grad: bool = False) -> Tensor:
        """Logit of the answer less that of the other after the text; change(layer, hidden layer (1, pos, d_mlp))."""

        def hook(layer: int) -> Callable[..., Any]:
            def call(_: object, args: tuple[Tensor, ...]) -> Any:
                new = change(layer, args[0])
                return None if new is None else (new, *args[1:])

            return call

        handles = [module.register_forward_pre_hook(hook(i)) for i, module in enumerate(self.modules)]
        try:
            with torch.set_grad_enabled(grad):
                last = self.lm.model(ids, use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return last[self.pair[0]] - last[self.pair[1]]

    def hidden(self, ids: Tensor) -> list[Tensor]:
        """(pos, d_mlp) of each layer."""
        seen: list[Tensor] = []
        self.difference(ids, lambda _, value: seen.append(value[0].clone()))  # type: ignore[func-returns-value]
        return seen

    def patched(self, layer: int, neuron: int, positions: list[int], new: Tensor) -> float:
        """The corrupt text with one neuron as it is in new (pos, d_mlp)."""

        def change(i: int, value: Tensor) -> Tensor | None:
            if i != layer:
                return None
            value = value.clone()
            value[0, positions, neuron] = new[positions, neuron]
            return value

        return float(self.difference(self.corrupt, change))

    def promised(self) -> np.ndarray:
        """(layer, pos, neuron): (clean − corrupt) · the slope at the corrupt text, by autograd."""
        kept: list[Tensor] = []

        def keep(_: int, value: Tensor) -> Tensor:
            kept.append(value.detach().clone().requires_grad_(not kept) if not kept else value)
            return kept[-1]

        found = torch.autograd.grad(self.difference(self.corrupt, keep, grad=True), kept)
        changes = [a - b for a, b in zip(self.hidden(self.clean), self.hidden(self.corrupt), strict=True)]
        return torch.stack([change * slope[0] for change, slope in zip(changes, found, strict=True)]).numpy()


def cells(run: Any) -> pd.DataFrame:
    return run.patches.sort_values(["layer", "neuron", "pos"], ignore_index=True)


@pytest.mark.parametrize("lm", ["gpt2", "gemma2"], indirect=True)
@pytest.mark.parametrize("source", ["clean", "zero"])
def test_named_neurons_are_patched_as_plain_hooks_patch_them(lm: LanguageModel, source: str) -> None:
    plain = Plain(lm)
    n = plain.corrupt.shape[1]
    new = [value if source == "clean" else value * 0 for value in plain.hidden(plain.clean)]
    how = {"source": source, "direction": "denoise"}
    whole = cells(probe.patch(lm, **asked_of(lm), sites=PLACES, **how))
    assert [(row.layer, row.neuron, row.pos) for row in whole.itertuples()] == [(0, 3, -1), (1, 0, -1), (1, 1, -1), (1, 2, -1)]
    apart = cells(probe.patch(lm, **asked_of(lm), sites=PLACES[1], by="pos,neuron", positions="0,3,last", **how))
    assert set(apart["pos"]) == {0, 3, n - 1} and len(apart) == 9
    for row in [*whole.itertuples(), *apart.itertuples()]:
        positions = list(range(n)) if row.pos < 0 else [row.pos]
        expected = plain.patched(row.layer, row.neuron, positions, new[row.layer])
        assert row.patched == pytest.approx(expected, abs=1e-6)
        assert row.estimate is None or np.isnan(row.estimate)
    assert whole["passed"].all() and abs(whole["change"]).max() > 1e-5


@pytest.mark.parametrize("lm", ["gpt2", "gemma2", SLOW], indirect=True)
def test_the_neurons_with_the_largest_estimates_are_chosen_and_patched(lm: LanguageModel) -> None:
    """Against autograd by hand, over all layers; the others are drawn among the rest."""
    plain = Plain(lm)
    promised = plain.promised()
    start, end = (float(plain.difference(ids, lambda *_: None)) for ids in (plain.corrupt, plain.clean))
    run = probe.patch(lm, **asked_of(lm), sites="mlp_post", by="neuron", top=5, sample=4)
    rows, by_neuron = cells(run), promised.sum(1)
    best = np.argsort(-np.abs(by_neuron), axis=None)[:5]
    chosen = rows[~rows["control"].astype(bool)]
    assert set(zip(chosen["layer"], chosen["neuron"], strict=True)) == set(
        zip(*np.unravel_index(best, by_neuron.shape), strict=True)
    )
    assert len(rows) == 9 and not rows.duplicated(["layer", "neuron"]).any()
    new, everywhere = plain.hidden(plain.clean), list(range(plain.corrupt.shape[1]))
    for row in rows.itertuples():
        assert row.estimate == pytest.approx(by_neuron[row.layer, row.neuron] / (end - start), abs=1e-5)
        assert row.patched == pytest.approx(plain.patched(row.layer, row.neuron, everywhere, new[row.layer]), abs=1e-6)
    told = run.summary
    assert told["neurons"]["of"] == by_neuron.size and told["neurons"]["control"] == 4
    assert told["neurons"]["control_effect"] == pytest.approx(rows.loc[rows["control"].astype(bool), "effect"].abs().max())
    assert told["agreement"]["largest_error"] == pytest.approx((rows["effect"] - rows["estimate"]).abs().max())
    assert {(one["layer"], one["neuron"]) for one in told["strongest"]} == set(
        zip(chosen["layer"], chosen["neuron"], strict=True)
    )


@pytest.fixture(scope="module")
def small() -> LanguageModel:
    return probe.load("tiny:llama")


def test_positions_apart_in_portions_of_layers_and_by_method(small: LanguageModel) -> None:
    """A cell is a neuron at a position; how many layers are read at once changes nothing; estimates alone are the same."""
    asked: dict[str, Any] = {**ASKED, "sites": "mlp_post", "by": "pos,neuron", "top": 6, "sample": 5}
    promised = Plain(small).promised()
    whole, parts = (cells(probe.patch(small, **asked, memory=memory)) for memory in ("1GB", "1KB"))
    names = ["layer", "neuron", "pos", "control"]
    assert whole[names].equals(parts[names])
    np.testing.assert_allclose(whole[["effect", "estimate"]], parts[["effect", "estimate"]], atol=1e-4)
    best = np.unravel_index(np.argsort(-np.abs(promised), axis=None)[:6], promised.shape)
    chosen = whole[~whole["control"].astype(bool)]
    assert set(zip(chosen["layer"], chosen["pos"], chosen["neuron"], strict=True)) == set(zip(*best, strict=True))
    first = next(i for i, (a, b) in enumerate(zip(small.encode(CLEAN).ids, small.encode(CORRUPT).ids, strict=True)) if a != b)
    assert whole["pos"].min() >= first
    guess = cells(probe.patch(small, **asked, method="attribution"))
    assert guess[names].equals(whole[names])
    np.testing.assert_allclose(guess["effect"], whole["estimate"], atol=1e-4)
    run = guess["control"].astype(bool)
    np.testing.assert_allclose(guess.loc[run, "exact"], whole.loc[run, "patched"], atol=1e-4)
    assert guess.loc[~run, "exact"].isna().all()


def test_neurons_of_several_pairs_are_those_of_all(small: LanguageModel, tmp_path: Path) -> None:
    """Chosen by the sum over pairs, positions counted from the end where the lengths differ; the means are of all pairs."""
    texts = [(CLEAN, CORRUPT), ("abc Mary gh", "abX John gh")]
    plain = [np.abs(Plain(small, *pair).promised()) for pair in texts]
    shared = min(one.shape[1] for one in plain)
    total = sum(np.abs(Plain(small, *pair).promised().sum(1)) for pair in texts)
    asked: dict[str, Any] = {"pairs": [(*pair, "a", "b") for pair in texts], "sites": "mlp_post", "top": 4, "sample": 3}
    run = probe.patch(small, **asked, by="neuron")
    means, rows = run.patch_means, run.patches
    best = set(zip(*np.unravel_index(np.argsort(-total, axis=None)[:4], total.shape), strict=True))
    chosen = means[~means["control"].astype(bool)]
    assert set(zip(chosen["layer"], chosen["neuron"], strict=True)) == best
    assert (means["n"] == 2).all() and len(means) == 7 and len(rows) == 14
    for name in ("effect", "estimate"):
        mean = rows.groupby(["layer", "neuron"])[name].mean()
        np.testing.assert_allclose(means.set_index(["layer", "neuron"])[name].sort_index(), mean.sort_index())
    total = sum(one[:, -shared:] for one in plain)
    run = probe.patch(small, **asked, by="pos,neuron")
    best = np.unravel_index(np.argsort(-total, axis=None)[:4], total.shape)
    chosen = run.patch_means[~run.patch_means["control"].astype(bool)]
    found = set(zip(chosen["layer"], chosen["pos"], chosen["neuron"], strict=True))
    assert found == {(layer, pos - shared, neuron) for layer, pos, neuron in zip(*best, strict=True)}


def test_a_resumed_sweep_goes_on_with_the_neurons_that_it_began_with(small: LanguageModel, tmp_path: Path) -> None:
    asked: dict[str, Any] = {**ASKED, "sites": "mlp_post", "by": "neuron", "top": 6, "sample": 4}
    whole, seen = probe.patch(small, **asked), []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(what)
        if what == "patching" and done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.patch(small, **asked, out=tmp_path / "run", progress=stop)
    assert "choosing neurons" in seen
    seen.clear()
    resumed = probe.patch(
        small, **asked, out=tmp_path / "run", resume=True, progress=lambda what, done, total: seen.append(what)
    )
    assert set(seen) == {"patching"} and "unfinished" not in resumed.tables
    names = ["layer", "neuron", "control"]
    assert cells(resumed)[names].equals(cells(whole)[names])
    np.testing.assert_allclose(cells(resumed)["effect"], cells(whole)["effect"], atol=1e-5)


def test_named_neurons_stand_beside_those_that_are_chosen(small: LanguageModel) -> None:
    run = probe.patch(small, **ASKED, sites=["mlp_post", "mlp_post@1.n3..4"], by="neuron", top=3, sample=2)
    rows = cells(run)
    assert len(rows) == 7 and not rows.duplicated(["layer", "neuron"]).any()
    named = rows[(rows["layer"] == 1) & rows["neuron"].isin([3, 4])]
    assert len(named) == 2 and not named["control"].any() and named["estimate"].notna().all()


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ({"sites": "resid_pre", "by": "neuron"}, BadOption, "no site that was asked for has neurons"),
        ({"sites": "mlp_post@1.n3", "by": "pos"}, BadOption, "add neuron to --by"),
        ({"sites": ["mlp_post@1.n3", "mlp_post@0"]}, BadOption, "a sweep for each"),
        ({"sites": "mlp_post@1.n3", "by": "neuron", "top": 4}, BadOption, "none is to be chosen"),
        ({"sites": "mlp_post", "top": 4}, BadOption, "--by neuron"),
        ({"sites": "mlp_post", "by": "neuron", "top": 0}, BadOption, "counts from 1"),
        ({"sites": "mlp_post", "by": "neuron", "metric": "kl", "direction": "noise"}, BadOption, "no slope"),
        ({"sites": "mlp_post@1.n99999", "by": "neuron"}, OutOfRange, "neurons are 0.."),
        ({"path": "mlp_out@0->logits", "by": "neuron"}, BadOption, "on a path"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(small: LanguageModel, what: dict[str, Any], kind: type, words: str) -> None:
    with pytest.raises(kind) as told:
        probe.patch(small, **ASKED, **what)
    assert words in f"{told.value} {told.value.hint}"


def test_experts_have_no_hidden_layer_to_patch() -> None:
    with pytest.raises(SiteAbsent, match="mlp_post"):
        probe.patch(probe.load("tiny:mixtral"), **ASKED, sites="mlp_post", by="neuron")


def test_a_dry_run_counts_the_neurons(small: LanguageModel) -> None:
    width, layers = small.width("mlp_post", 0), small.anatomy.n_layers
    plan = plan_patch(small, PatchSweep(**ASKED, sites="mlp_post", by="neuron", top=5, sample=6))
    assert plan["cells"] == 11 and 6 < plan["passes"] <= 6 + 11
    assert plan_patch(small, PatchSweep(**ASKED, sites="mlp_post", by="neuron", top=10**9))["cells"] == width * layers


@pytest.mark.parametrize("way", [{}, {"direction": "noise"}, {"by": "pos,neuron"}, {"method": "attribution"}])
def test_the_planted_facts_are_found_and_no_other(way: dict[str, Any]) -> None:
    """Mary's neuron and John's, each half of the difference (Geva et al. 2021)."""
    circuit = lookup()
    asked = {"clean": circuit.clean, "corrupt": circuit.corrupt, "answer": circuit.answer, "against": circuit.against}
    run = probe.patch(circuit.lm, **asked, sites="mlp_post", **{"by": "neuron", **way})
    strong = run.patches[run.patches["effect"].abs() > 0.01]
    assert set(zip(strong["layer"], strong["neuron"], strict=True)) == {(1, 0), (1, 2)} and not strong["control"].any()
    assert strong["effect"].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert run.summary["neurons"]["control_effect"] < 0.005
    listing = panels(run)["patch-mlp-post-neuron"]
    same_as_the_table(run, listing)
    assert set(listing.frame["neuron"][:2]) == {0, 2}


def test_heads_beside_neurons_are_not_counted_among_them() -> None:
    circuit = lookup()
    asked = {"clean": circuit.clean, "corrupt": circuit.corrupt, "answer": circuit.answer, "against": circuit.against}
    run = probe.patch(circuit.lm, **asked, sites="mlp_post,z", by="neuron,head", top=3, sample=2)
    assert (run.summary["neurons"]["chosen"], run.summary["neurons"]["control"], run.summary["agreement"]["n"]) == (3, 2, 5)
    assert run.patches.loc[run.patches["head"] >= 0, "estimate"].isna().all()
