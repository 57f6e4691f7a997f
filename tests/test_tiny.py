"""Tiny models: any family, the same for the same seed, small, without a download; and their tokenizer."""

from __future__ import annotations

import pytest
import torch

from probe.errors import BadOption, UnknownModel
from probe.tiny import families, tiny, tokenizer

SOME = ("llama", "gpt2", "gemma2", "mixtral", "mamba", "gpt_neox", "bert", "falcon_h1")


@pytest.mark.parametrize("family", SOME)
def test_a_tiny_model_is_tiny_and_its_logits_depend_on_the_tokens(family: str) -> None:
    model, encode = tiny(family)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    ids = torch.tensor([encode("two plus two").input_ids])
    logits = model(ids, use_cache=False).logits
    assert logits.isfinite().all()
    assert logits.std(dim=1).mean() > 0.1 and logits.std(dim=-1).mean() > 0.1


def test_the_same_seed_gives_the_same_model_and_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = tiny("llama")[0], tiny("llama")[0], tiny("llama", seed=1)[0]
    assert torch.equal(torch.rand(3), expected)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name])
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_layers_and_fields_can_be_chosen() -> None:
    model, encode = tiny("llama", layers=5, vocab_size=300, tie_word_embeddings=True)
    assert len(model.model.layers) == 5
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape[0] == 300 == len(encode)


def test_norm_gains_and_biases_are_not_at_their_neutral_values() -> None:
    model, _ = tiny("gpt2")
    gain = model.transformer.ln_f.weight
    assert gain.std() > 0.05 and model.transformer.ln_f.bias.abs().max() > 0.05


def test_mixed_layers_are_all_there() -> None:
    model, _ = tiny("qwen3_next")
    kinds = model.config.layer_types
    assert set(kinds) >= {"linear_attention", "full_attention"}


def test_the_tokenizer_keeps_every_byte_adds_bos_and_has_a_chat_template() -> None:
    encode = tokenizer()
    text = "naïve 🙂\n\ttab"
    ids = encode(text).input_ids
    assert ids[0] == encode.bos_token_id and len(ids) == 1 + len(text.encode())
    assert encode.decode(ids[1:]) == text
    chat = encode.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<s>[user] Hi\n[assistant] "
    assert encode(chat, add_special_tokens=False).input_ids[0] == encode.bos_token_id
    assert len(encode) == 259 and len(encode.get_vocab()) == 259


def test_an_unknown_family_gets_the_nearest_names() -> None:
    with pytest.raises(UnknownModel) as caught:
        tiny("lama")
    assert "llama" in caught.value.hint
    with pytest.raises(BadOption):
        tiny("llama", layers=0)


def test_every_family_of_transformers_is_listed() -> None:
    assert len(families()) > 150 and "llama" in families()
