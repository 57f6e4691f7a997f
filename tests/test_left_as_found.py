"""Every verb leaves every module as it found it, and so does one that is stopped in the middle of a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import probe
from probe.language_model import LanguageModel
from probe.laws import laws
from tests.test_rewind import TEXT, written

PAIR = {"clean": "abcab", "corrupt": "bbcab", "answer": "a", "against": "b"}


class Stop:
    """Raises KeyboardInterrupt at the nth forward of a block, once it is armed; counts them till then."""

    def __init__(self, block: nn.Module) -> None:
        self.seen, self.at = 0, -1
        block.register_forward_pre_hook(self)  # before anything is compared: it is part of what is found

    def __call__(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def stop(lm: LanguageModel) -> Stop:
    return Stop(lm.model.get_submodule(lm.anatomy.layers[1].block))


@pytest.fixture(scope="module")
def run(lm: LanguageModel) -> probe.Run:
    return written(lm, TEXT)


@pytest.fixture(scope="module")
def direction(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "direction.safetensors"
    probe.make_direction(lm, ["a b", "a c"], ["b a", "c a"], at="resid_post@1", to=path)
    return path


def state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """All that a context manager could forget to put back, by name."""
    for path, module in model.named_modules(remove_duplicate=False):
        own = vars(module)
        yield f"{path} class", (type(module), module.training)
        for name in sorted(own.keys() - {"_parameters", "_buffers", "_modules"}):
            value = own[name]
            if name.endswith("hooks") or "_hooks_" in name:  # insertion order counts: it is the order of calls
                yield f"{path}.{name}", [(key, id(hook)) for key, hook in value.items()] if value else []
            else:
                yield f"{path}.{name}", value if isinstance(value, (int, str, bool, type(None))) else id(value)
        for name, tensor in [*own["_parameters"].items(), *own["_buffers"].items()]:
            if tensor is not None:
                yield f"{path}.{name} kind", (id(tensor), tensor.requires_grad, tensor.grad is None, tensor.dtype)
                yield f"{path}.{name}", tensor.detach().clone()
    yield "registry", {name: id(vars(ALL_ATTENTION_FUNCTIONS)[name]) for name in sorted(vars(ALL_ATTENTION_FUNCTIONS))}
    yield "functions", {name: id(function) for name, function in ALL_ATTENTION_FUNCTIONS.items()}
    yield "attention", model.config._attn_implementation  # type: ignore[union-attr]
    yield "gradients", (torch.is_grad_enabled(), torch.is_inference_mode_enabled())


def differences(before: dict[str, Any], model: nn.Module) -> list[str]:
    after = dict(state(model))
    return sorted(before.keys() ^ after.keys()) + [
        name for name in before.keys() & after.keys()
        if not (torch.equal(before[name], after[name]) if isinstance(before[name], torch.Tensor)
                else before[name] == after[name])
    ]  # fmt: skip


VERBS: dict[str, Callable[[LanguageModel, probe.Run, Path], Any]] = {
    "trace": lambda lm, run, made: probe.trace(
        lm, TEXT, generate=4, attention="full", capture="z@1,resid_post@0,q@0", edit=["z@1.0=zero", "pattern@0.1:3..=cut:1"],
    ),
    "lens": lambda lm, run, made: probe.lens(lm, TEXT),
    "attribute": lambda lm, run, made: probe.attribute(lm, TEXT),
    "compare": lambda lm, run, made: probe.compare(lm, lm, TEXT),
    "explain": lambda lm, run, made: probe.explain(probe.trace(lm, "ab", generate=3), -1, lm=lm),
    "patch": lambda lm, run, made: probe.patch(lm, **PAIR, sites=["resid_pre", "z", "q"]),
    "patch by gradients": lambda lm, run, made: probe.patch(lm, **PAIR, sites=["k"], method="attribution", sample=3),
    "patch a path": lambda lm, run, made: probe.patch(lm, **PAIR, path="z@0->q@1", edit=["mlp_out@2=scale:0.5"]),
    "rewind": lambda lm, run, made: probe.rewind(run, to="step1", lm=lm, samples=2, max_new=4, replace="There are 21 apples. "),
    "importance": lambda lm, run, made: probe.importance(run, lm=lm, method="suppression"),
    "steer": lambda lm, run, made: probe.steer(lm, str(made), "a b", answer="a", controls=2),
    "make_direction": lambda lm, run, made: probe.make_direction(
        lm, ["a b", "a c"], ["b a", "c a"], at="z@1.0", to=made.with_name("other.safetensors")
    ),
    "speculate": lambda lm, run, made: probe.speculate(lm, TEXT, draft="layers:2", generate=8),
    "laws": lambda lm, run, made: list(laws(lm)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_leaves_the_model_as_it_found_it(
    verb: str, lm: LanguageModel, run: probe.Run, stop: Stop, direction: Path
) -> None:  # fmt: skip
    """`at` are places in the middle: a quarter, a half and nearly all of the forwards that the whole verb took."""
    VERBS[verb](lm, run, direction)  # what is tried once a model is tried
    before, stop.seen, stop.at = dict(state(lm.model)), 0, -1
    VERBS[verb](lm, run, direction)
    assert differences(before, lm.model) == []
    whole = stop.seen
    for at in sorted({max(1, whole * share // 16) for share in (1, 4, 8, 12, 15)}):
        stop.seen, stop.at = 0, at
        with pytest.raises(KeyboardInterrupt):
            VERBS[verb](lm, run, direction)
        assert differences(before, lm.model) == [], f"stopped at forward {at} of {whole}"


@pytest.mark.parametrize("change", ["forward", "hook", "train", "weight", "registry"])
def test_what_is_left_behind_is_seen(change: str) -> None:
    """The comparison itself sees what it is there for."""
    model = probe.load("tiny:gpt2").model
    before, block = dict(state(model)), model.get_submodule("transformer.h.1")
    undo: Callable[[], Any] = lambda: None  # noqa: E731
    if change == "forward":
        vars(block)["forward"] = type(block).forward.__get__(block)
    elif change == "hook":
        block.register_forward_hook(lambda *_: None)
    elif change == "train":
        block.train()
    elif change == "weight":
        with torch.no_grad():
            next(block.parameters()).mul_(1.5)
    else:
        vars(ALL_ATTENTION_FUNCTIONS)["get_interface"] = ALL_ATTENTION_FUNCTIONS.get_interface
        undo = lambda: vars(ALL_ATTENTION_FUNCTIONS).pop("get_interface")  # noqa: E731
    try:
        assert differences(before, model)
    finally:
        undo()
