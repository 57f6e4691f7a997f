"""Hooks read, replace and vanish; attention calls are seen as they are and the model computes what it always did."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from probe.instrument import AttentionCall, Tap, attended, attending, recording, tapping

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_reading_changes_nothing_and_sees_inputs_and_outputs(llama: nn.Module) -> None:
    plain, seen = logits(llama), {}
    taps = {
        Tap("model.layers.1", "input", 0): lambda x: seen.__setitem__("before", x),
        Tap("model.layers.1", "output", 0): lambda x: seen.__setitem__("after", x),
        Tap("model.layers.1.self_attn", "input", "hidden_states"): lambda x: seen.__setitem__("normed", x),
        Tap("model.layers.1.self_attn", "output", 0): lambda x: seen.__setitem__("attn", x),
        Tap("model.layers.1.mlp", "output", 0): lambda x: seen.__setitem__("mlp", x),
    }
    with tapping(llama, taps):
        tapped = logits(llama)
    assert torch.equal(tapped, plain)
    torch.testing.assert_close(seen["before"] + seen["attn"] + seen["mlp"], seen["after"])
    assert torch.equal(seen["normed"], llama.model.layers[1].input_layernorm(seen["before"]))
    assert n_hooks(llama) == 0


@pytest.mark.parametrize(
    "tap",
    [Tap("model.layers.2", "input", 0), Tap("model.layers.1", "output", 0), Tap("model.layers.2.input_layernorm", "input", 0)],
)
def test_what_a_reader_returns_takes_the_activations_place(llama: nn.Module, tap: Tap) -> None:
    plain = logits(llama)
    with tapping(llama, {tap: lambda x: x + 1.0}):
        edited = logits(llama)
    assert not torch.equal(edited, plain)
    assert torch.equal(logits(llama), plain)


def test_edits_of_tuple_elements_keyword_arguments_and_fields(llama: nn.Module) -> None:
    """The attention module returns a tuple and takes keywords; the root returns a dict-like output."""
    with tapping(llama, {Tap("model.layers.0.self_attn", "output", 0): torch.zeros_like}):
        without_output = logits(llama)
    with tapping(llama, {Tap("model.layers.0.self_attn.o_proj", "input", 0): torch.zeros_like}):
        without_input = logits(llama)
    with tapping(llama, {Tap("model.layers.0.self_attn", "input", "hidden_states"): torch.zeros_like}):
        without_anything = logits(llama)
    assert torch.equal(without_output, without_input) and torch.equal(without_output, without_anything)
    plain = logits(llama)
    with tapping(llama, {Tap("", "output", "logits"): lambda x: x * 2}):
        assert torch.equal(logits(llama), plain * 2)


def test_hooks_and_patch_vanish_when_the_forward_fails(llama: nn.Module) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    for context in (
        tapping(llama, {Tap("model.layers.1", "output", 0): fail}), attending(llama, fail), recording(llama, fail),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="in the middle"), context:
            logits(llama)
        assert n_hooks(llama) == 0
        assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)


def test_a_wrong_path_leaves_no_hook_behind(llama: nn.Module) -> None:
    taps = {Tap("model.layers.1", "output", 0): lambda x: None, Tap("model.layers.9", "output", 0): lambda x: None}
    with pytest.raises(AttributeError), tapping(llama, taps):
        pass
    assert n_hooks(llama) == 0


class Loop(nn.Module):
    """One block, three visits."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(self.block(x)))


def test_visits_of_a_shared_block_are_told_apart_in_every_forward() -> None:
    torch.manual_seed(0)
    loop, x, seen = Loop(), torch.ones(1, 4), {}
    taps = {Tap("block", "output", 0, call): lambda y, call=call: seen.__setitem__(call, y) for call in range(3)}
    with torch.no_grad(), tapping(loop, taps):
        for _ in range(2):  # visits are counted anew in each forward
            seen.clear()
            loop(x)
    with torch.no_grad():
        one = loop.block(x)
        two = loop.block(one)
        assert torch.equal(seen[0], one) and torch.equal(seen[1], two) and torch.equal(seen[2], loop.block(two))
    calls: list[str] = []
    with recording(loop, lambda path, *_: calls.append(path)):
        loop(x)
    assert calls == ["block", "block", "block", ""]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_calls_are_complete_and_change_nothing(llama: nn.Module, implementation: str) -> None:
    before = llama.config._attn_implementation
    llama.set_attn_implementation(implementation)
    plain, seen = logits(llama), {}

    def observe(path: str, call: AttentionCall, output: Tensor) -> None:
        scores = call.query @ call.key.repeat_interleave(2, dim=1).transpose(2, 3) * call.scaling
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        pattern = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        seen[path] = (pattern @ call.value.repeat_interleave(2, dim=1)).transpose(1, 2), output

    with attending(llama, observe):
        watched = logits(llama)
    llama.set_attn_implementation(before)
    assert torch.equal(plain, watched)
    assert list(seen) == [f"model.layers.{i}.self_attn" for i in range(3)]
    for expected, output in seen.values():
        torch.testing.assert_close(output, expected)


def test_observers_nest_edit_and_keep_to_their_model_and_thread(llama: nn.Module) -> None:
    plain, order = logits(llama), []
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_config(llama.config).eval()

    def zero(_: str, __: AttentionCall, output: Tensor) -> Tensor:
        order.append("zero")
        return torch.zeros_like(output)

    def look(_: str, __: AttentionCall, output: Tensor) -> None:
        order.append("look")
        assert not output.any()

    results: list[Tensor] = []
    with attending(llama, zero):
        with attending(llama, look):
            edited = logits(llama)
            logits(other)
        thread = threading.Thread(target=lambda: results.append(logits(llama)))
        thread.start()
        thread.join()
    assert order == ["zero", "look"] * 3
    assert torch.equal(results[0], plain)
    silent = {Tap(f"model.layers.{i}.self_attn", "output", 0): torch.zeros_like for i in range(3)}
    with tapping(llama, silent):
        assert torch.equal(edited, logits(llama))
    assert torch.equal(logits(llama), plain)
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)


def test_attention_can_be_computed_by_another_function(llama: nn.Module) -> None:
    """One that leaves a call alone changes nothing; observers see what the other gives; after it all is as it was."""
    plain, seen = logits(llama), []

    def first_only(call: AttentionCall) -> Tensor | None:
        return None if len(seen) else torch.zeros(*call.query.shape[:1], IDS.shape[1], 4, 4)

    assert not attended(llama)
    with attending(llama, attention=lambda call: None):
        assert attended(llama)
        assert torch.equal(logits(llama), plain)
    with attending(llama, lambda path, call, output: seen.append(output), attention=first_only):
        assert not torch.allclose(logits(llama), plain)
    assert [bool(one.any()) for one in seen] == [False, True, True]
    assert not attended(llama)
    assert torch.equal(logits(llama), plain)
