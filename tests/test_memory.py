"""Heads as fast-weight memories: chunks against the plain recurrences in float64, features against their kernels, the view of
real models against the same worked out token by token, and a planted hash map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

import probe
from probe.attention_heads.features import FeatureMap
from probe.attention_heads.memory import (
    CHUNK,
    agreement,
    checkpoints,
    delta_rule,
    effective_rank,
    retrieve_delta,
    retrieve_softmax,
    retrieve_sum,
    sum_rule,
)  # fmt: skip
from probe.capturing import MemorySink, read
from probe.errors import BadOption
from probe.language_model import LanguageModel
from probe.sites import parse_places, resolve
from tests import planted

N = 2 * CHUNK + 9  # two whole chunks and a piece of one
TEXT = "the cat sat on the mat and the dog sat too, then the cat ran to the old dog and the mat was red"


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("window", [None, 5])
def test_the_sum_rule_is_its_sum(window: int | None) -> None:
    """Two heads share a memory; each query's pairs, one by one."""
    q, k, v = numbers(4, N, 3).exp(), numbers(2, N, 3, seed=1).exp(), numbers(2, N, 5, seed=2)
    at = torch.arange(N)

    def seen(rows: Tensor) -> Tensor:
        back = rows[:, None] - at
        return ((back >= 0) & (back < window))[None]  # type: ignore[operator]

    reads = sum_rule(q, k, v, None if window is None else seen)
    for head in range(4):
        for i in (0, 1, CHUNK - 1, CHUNK, N - 1):
            pairs = range(0 if window is None else max(0, i + 1 - window), i + 1)
            weights = torch.stack([q[head, i] @ k[head // 2, j] for j in pairs])
            wanted = sum(w * v[head // 2, j] for w, j in zip(weights, pairs, strict=True)) / weights.sum()
            torch.testing.assert_close(reads[head, i], wanted)


def test_the_delta_rule_in_chunks_is_its_recurrence() -> None:
    q, k = (torch.nn.functional.normalize(numbers(n, N, 6, seed=n), dim=-1) for n in (4, 2))
    v = numbers(2, N, 5, seed=9)
    written = delta_rule(q, k, v)
    for head in range(4):
        stored = torch.zeros(5, 6, dtype=torch.float64)
        for i in range(N):
            stored = stored + torch.outer(v[head // 2, i] - stored @ k[head // 2, i], k[head // 2, i])
            torch.testing.assert_close(written.reads[head, i], stored @ q[head, i])
            torch.testing.assert_close(stored @ k[head // 2, i], v[head // 2, i])  # the last write is read back exactly
        torch.testing.assert_close(written.updates[head // 2].T @ k[head // 2], stored)


def test_what_comes_back() -> None:
    """Orthogonal keys are read back exactly by both rules, each with its own value; equal keys by their mean, or the last."""
    v = numbers(1, 4, 3)
    orthogonal = torch.eye(4, dtype=torch.float64)[None]
    for found in (
        retrieve_sum(orthogonal, orthogonal, v, 4),
        retrieve_delta(orthogonal, delta_rule(orthogonal, orthogonal, v).updates, v, 4),
        retrieve_softmax(40 * orthogonal, v, 4, scaling=1.0),
    ):
        torch.testing.assert_close(found.error, torch.zeros(1, dtype=torch.float64), atol=1e-12, rtol=0)
        assert found.right.item() == 1
    same = torch.ones(1, 2, 1, dtype=torch.float64)
    away = float((v[0, 0] - v[0, 1]).square().sum() / v[0, :2].square().sum())
    summed = retrieve_sum(same, same, v, 2)
    assert summed.error.item() == pytest.approx((away / 2) ** 0.5) and summed.interference.item() == pytest.approx(0.5)
    last = retrieve_delta(same, delta_rule(same, same, v).updates, v, 2)
    assert last.error.item() == pytest.approx(away**0.5) and last.right.item() == 0.5 and last.interference.isnan()
    assert retrieve_softmax(same, v, 2, scaling=3.0).interference.item() == pytest.approx(0.5)


def test_more_keys_than_dimensions_interfere() -> None:
    """Random keys in d dimensions: nothing is lost up to about d of them by their rank; beyond it reads are wrong."""
    d = 16
    keys = torch.nn.functional.normalize(numbers(1, 8 * d, d), dim=-1)
    v = numbers(1, 8 * d, d, seed=1)
    updates = delta_rule(keys, keys, v).updates
    errors = [retrieve_delta(keys, updates, v, n).error.item() for n in (1, d // 4, d, 2 * d, 8 * d)]
    assert errors == sorted(errors) and errors[0] < 1e-12 and errors[1] < 0.5 and errors[-1] > 0.9


def test_the_effective_rank_is_that_of_the_singular_values() -> None:
    keys = numbers(2, 30, 5) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1])
    for few in (3, 30):
        for kv in range(2):
            sizes = np.linalg.svd(keys[kv, :few].numpy(), compute_uv=False)
            shares = sizes / sizes.sum()
            wanted = np.exp(-(shares * np.log(shares)).sum())
            assert effective_rank(keys[:, :few])[kv].item() == pytest.approx(wanted)
    assert effective_rank(torch.eye(6)[None]).item() == pytest.approx(6)


def test_features_are_those_of_the_papers() -> None:
    x = torch.tensor([[[1.0, -2.0]]])
    assert FeatureMap.parse("elu").keys(x, scaling=9.0).flatten().tolist() == pytest.approx([2.0, np.exp(-2)])
    # r = (1, 0, 0, 2): r_i r_{i-1}, then r_i r_{i-2}; of four entries the first and the last are neighbours
    assert FeatureMap.parse("dpfp:2").keys(x, scaling=9.0).flatten().tolist() == [2, 0, 0, 0, 0, 0, 0, 0]
    assert FeatureMap.parse("dpfp:2").width(2) == 8
    for wrong in ("elu:2", "dpfp", "favor:0", "favor:x", "cosine", "dpfp:99"):
        with pytest.raises(BadOption, match=wrong):
            FeatureMap.parse(wrong)


def test_random_features_converge_to_the_softmax_head() -> None:
    """The error of the read-out falls as M^-1/2: the slope of its logarithm, over draws."""
    q, k, v, scaling = numbers(1, 40, 8) / 2, numbers(1, 40, 8, seed=1) / 2, numbers(1, 40, 4, seed=2), 8**-0.5
    hidden = torch.ones(40, 40, dtype=torch.bool).triu(1)
    real = ((q @ k.mT) * scaling).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    sizes, errors = (64, 256, 1024, 4096), []
    for size in sizes:
        found = []
        for seed in range(8):
            phi = FeatureMap.parse(f"favor:{size}", seed=seed)
            reads = sum_rule(phi.queries(q, scaling=scaling), phi.keys(k, scaling=scaling), v)
            found.append(float((reads - real).square().sum() / real.square().sum()))
        errors.append(np.mean(found) ** 0.5)
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4 and errors[-1] < 0.05


def test_random_features_are_stable_and_orthogonal() -> None:
    """Large vectors neither overflow nor lose a row; directions of one block are at right angles, and have Gaussian lengths."""
    phi, d = FeatureMap.parse("favor:512", seed=3), 16
    x = 60 * torch.randn(1, 20, d, generator=torch.Generator().manual_seed(0))
    units = torch.nn.functional.normalize(phi.queries(x, scaling=d**-0.5), dim=-1)
    torch.testing.assert_close(units.norm(dim=-1), torch.ones(1, 20))
    assert bool(phi.keys(x, scaling=d**-0.5).isfinite().all())
    w = phi._directions(d)
    assert float((w[:d] @ w[:d].T - torch.diag(w[:d].square().sum(1))).abs().max()) < 1e-9
    assert float(w.square().sum(1).mean()) == pytest.approx(d, rel=0.1)
    assert torch.equal(w, FeatureMap.parse("favor:512", seed=3)._directions(d))


def by_token(
    query: Tensor, key: Tensor, value: Tensor, z: Tensor, window: int | None
) -> dict[tuple[str, int], tuple[float, float]]:
    """One head, elu + 1, pair by pair in float64: (rule, step) -> error and cosine."""
    query, key = (torch.nn.functional.elu(x.double()) + 1 for x in (query, key))
    value, z, n = value.double(), z.double(), len(z)
    stored = torch.zeros(value.shape[-1], key.shape[-1], dtype=torch.float64)
    reads: dict[str, list[Tensor]] = {"sum": [], "delta": []}
    counts = [min(i + 1, window or n) for i in range(n)]
    for i in range(n):
        weights = (key[i + 1 - counts[i] : i + 1] @ query[i])[:, None]
        reads["sum"].append((weights * value[i + 1 - counts[i] : i + 1]).sum(0) / weights.sum())
        unit = key[i] / key[i].norm()
        stored = stored + torch.outer(value[i] - stored @ unit, unit)
        reads["delta"].append(stored @ query[i] / query[i].norm())
    found, before = {}, 0
    for end in checkpoints(max(counts)):
        rows = [i for i in range(n) if before < counts[i] <= end]
        before = end
        for rule, all_reads in reads.items():
            own = torch.stack(all_reads)[rows]
            cosine = torch.cosine_similarity(own, z[rows], dim=-1).mean()
            found[rule, end] = float((own - z[rows]).norm() / z[rows].norm()), float(cosine)
    return found


@pytest.mark.parametrize("family", ["tiny:llama", "tiny:gemma2", "tiny:gpt_oss", "tiny:gpt2"])
def test_a_models_heads(family: str) -> None:
    """Grouped keys, a window and a cap, sinks, none of them: the tables are what the recorded q, k, v and z say."""
    lm = probe.load(family)
    run = probe.heads(lm, TEXT, memory="elu", sequences=0)
    frame, ids = run.head_memory, torch.tensor([lm.encode(TEXT).ids])
    anatomy, sink = lm.anatomy, MemorySink()
    cells = [
        cell for site in "qkvz"
        for cell in resolve(parse_places(f"{site}@all"), n_layers=anatomy.n_layers, n_heads=anatomy.n_heads, has=anatomy.has)
    ]  # fmt: skip
    read(lm, ids, [ids.shape[1]], sink=sink, cells=cells)
    config, checked = lm.model.config, 0
    for layer in range(anatomy.n_layers):
        heads, kv = anatomy.n_heads("z", layer), anatomy.n_heads("k", layer)
        sliding = getattr(config, "layer_types", None)
        window = config.sliding_window if sliding and sliding[layer] == "sliding_attention" else None
        for head in range(heads):
            own = frame[(frame["layer"] == layer) & (frame["head"] == head)].set_index(["rule", "pairs"])
            shared = head * kv // heads
            q, z = (sink.activations[site, layer, head][0] for site in "qz")
            k, v = (sink.activations[site, layer, shared][0] for site in "kv")
            wanted = by_token(q, k, v, z, window)
            assert set(own.index) == set(wanted)
            for at, (error, cosine) in wanted.items():
                assert own.loc[at, "error"] == pytest.approx(error, rel=2e-3, abs=1e-4)
                assert own.loc[at, "cosine"] == pytest.approx(cosine, abs=2e-3)
                checked += 1
    assert checked > 20
    assert ("window" in " ".join(run.manifest["warnings"])) == (family in ("tiny:gemma2", "tiny:gpt_oss"))


def hash_map() -> LanguageModel:
    """Head 0.1: keys are the one-hot tokens, long; values are the tokens. All else is noise."""
    model: GPT2LMHeadModel = planted._quiet(layers=1)
    planted._attend(model, 0, 1, score=8.0, query=("token", 0), key=("token", 0))
    planted._move(model, 0, 1, read="token", write="out")
    with torch.no_grad():
        planted._key(model, 0, 1).mul_(12.0)
    return planted._named(model, "planted-hash-map")


def test_a_planted_hash_map_is_found_and_nothing_else() -> None:
    """By the head's own kernel each stored value comes back; in the noise beside it everything interferes."""
    run = probe.heads(hash_map(), "the Mary saw old John met then new red book Oslo", memory="elu", sequences=0)
    frame = run.head_retrieval
    last = frame[(frame["pairs"] == frame["pairs"].max()) & (frame["rule"] == "softmax")].set_index("head")
    assert last.loc[1, "error"] < 0.01 and last.loc[1, "right"] == 1 and last.loc[1, "interference"] < 0.01
    assert (last.drop(index=1)["error"] > 0.5).all()
    delta = frame[(frame["pairs"] == frame["pairs"].max()) & (frame["rule"] == "delta")].set_index("head")
    assert last.loc[1, "effective_rank"] == pytest.approx(last.loc[1, "pairs"], rel=0.02)
    assert delta["interference"].isna().all()


def test_steps_pool_their_rows() -> None:
    real, reads = numbers(1, 5, 2), numbers(1, 5, 2, seed=1)
    found = agreement(reads, real, torch.tensor([[1, 2, 3, 4, 5]]))
    assert found.pairs.tolist() == checkpoints(5) == [1, 2, 4, 5] and found.rows.tolist() == [[1, 1, 2, 1]]
    off = (reads - real)[0, 2:4].norm() / real[0, 2:4].norm()
    assert found.error[0, 2].item() == pytest.approx(off.item())
