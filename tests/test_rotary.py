"""Scaled rotary embeddings: how long a text they carry, and what is said where they change under a text that grows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import probe
from probe.capturing import MemorySink, read
from probe.decoding import Sampling
from probe.decoding.caches import held as held_by
from probe.decoding.caches import slot
from probe.language_model import LanguageModel
from probe.tiny import tiny

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}


def llama(length: int = 32, **rope: Any) -> LanguageModel:
    model, tokenizer = tiny("llama", max_position_embeddings=length, rope_parameters=rope)
    return LanguageModel(model, tokenizer, name="little")


def longrope(original: int) -> LanguageModel:
    half = tiny("llama")[0].config.head_dim // 2
    return llama(
        256, rope_type="longrope", short_factor=[1.0] * half, long_factor=[6.0] * half, factor=8.0,
        original_max_position_embeddings=original, rope_theta=1e4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("length", "rope", "carried"),
    [
        (32, YARN, 128),
        (256, YARN, 256),
        (32, {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}, 80),
        (32, DYNAMIC, 128),
        (32, {"rope_type": "default", "rope_theta": 1e4}, 32),
    ],
)
def test_how_long_a_text_a_scaled_context_holds(length: int, rope: dict[str, Any], carried: int) -> None:
    lm = llama(length, **rope)
    assert lm.context_length == carried
    text = "a" * (carried - len(lm.encode("").ids))
    with torch.no_grad():
        ids = torch.tensor([lm.encode(text).ids])
        expected = lm.model(ids).logits[0].double().log_softmax(-1)
    found = probe.trace(lm, text).table("tokens").logprob.to_numpy()[1:]
    own = expected[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()
    assert abs(found - own).max() < 1e-4  # fp32
    with pytest.raises(probe.ProbeError, match="the context of little holds"):
        probe.trace(lm, text + "a")


def stepwise(lm: LanguageModel, ids: list[int], n: int) -> list[float]:
    """Log-probs of the last n of ids as a plain cached loop sees them."""
    found: list[float] = []
    held: dict[str, Any] = {}
    with torch.no_grad():
        for at in range(len(ids) - n, len(ids)):
            new = ids[:at] if not held else ids[at - 1 : at]
            out = lm.model(torch.tensor([new]), **held, use_cache=True)
            held = {str(slot(lm.model)): held_by(out)}
            found.append(float(out.logits[0, -1].double().log_softmax(-1)[ids[at]]))
    return found


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_text_that_grows_over_the_change_is_said_and_has_the_samplers_numbers(kind: str) -> None:
    lm = llama(32, **DYNAMIC) if kind == "dynamic" else longrope(32)
    prompt, warm = "abcdefghijklmnopqrstuvwx", Sampling(temperature=1.0, seed=3)
    run = probe.trace(lm, prompt, generate=20, sampling=warm)
    tokens = run.table("tokens")
    drawn = tokens.sample_logprob.to_numpy()[-20:]
    fresh = llama(32, **DYNAMIC) if kind == "dynamic" else longrope(32)
    assert abs(drawn - stepwise(fresh, tokens.token_id.tolist(), 20)).max() < 1e-4
    assert abs(drawn - tokens.logprob.to_numpy()[-20:]).max() > 1e-2  # the read is another text's
    assert any("rotary frequencies change" in said for said in run.manifest["warnings"])
    shorter = probe.trace(lm, prompt, generate=4, sampling=warm)
    assert not shorter.manifest["warnings"]


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_text_is_read_alike_beside_and_after_longer_ones(kind: str) -> None:
    """A longer neighbour in the batch, or before it, gave a text its frequencies."""
    texts = ["b" * 60, "abcdefgh", "c" * 45]
    together = llama(32, **DYNAMIC) if kind == "dynamic" else longrope(32)
    rows = probe.trace(together, texts).table("tokens")
    for number, text in enumerate(texts):
        alone = llama(32, **DYNAMIC) if kind == "dynamic" else longrope(32)
        ids = torch.tensor([alone.encode(text).ids])
        with torch.no_grad():
            expected = alone.model(ids).logits[0].double().log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        found = rows[rows.prompt_id == number].logprob.to_numpy()[1:]
        assert abs(found - expected.numpy()).max() < 1e-4


def test_factors_that_are_the_same_for_short_and_long_never_change() -> None:
    half = tiny("llama")[0].config.head_dim // 2
    lm = llama(64, rope_type="longrope", short_factor=[2.0] * half, long_factor=[2.0] * half, factor=1.0,
               attention_factor=1.0, original_max_position_embeddings=64, rope_theta=1e4)  # fmt: skip
    assert lm.frequencies_change is None and longrope(32).frequencies_change == (32, True)
    reading = read(lm, torch.tensor([[5, 6, 7]]), [3], sink=MemorySink())
    assert len(reading.scores) == 1
