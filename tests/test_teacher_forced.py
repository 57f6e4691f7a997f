"""Teacher forcing with the prefix computed once, against plain forwards in float64 log-softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.decoding import teacher_forced
from probe.decoding.caches import held, slot
from probe.decoding.teacher_forced import Prefix, suffix_logprobs, token_logprobs
from probe.errors import BadModel

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
    found = suffix_logprobs(lm, prefix, suffixes)
    for suffix, own in zip(suffixes, found, strict=True):
        assert own.shape == (len(suffix),)
        if suffix:
            np.testing.assert_allclose(own, plain(lm, prefix, suffix), atol=1e-5)


@pytest.mark.slow
def test_forced_scores_on_real_weights(smollm2) -> None:
    text = smollm2.encode("The capital of France is Paris. The capital of Italy is Rome, and that of Spain is Madrid.").ids
    suffixes = [text[12:], text[12:14], smollm2.ids_of(" Berlin is where")]
    for suffix, own in zip(suffixes, suffix_logprobs(smollm2, text[:12], suffixes), strict=True):
        np.testing.assert_allclose(own, plain(smollm2, text[:12], list(suffix)), atol=1e-4)


def test_a_prefix_is_needed() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        suffix_logprobs(probe.load("tiny:llama"), [], [[1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_grows_and_is_followed(family: str) -> None:
    lm = probe.load(f"tiny:{family}")
    ids = torch.randint(3, 200, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    stem = Prefix(lm, ids[:20])
    for start in range(20, 60, 10):
        (after,) = stem.teacher_forced([ids[start + 3 :]])
        np.testing.assert_allclose(token_logprobs(after, ids[start + 3 :]), plain(lm, ids[:start], ids[start + 3 :]), atol=1e-5)
        np.testing.assert_allclose(
            token_logprobs(stem.extend(ids[start : start + 10]), ids[start : start + 10]),
            plain(lm, ids[:start], ids[start : start + 10]), atol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize(("family", "first"), [("llama", 0), ("gpt2", 0), ("qwen3", 0), ("roberta", 258 + 1)])
def test_a_gap_is_a_text_without_the_gap_but_with_its_positions(family: str, first: int) -> None:
    """RoBERTa's first token stands after the position of padding."""
    lm = probe.load(f"tiny:{family}")
    ids = torch.randint(3, 200, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    found = torch.cat(list(Prefix(lm, ids[:10]).after_gap(ids[15:], 5)))
    positions = torch.tensor([[*range(10), *range(15, 30)]]) + first
    with torch.no_grad():
        expected = lm.model(torch.tensor([ids[:10] + ids[15:]]), position_ids=positions).logits[0, 10:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_comes_in_pieces(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a prefix, and what follows a gap, is the same in pieces of 7 tokens as at once."""
    lm = probe.load(f"tiny:{family}")
    ids = torch.randint(3, 200, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    stem = Prefix(lm, ids[:20])
    (whole,), (scores,) = stem.teacher_forced([ids[25:]]), stem.logprobs([ids[25:]])
    skips = family in ("llama", "gpt2")
    gap = torch.cat(list(stem.after_gap(ids[25:], 5))) if skips else None
    monkeypatch.setattr(teacher_forced, "BATCH_TOKENS", 7)
    torch.testing.assert_close(stem.teacher_forced([ids[25:]])[0], whole, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(stem.logprobs([ids[25:]])[0], scores, atol=1e-5)
    if gap is not None:
        pieces = list(stem.after_gap(ids[25:], 5))
        assert [len(piece) for piece in pieces] == [7, 7, 7, 7, 7]
        torch.testing.assert_close(torch.cat(pieces), gap, atol=1e-5, rtol=1e-5)
        lasts = torch.cat(list(stem.after_gap(ids[25:], 5, last=True)))
        torch.testing.assert_close(lasts, gap[6::7], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["mamba", "bloom", "falcon_h1"])
def test_a_model_without_positions_to_skip_says_so(family: str) -> None:
    with pytest.raises(BadModel, match="skip positions"):
        Prefix(probe.load(f"tiny:{family}"), [5, 6, 7]).after_gap([8, 9], 2)


@pytest.mark.parametrize("family", ["xlm", "xlnet"])
def test_a_model_that_reads_what_follows_has_no_beginnings(family: str) -> None:
    lm = probe.load(f"tiny:{family}")
    with torch.no_grad():
        alone, whole = (lm.model(torch.tensor([ids])).logits[0, 2] for ids in ([5, 6, 7], [5, 6, 7, 8, 9]))
    assert float((alone - whole).abs().max()) > 0.1
    with pytest.raises(BadModel, match="reads what follows too"):
        suffix_logprobs(lm, [5, 6, 7], [[8, 9]])


GAPPED = "There are 12 apples. Then we add 7 more. So there are 19 apples now. Wait, that is not right. The answer is 17."


@pytest.mark.slow
def test_a_gap_is_a_cache_whose_step_was_cut_out(smollm2) -> None:
    """The prefix and the step are read one after the other, as a decode loop does: read in one forward, the prefix's keys
    already differ in their last bits."""
    ids, start, end = list(smollm2.encode(GAPPED).ids), 6, 13
    name, model = slot(smollm2.model), smollm2.model
    with torch.inference_mode():
        (skipped,) = Prefix(smollm2, ids[:start]).after_gap(ids[end:], end - start)
        cache = held(model(torch.tensor([ids[:start]]), use_cache=True))
        cache = held(model(torch.tensor([ids[start:end]]), **{name: cache}))
        for layer in cache.layers:
            assert layer.keys.shape[2] == end
            layer.keys, layer.values = layer.keys[:, :, :start], layer.values[:, :, :start]
        positions = torch.arange(end, len(ids))[None]
        gone = model(torch.tensor([ids[end:]]), position_ids=positions, **{name: cache}).logits[0]
        whole = model(torch.tensor([ids])).logits[0, end:]
    assert torch.equal(skipped, gone)
    assert (skipped - whole).abs().max() > 0.1
