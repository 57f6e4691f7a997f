"""Random tiny models of any causal family that transformers knows, with a tokenizer; knows nothing of trained weights or of the network.

A family's own default config is shrunk by rules on field names and on how the defaults relate to each other.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from probe.errors import BadOption, UnknownModel

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
N_VOCAB = 259  # 256 bytes and the three above: every id that a tiny model can say is a token
D_MODEL, N_HEADS, N_KV, D_HEAD, D_MLP = 64, 4, 2, 16, 96

# value -> the fields that take it, at any depth of a config, where the family's own default is a larger whole number
SIZES: dict[int, str] = {
    512: "max_position_embeddings n_positions n_ctx max_seq_len original_max_position_embeddings max_source_positions "
    "max_target_positions context_length model_max_length prompt_length",
    N_VOCAB: "vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab vocab_size_base ngram_vocab_size_base",
    D_MLP: "intermediate_size ffn_dim dim_ff dff ffn_hidden_size n_inner d_ff encoder_ffn_dim decoder_ffn_dim "
    "shared_intermediate_size intermediate_dim feed_forward_size dense_intermediate_size intermediate_size_mlp",
    D_MLP // 2: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size prefix_dense_intermediate_size",
    D_MODEL: "hidden_size d_model n_embd dim emb_dim embedding_size embedding_dim lru_width word_embed_proj_dim "
    "backbone_hidden_size cross_attention_hidden_size attention_hidden_size hidden_size_global ple_embed_dim "
    "input_embedding_size embed_dim projection_dim output_proj_dims mm_hidden_size",
    32: "image_size",
    D_HEAD: "head_dim dim_head d_kv kv_channels attention_head_dim attention_head_size swa_head_dim d_head v_head_dim "
    "index_head_dim global_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_head "
    "mamba_headdim mamba_head_dim sliding_window window_size sliding_window_size local_attention_window_len "
    "hidden_size_per_layer_input index_topk mamba_chunk_size chunk_size block_size patch_size "
    "max_inference_chunksize swa_v_head_dim local_attn_chunk_length lsh_attn_chunk_length hc_lowrank adapter_rank",
    12: "q_lora_rank kv_lora_rank o_lora_rank time_step_rank mamba_dt_rank laurel_rank gated_norm_rank",
    8: "state_size mamba_d_state ssm_state_size d_rel qk_rope_head_dim qk_nope_head_dim rotary_dim rel_extent",
    N_HEADS: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads n_mamba_heads index_n_heads "
    "linear_num_value_heads linear_num_heads num_query_groups num_experts num_local_experts n_routed_experts "
    "moe_num_experts zero_expert_num split_ngram_parts o_groups",
    N_KV: "num_key_value_heads num_kv_heads n_kv_heads kv_n_heads swa_num_key_value_heads num_global_key_value_heads "
    "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts "
    "n_groups mamba_n_groups mamba_ngroups heads_per_ngram ngram num_buckets",
    1: "n_group topk_group num_expert_group first_k_dense_replace num_dense_layers moe_layer_start_index "
    "num_centroids num_nextn_predict_layers",
}  # fmt: skip
SIZE_OF = {name: size for size, names in SIZES.items() for name in names.split()}
DEPTHS = (
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers "
    "num_layers_per_stack num_blocks".split()
)
HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_n_heads", "num_query_groups")
SPECIAL = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, "decoder_start_token_id": 256}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def families() -> tuple[str, ...]:
    """Every family in transformers' causal-LM mapping, in its order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(
    family: str, *, layers: int = 3, seed: int = 0, **overrides: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A random model of `family` in fp32 and eval mode, and a byte-level tokenizer; the same for the same arguments.

    `overrides` are config fields of the text part (`vocab_size=300`, `tie_word_embeddings=True`).
    UnknownModel where transformers has no such family, or where no shrunken config of it runs; BadOption for bad layers.
    """
    if family not in families():
        near = difflib.get_close_matches(family, families(), n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "see MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
        )
        raise UnknownModel(f"transformers has no causal family '{family}'", hint=hint)
    if layers < 1:
        raise BadOption(f"a model needs at least 1 layer, not {layers}", hint="for example layers=3")
    failures: list[str] = []
    for listed, grouped in ((True, True), (False, True), (True, False), (False, False)):
        try:
            with _quietly():
                config = _config(family, layers, overrides, listed=listed, grouped=grouped)
                model = _build(config, seed)
                _check(model)
        # transformers raises every class there is for a config that doesn't fit: the next variant is the handler
        except Exception as error:
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
    unused = [f"<unused{i}>" for i in range(n_vocab - N_VOCAB)]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        additional_special_tokens=unused, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _config(family: str, layers: int, overrides: Mapping[str, Any], *, listed: bool, grouped: bool) -> PretrainedConfig:
    """The family's default config, shrunk. `listed`: shorten per-layer lists (else let the class make them);
    `grouped`: fewer key-value heads than heads where the family has the field."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    fields = _defaults(kind)
    shrunk = _shrink(fields, layers, listed=listed, grouped=grouped)
    nested = next((k for k in ("text_config", "decoder") if isinstance(shrunk.get(k), dict)), None)
    for name, value in overrides.items():
        target = shrunk[nested] if nested and name in shrunk[nested] else shrunk
        target[name] = value
    config = kind(**shrunk)
    for part in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        if hasattr(part, "is_decoder") and not part.is_encoder_decoder:
            part.is_decoder = True
    return config


def _defaults(kind: type[PretrainedConfig]) -> dict[str, Any]:
    try:
        return kind().to_dict()
    except Exception:  # a default that its own validator refuses: start from nothing but the text part
        text = kind.sub_configs.get("text_config")
        if text is None:
            raise
        from transformers import CONFIG_MAPPING, AutoConfig

        text = CONFIG_MAPPING[kind.model_type.replace("_assistant", "_text")] if text is AutoConfig else text
        return {"text_config": text().to_dict()}


def _shrink(fields: Mapping[str, Any], layers: int, *, listed: bool, grouped: bool) -> dict[str, Any]:
    """One level of a config, and those below it."""
    depth = next((fields[n] for n in DEPTHS if isinstance(fields.get(n), int)), None)
    out: dict[str, Any] = {}
    for name, value in fields.items():
        if name in {"transformers_version", "_name_or_path", "architectures", "id2label", "label2id"}:
            continue
        if name in SPECIAL:
            out[name] = value if value is None else SPECIAL[name]
        elif name in DEPTHS and isinstance(value, int):
            out[name] = layers
        elif isinstance(value, Mapping):
            out[name] = _shrink(value, layers, listed=listed, grouped=grouped)
        elif isinstance(value, (list, tuple)) and _is_per_layer(name, value, depth):
            if listed:
                out[name] = _cycled(value, layers)
        elif isinstance(value, (list, tuple)) and name in SIZE_OF and all(isinstance(v, int) for v in value):
            out[name] = [min(v, SIZE_OF[name]) for v in value]
        elif name in SIZE_OF and type(value) is int:
            out[name] = min(value, SIZE_OF[name])
        else:
            out[name] = value
    _reconcile(out, fields, grouped=grouped)
    return out


def _is_per_layer(name: str, value: list[Any] | tuple[Any, ...], depth: int | None) -> bool:
    return bool(value) and (
        name.endswith(("layer_types", "layers_block_type")) or (depth is not None and len(value) == depth)
    )


def _cycled(values: list[Any] | tuple[Any, ...], n: int) -> list[Any]:
    """Its distinct values in order of appearance, over and over: every kind of layer is there if n allows."""
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return [distinct[i % len(distinct)] for i in range(n)]


def _reconcile(out: dict[str, Any], fields: Mapping[str, Any], *, grouped: bool) -> None:
    """Keep relations that hold between a family's defaults: equal head counts, inner width = heads x head width…"""

    def related(name: str, other: str) -> bool:
        return isinstance(fields.get(name), int) and fields.get(name) == fields.get(other)

    heads = next((n for n in HEAD_COUNTS if isinstance(out.get(n), int)), None)
    for name in KV_COUNTS:
        if heads and isinstance(out.get(name), int) and (not grouped or related(name, heads) or "kv_lora_rank" in out):
            out[name] = out[heads]
    for name, others in {"head_dim": ("qk_rope_head_dim", "qk_head_dim"), "embedding_size": ("hidden_size",)}.items():
        for other in others:
            if related(name, other):
                out[name] = out[other]
    if isinstance(out.get("qk_head_dim"), int) and isinstance(out.get("qk_nope_head_dim"), int):
        out["qk_head_dim"] = out["qk_nope_head_dim"] + out["qk_rope_head_dim"]
    wide = next((n for n in ("attention_hidden_size", "d_inner") if isinstance(out.get(n), int)), None)
    if wide and isinstance(fields.get("hidden_size"), int):
        out[wide] = D_MODEL * max(1, fields[wide] // fields["hidden_size"])
        if isinstance(out.get("attention_head_dim"), int) and heads:
            out["attention_head_dim"] = out[wide] // out[heads]
    _reconcile_ssm(out, fields)
    sections = out.get("mrope_section")
    if isinstance(sections, list) and sections:
        half = D_HEAD // 2
        out["mrope_section"] = [half - (len(sections) - 1) * (half // len(sections))] + [half // len(sections)] * (
            len(sections) - 1
        )


def _reconcile_ssm(out: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """State-space heads x their width = expansion x model width."""
    expand = next((out[n] for n in ("mamba_expand", "expand") if isinstance(out.get(n), int)), None)
    if expand is None:
        return
    inner = expand * D_MODEL
    if "mamba_d_ssm" in out and out["mamba_d_ssm"] is not None:
        out["mamba_d_ssm"] = inner
    counts = [n for n in ("mamba_n_heads", "mamba_num_heads") if isinstance(out.get(n), int)]
    counts += ["num_heads"] if "num_heads" in out and "state_size" in out else []
    width = next((out[n] for n in ("mamba_d_head", "mamba_head_dim", "head_dim") if isinstance(out.get(n), int)), None)
    if counts and width:
        out[counts[0]] = inner // width
    if isinstance(out.get("n_mamba_heads"), int) and isinstance(out.get("mamba_headdim"), int):
        out["mamba_headdim"] = inner // out["n_mamba_heads"]


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
    """Weights at a scale at which every part matters; gains, biases and gates moved off 0 and 1, where equations hold by accident."""
    import torch

    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
    squeezed = [n for n in parameter.shape if n > 1]
    if len(squeezed) >= 2 and parameter.std() < 0.5 and parameter.abs().mean() < 0.5:
        fan_in = math.prod(parameter.shape[1:]) if parameter.dim() != 3 else min(parameter.shape[1:])
        parameter.copy_(noise / math.sqrt(max(fan_in, 8)))
    else:
        parameter.add_(0.15 * noise)


def _check(model: PreTrainedModel) -> None:
    """Twelve tokens must give finite logits of the vocabulary's width."""
    import torch

    ids = torch.arange(1, 13)[None] * 17 % 250
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    assert logits.shape[:2] == ids.shape, f"logits of shape {tuple(logits.shape)} for 12 tokens"
    assert bool(logits.isfinite().all()), "logits are not finite"


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
