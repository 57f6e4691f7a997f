"""Every module of a model is as it was after every verb, and after Ctrl-C in the middle of it: state is compared, not code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaMLP

import probe

TEXT, OTHER = "abcdef Mary gh", "abXdef John gh"
PAIR = {"clean": TEXT, "corrupt": OTHER, "answer": "a", "against": "b"}
EDITS = ["resid_mid@1:last=scale:0.5", "z@1.0=zero", "q@0=scale:2", "pattern@2.1:5..=cut:0..2"]


@pytest.fixture(scope="module")
def lm() -> Any:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def given(lm: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What verbs start from: a run with a generation, and a direction."""
    folder = tmp_path_factory.mktemp("given")
    text = "The cat sat. It was here. Then it left."
    probe.trace(lm, text, generate=24, sampling=probe.Sampling(1.0, seed=1), out=folder / "run")
    probe.make_direction(
        lm, ["aa", "ab"], ["xx", "yx"], at="resid_post@1", to=folder / "d.safetensors", out=folder / "m"
    )
    return {"run": folder / "run", "direction": folder / "d.safetensors"}


VERBS: dict[str, Callable[[Any, dict[str, Path], Path], Any]] = {
    "trace": lambda lm, given, out: probe.trace(
        lm, TEXT, generate=4, capture="resid_mid,q,z,logits", attention="full", lens=True, edit=EDITS, out=out),
    "rewind": lambda lm, given, out: probe.rewind(
        given["run"], lm=lm, to="step1", delete=True, split="token", samples=2, max_new=4, out=out
    ),
    "patch": lambda lm, given, out: probe.patch(lm, **PAIR, sites=["resid_pre", "resid_mid", "z", "q"], out=out),
    "patch by gradients": lambda lm, given, out: probe.patch(lm, **PAIR, sites="z,mlp_out", method="attribution", out=out),
    "patch a path": lambda lm, given, out: probe.patch(lm, **PAIR, path="z@0->q@2", out=out),
    "importance": lambda lm, given, out: probe.importance(
        given["run"], lm=lm, method="suppression,receiver", split="token", out=out
    ),
    "lens": lambda lm, given, out: probe.lens(lm, TEXT, edit=EDITS[:2], out=out),
    "attribute": lambda lm, given, out: probe.attribute(lm, TEXT, by_source=True, out=out),
    "explain": lambda lm, given, out: probe.explain(given["run"], -1, lm=lm, out=out),
    "compare": lambda lm, given, out: probe.compare(lm, lm, [TEXT], edit=EDITS, out=out),
    "steer": lambda lm, given, out: probe.steer(lm, given["direction"], [TEXT], answer="a", controls=2, out=out),
    "make_direction": lambda lm, given, out: probe.make_direction(
        lm, ["aa", "ab"], ["xx", "yx"], at="z@1.0", to=out.with_suffix(".safetensors"), out=out),
    "speculate": lambda lm, given, out: probe.speculate(lm, TEXT, draft="layers:2", generate=6, out=out),
}  # fmt: skip


def state(lm: Any) -> dict[str, Any]:
    """All that a verb could leave on a model: names on each module, hooks, parameters, configuration, attention functions."""

    def of(module: nn.Module) -> tuple[Any, ...]:
        own = vars(module)
        hooks = {name: list(value) for name, value in own.items() if "hook" in name and isinstance(value, dict)}
        tensors = {
            name: (id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.grad is None)
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        }
        return type(module), sorted(own), hooks, module.training, tensors

    found: dict[str, Any] = {name: of(module) for name, module in lm.model.named_modules()}
    found["config"] = lm.model.config.to_dict() | {"attention": lm.model.config._attn_implementation}
    found["functions"] = dict(ALL_ATTENTION_FUNCTIONS.items()), sorted(vars(ALL_ATTENTION_FUNCTIONS))
    return found


def test_a_change_would_be_seen(lm: Any) -> None:
    """Of each kind that there is."""
    before, block = state(lm), lm.model.get_submodule(lm.anatomy.layers[1].block)
    block.forward = block.forward
    assert state(lm) != before
    del block.forward
    handle = block.register_forward_pre_hook(lambda *_: None)
    assert state(lm) != before
    handle.remove()
    ALL_ATTENTION_FUNCTIONS.get_interface = ALL_ATTENTION_FUNCTIONS.get_interface
    assert state(lm) != before
    del ALL_ATTENTION_FUNCTIONS.get_interface
    assert state(lm) == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_is_as_it_was_after_every_verb(verb: str, lm: Any, given: dict[str, Path], tmp_path: Path) -> None:
    before = state(lm)
    VERBS[verb](lm, given, tmp_path / "run")
    assert state(lm) == before


@pytest.mark.parametrize("verb", VERBS)
def test_it_is_so_after_an_interrupt(
    verb: str, lm: Any, given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second layer of the first forward, and of the last one, and halfway between them."""
    before, calls, at = state(lm), [0], [0]
    forward = LlamaMLP.forward

    def counted(module: nn.Module, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == at[0]:
            raise KeyboardInterrupt
        return forward(module, *args)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    VERBS[verb](lm, given, tmp_path / "whole")
    for number in sorted({2, calls[0] // 2, calls[0] - 1}):
        calls[0], at[0] = 0, number
        with pytest.raises(KeyboardInterrupt):
            VERBS[verb](lm, given, tmp_path / f"run{number}")
        assert state(lm) == before, number
