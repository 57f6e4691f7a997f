"""Speculative output has the target's law: enumerated on a vocabulary of six; and the same test sees every known bug."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from probe.decoding import Sampling, decode, processors
from probe.language_model import LanguageModel
from probe.speculating import drafts, verifying
from probe.speculating.rounds import Blocks, speculate_ids
from probe.tiny import tokenizer

V, LENGTH, PROMPT, N = 6, 3, (1, 2, 4, 1, 2), 20_000
SAMPLINGS = {
    "temperature 1": Sampling(1.0, seed=3), "temperature 0.6": Sampling(0.6, seed=3),
    "temperature 1.5, top-k 4": Sampling(1.5, top_k=4, seed=3), "temperature 1, top-p 0.8": Sampling(1.0, top_p=0.8, seed=3),
    "temperature 1.3, min-p 0.2": Sampling(1.3, min_p=0.2, seed=3),
    "temperature 0.8, penalty 1.5": Sampling(0.8, repetition_penalty=1.5, seed=3),
}  # fmt: skip
DRAFTS = ("model", "layers", "ngram")
Context = tuple[int, ...]


def six(seed: int) -> LanguageModel:
    """A Llama of two layers with six tokens, whose laws are neither flat nor certain."""
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.35)
    lm = LanguageModel(model, tokenizer(), name=f"six:{seed}")
    lm.eos_ids = set()
    return lm


@lru_cache
def models() -> tuple[LanguageModel, LanguageModel]:
    return six(0), six(1)


def laws_of(ids: Context, logits: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """By Hugging Face's own processors."""
    return processors(sampling)(torch.tensor([ids]), logits[None].clone())[0].double().softmax(-1).numpy()


@lru_cache(maxsize=4096)
def target_law(context: Context, sampling: Sampling) -> np.ndarray:
    ids = (*PROMPT, *context)
    with torch.no_grad():
        return laws_of(ids, models()[0].model(torch.tensor([ids])).logits[0, -1], sampling)


@lru_cache(maxsize=4096)
def draft_law(kind: str, context: Context, sampling: Sampling) -> np.ndarray:
    """Of the other model; of the first layer by the hidden states that the model gives out, its norm and its head."""
    ids = (*PROMPT, *context)
    ours, other = (lm.model for lm in models())
    with torch.no_grad():
        if kind == "model":
            return laws_of(ids, other(torch.tensor([ids])).logits[0, -1], sampling)
        hidden = ours(torch.tensor([ids]), output_hidden_states=True).hidden_states[1]
        return laws_of(ids, ours.lm_head(ours.model.norm(hidden))[0, -1], sampling)


def enumerated(sampling: Sampling) -> np.ndarray:
    """The chance of each of the 216 continuations."""
    joint = np.zeros((V,) * LENGTH)
    for a, b in itertools.product(range(V), repeat=2):
        joint[a, b] = target_law((), sampling)[a] * target_law((a,), sampling)[b] * target_law((a, b), sampling)
    return joint.ravel()


def p_value(tokens: np.ndarray, sampling: Sampling) -> float:
    """Of continuations (n, 3) under the enumerated law: chi-square, cells of fewer than 5 expected in one; 0 if impossible."""
    law = enumerated(sampling)
    counts = np.bincount(np.ravel_multi_index(tokens.T, (V,) * LENGTH), minlength=V**LENGTH)
    if counts[law == 0].any():
        return 0.0
    expected = law * len(tokens)
    few = expected < 5
    seen, wanted = (np.append(x[~few], x[few].sum()) for x in (counts, expected))
    if wanted[-1] < 5:
        seen, wanted = np.append(seen[:-2], seen[-2:].sum()), np.append(wanted[:-2], wanted[-2:].sum())
    return float(stats.chisquare(seen, wanted * len(tokens) / wanted.sum()).pvalue)


def proposed(
    kind: str, context: Context, rows: list[int], block: int, sampling: Sampling, ratio: Sampling
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Tokens (row, block) that a draft proposes after a context, and the laws it says they were drawn from."""
    if kind == "ngram":
        found = drafts.lookup([*PROMPT, *context], block, 3)
        return np.tile(found, (len(rows), 1)), np.tile(np.eye(V)[found], (len(rows), 1, 1))
    tokens, laws = np.zeros((len(rows), block), int), np.zeros((len(rows), block, V))
    for i in range(block):
        own = [(*context, *row[:i]) for row in tokens.tolist()]
        drawn = np.stack([draft_law(kind, c, sampling) for c in own])
        laws[:, i] = np.stack([draft_law(kind, c, ratio) for c in own])
        steps = [len(context) + i] * len(rows)
        tokens[:, i] = drafts.draw(torch.tensor(drawn), sampling.seed, verifying.DRAW, rows, steps).numpy()
    return tokens, laws


def drawn(
    kind: str, sampling: Sampling, *, n: int = N, block: int = 2,
    target: Sampling | None = None, ratio: Sampling | None = None,
) -> np.ndarray:  # fmt: skip
    """n continuations (n, 3) by the library's `draw` and `settle` on laws from full forwards, many rows at once."""
    waiting: dict[Context, list[int]] = {(): list(range(n))}
    finished = np.zeros((n, LENGTH), int)
    while waiting:
        context, rows = waiting.popitem()
        if len(context) == LENGTH:
            finished[rows] = context
            continue
        most = min(block, LENGTH - len(context) - 1)
        tokens, q = proposed(kind, context, rows, most, sampling, ratio or sampling)
        own = target or sampling
        p = np.stack([
            [target_law((*context, *row[:i]), own) for i in range(len(row) + 1)] for row in tokens.tolist()
        ])  # fmt: skip
        found = verifying.settle(
            torch.tensor(p), torch.tensor(q), torch.tensor(tokens, dtype=torch.long),
            seed=sampling.seed, samples=rows, steps=[len(context)] * len(rows),
        )  # fmt: skip
        for row, own, kept, last in zip(rows, tokens.tolist(), found.accepted.tolist(), found.token.tolist(), strict=True):
            waiting.setdefault((*context, *own[:kept], last), []).append(row)
    return finished


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("kind", DRAFTS)
def test_draws_have_the_targets_law(kind: str, name: str) -> None:
    assert p_value(drawn(kind, SAMPLINGS[name]), SAMPLINGS[name]) > 1e-3


def constant(seed: int, samples: object, steps: list[int]) -> torch.Tensor:
    """A generator that is seeded anew before every test: one number for all."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, generator=generator, dtype=torch.float64).expand(len(steps))


def largest(law: torch.Tensor, *_: object) -> torch.Tensor:
    return law.argmax(-1)


def without_max(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p - q).abs() / (p - q).abs().sum(-1, keepdim=True)


# what is wrong with each, and where: (module, name, what stands there instead)
BUGS: dict[str, tuple[object, str, Callable[..., torch.Tensor]]] = {
    "a correction from p": (verifying, "residual", lambda p, q: p),
    "a residual without max": (verifying, "residual", without_max),
    "a uniform seeded anew": (verifying, "uniforms", constant),
    "a draft that takes the largest": (drafts, "draw", largest),
    "a missing bonus, its place left at 0": (
        verifying, "bonus", lambda p: torch.eye(V, dtype=p.dtype)[[0] * len(p)]),
    "a bonus of the place before": (verifying, "bonus", lambda p: p[:, -2:][:, 0]),
    "a draft that is always kept": (verifying, "chances", lambda p, q, tokens: torch.ones(tokens.shape)),
    "noise of the draft for the correction": (
        verifying, "draw", lambda law, seed, purpose, *where: DRAW(law, seed, verifying.DRAW, *where)),
}  # fmt: skip
DRAW = verifying.draw


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_same_test_sees_every_bug(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, wrong = BUGS[bug]
    monkeypatch.setattr(module, name, wrong)
    assert p_value(drawn("model", SAMPLINGS["temperature 1"]), SAMPLINGS["temperature 1"]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("side", ["target", "ratio"])
def test_it_sees_a_temperature_on_one_side_only(side: str) -> None:
    sampling = SAMPLINGS["temperature 0.6"]
    assert p_value(drawn("model", sampling, **{side: Sampling(1.0, seed=3)}), sampling) < 1e-6


def by_the_loop(kind: str, sampling: Sampling, n: int, *, block: int) -> np.ndarray:
    """n continuations (n, 3) by the whole loop: real caches, real models, one prompt after the other."""
    lm, other = models()
    draft = drafts.make_draft(lm, {"model": other, "layers": "layers:1", "ngram": "ngram"}[kind])
    found = [
        speculate_ids(lm, draft, PROMPT, max_new=5, sampling=sampling, sample=i, blocks=Blocks(block)).found.ids
        for i in range(n)
    ]
    return np.array(found)[:, :LENGTH]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [("model", "temperature 1, top-p 0.8"), ("layers", "temperature 0.8, penalty 1.5"), ("ngram", "temperature 1")],
)
def test_the_whole_loop_has_the_targets_law(kind: str, name: str) -> None:
    assert p_value(by_the_loop(kind, SAMPLINGS[name], 600, block=2), SAMPLINGS[name]) > 1e-3


@pytest.mark.slow
def test_the_loop_sees_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SAMPLINGS["temperature 1"]
    monkeypatch.setattr(verifying, "chances", lambda p, q, tokens: torch.ones(tokens.shape))
    assert p_value(by_the_loop("model", sampling, 300, block=1), sampling) < 1e-3


@pytest.mark.parametrize("kind", ["model", "layers"])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_total_variation_is_what_acceptance_lacks(kind: str, name: str) -> None:
    """TV(p, q) = 1 - E_q[min(1, p/q)], over all contexts of up to two tokens; and the KLs are those of scipy."""
    from probe.speculating.proposals import distances

    sampling = SAMPLINGS[name]
    contexts = [c for n in range(LENGTH) for c in itertools.product(range(V), repeat=n)]
    p = np.stack([target_law(c, sampling) for c in contexts])
    q = np.stack([draft_law(kind, c, sampling) for c in contexts])
    every = torch.arange(V).expand(len(p), -1)
    chance = verifying.chances(torch.tensor(p)[:, None].expand(-1, V, -1), torch.tensor(q)[:, None].expand(-1, V, -1), every)
    mean = np.where(q > 0, q * chance.numpy(), 0.0).sum(-1)
    found = distances(torch.tensor(p), torch.tensor(q))
    np.testing.assert_allclose(1 - found.tv.numpy(), mean, atol=1e-12)
    np.testing.assert_allclose(found.kl, [stats.entropy(a, b) for a, b in zip(p, q, strict=True)], atol=1e-12)
    np.testing.assert_allclose(found.kl_reverse, [stats.entropy(b, a) for a, b in zip(p, q, strict=True)], atol=1e-12)


@pytest.mark.parametrize("block", [1, 4])
def test_tokens_a_pass_are_the_closed_forms(block: int) -> None:
    """With one p and one q at every place the number kept is geometric, and its mean Leviathan's equation 1."""
    generator = np.random.default_rng(0)
    p, q = generator.dirichlet(np.ones(V)), generator.dirichlet(np.ones(V))
    n, alpha = 20_000, np.minimum(p, q).sum()
    laws = torch.tensor(q).expand(n, block, V)
    where = [i for i in range(n) for _ in range(block)], list(range(block)) * n
    tokens = verifying.draw(laws.reshape(-1, V), 5, verifying.DRAW, *where).reshape(n, block)
    settle = verifying.settle
    found = settle(torch.tensor(p).expand(n, block + 1, V), laws, tokens, seed=5, samples=range(n), steps=[0] * n)
    kept = (found.accepted + 1).double().numpy()
    expected = sum(alpha**k for k in range(block + 1))
    assert abs(kept.mean() - expected) < 4 * kept.std() / np.sqrt(n)
    assert verifying.expected_tokens(alpha, block) == pytest.approx(expected, rel=1e-12)
    assert verifying.expected_tokens(1.0, block) == block + 1


@pytest.mark.slow
def test_where_nothing_is_drafted_it_is_plain_decoding() -> None:
    """The bonus runs the race of plain decoding; a text without a repetition gives prompt lookup nothing."""
    lm, _ = models()
    draft = drafts.make_draft(lm, "ngram:64")
    draft.propose = lambda *_: drafts.NOTHING
    for sample in range(6):
        for sampling in SAMPLINGS.values():
            (plain,) = decode(lm, [PROMPT], max_new=8, sampling=sampling, samples=[sample])
            found = speculate_ids(lm, draft, PROMPT, max_new=8, sampling=sampling, sample=sample).found
            assert found.ids == plain.ids and found.kept == plain.kept
            np.testing.assert_allclose(found.sample_logprob, plain.sample_logprob, atol=1e-5)


def test_noise_of_other_purposes_is_other_noise() -> None:
    from probe.decoding.noise import exponential, stream, uniform

    tokens, n = torch.arange(1), 5000
    columns = [
        exponential(stream(7, purpose), [0] * n, range(n), tokens)[:, 0].numpy()
        for purpose in (verifying.DRAW, verifying.ACCEPT, verifying.CORRECT)
    ]
    assert stream(7, verifying.DRAW) == 7
    for a, b in itertools.combinations(columns, 2):
        assert stats.spearmanr(a, b).pvalue > 1e-3
    assert stats.kstest(uniform(7, range(n), [0] * n).numpy(), "uniform").pvalue > 1e-3
