"""Suppression of a step is deletion with its positions kept, to the bit."""

from __future__ import annotations

import pytest
import torch

from probe.decoding.caches import held, slot
from probe.decoding.forced import Prefix

TEXT = "There are 12 apples. Then we add 7 more. So there are 19 apples now. Wait, that is not right. The answer is 17."


@pytest.mark.slow
def test_a_leap_is_a_cache_whose_step_was_cut_out(smollm2) -> None:
    """The prefix and the step are read one after the other, as a decode loop does: read in one forward, the prefix's keys
    already differ in their last bits."""
    ids, start, end = list(smollm2.encode(TEXT).ids), 6, 13
    name, model = slot(smollm2.model), smollm2.model
    with torch.inference_mode():
        leapt = Prefix(smollm2, ids[:start]).leap(ids[end:], end - start)
        cache = held(model(torch.tensor([ids[:start]]), use_cache=True))
        cache = held(model(torch.tensor([ids[start:end]]), **{name: cache}))
        for layer in cache.layers:
            assert layer.keys.shape[2] == end
            layer.keys, layer.values = layer.keys[:, :, :start], layer.values[:, :, :start]
        positions = torch.arange(end, len(ids))[None]
        gone = model(torch.tensor([ids[end:]]), position_ids=positions, **{name: cache}).logits[0]
        whole = model(torch.tensor([ids])).logits[0, end:]
    assert torch.equal(leapt, gone)
    assert (leapt - whole).abs().max() > 0.1
