"""Teacher forcing with the prefix computed once, against plain forwards in float64 log-softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.decoding.forced import forced

FAMILIES = ["llama", "gpt2", "gemma2", "gpt_oss", "bloom", "mamba", "falcon_h1", "jamba", "rwkv"]
LENGTHS = (1, 5, 17, 0, 9, 2)


def plain(lm, prefix: list[int], suffix: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = lm.model(torch.tensor([prefix + suffix])).logits[0].double()
    rows = logits.log_softmax(-1)[len(prefix) - 1 : -1]
    return rows.gather(1, torch.tensor(suffix)[:, None])[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_forced_scores_are_those_of_one_forward(family: str) -> None:
    lm = probe.load(f"tiny:{family}")
    random = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(3, 200, (n,), generator=random).tolist()  # noqa: E731
    prefix, suffixes = draw(40), [draw(n) for n in LENGTHS]
    found = forced(lm, prefix, suffixes, logits=True)
    for suffix, own in zip(suffixes, found, strict=True):
        assert own.logprob.shape == (len(suffix),) and own.logits.shape[0] == len(suffix)
        if suffix:
            np.testing.assert_allclose(own.logprob, plain(lm, prefix, suffix), atol=1e-5)


@pytest.mark.slow
def test_forced_scores_on_real_weights(smollm2) -> None:
    text = smollm2.encode(
        "The capital of France is Paris. The capital of Italy is Rome, and that of Spain is Madrid."
    ).ids
    suffixes = [text[12:], text[12:14], smollm2.ids_of(" Berlin is where")]
    for suffix, own in zip(suffixes, forced(smollm2, text[:12], suffixes), strict=True):
        np.testing.assert_allclose(own.logprob, plain(smollm2, text[:12], list(suffix)), atol=1e-4)


def test_a_prefix_is_needed() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        forced(probe.load("tiny:llama"), [], [[1]])
