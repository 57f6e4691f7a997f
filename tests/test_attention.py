"""Patterns and what is made of them, against weights that transformers returns and statistics written out in numpy."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probe
from probe.capturing import AttentionSpec, MemorySink, read
from probe.capturing.attention import AttentionReader
from probe.errors import BadOption
from probe.instrument import AttentionCall
from probe.sites import Cell, parse_places

FAMILIES = ["llama", "gpt2", "qwen3", "mixtral", "gemma2", "gpt_oss", "falcon_h1", "bloom", "bert"]
SLOW = pytest.param("smollm2", marks=pytest.mark.slow)
MEANS = ("entropy", "perplexity", "ess", "sink", "prev", "duplicate", "induction", "distance")
TOLERANCE = 5e-6  # of float32 weights; transformers' own softmax is one of float32 too


pytestmark = pytest.mark.usefixtures("both_ways")


def statistics(w: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Of weights (query, key) in float64, row by row, as METHODS defines them."""
    rows = range(len(w))
    log = np.log(np.where(w > 0, w, 1.0))
    entropy = -(w * log).sum(-1)
    return {
        "entropy": entropy, "perplexity": np.exp(entropy), "ess": 1 / (w * w).sum(-1), "sink": w[:, 0],
        "prev": np.array([w[i, i - 1] if i else 0.0 for i in rows]),
        "duplicate": np.array([sum(w[i, j] for j in range(i) if ids[j] == ids[i]) for i in rows]),
        "induction": np.array([sum(w[i, j] for j in range(1, i + 1) if ids[j - 1] == ids[i]) for i in rows]),
        "distance": np.array([sum(w[i, j] * (i - j) for j in rows) for i in rows]),
        "max_weight": w.max(-1),
    }  # fmt: skip


def check_summary(card: dict[str, np.ndarray], prompt: int, patterns: np.ndarray, ids: np.ndarray) -> None:
    """Means over the queries after the first; of duplicate and induction over those that have such a key."""
    n = len(ids)
    having = {
        "duplicate": [i for i in range(1, n) if any(ids[j] == ids[i] for j in range(i))],
        "induction": [i for i in range(1, n) if any(ids[j - 1] == ids[i] for j in range(1, i + 1))],
    }
    for head, w in enumerate(patterns):
        assert card["rows"][prompt, head] == n - 1
        for name, values in statistics(w, ids).items():
            if name in MEANS:
                rows = having.get(name, list(range(1, n)))
                expected = values[rows].mean() if rows else np.nan
                np.testing.assert_allclose(card[name][prompt, head], expected, rtol=2e-5, atol=1e-5, err_msg=name)


def check_lines(lines: dict[str, np.ndarray], patterns: np.ndarray, ids: np.ndarray) -> None:
    n_heads, n = patterns.shape[:2]
    assert lines["head"].tolist() == np.repeat(range(n_heads), n).tolist()
    assert lines["query"].tolist() == list(range(n)) * n_heads
    for head, w in enumerate(patterns):
        own = {name: column[head * n : (head + 1) * n] for name, column in lines.items()}
        for name, values in statistics(w, ids).items():
            np.testing.assert_allclose(own[name], values, rtol=5e-5, atol=2e-5, err_msg=f"{name} of head {head}")
        np.testing.assert_allclose(w[np.arange(n), own["max_key"]], w.max(-1), atol=TOLERANCE)


def check_top(piece: dict[str, Any], patterns: np.ndarray, k: int) -> None:
    n_heads, n = patterns.shape[:2]
    assert piece["head"].tolist() == np.repeat(range(n_heads), n).tolist()
    assert piece["query"].tolist() == list(range(n)) * n_heads
    for row, w in enumerate(patterns.reshape(-1, n)):
        keys, weights = piece["keys"][row], piece["weights"][row]
        best = -np.sort(-w)[:k]
        np.testing.assert_allclose(weights, best[: len(weights)], atol=TOLERANCE)
        assert len(set(keys.tolist())) == len(keys) and not (best[len(weights) :] > 1e-30).any()
        np.testing.assert_allclose(w[keys], weights, atol=TOLERANCE)
        np.testing.assert_allclose(piece["kept_mass"][row], best.sum(), atol=2e-5)


@functools.lru_cache(maxsize=3)
def loaded(family: str) -> tuple[probe.LanguageModel, Any]:
    """The model as it is used, and a float64 copy of it with transformers' own slow attention."""
    lm = probe.load(family if family == "smollm2" else f"tiny:{family}")
    slow = copy.deepcopy(lm.model).double()
    slow.set_attn_implementation("eager")
    slow.set_experts_implementation("eager")  # the fast one knows no float64
    return lm, slow


def repetitive(n: int, seed: int = 2) -> Tensor:
    """Ids of which many come again, so that there is something to look back at."""
    return torch.randint(20, 60, (n,), generator=torch.Generator().manual_seed(seed))


def cells_of(lm: probe.LanguageModel, *places: str) -> tuple[Cell, ...]:
    a = lm.anatomy
    found = [p for text in places for p in parse_places(text)]
    return a.cells(found)


def test_matches_that_no_layer_leaves_to_the_next_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text so long, and so often the same, that the places of its matches are not kept from layer to layer."""
    lm, ids = probe.load("tiny:llama"), repetitive(61)
    kept, found = (MemorySink() for _ in range(2))
    read(lm, ids[None], [61], sink=kept, attention=AttentionSpec("heads"))
    monkeypatch.setattr("probe.capturing.statistics.REMEMBERED", 0)
    read(lm, ids[None], [61], sink=found, attention=AttentionSpec("heads"))
    for layer, card in kept.summaries.items():
        assert all(np.array_equal(card[name], found.summaries[layer][name]) for name in card)


@pytest.mark.parametrize("family", [*FAMILIES, SLOW])
def test_patterns_and_statistics_are_those_of_the_returned_weights(family: str) -> None:
    """Two prompts of different lengths, the longer one past any tiny model's sliding window (16)."""
    lm, slow = loaded(family)
    prompts = [repetitive(61), repetitive(9, seed=3)]
    ids = torch.zeros(2, 61, dtype=torch.long)
    for row, own in zip(ids, prompts, strict=True):
        row[: len(own)] = own
    found = {}
    for spec in ("heads", "summary", "topk:3", "full"):
        found[spec] = MemorySink()
        read(lm, ids, [61, 9], attention=AttentionSpec.parse(spec), sink=found[spec])
    assert found["summary"].summaries, "no layer's pattern was read"
    for prompt, own in enumerate(prompts):
        with torch.no_grad():
            returned = slow(own[None], output_attentions=True).attentions
        layers = [w[0].double().numpy() for w in returned if w is not None]
        assert len(layers) == len(found["heads"].summaries)
        for patterns, layer in zip(layers, sorted(found["heads"].summaries), strict=True):
            for sink in found.values():
                check_summary(sink.summaries[layer], prompt, patterns, own.numpy())
            assert not found["heads"].row_pieces
            for spec in ("summary", "topk:3", "full"):
                check_lines(found[spec].row_pieces[prompt, layer], patterns, own.numpy())
            (piece,) = found["topk:3"].attention_pieces[prompt, layer]
            check_top(piece, patterns, 3)
            for head, w in enumerate(patterns):
                whole = found["full"].pattern(layer, head, len(own), prompt=prompt)
                np.testing.assert_allclose(whole, w, atol=TOLERANCE)
            kept = np.concatenate([p["kept_mass"] for p in found["full"].attention_pieces[prompt, layer]])
            np.testing.assert_allclose(kept, patterns.sum(-1).ravel(), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_single_heads_patterns_and_scores(family: str) -> None:
    """The softmax of the scores recorded, with what a sink takes, is the pattern recorded; other heads are not there."""
    lm, slow = loaded(family)
    own, sink = repetitive(40), MemorySink()
    read(lm, own[None], [40], cells=cells_of(lm, "pattern@1.2,2.0", "scores@1.2,2.0"), sink=sink)
    with torch.no_grad():
        returned = slow(own[None], output_attentions=True).attentions
    assert sorted(layer for _, layer in sink.attention_pieces) == [1, 2] and not sink.summaries
    for layer, head in ((1, 2), (2, 0)):
        w = returned[layer][0, head].double().numpy()
        np.testing.assert_allclose(sink.pattern(layer, head, 40), w, atol=TOLERANCE)
        assert all(set(piece["head"]) == {head} for piece in sink.attention_pieces[0, layer])
        scores = sink.score(layer, head, 40).astype(np.float64)
        assert np.array_equal(np.isneginf(scores), w == 0)
        mass = np.exp(scores - scores.max())
        module = lm.model.model.layers[layer].self_attn
        taken = np.exp(float(module.sinks[head]) - scores.max()) if hasattr(module, "sinks") else 0.0
        np.testing.assert_allclose(mass / (mass.sum(-1, keepdims=True) + taken), w, atol=TOLERANCE)


def test_whole_heads_beside_the_top_ones() -> None:
    lm, _ = loaded("llama")
    sink = MemorySink()
    read(lm, repetitive(30)[None], [30], cells=cells_of(lm, "pattern@1.2"), attention=AttentionSpec.parse("topk:2"), sink=sink)
    assert {h for piece in sink.attention_pieces[0, 1] for h in piece["head"].tolist()} == {0, 1, 2, 3}
    whole = [p for p in sink.attention_pieces[0, 1] if p["keys"] is None]
    top = [p for p in sink.attention_pieces[0, 1] if p["keys"] is not None]
    assert all(set(p["head"]) == {2} for p in whole) and all(2 not in p["head"] for p in top)


@pytest.mark.parametrize("asked", ["pattern@all", "pattern@1.2", "scores@1.1,2.3"])
def test_whole_rows_hold_no_more_memory_than_they_need(asked: str) -> None:
    lm, _ = loaded("llama")
    sink = MemorySink()
    read(lm, repetitive(30)[None], [30], cells=cells_of(lm, asked), sink=sink)
    name = asked.split("@")[0].replace("pattern", "weights")
    found = sink.score_pieces if name == "scores" else sink.attention_pieces
    held = [piece[name].values for pieces in found.values() for piece in pieces]
    assert held and all(values.base.nbytes == values.nbytes for values in held)
    assert sum(map(len, held)) % (30 * 31 // 2) == 0


# One attention call made by hand: everything that its arguments can say, against numpy.


def reference(call: AttentionCall, n: int, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores in nats with -inf where hidden, and weights, both (head, query, key) in float64, of the first prompt."""
    query, key = call.query[0, :, :n].double().numpy(), call.key[0, :, :n].double().numpy()
    key = np.repeat(key, len(query) // len(key), axis=0)
    scores = query @ key.transpose(0, 2, 1) * call.scaling
    if call.softcap:
        scores = call.softcap * np.tanh(scores / call.softcap)
    if call.position_bias is not None:
        scores = scores + call.position_bias[0, :, :n, :n].double().numpy()
    if isinstance(call.mask, Tensor) and call.mask.dtype != torch.bool:
        scores = scores + np.where(hidden, 0.0, call.mask[0, :, :n, :n].double().numpy())
    scores = np.where(hidden, -np.inf, scores)
    top = scores.max(-1, keepdims=True)
    taken = 0.0
    if call.sinks is not None:
        sinks = call.sinks.double().numpy()[:, None, None]
        top = np.maximum(top, sinks)
        taken = np.exp(sinks - top)
    mass = np.exp(scores - top)
    return scores, mass / (mass.sum(-1, keepdims=True) + taken)


def made(n: int, *, heads: int = 6, kv: int = 2, d: int = 8, size: float = 1.0, **more: Any) -> AttentionCall:
    torch.manual_seed(5)
    query, key = torch.randn(1, heads, n, d) * size, torch.randn(1, kv, n, d) * size
    given: dict[str, Any] = {"mask": None, "scaling": d**-0.5, "is_causal": True, **more}
    return AttentionCall(nn.Identity(), query, key, torch.randn(1, kv, n, d), **given)


def watch(call: AttentionCall, weights: np.ndarray, ids: Tensor, spec: str, *, scores: bool = False) -> MemorySink:
    """Feed an observer the call, with the output that such weights give."""
    sink, n = MemorySink(), len(ids)
    heads = list(range(call.query.shape[1]))
    value = call.value[0, :, :n].double().repeat_interleave(len(heads) // call.value.shape[1], dim=0)
    output = (torch.from_numpy(weights) @ value).transpose(0, 1)[None].float()
    reader = AttentionReader(
        AttentionSpec.parse(spec), ids[None], [n], sink, layers={("attention", 0): 0}, patterns={},
        scores={0: heads} if scores else {}, emit=lambda *_: None,
    )  # fmt: skip
    reader.observe("attention", call, output)
    assert reader.reasons == {0: ""}, reader.reasons
    return sink


N = 230  # more than a block of rows


def late(n: int) -> np.ndarray:
    return np.triu(np.ones((n, n), bool), 1)


def cases() -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """Arguments of a call, and (query, key) or (head, query, key) that it hides."""
    everything, i, j = np.zeros((N, N), bool), np.arange(N)[:, None], np.arange(N)
    sliding = late(N) | (i - j >= 50)
    scattered = late(N) | ((i * 7 + j * 13) % 5 == 0) & (i != j)
    by_head = np.stack([late(N) | (i - j >= 20 * (h + 1)) for h in range(6)])
    lowest = torch.finfo(torch.float32).min
    slopes = -torch.arange(1, 7)[:, None, None] * 0.05 * torch.from_numpy(np.abs(i - j)).float()

    def visible(hidden: np.ndarray) -> Tensor:
        return torch.from_numpy(~hidden)[None] if hidden.ndim == 3 else torch.from_numpy(~hidden)[None, None]

    def additive(hidden: np.ndarray) -> Tensor:
        return torch.zeros(hidden.shape).masked_fill(torch.from_numpy(hidden), lowest)[None, None]

    return {
        "causal": ({}, late(N)),
        "one key-value head": ({"kv": 1}, late(N)),
        "no groups": ({"kv": 6}, late(N)),
        "bidirectional": ({"is_causal": False}, everything),
        "bidirectional, half hidden": ({"is_causal": False, "mask": visible(np.broadcast_to(j >= 100, (N, N)))},
                                       np.broadcast_to(j >= 100, (N, N))),
        "sliding window as a mask": ({"mask": visible(sliding)}, sliding),
        "sliding window, additive": ({"mask": additive(sliding)}, sliding),
        "sliding window by number": ({"sliding_window": 50}, sliding),
        "scattered": ({"mask": visible(scattered)}, scattered),
        "another mask a head": ({"mask": visible(by_head)}, by_head),
        "alibi in the mask": ({"mask": (slopes + additive(late(N))[0]).clamp(min=lowest)[None]}, late(N)),
        "position bias": ({"position_bias": slopes[None]}, late(N)),
        "softcap": ({"softcap": 5.0, "size": 4.0}, late(N)),
        "sinks": ({"sinks": torch.linspace(-3, 6, 6)}, late(N)),
        "huge sinks": ({"sinks": torch.linspace(-500, 500, 6)}, late(N)),
        "huge scores": ({"size": 30.0}, late(N)),
        "huge scores, sinks and a window": (
            {"size": 30.0, "sinks": torch.linspace(-100, 100, 6), "sliding_window": 50}, sliding
        ),
        "tiny scores": ({"size": 1e-4}, late(N)),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_calls_made_by_hand(name: str) -> None:
    arguments, hidden = cases()[name]
    call, ids = made(N, **arguments), repetitive(N)
    scores, weights = reference(call, N, hidden)
    coarse = 30 if "huge" in name else 1  # scores of hundreds are themselves no finer than that in float32
    for spec in ("summary", "topk:5", "full"):
        sink = watch(call, weights, ids, spec, scores=spec == "full")
        if coarse == 1:
            check_summary(sink.summaries[0], 0, weights, ids.numpy())
            check_lines(sink.row_pieces[0, 0], weights, ids.numpy())
        if spec == "topk:5" and coarse == 1:
            check_top(sink.attention_pieces[0, 0][0], weights, 5)
        if spec == "full":
            for head in range(6):
                np.testing.assert_allclose(sink.pattern(0, head, N), weights[head], atol=coarse * TOLERANCE)
                np.testing.assert_allclose(sink.score(0, head, N), scores[head], rtol=2e-6, atol=coarse * 1e-5)


def test_a_pattern_set_by_hand() -> None:
    """Head 0 looks at the token before, 1 at the first one, 2 everywhere alike, 3 at what followed the same token."""
    ids = torch.tensor([9, 1, 2, 3, 1, 2, 3, 1])
    n = len(ids)
    w = np.zeros((4, n, n))
    for i in range(n):
        w[0, i, max(0, i - 1)] = w[1, i, 0] = 1.0
        w[2, i, : i + 1] = 1 / (i + 1)
        w[3, i, i - 2 if i >= 4 else 0] = 1.0
    for source in ("given", "called"):
        sink = MemorySink()
        if source == "given":
            reader = AttentionReader(
                AttentionSpec.parse("topk:2"), ids[None], [n], sink, layers={}, patterns={}, scores={}, emit=lambda *_: None
            )
            assert reader.read_returned(0, torch.from_numpy(w[None]).float(), causal=True)
        else:  # keys are the unit vectors, so a query is its own row of scores
            key, query = torch.eye(n).expand(1, 4, n, n), torch.from_numpy(np.log(w + 1e-30)[None]).float()
            call = AttentionCall(nn.Identity(), query, key, torch.randn(1, 4, n, n), None, scaling=1.0, is_causal=True)
            sink = watch(call, w, ids, "topk:2")
        card = {name: column[0] for name, column in sink.summaries[0].items()}
        np.testing.assert_allclose(card["prev"], [1, 1 / 7, np.mean(1 / np.arange(2, 9)), 1 / 7], rtol=1e-6)
        np.testing.assert_allclose(card["sink"], [1 / 7, 1, np.mean(1 / np.arange(2, 9)), 3 / 7], rtol=1e-6)
        np.testing.assert_allclose(card["entropy"], [0, 0, np.mean(np.log(np.arange(2, 9))), 0], atol=1e-6)
        np.testing.assert_allclose(card["ess"], [1, 1, 5, 1], rtol=1e-6)
        np.testing.assert_allclose(card["distance"], [1, 4, 2, (1 + 2 + 3 + 4 * 2) / 7], rtol=1e-6)
        # queries 4 to 7 hold a token seen before; it stood three earlier (and six, for the last), and two is after it
        np.testing.assert_allclose(card["induction"][[0, 1, 3]], [0, 0, 1], atol=1e-6)
        np.testing.assert_allclose(card["duplicate"][[0, 1, 2, 3]], [0, 0, (1 / 5 + 1 / 6 + 1 / 7 + 2 / 8) / 4, 0], atol=1e-6)
        check_lines(sink.row_pieces[0, 0], w, ids.numpy())
        check_top(sink.attention_pieces[0, 0][0], w, 2)


def test_a_text_of_one_token() -> None:
    sink = MemorySink()
    lm, _ = loaded("llama")
    read(lm, torch.tensor([[5]]), [1], attention=AttentionSpec.parse("topk:4"), sink=sink)
    assert np.isnan(sink.summaries[0]["entropy"]).all() and (sink.summaries[0]["rows"] == 0).all()
    assert sink.row_pieces[0, 0]["max_weight"].tolist() == [1.0] * 4
    assert [row.tolist() for row in sink.attention_pieces[0, 0][0]["keys"]] == [[0]] * 4


def test_a_call_that_does_not_give_its_output_is_refused_and_said() -> None:
    """An attention function that does something else with its arguments: no pattern rather than a wrong one."""
    call, ids = made(20), repetitive(20)
    _, weights = reference(call, 20, late(20))
    with pytest.raises(AssertionError, match="differ from its output"):
        watch(call, weights[:, ::-1].copy(), ids, "heads")


@pytest.mark.parametrize("word", ["topk", "topk:0", "topk:-1", "topk:x", "heads:3", "everything", ""])
def test_what_cannot_be_asked(word: str) -> None:
    with pytest.raises(BadOption, match="unknown attention"):
        AttentionSpec.parse(word)


@pytest.mark.parametrize("word", ["none", "heads", "summary", "topk:8", "full"])
def test_words_come_back(word: str) -> None:
    assert str(AttentionSpec.parse(word)) == word
