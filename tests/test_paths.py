"""Path patching against plain torch hooks written here, against direct patches where both are one, and what it refuses."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probe
from probe.errors import BadOption, ProbeError, SiteAbsent, UnknownSite
from probe.language_model import LanguageModel

CLEAN, CORRUPT = "abcdef Mary gh", "abXdef John gh"
ASKED = {"clean": CLEAN, "corrupt": CORRUPT, "answer": "a", "against": "b"}
# blocks; below a block: attention, MLP, output projection of the heads, what makes the queries
PARTS = {
    "gpt2": ("transformer.h", "attn", "mlp", "attn.c_proj", "attn.c_attn"),
    "llama": ("model.layers", "self_attn", "mlp", "self_attn.o_proj", "self_attn.q_proj"),
}


@functools.cache
def loaded(family: str) -> LanguageModel:
    return probe.load(f"tiny:{family}")


@torch.no_grad()
def run(lm: LanguageModel, text: str, hooks: dict[tuple[str, str], Callable[[Tensor], Tensor | None]]) -> float:
    """The difference in logits with plain hooks: (module, side) -> what takes the place of its first tensor."""
    handles = []
    for (path, side), change in hooks.items():
        module = lm.model.get_submodule(path)

        def before(_: nn.Module, args: tuple[Tensor, ...], change: Callable[[Tensor], Tensor | None] = change) -> object:
            new = change(args[0])
            return None if new is None else (new, *args[1:])

        def after(_: nn.Module, __: object, out: object, change: Callable[[Tensor], Tensor | None] = change) -> object:
            new = change(out if isinstance(out, Tensor) else out[0])
            return None if new is None else new if isinstance(out, Tensor) else (new, *out[1:])

        handles.append(module.register_forward_pre_hook(before) if side == "in" else module.register_forward_hook(after))
    logits = lm.model(torch.tensor([lm.encode(text).ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return float(logits[lm.ids_of("a")[0]] - logits[lm.ids_of("b")[0]])


def seen(lm: LanguageModel, text: str, path: str, side: str, hooks: dict | None = None) -> Tensor:
    kept: list[Tensor] = []
    run(lm, text, {**(hooks or {}), (path, side): lambda value: kept.append(value.clone())})
    return kept[0]


def by_hand(family: str, *, head: int, layer: int, receiver: tuple[str, str], columns: slice | None) -> float:
    """z@layer.head's change, with all other writes held, to a module's tensor, and that tensor alone into the corrupt run.

    receiver: (module, side) of the tensor; columns: of its last axis; of logits there is no second run."""
    lm = loaded(family)
    blocks, attn, mlp, heads, _ = PARTS[family]
    size = lm.anatomy.layers[layer].d_head
    own = slice(head * size, (head + 1) * size)
    clean = seen(lm, CLEAN, f"{blocks}.{layer}.{heads}", "in")

    def send(value: Tensor) -> Tensor:
        new = value.clone()
        new[..., own] = clean[..., own]
        return new

    hold: dict[tuple[str, str], Callable[[Tensor], Tensor | None]] = {}
    for i in range(lm.anatomy.n_layers):
        for part in (attn, mlp):
            if (i, part) != (layer, attn):
                was = seen(lm, CORRUPT, f"{blocks}.{i}.{part}", "out")
                hold[f"{blocks}.{i}.{part}", "out"] = lambda _, was=was: was
    first = {**hold, (f"{blocks}.{layer}.{heads}", "in"): send}
    if receiver[0] == "logits":
        return run(lm, CORRUPT, first)
    arrived = seen(lm, CORRUPT, *receiver, hooks=first)

    def receive(value: Tensor) -> Tensor:
        new = value.clone()
        which = columns or slice(None)
        new[..., which] = arrived[..., which]
        return new

    return run(lm, CORRUPT, {receiver: receive})


def sent(lm: LanguageModel, path: str, **what: object) -> float:
    frame = probe.patch(lm, **ASKED, path=path, **what).patches
    assert len(frame) == 1
    return float(frame["patched"].iloc[0])


@pytest.mark.slow
@pytest.mark.parametrize("family", list(PARTS))
def test_a_path_is_what_plain_hooks_make_of_it(family: str) -> None:
    """The receiver's input is read and put in here as the modules have it: queries before rotation, the MLP's normed input."""
    lm = loaded(family)
    blocks, _, mlp, _, queries = PARTS[family]
    size = lm.anatomy.layers[2].d_head
    one = slice(1 * size, 2 * size)
    cases = {
        "z@0.1->q@2.1": (f"{blocks}.2.{queries}", "out", one),
        "z@0.1->mlp_out@1": (f"{blocks}.1.{mlp}", "in", None),
        "z@0.1->mlp_out@0": (f"{blocks}.0.{mlp}", "in", None),
        "z@0.1->logits": ("logits", "", None),
    }
    base = run(lm, CORRUPT, {})
    for path, (module, side, columns) in cases.items():
        wanted = by_hand(family, head=1, layer=0, receiver=(module, side), columns=columns)
        found = sent(lm, path)
        assert abs(wanted - base) > 1e-4, path  # it carries something
        assert found - base == pytest.approx(wanted - base, rel=0.02, abs=3e-6), path


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "mixtral", "falcon_h1"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_what_can_go_one_way_only_is_the_direct_patch(family: str, direction: str) -> None:
    """To the stream just above its layer, and from the last write to the logits, a change has no other way."""
    lm = loaded(family)
    last = lm.anatomy.n_layers - 1
    for sender, receiver in (("mlp_out@1", "resid_pre@2"), (f"mlp_out@{last}", "logits")):
        frame = probe.patch(lm, **ASKED, path=f"{sender}->{receiver}", by="pos", direction=direction).patches
        wanted = probe.patch(lm, **ASKED, sites=sender, direction=direction).patches
        np.testing.assert_allclose(frame["patched"], wanted["patched"], atol=2e-4)
        assert wanted["effect"].abs().max() > 1e-3


def test_all_paths_of_a_head_to_the_layer_above_are_its_whole_effect() -> None:
    """In a model of two layers whose norms are linear: what a head does is what it sends to each part above and to the logits,
    if these are sent one by one and little happens between them."""
    from tests.planted import induction

    circuit = induction()
    asked = {"clean": circuit.clean, "corrupt": circuit.corrupt, "answer": circuit.answer, "against": circuit.against}
    direct = probe.patch(circuit.lm, **asked, sites="z@0.1").patches["effect"].iloc[0]
    parts = [
        probe.patch(circuit.lm, **asked, path=f"z@0.1->{to}").patches["effect"].iloc[0]
        for to in ("mlp_out@0", "attn_out@1", "mlp_out@1", "logits")
    ]
    assert sum(parts) == pytest.approx(direct, abs=0.01) and direct > 0.9


@pytest.mark.slow
def test_many_receivers_at_once_are_each_as_alone() -> None:
    lm = loaded("llama")
    together = probe.patch(lm, **ASKED, path="z@0->k@1..2").patches
    assert len(together) == lm.anatomy.n_heads("z", 0) * 2 * lm.anatomy.n_heads("k", 1)
    for row in together.sample(4, random_state=0).itertuples():
        assert sent(lm, f"z@0.{row.head}->{row.receiver}") == pytest.approx(row.patched, abs=1e-5)


def test_positions_of_both_ends() -> None:
    lm = loaded("gpt2")
    whole = probe.patch(lm, **ASKED, path="embed->v@1.0").patches
    parts = probe.patch(lm, **ASKED, path="embed->v@1.0:3", by="pos").patches
    assert set(parts["receiver"]) == {"v@1.0:3"} and len(whole) == 1
    assert parts[parts["pos"] == 3]["effect"].abs().item() > 1e-4
    later = parts[parts["pos"] > 3]
    # causal: nothing is run for these
    assert (later["patched"] == later["corrupt"]).all() and not later["passed"].any()
    # values read their own position alone; two forwards may differ by rounding, the effect by that over the whole change
    span = (parts["clean"] - parts["corrupt"]).abs().iloc[0]
    assert (parts[parts["pos"] < 3]["effect"].abs() * span < 1e-4).all()


@pytest.mark.parametrize(
    ("family", "path", "error", "message"),
    [
        ("gpt2", "z@2.1->q@1.0", BadOption, "no receiver reads the stream after its sender"),
        ("gpt2", "z@1.1->attn_out@1", BadOption, "no receiver reads"),
        ("gpt_neox", "attn_out@1->mlp_out@1", BadOption, "no receiver reads"),
        ("gpt2", "z@1.1", BadOption, "is not a path"),
        ("gpt2", "z@1.1->", BadOption, "is not a path"),
        ("gpt2", "zz@1->logits", UnknownSite, "unknown site"),
        ("gpt2", "z@1.1->embed", BadOption, "cannot receive"),
        ("gpt2", "logits->z@1", BadOption, "cannot send"),
        ("gpt2", "z@1.77->logits", ProbeError, "77"),
        ("mamba", "z@0->logits", SiteAbsent, "z"),
        ("gpt_neox", "z@0->resid_mid@1", SiteAbsent, "resid_mid"),
    ],
)
def test_paths_that_are_refused(family: str, path: str, error: type[ProbeError], message: str) -> None:
    with pytest.raises(error, match=message):
        probe.patch(loaded(family), **ASKED, path=path)


def test_options_that_do_not_go_with_a_path() -> None:
    for what, message in (
        ({"method": "attribution"}, "paths are patched exactly"),
        ({"layers": "1"}, "names its own places"),
        ({"by": "step"}, "apart by head and by position"),
    ):
        with pytest.raises(BadOption, match=message):
            probe.patch(loaded("gpt2"), **ASKED, path="z@0->logits", **what)


@pytest.mark.slow
def test_the_shell_sends_too(shell) -> None:
    words = ["patch", "-m", "tiny:gpt2", "--clean", CLEAN, "--corrupt", CORRUPT, "--answer", "a", "--against", "b"]
    done = shell(*words, "--path", "z@0..1->logits", "--out", "r", "--no-progress", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary["path"] == "z@0..1->logits" and summary["strongest"][0]["receiver"] == "logits"
    bad = shell(*words, "--path", "z@1->z@0")
    assert bad.returncode == 1 and bad.stderr.splitlines()[-2].startswith("error: on 'z@1->z@0' no receiver")
