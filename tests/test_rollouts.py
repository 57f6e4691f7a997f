"""Continuous batching changes no token: a rollout is what decoding its prefix alone gives, whatever shared its batch and
whoever had its place before."""

from __future__ import annotations

import gc
import inspect
import random
import sys
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers.cache_utils import DynamicCache

import probe
from probe.decoding import Sampling, branching, decode
from probe.decoding.caches import FilledLayer
from probe.decoding.continuous import ContinuousBatch
from probe.decoding.rollouts import LocalEngine, Rollout, problem_seed
from probe.decoding.rooms import SPARE, Room
from probe.decoding.shared_prefixes import SharedRoom, shares
from probe.decoding.teacher_forced import Prefix
from probe.errors import NonFinite
from probe.tiny import tiny

ATTENTION = ["llama", "gpt2", "gemma2", "qwen3", "gpt_oss", "gpt_neox", "bloom"]
STATES = ["mamba", "falcon_h1", "jamba", "rwkv", "minimax", "lfm2"]
WARM = Sampling(1.0, seed=3)


@pytest.fixture(params=["prefixes shared", "each row whole"])
def room(request, monkeypatch) -> None:
    """Either room, where the model can share prefixes."""
    monkeypatch.setattr(branching, "OF_ONE", 0 if request.param == "prefixes shared" else sys.maxsize)


@cache
def loaded(family: str):
    """About one token in 20 ends these; the windows of those that have one are shorter than the prefixes."""
    window = {"sliding_window": 8} if family in ("gemma2", "gpt_oss") else {}
    model, tokenizer = tiny(family, **window)
    lm = probe.LanguageModel(model, tokenizer, name=family)
    lm.eos_ids = set(range(0, 400, 20))
    assert lm.anatomy.layers
    return lm


def drawn(n: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(3, 200, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


STEM = drawn(20)
# nested, forked in the middle, of another problem, short and long
PREFIXES = [STEM, STEM + drawn(5, 1), STEM + drawn(5, 1) + drawn(4, 2), drawn(7, 3), STEM[:10] + drawn(15, 4), drawn(40, 5)]
SEEDS = [problem_seed(3, STEM[:5])] * 3 + [problem_seed(3, (7,))] * 3


def mixed(n: int, most: tuple[int, ...] = (9, 1, 14, 3)) -> list[Rollout]:
    """n samples of every prefix, of several lengths, two of them twice."""
    found = [
        Rollout(prefix, sample, most[(i + sample) % len(most)], seed)
        for i, (prefix, seed) in enumerate(zip(PREFIXES, SEEDS, strict=True))
        for sample in range(n)
    ]
    return [*found, found[0], found[-1]]


def draw(lm, rollouts, sampling=WARM, *, tokens=None, **more):
    found = {}

    def done(place, continuation):
        assert place not in found
        found[place] = continuation

    LocalEngine(lm, tokens=tokens).draw(rollouts, sampling, done=done, **more)
    return [found.get(i) for i in range(len(rollouts))]


def alone(lm, rollout: Rollout, sampling=WARM):
    own = replace(sampling, seed=rollout.seed)
    return decode(lm, [rollout.prefix], max_new=rollout.max_new, sampling=own, samples=[rollout.sample])[0]


def assert_same(found, other) -> None:
    """The same tokens by the same noise. Rounding may move a token over the edge of top-p: the others have its share."""
    assert (found.ids, found.stop_reason, found.noise) == (other.ids, other.stop_reason, other.noise)
    assert found.kept == pytest.approx(other.kept, abs=1)
    room = [1e-4 if one == own else 0.02 for one, own in zip(found.kept, other.kept, strict=True)]
    for one, own, most in zip(found.sample_logprob, other.sample_logprob, room, strict=True):
        assert one == pytest.approx(own, abs=most)


@pytest.mark.slow
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("family", [*ATTENTION, *STATES])
def test_a_rollout_is_its_prefix_decoded_alone(family: str, monkeypatch) -> None:
    lm, rollouts = loaded(family), mixed(4)
    monkeypatch.setattr("probe.decoding.rollouts.PLACES", 5)  # many come and go
    for sampling in (WARM, Sampling(0.8, top_p=0.9, repetition_penalty=1.2)):
        for rollout, one in zip(rollouts, draw(lm, rollouts, sampling), strict=True):
            assert_same(one, alone(lm, rollout, sampling))


@pytest.mark.slow
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("seed", range(4))
def test_any_schedule_gives_the_same(family: str, seed: int, monkeypatch) -> None:
    """Any number of places, any room, which rows must give up again, and any lengths."""
    lm, pick = loaded(family), random.Random(seed)
    rollouts = mixed(3, tuple(pick.randint(1, 30) for _ in range(5)))
    pick.shuffle(rollouts)
    monkeypatch.setattr("probe.decoding.rollouts.PLACES", pick.randint(2, 20))
    monkeypatch.setattr(lm, "eos_ids", set(range(0, 400, 20 * (seed + 1))))
    for rollout, one in zip(rollouts, draw(lm, rollouts, tokens=pick.randint(30, 250)), strict=True):
        assert_same(one, alone(lm, rollout))


@pytest.mark.slow
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_row_gives_up_its_place_where_the_room_is_full_and_comes_back(family: str, monkeypatch) -> None:
    lm, back, widest = loaded(family), [], []
    monkeypatch.setattr(lm, "eos_ids", set())
    send, step = ContinuousBatch._send_back, ContinuousBatch._advance
    monkeypatch.setattr(ContinuousBatch, "_send_back", lambda self, queue: (back.append(1), send(self, queue)))
    monkeypatch.setattr(ContinuousBatch, "_advance", lambda self: (step(self), widest.append(held(self.room)))[0])
    rollouts = [Rollout(STEM, sample, 40, 1) for sample in range(9)]
    draw(lm, rollouts, tokens=300)
    assert not back  # all are as long as is expected
    monkeypatch.setattr(ContinuousBatch, "_expected", lambda self, row: 1)
    for rollout, one in zip(rollouts, draw(lm, rollouts, tokens=300), strict=True):
        assert_same(one, alone(lm, rollout))
    assert len(back) > 1
    assert max(widest) <= 300 + 2 * SPARE  # places that were left just now


def held(room: Room | SharedRoom) -> int:
    """Rows times columns that there is memory for."""
    shared, own = 0, [room]
    if isinstance(room, SharedRoom):
        shared, own = sum({id(group): group.length for group in room.groups}.values()), room.cohorts
    shapes = [one._own[0]._whole[0].shape for one in own]
    return shared + sum(shape[0] * shape[2] for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_stop_texts_and_the_context_end_a_rollout(family: str, monkeypatch) -> None:
    lm, rollouts = loaded(family), mixed(4, (14,))
    plain = draw(lm, rollouts)
    word = next(lm.pieces(one.ids[-2:]).text for one in plain if len(one.ids) > 6)
    monkeypatch.setattr(lm, "context_length", 44)
    stopping = replace(WARM, stop=(word,))
    found = draw(lm, rollouts, stopping)
    assert {"stop", "context", "eos"} <= {one.stop_reason for one in found}
    for rollout, one in zip(rollouts, found, strict=True):
        assert_same(one, alone(lm, rollout, stopping))


@pytest.mark.slow
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_nothing_of_a_row_that_left_is_seen(family: str, monkeypatch) -> None:
    """What stood in a freed place, and in columns that were given up, is NaN: none of it may reach a number."""
    lm, rollouts, dropped = loaded(family), mixed(4), []
    monkeypatch.setattr("probe.decoding.rollouts.PLACES", 4)
    step = ContinuousBatch._advance

    def poisoned(self):
        left = step(self)
        spans = self.room.spans() if isinstance(self.room, SharedRoom) else [(0, len(self.rows), self.room)]
        for start, end, room in spans:
            for whole in (whole for layer in room._own for whole in layer._whole):
                for row in (row for row in left if start <= row < end):
                    whole[row - start] = float("nan")
                whole[end - start :] = float("nan")
                whole[:, :, : room.left] = float("nan")
                whole[:, :, room.right :] = float("nan")
        dropped.extend(left)
        return left

    monkeypatch.setattr(ContinuousBatch, "_advance", poisoned)
    for rollout, one in zip(rollouts, draw(lm, rollouts), strict=True):
        assert_same(one, alone(lm, rollout))
    assert len(dropped) > 10


@pytest.mark.parametrize(("family", "can"), [("llama", True), ("gpt2", True), ("gemma2", False), ("gpt_oss", False)])
def test_prefixes_are_shared_where_attention_is_a_plain_softmax(family: str, can: bool) -> None:
    assert shares(loaded(family)) is can


@pytest.mark.slow
def test_a_room_holds_what_its_rows_hold() -> None:
    """Against lists of what was written, through any comings and goings."""
    pick, random_numbers = random.Random(0), torch.Generator().manual_seed(0)
    new = lambda rows, n: torch.randn(rows, 2, n, 3, generator=random_numbers)  # noqa: E731
    for _ in range(30):
        room, truth = Room(6, 400), []
        for _ in range(60):
            n = pick.randint(1, 30)
            free = sorted(pick.sample(range(len(truth)), pick.randint(0, len(truth))))
            coming = pick.randint(0, 6 - len(truth) + len(free))
            if coming:
                keys = new(1, n)
                places = [*free, *range(len(truth), 6)][:coming]
                free = free[coming:]
                truth += [None] * (max(places) + 1 - len(truth))
                for place in places:
                    truth[place] = keys[0]
                one = DynamicCache()
                one.layers.append(FilledLayer(keys, keys))
                room.place(places, one, n)
            kept = room.drop(free) if free else list(range(len(truth)))
            assert sorted(kept) == [i for i in range(len(truth)) if i not in free]
            truth = [truth[i] for i in kept]
            if truth:
                token = new(len(truth), 1)
                room.make_room()
                mask = room.mask(torch.tensor(room.lengths)[:, None])
                (layer,) = room.cache.layers
                seen, _ = layer.update(token, token)
                room.append()
                truth = [torch.cat([old, own], dim=1) for old, own in zip(truth, token, strict=True)]
                assert room.lengths == [one.shape[1] for one in truth]
                assert room.width == max(room.lengths)
                for row, one in enumerate(truth):
                    assert torch.equal(seen[row][:, mask[row].bool()], one)
                assert torch.equal(layer.keys, seen)


def counted(lm, monkeypatch) -> list[tuple[int, ...]]:
    seen, forward = [], lm.model.forward

    def count(input_ids, **kwargs):
        seen.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **kwargs)

    count.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(lm.model, "forward", count)
    return seen


def test_every_token_of_a_prefix_is_read_once(monkeypatch) -> None:
    """As many tokens as a trie of the prefixes has, whatever is asked of them, and one forward for each token drawn after."""
    lm, rollouts = loaded("llama"), mixed(6, (5,))
    draw(lm, rollouts[:1])  # what is tried once a model
    seen = counted(lm, monkeypatch)
    found = draw(lm, rollouts)
    trie = {prefix[:n] for prefix in PREFIXES for n in range(1, len(prefix) + 1)}
    assert sum(n for rows, n in seen if n > 1) == len(trie)
    assert all(rows == 1 for rows, n in seen if n > 1)
    unique = dict(zip(rollouts, found, strict=True))
    assert sum(rows for rows, n in seen if n == 1) == sum(len(one.ids) - 1 for one in unique.values())


def test_a_stem_that_was_read_is_not_read_again(monkeypatch) -> None:
    lm, rollouts = loaded("llama"), mixed(2, (5,))
    stems = [Prefix(lm, STEM), Prefix(lm, STEM[:10])]
    before = [(list(one.ids), one.known.cache.layers[0].keys.clone()) for one in stems]
    seen = counted(lm, monkeypatch)
    found = draw(lm, rollouts, stems=stems)
    trie = {prefix[:n] for prefix in PREFIXES for n in range(1, len(prefix) + 1)} - {STEM[:n] for n in range(1, 21)}
    assert sum(n for rows, n in seen if n > 1) == len(trie)
    for rollout, one in zip(rollouts, found, strict=True):
        assert_same(one, alone(lm, rollout))
    for stem, (ids, keys) in zip(stems, before, strict=True):
        assert stem.ids == ids
        assert torch.equal(stem.known.cache.layers[0].keys, keys)


@pytest.mark.slow
def test_no_prefix_is_held_whose_rollouts_have_their_places(monkeypatch) -> None:
    """However many wait: at any time no more is known than the beginnings on the way to the next prefix."""
    lm, most = loaded("llama"), []
    chain = [STEM[: 2 * n] for n in range(1, 11)]
    rollouts = [Rollout(prefix, sample, 4, 1) for prefix in chain for sample in range(6)]
    read, alive = [], ContinuousBatch._advance
    from probe.decoding import continuous, prefixes

    def extended(*args):
        known = whole(*args)
        read.append(weakref.ref(known.logits))
        return known

    whole = prefixes.extended
    monkeypatch.setattr(prefixes, "extended", extended)
    monkeypatch.setattr(continuous, "extended", extended)
    monkeypatch.setattr("probe.decoding.rollouts.PLACES", 6)

    def step(self):
        most.append(sum(ref() is not None for ref in read))
        return alive(self)

    monkeypatch.setattr(ContinuousBatch, "_advance", step)
    draw(lm, rollouts)
    assert len(read) == len(chain)
    assert max(most) <= 2
    gc.collect()
    assert not any(ref() is not None for ref in read)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_a_resumed_run_has_the_same_last_digits(family: str, monkeypatch) -> None:
    """Which rollouts are there already changes no digit of the others, and a stretch of which all is there is not run."""
    lm, rollouts = loaded(family), mixed(6)
    monkeypatch.setattr("probe.decoding.rollouts.PLACES", 3)
    whole = draw(lm, rollouts)
    pick = random.Random(1)
    for share in (0.2, 0.9):
        there = {i for i in range(len(rollouts)) if pick.random() < share}
        again = draw(lm, rollouts, kept=there.__contains__)
        for i, (one, other) in enumerate(zip(again, whole, strict=True)):
            assert one == other or (one is None and i in there)
    seen = counted(lm, monkeypatch)
    assert draw(lm, rollouts, kept=lambda i: True) == [None] * len(rollouts)
    assert not seen
    last = max(range(len(rollouts)), key=lambda i: rollouts[i].prefix)
    again = draw(lm, rollouts, kept=lambda i: i != last)
    assert again[last] == whole[last]
    assert sum(rows * n for rows, n in seen) < 300


def test_what_breaks_is_named_and_what_has_ended_is_kept(monkeypatch) -> None:
    lm, found = loaded("llama"), {}
    rollouts = [Rollout(STEM, 7, 9, 1), Rollout(STEM, 8, 2, 1)]
    forward = lm.model.forward

    def broken(input_ids, **kwargs):
        output = forward(input_ids=input_ids, **kwargs)
        if found:
            output.logits[0] = float("nan")
        return output

    broken.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(lm.model, "forward", broken)
    monkeypatch.setattr(lm, "eos_ids", set())
    with pytest.raises(NonFinite, match=r"sample 7 at step 2.*20 tokens"):
        LocalEngine(lm).draw(rollouts, WARM, done=found.__setitem__)
    assert list(found) == [1]
    assert len(found[1].ids) == 2


def test_an_interrupt_leaves_nothing_at_work() -> None:
    lm, rollouts, found = loaded("llama"), mixed(6), {}

    def done(place, continuation):
        found[place] = continuation
        if len(found) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalEngine(lm).draw(rollouts, WARM, done=done)
    for rollout, one in zip(rollouts, draw(lm, rollouts), strict=True):
        assert_same(one, alone(lm, rollout))
    for place, one in found.items():
        assert_same(one, alone(lm, rollouts[place]))


def test_problems_have_noise_of_their_own() -> None:
    """The same sample of two problems is drawn by other noise, and of two arms of one problem by the same."""
    lm = loaded("llama")
    same, arm, other = draw(lm, [Rollout(STEM, 1, 1, 5), Rollout((*STEM, 9), 1, 1, 5), Rollout(STEM, 1, 1, 6)])
    noise = lambda seed, token: probe.decoding.exponential(seed, [1], [0], torch.tensor([token])).item()  # noqa: E731
    for one, seed in ((same, 5), (arm, 5), (other, 6)):
        assert one.noise[0] == pytest.approx(noise(seed, one.ids[0]), rel=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("room")
def test_rollouts_of_real_weights_are_themselves_alone(smollm2) -> None:
    texts = ["Question: Tom has 3 apples and buys 4 more. How many has he? First,", "2 + 2 =", "The sum of 12 and 30 is"]
    prefixes = [tuple(smollm2.encode(text).ids) for text in texts]
    prefixes.append(prefixes[0] + tuple(smollm2.ids_of(" Tom has 4 apples.")))
    sampling = Sampling(0.8, top_p=0.95)
    rollouts = [
        Rollout(prefix, sample, 8 + 5 * (sample % 4), problem_seed(1, prefix[:3]))
        for prefix in prefixes
        for sample in range(12)
    ]
    for i, one in enumerate(draw(smollm2, rollouts, sampling, tokens=600)):
        if i % 5 == 0:
            assert_same(one, alone(smollm2, rollouts[i], sampling))
