"""Decoding from a cache is decoding without one: step by step, as `generate`, alone and in a batch, with every way to stop."""

from __future__ import annotations

from functools import cache, wraps

import pytest
import torch

import probe
from probe.decoding import Sampling, decode, processors
from probe.decoding.caches import held
from probe.decoding.teacher_forced import suffix_logprobs
from probe.errors import BadModel, NonFinite
from probe.language_model.stepping import CacheSupport, cache_support

FAMILIES = [
    "llama", "gpt2", "gemma2", "qwen3", "mamba", "falcon_h1", "jamba", "gpt_oss", "bloom", "rwkv", "gpt_neox", "minimax",
    "deepseek_v4", "zamba2", "zamba", "hrm_text", "bamba", "roberta", "deepseek_v32",
]  # fmt: skip
OWN_CACHE_FAILS = ("zamba", "hrm_text")  # transformers 5.24: `generate` fails too
WARM = Sampling(1.0, seed=3)


@cache
def loaded(family: str, **config: int):
    return probe.load(f"tiny:{family}")


def drawn(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 200, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def after(lm, ids: list[int]) -> torch.Tensor:
    """Logits (d_vocab,) of the next token, without any cache."""
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.fixture
def endless(monkeypatch):
    """A model that no token ends."""

    def of(family: str):
        lm = loaded(family)
        monkeypatch.setattr(lm, "eos_ids", set())
        return lm

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_argmax_of_a_full_forward_at_every_step(family: str, endless) -> None:
    lm, ids = endless(family), drawn(40)
    (found,) = decode(lm, [ids], max_new=12, sampling=Sampling())
    assert len(found.ids) == 12
    for token in found.ids:
        assert token == int(after(lm, ids).argmax())
        ids = [*ids, token]
    assert (found.stop_reason, found.kept, found.noise) == ("length", [1] * 12, [None] * 12)


# `generate` counts RoBERTa's positions from 0, where its own forward begins after that of padding
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "roberta"])
def test_greedy_is_what_generate_gives(family: str, endless) -> None:
    lm, ids = endless(family), drawn(17)
    (found,) = decode(lm, [ids], max_new=10, sampling=Sampling())
    text = lm.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, 17, dtype=torch.long), max_new_tokens=10, min_new_tokens=10,
        do_sample=False, pad_token_id=0, eos_token_id=None, use_cache=family not in OWN_CACHE_FAILS,
    )  # fmt: skip
    assert found.ids == text[0, 17:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_a_ragged_batch_is_itself_alone(family: str, endless) -> None:
    lm = endless(family)
    prompts = [drawn(n, seed=n) for n in (14, 3, 22, 14, 9)]
    for sampling in (Sampling(), WARM, Sampling(0.8, top_p=0.9, repetition_penalty=1.2, seed=1)):
        together = decode(lm, prompts, max_new=9, sampling=sampling, samples=[4, 0, 7, 5, 4])
        for row, sample in enumerate([4, 0, 7, 5, 4]):
            (alone,) = decode(lm, [prompts[row]], max_new=9, sampling=sampling, samples=[sample])
            assert together[row].ids == alone.ids
            assert together[row].sample_logprob == pytest.approx(alone.sample_logprob, abs=1e-4)
            assert together[row].noise == alone.noise


@pytest.mark.parametrize("restarts", [False, True])
def test_a_cache_that_says_something_else_is_not_gone_on_from(restarts: bool, monkeypatch) -> None:
    """Of a model that takes what follows a cache for the beginning of a text, whatever positions it is told."""
    lm = probe.load("tiny:llama")
    monkeypatch.setattr(lm, "eos_ids", set())
    plain_forward = lm.model.forward

    @wraps(plain_forward)
    def forward(input_ids, position_ids=None, **kwargs):
        if restarts and held(kwargs) is not None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        return plain_forward(input_ids, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(lm.model, "forward", forward)
    ids = drawn(20)
    (found,) = decode(lm, [ids], max_new=8, sampling=Sampling())
    scores = suffix_logprobs(lm, ids, [found.ids])[0]
    assert cache_support(lm).cached == (not restarts)
    for token, score in zip(found.ids, scores, strict=True):
        logits = after(lm, ids)
        assert token == int(logits.argmax())
        assert score == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
        ids = [*ids, token]


def test_how_a_model_goes_on_is_found_without_the_edits_at_work() -> None:
    from probe.interventions import applying, parse_edits

    lm = probe.load("tiny:bamba")
    with applying(lm, parse_edits(lm, ["mlp_out@0:12=zero"]), start=0):
        assert cache_support(lm) == CacheSupport(cached=True, needs_positions=True, origin=0)


@pytest.mark.parametrize("family", ["xlm", "xlnet"])
def test_a_model_that_reads_what_follows_cannot_go_on(family: str) -> None:
    with pytest.raises(BadModel, match="reads what follows too"):
        decode(loaded(family), [[5, 6, 7]], max_new=2, sampling=Sampling())


def test_order_and_company_change_nothing(endless) -> None:
    lm, prompts = endless("llama"), [drawn(n, seed=n) for n in (5, 9, 2)]
    forth = decode(lm, prompts, max_new=8, sampling=WARM, samples=[1, 2, 3])
    back = decode(lm, prompts[::-1], max_new=8, sampling=WARM, samples=[3, 2, 1])
    assert [c.ids for c in forth] == [c.ids for c in back][::-1]
    assert forth[0].ids != decode(lm, prompts[:1], max_new=8, sampling=WARM, samples=[2])[0].ids


def test_the_sampled_law_is_the_models(endless) -> None:
    """Log-probs that a continuation reports are those of a full forward, and so is the set that was left."""
    lm, sampling = endless("llama"), Sampling(0.7, top_k=20, top_p=0.9, seed=2)
    ids = drawn(6)
    (found,) = decode(lm, [ids], max_new=8, sampling=sampling)
    for token, logprob, kept in zip(found.ids, found.sample_logprob, found.kept, strict=True):
        law = processors(sampling)(torch.tensor([ids]), after(lm, ids)[None])[0].log_softmax(-1)
        assert logprob == pytest.approx(float(law[token]), abs=1e-4)
        assert kept == int(law.isfinite().sum())
        ids = [*ids, token]


@pytest.mark.parametrize("family", ["llama", "mamba", "jamba", "minimax"])
def test_a_row_that_ends_leaves_and_the_others_go_on(family: str, monkeypatch) -> None:
    """Every fourth token ends a row, so that rows leave at every step."""
    lm, prompts = loaded(family), [drawn(6, seed=s) for s in range(12)]
    monkeypatch.setattr(lm, "eos_ids", set(range(0, 400, 4)))
    together = decode(lm, prompts, max_new=10, sampling=WARM)
    assert len({len(c.ids) for c in together}) > 2
    for row, prompt in enumerate(prompts):
        (alone,) = decode(lm, [prompt], max_new=10, sampling=WARM, samples=[row])
        assert (together[row].ids, together[row].stop_reason) == (alone.ids, alone.stop_reason)
        assert (alone.ids[-1] % 4 == 0) == (alone.stop_reason == "eos")
        assert not any(token % 4 == 0 for token in alone.ids[:-1])


def test_a_stop_string_ends_a_row_with_it_kept(endless) -> None:
    lm, ids = endless("llama"), drawn(4, seed=8)
    (free,) = decode(lm, [ids], max_new=30, sampling=WARM)
    text = lm.pieces(free.ids).text
    stop = next(text[i : i + 2] for i in range(8, len(text) - 2) if text[i : i + 2].isalpha() and text[i].isascii())
    (found,) = decode(lm, [ids], max_new=30, sampling=Sampling(1.0, seed=3, stop=("never there", stop)))
    n = next(n for n in range(1, 31) if stop in lm.pieces(free.ids[:n]).text)
    assert (found.ids, found.stop_reason) == (free.ids[:n], "stop")


def test_the_context_ends_a_row_whatever_stands_beside_it(endless, monkeypatch) -> None:
    lm = endless("llama")
    monkeypatch.setattr(lm, "context_length", 20)
    found = decode(lm, [drawn(17), drawn(20), drawn(5), drawn(25)], max_new=6, sampling=Sampling())
    assert [(len(c.ids), c.stop_reason) for c in found] == [(3, "context"), (0, "context"), (6, "length"), (0, "context")]


def test_nothing_asked_is_nothing_done(endless) -> None:
    lm = endless("llama")
    (found,) = decode(lm, [drawn(4)], max_new=0, sampling=Sampling())
    assert (found.ids, found.stop_reason) == ([], "length")
    assert decode(lm, [], max_new=4, sampling=Sampling()) == []


@pytest.mark.parametrize("sampling", [Sampling(), WARM])
def test_a_model_that_breaks_is_an_error(sampling: Sampling) -> None:
    lm = probe.load("tiny:llama")
    lm.model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(NonFinite, match="sample 5 at step 0"):
        decode(lm, [drawn(4)], max_new=3, sampling=sampling, samples=[5])


def test_a_model_that_cannot_generate_says_so() -> None:
    lm = probe.load("tiny:llama")
    only = type("Only", (), {"model": lm.model.model, "name": "body"})()
    with pytest.raises(BadModel, match="cannot generate"):
        decode(only, [[1]], max_new=1, sampling=Sampling())


def test_progress_counts_steps(endless) -> None:
    seen: list[tuple[str, int, int]] = []
    decode(endless("llama"), [drawn(4)], max_new=3, sampling=Sampling(), progress=lambda *x: seen.append(x))
    assert seen == [("decoding", 1, 3), ("decoding", 2, 3), ("decoding", 3, 3)]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_an_edit_that_changes_nothing_changes_nothing(family: str, endless) -> None:
    from probe.interventions import applying, parse_edits

    lm, prompts = endless(family), [drawn(9, seed=1), drawn(6, seed=2)]
    plain = decode(lm, prompts, max_new=8, sampling=WARM)
    for text in ("mlp_out@1:300..=zero", "resid_post@0:300..=scale:0.5"):
        with applying(lm, parse_edits(lm, [text])) as edits:
            assert decode(lm, prompts, max_new=8, sampling=WARM) == plain
            assert decode(lm, prompts, max_new=8, sampling=WARM, edits=edits) == plain


@pytest.mark.slow
def test_real_weights(smollm2) -> None:
    prompts = [smollm2.encode(text).ids for text in ("The capital of France is", "Once upon a time there was a")]
    together = decode(smollm2, prompts, max_new=24, sampling=Sampling())
    for prompt, found in zip(prompts, together, strict=True):
        text = smollm2.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=len(found.ids), do_sample=False, pad_token_id=0,
        )  # fmt: skip
        assert found.ids == text[0, len(prompt) :].tolist()
