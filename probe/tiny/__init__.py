"""Random tiny models of any causal family that transformers knows, and their tokenizer; knows no trained weights."""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from probe.errors import BadOption, UnknownModel
from probe.tiny.shrinking import N_VOCAB, shrunken, variants

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def families() -> tuple[str, ...]:
    """Every family in transformers' causal-LM mapping, in its order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(family: str, *, layers: int = 3, seed: int = 0, **overrides: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A random model of `family` in fp32 and eval mode, and a byte-level tokenizer; the same for the same arguments.

    `overrides` are config fields of the text part (`vocab_size=300`, `tie_word_embeddings=True`).
    UnknownModel where transformers has no such family, or where no shrunken config of it runs; BadOption for bad
    layers. Nothing is downloaded.
    """
    from transformers import CONFIG_MAPPING

    if family not in families():
        near = difflib.get_close_matches(family, families(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "for example 'llama', 'gpt2' or 'mamba'"
        raise UnknownModel(f"transformers has no causal family '{family}'", hint=hint)
    if layers < 1:
        raise BadOption(f"a model needs at least 1 layer, not {layers}", hint="for example layers=3")
    failures: list[str] = []
    for variant in variants():
        try:
            with _quietly():
                config = shrunken(CONFIG_MAPPING[family], layers, overrides, variant=variant)
                model = _build(config, seed)
                _check(model)
        except Exception as error:  # transformers raises every class for a config that doesn't fit; the next may
            failures.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200])
            continue
        return model, tokenizer(max(N_VOCAB, config.get_text_config(decoder=True).vocab_size))
    raise UnknownModel(f"no shrunken '{family}' runs ({failures[0]})", hint="try another family, such as 'llama'")


def tokenizer(n_vocab: int = N_VOCAB) -> PreTrainedTokenizerFast:
    """Byte-level: 256 bytes, then BOS, EOS, PAD and (past 259) unused ids; adds BOS, and has a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*alphabet, BOS, EOS, PAD])}
    bytewise = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocab[BOS])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=[f"<unused{i}>" for i in range(n_vocab - N_VOCAB)],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _build(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """The family's causal class over `config`, weights drawn anew from `seed`."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        _perturb(parameter, generator)
    return model


def _perturb(parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Matrices at a scale at which every part matters; gains, biases and gates off 0 and 1, where too much is equal."""
    import torch

    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
    is_matrix = sum(n > 1 for n in parameter.shape) >= 2
    if is_matrix and float(parameter.abs().mean()) < 0.5:  # larger: a table of decay rates, whose scale has a meaning
        fan_in = math.prod(parameter.shape[1:]) if parameter.dim() != 3 else min(parameter.shape[1:])
        parameter.copy_(noise / math.sqrt(max(fan_in, 8)))
    else:
        parameter.add_(0.15 * noise)


def _check(model: PreTrainedModel) -> None:
    """Twelve tokens must give finite logits for each."""
    import torch

    ids = torch.arange(1, 13)[None] * 17 % 250
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    if logits.shape[:2] != ids.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} for 12 tokens")
    if not bool(logits.isfinite().all()):
        raise ValueError("logits are not finite")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Defaults that don't fit each other make transformers talk; here that is expected."""
    loggers = [logging.getLogger(name) for name in ("transformers", "torch")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
