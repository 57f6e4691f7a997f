"""What each layer would answer is its stream through the model's own norm and head, cap included, worked out in float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.capturing import MemorySink, read
from probe.errors import SiteAbsent

# final norm, head, and the cap on its logits as the config says it
NORMS = {
    "llama": "model.norm", "qwen3": "model.norm", "mixtral": "model.norm", "gpt_oss": "model.norm", "gemma2": "model.norm",
    "gpt2": "transformer.ln_f", "bloom": "transformer.ln_f", "falcon_h1": "model.final_layernorm", "smollm2": "model.norm",
}  # fmt: skip
SLOW = pytest.param("smollm2", marks=pytest.mark.slow)
FAMILIES = [*(name for name in NORMS if name != "smollm2"), SLOW]
TOP = 4


@functools.lru_cache(maxsize=3)
def loaded(family: str) -> probe.LanguageModel:
    return probe.load(family if family == "smollm2" else f"tiny:{family}")


def drawn(n: int) -> Tensor:
    return torch.randint(3, 250, (n,), generator=torch.Generator().manual_seed(4))


def streams(lm: probe.LanguageModel, ids: Tensor, norm: str) -> list[Tensor]:
    """resid_post (pos, d_model) of every layer, by hooks of our own: what goes into the next block, or the final norm."""
    blocks = next(m for m in lm.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == lm.anatomy.n_layers)
    seen: list[Tensor] = []

    def keep(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    modules = [*list(blocks)[1:], lm.model.get_submodule(norm)]
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    with torch.no_grad():
        lm.model(ids[None])
    for handle in handles:
        handle.remove()
    return seen


def read_out(lm: probe.LanguageModel, resid: Tensor, norm: str) -> Tensor:
    """(pos, d_model) -> log-probs (pos, d_vocab) in float64."""
    with torch.no_grad():
        logits = lm.model.lm_head(lm.model.get_submodule(norm)(resid)).double()
    multiplier = getattr(lm.model.config, "lm_head_multiplier", None)
    logits = logits if multiplier is None else logits * multiplier
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    return ((logits / cap).tanh() * cap if cap else logits).log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_the_norm_and_head_of_its_stream(family: str) -> None:
    lm, ids, sink = loaded(family), drawn(21), MemorySink()
    read(lm, ids[None], [21], lens=True, top=TOP, sink=sink)
    own = [read_out(lm, resid, NORMS[family]) for resid in streams(lm, ids, NORMS[family])]
    assert sorted(sink.guesses) == list(range(len(own)))
    for layer, logp in enumerate(own):
        guess = {name: column[0] for name, column in sink.guesses[layer].items()}
        p = logp.exp()
        best = logp.topk(TOP).values.numpy()
        np.testing.assert_allclose(guess["top_logprobs"], best, atol=2e-5)
        np.testing.assert_allclose(np.take_along_axis(logp.numpy(), guess["top_ids"], -1), best, atol=2e-5)
        np.testing.assert_allclose(guess["entropy"], -(p * logp).sum(-1), atol=2e-5)
        np.testing.assert_allclose(guess["kl_to_final"], (own[-1].exp() * (own[-1] - logp)).sum(-1), atol=2e-5)
        assert guess["target_id"].tolist() == [*ids[1:].tolist(), -1]
        target = logp[:-1].gather(1, ids[1:, None])
        np.testing.assert_allclose(guess["target_logprob"][:-1], target[:, 0], atol=2e-5)
        close = ((logp[:-1] - target).abs() < 1e-4).sum(-1).numpy()  # tokens that rounding may swap with the target
        assert (np.abs(guess["target_rank"][:-1] - (logp[:-1] > target).sum(-1).numpy()) < close).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_the_model(family: str) -> None:
    lm, ids, sink = loaded(family), drawn(33), MemorySink()
    reading = read(lm, ids[None], [33], lens=True, top=TOP, sink=sink)
    last = sink.guesses[lm.anatomy.n_layers - 1]
    assert np.abs(last["kl_to_final"]).max() <= 1e-6
    with torch.no_grad():
        model = lm.model(ids[None]).logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(last["target_logprob"][0, :-1], model[:-1].gather(1, ids[1:, None])[:, 0], atol=2e-5)
    np.testing.assert_allclose(last["entropy"][0], reading.scores[0].entropy, atol=1e-5)
    assert np.array_equal(last["top_ids"][0, :, 0], reading.scores[0].top_ids[:, 0])
    before = sink.guesses[0]
    assert before["kl_to_final"].max() > 1e-3, "the first layer does not already know"


def test_a_layer_is_the_model_whose_later_writes_are_silent() -> None:
    lm, ids, sink = loaded("llama"), drawn(12), MemorySink()
    read(lm, ids[None], [12], lens=True, top=TOP, sink=sink)
    silent = probe.load("tiny:llama")
    for block in silent.model.model.layers[2:]:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    with torch.no_grad():
        logp = silent.model(ids[None]).logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(sink.guesses[1]["top_logprobs"][0], logp.topk(TOP).values, atol=2e-5)


def test_prompts_of_a_batch_and_a_prompt_of_one_token() -> None:
    lm, sink, ids = loaded("llama"), MemorySink(), torch.zeros(2, 5, dtype=torch.long)
    ids[0], ids[1, 0] = drawn(5), 7
    read(lm, ids, [5, 1], lens=True, top=2, sink=sink)
    assert sink.guesses[0]["target_id"].tolist() == [[*ids[0, 1:].tolist(), -1], [-1, 0, 0, 0, 0]]
    assert sink.guesses[2]["kl_to_final"].shape == (2, 5) and sink.guesses[2]["top_ids"].shape == (2, 5, 2)


def test_a_model_without_a_verified_head_has_no_lens() -> None:
    import dataclasses

    lm = probe.load("tiny:llama")
    lm.__dict__["anatomy"] = dataclasses.replace(lm.anatomy, readout_exact=False)
    with pytest.raises(SiteAbsent, match="no layer's guess"):
        read(lm, drawn(5)[None], [5], lens=True, sink=MemorySink())
