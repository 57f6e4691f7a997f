"""A branch is what decoding its prefix from scratch gives, however much was shared on the way."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy import stats
from transformers.cache_utils import DynamicCache, DynamicLayer

import probe
from probe.decoding import Sampling, branch, decode
from probe.decoding.caches import RoomyLayer, grows, joined, joins, pads, selects
from probe.decoding.prefixes import common, compute, extended
from probe.errors import NonFinite
from probe.tiny import tiny

ATTENTION = ["llama", "gpt2", "gemma2", "qwen3", "gpt_oss", "gpt_neox"]
STATES = ["mamba", "falcon_h1", "jamba", "bloom", "rwkv", "minimax", "deepseek_v4", "zamba2", "lfm2"]
WARM = Sampling(1.0, seed=3)


@cache
def loaded(family: str):
    """No token ends these; the windows of those that have one are shorter than the prefixes."""
    window = {"sliding_window": 8} if family in ("gemma2", "gpt_oss") else {}
    model, tokenizer = tiny(family, **window)
    lm = probe.LanguageModel(model, tokenizer, name=family)
    lm.eos_ids = set()
    assert lm.anatomy.layers  # found now, so that its own forwards are not counted
    return lm


def drawn(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 200, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


STEM = drawn(20)
# nested, forked in the middle, unlike, twice the same, and one that is a stem of others
PREFIXES = [STEM, STEM + drawn(5, 1), STEM + drawn(5, 1) + drawn(4, 2), drawn(7, 3), STEM[:10] + drawn(15, 4), STEM]


def assert_same(found, alone) -> None:
    assert (found.ids, found.stop_reason, found.kept, found.noise) == (
        alone.ids, alone.stop_reason, alone.kept, alone.noise,
    )  # fmt: skip
    assert found.sample_logprob == pytest.approx(alone.sample_logprob, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "mamba", "rwkv"])
def test_each_prefix_has_its_own_room(family: str) -> None:
    lm, most = loaded(family), [3, 9, 1, 0, 12, 5]
    found = branch(lm, PREFIXES, [0, 5], max_new=most, sampling=WARM)
    for prefix, own, n in zip(PREFIXES, found, most, strict=True):
        for one, sample in zip(own, [0, 5], strict=True):
            (alone,) = decode(lm, [prefix], max_new=n, sampling=WARM, samples=[sample])
            assert len(one.ids) == n
            assert_same(one, alone)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*ATTENTION, *STATES])
def test_a_branch_is_its_prefix_decoded_from_scratch(family: str) -> None:
    lm, samples = loaded(family), [0, 5, 2]
    for sampling in (WARM, Sampling(0.8, top_p=0.9, repetition_penalty=1.2)):
        found = branch(lm, PREFIXES, samples, max_new=12, sampling=sampling)
        for prefix, own in zip(PREFIXES, found, strict=True):
            for sample, one in zip(samples, own, strict=True):
                assert_same(one, decode(lm, [prefix], max_new=12, sampling=sampling, samples=[sample])[0])


@pytest.mark.slow
@pytest.mark.parametrize("family", [*ATTENTION, "mamba", "falcon_h1", "jamba"])
def test_a_batch_of_64_is_64_alone(family: str) -> None:
    lm, prefixes = loaded(family), [PREFIXES[0], PREFIXES[2]]
    found = branch(lm, prefixes, range(32), max_new=10, sampling=WARM)
    back = branch(lm, prefixes[::-1], range(31, -1, -1), max_new=10, sampling=WARM, batch=7)
    for i, prefix in enumerate(prefixes):
        for sample in range(32):
            assert found[i][sample].ids == back[1 - i][31 - sample].ids
            if sample % 8 == 0:
                assert_same(found[i][sample], branch(lm, [prefix], [sample], max_new=10, sampling=WARM)[0][0])
    assert len({tuple(one.ids) for one in found[0]}) == 32


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon_h1", "mamba", "minimax"])
def test_branches_that_end_leave_and_the_others_go_on(family: str, monkeypatch) -> None:
    lm = loaded(family)
    monkeypatch.setattr(lm, "eos_ids", set(range(0, 400, 5)))
    found = branch(lm, PREFIXES, range(6), max_new=16, sampling=WARM)
    assert len({len(one.ids) for own in found for one in own}) > 4
    for prefix, own in zip(PREFIXES, found, strict=True):
        for sample, one in enumerate(own):
            assert_same(one, decode(lm, [prefix], max_new=16, sampling=WARM, samples=[sample])[0])


def test_an_arm_and_its_control_share_noise_by_steps_since_the_fork() -> None:
    lm = loaded("llama")
    control, edited = branch(lm, [STEM, STEM + drawn(9, 1)], range(4), max_new=6, sampling=WARM)
    for one, other in zip(control, edited, strict=True):
        for a, b, x, y in zip(one.ids, other.ids, one.noise, other.noise, strict=True):
            if a == b:
                assert x == y
    same, again = branch(lm, [STEM, STEM], range(4), max_new=6, sampling=WARM)
    assert same == again
    assert [one.ids for one in same] == [one.ids for one in control]


@pytest.mark.slow
def test_branches_have_the_law_of_whole_texts() -> None:
    """All 27 texts of three tokens that top-k leaves, with their exact probabilities by full forwards, against 20,000."""
    lm, sampling, n = loaded("llama"), Sampling(1.0, top_k=3, seed=7), 20_000
    (drawn_texts,) = branch(lm, [STEM], range(n), max_new=3, sampling=sampling, batch=4000)
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for text, p in law.items():
            with torch.no_grad():
                logits = lm.model(torch.tensor([[*STEM, *text]])).logits[0, -1]
            values, tokens = logits.topk(3)
            for token, share in zip(tokens.tolist(), values.double().softmax(-1).tolist(), strict=True):
                longer[(*text, token)] = p * share
        law = longer
    found = Counter(tuple(one.ids) for one in drawn_texts)
    assert set(found) <= set(law)
    assert stats.chisquare([found[text] for text in law], [n * p for p in law.values()]).pvalue > 1e-3
    for one in drawn_texts[:20]:
        assert sum(one.sample_logprob) == pytest.approx(math.log(law[tuple(one.ids)]), abs=1e-4)


def test_everything_shared_is_run_once(monkeypatch) -> None:
    lm, seen = loaded("llama"), []
    branch(lm, [STEM], [0], max_new=1, sampling=WARM)  # what is tried once a model
    forward = lm.model.forward

    def counted(input_ids, **kwargs):
        seen.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **kwargs)

    counted.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(lm.model, "forward", counted)
    branch(lm, [STEM, STEM + drawn(5, 1), STEM + drawn(3, 2), STEM], range(16), max_new=3, sampling=WARM)
    # the stem, two tails, two steps of 48 rows: equal prefixes are one (the third token needs no forward after it)
    assert seen == [(1, 20), (1, 3), (1, 5), (48, 1), (48, 1)] or seen == [(1, 20), (1, 5), (1, 3), (48, 1), (48, 1)]
    seen.clear()
    branch(lm, [STEM], range(10), max_new=2, sampling=WARM, batch=4)
    assert seen == [(1, 20), (4, 1), (4, 1), (2, 1)]


def test_equal_prefixes_of_other_lengths_are_other_branches() -> None:
    lm = loaded("llama")
    short, long, again = branch(lm, [STEM, STEM, STEM], range(3), max_new=[2, 5, 2], sampling=WARM)
    for few, many, same in zip(short, long, again, strict=True):
        assert few is same and len(few.ids) <= 2 and many.ids[: len(few.ids)] == few.ids
    assert any(len(many.ids) == 5 for many in long)


@pytest.mark.parametrize("family", ATTENTION)
def test_what_is_known_after_a_prefix_is_a_forward_over_it(family: str) -> None:
    lm = loaded(family)
    prefixes = sorted({tuple(prefix) for prefix in PREFIXES})
    with torch.inference_mode():
        found = dict(compute(lm, prefixes))
        assert list(found) == prefixes
        for prefix, known in found.items():
            torch.testing.assert_close(known.logits, lm.model(torch.tensor([prefix])).logits[:, -1], atol=1e-5, rtol=1e-5)
            assert known.cache.get_seq_length() == len(prefix)


def test_common_is_the_longest_beginning_of_all() -> None:
    assert common([(1, 2, 3), (1, 2), (1, 2, 4)]) == (1, 2)
    assert common([(1, 2), (3,)]) == ()
    assert common([(5, 6)]) == (5, 6)


def test_the_context_ends_a_branch(monkeypatch) -> None:
    lm = loaded("llama")
    monkeypatch.setattr(lm, "context_length", 28)
    found = branch(lm, PREFIXES, [0, 1], max_new=12, sampling=WARM)
    for prefix, own in zip(PREFIXES, found, strict=True):
        for one in own:
            n = min(12, max(0, 28 - len(prefix)))
            assert (len(one.ids), one.stop_reason) == (n, "length" if n == 12 else "context")


def test_each_branch_is_told_of_once_as_it_ends(monkeypatch) -> None:
    lm, told, counted = loaded("llama"), [], []
    monkeypatch.setattr(lm, "eos_ids", set(range(0, 400, 5)))
    found = branch(
        lm, PREFIXES, [3, 1], max_new=8, sampling=WARM, batch=5,
        done=lambda i, sample, one: told.append((i, sample, one.stop_reason, len(one.ids))),
        progress=lambda *x: counted.append(x),
    )  # fmt: skip
    expected = [
        (i, s, one.stop_reason, len(one.ids)) for i, own in enumerate(found) for s, one in zip([3, 1], own, strict=True)
    ]
    assert sorted(told) == sorted(expected)
    assert all(reason for _, _, reason, _ in told)
    assert counted == [("branches", n, 12) for n in range(1, 13)]
    lengths = [n for i, _, _, n in told if i == 3]
    assert lengths == sorted(lengths)


def test_nothing_asked_is_nothing_done() -> None:
    lm = loaded("llama")
    assert branch(lm, [], [1], max_new=3, sampling=WARM) == []
    assert branch(lm, [STEM], [], max_new=3, sampling=WARM) == [[]]
    ((one,),) = branch(lm, [STEM], [1], max_new=0, sampling=WARM)
    assert (one.ids, one.stop_reason) == ([], "length")


def test_a_model_that_breaks_is_an_error() -> None:
    lm = probe.load("tiny:llama")
    lm.anatomy  # noqa: B018  (found while it was whole; else the damage is said before anything is drawn)
    lm.model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(NonFinite, match="sample 4 at step 0"):
        branch(lm, [STEM], [4, 5], max_new=2, sampling=WARM)


def test_kinds_of_caches() -> None:
    kinds = {"llama": (1, 1, 1, 1), "gemma2": (1, 1, 1, 1), "falcon_h1": (1, 0, 1, 0), "mamba": (1, 0, 1, 0),
             "minimax": (0, 0, 0, 0)}  # fmt: skip
    for family, expected in kinds.items():
        with torch.inference_mode():
            found = extended(loaded(family), None, tuple(STEM), 0).cache
        assert (selects(found), grows(found), joins(found), pads(found)) == tuple(map(bool, expected)), family


def test_room_holds_what_concatenation_holds() -> None:
    random = torch.Generator().manual_seed(0)
    new = lambda rows, n: torch.randn(rows, 2, n, 4, generator=random)  # noqa: E731
    plain, keys, values = DynamicLayer(), new(3, 10), new(3, 10)
    plain.update(keys, values)
    room = RoomyLayer(keys.clone(), values.clone())
    for n in (1, 1, 70, 1, 2):
        keys, values = new(len(plain.keys), n), new(len(plain.keys), n)
        for own, other in zip(room.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(own, other)
        for layer in (room, plain):
            layer.reorder_cache(torch.tensor({3: [0, 2], 2: [1], 1: [0]}[len(layer.keys)]))
            layer.crop(-1)
        assert torch.equal(room.keys, plain.keys)
        assert torch.equal(room.values, plain.values)
    many = torch.tensor([0, 0, 0])
    room.reorder_cache(many)
    plain.reorder_cache(many)
    keys = new(3, 1)
    assert torch.equal(room.update(keys, keys)[0], plain.update(keys, keys)[0])


def test_a_joined_prefix_is_shared_until_its_first_token() -> None:
    lm = loaded("llama")
    with torch.inference_mode():
        alone = extended(lm, None, tuple(STEM), 0).cache
        whole = joined([alone], [64])
        assert isinstance(whole, DynamicCache)
        for layer in whole.layers:
            assert layer.keys.shape[0] == 64
            assert layer.keys.untyped_storage().nbytes() == layer.keys[0].numel() * 4


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba"])
def test_edits_of_single_prefixes_are_for_their_branches(family: str) -> None:
    """A control and an edited arm of one text: the edit meets only its own arm, in the prefix and after it."""
    from probe.interventions import applying, parse_edits

    lm = loaded(family)
    texts = [STEM[:12], STEM[:12], STEM]
    (edit,) = parse_edits(lm, ["resid_post@0:3..=scale:0.5"])
    plain = branch(lm, texts, [0, 1], max_new=8, sampling=WARM)
    with applying(lm, [edit]):
        all_edited = [decode(lm, [STEM[:12]], max_new=8, sampling=WARM, samples=[s])[0] for s in (0, 1)]
    single = replace(edit, rows=(1,))
    with applying(lm, [single], ids=texts, longest=40) as edits:
        found = branch(lm, texts, [0, 1], max_new=8, sampling=WARM, edits=edits, batch=4)
        assert edits.rows is None
        assert edits.start is None
    for own, other in ((found[0], plain[0]), (found[2], plain[2]), (found[1], all_edited)):
        for one, another in zip(own, other, strict=True):
            assert_same(one, another)
    assert found[1] != plain[1]


@pytest.mark.slow
def test_branches_of_real_weights_are_themselves_alone(smollm2) -> None:
    text = "Question: Tom has 3 apples and buys 4 more. How many apples has he? Let us think step by step. First,"
    ids = smollm2.encode(text).ids
    prefixes = [ids, [*ids, *smollm2.ids_of(" Tom has 4 apples.")]]
    sampling = Sampling(0.8, top_p=0.95, seed=1)
    found = branch(smollm2, prefixes, range(32), max_new=24, sampling=sampling)
    for i, prefix in enumerate(prefixes):
        for sample in (0, 9, 31):
            assert_same(found[i][sample], decode(smollm2, [prefix], max_new=24, sampling=sampling, samples=[sample])[0])


@pytest.mark.parametrize("family", ["llama", "mamba", "falcon_h1"])
def test_edits_of_all_branches_hold_by_absolute_position(family: str) -> None:
    from probe.interventions import applying, parse_edits

    lm = loaded(family)
    texts = [STEM, STEM[:12], STEM + drawn(5, 1)]
    edits = parse_edits(lm, ["resid_post@0:22..26=scale:0.5"])
    plain = branch(lm, texts, [0, 1], max_new=14, sampling=WARM)
    with applying(lm, edits):
        found = branch(lm, texts, [0, 1], max_new=14, sampling=WARM, batch=4)
    assert found != plain
    for text, own in zip(texts, found, strict=True):
        for sample, one in enumerate(own):
            with applying(lm, edits):
                assert_same(one, decode(lm, [text], max_new=14, sampling=WARM, samples=[sample])[0])
