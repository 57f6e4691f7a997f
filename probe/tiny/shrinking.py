"""Shrinks a family's default config by field names and by how the defaults relate; knows no family, builds no model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PretrainedConfig

N_VOCAB = 259  # 256 bytes, BOS, EOS, PAD: every id that a tiny model can say is a token
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
    # an indexer's score is a sum of so many rectified ones: of few all can be 0, and which zeros are looked at is chance
    32: "image_size index_n_heads",
    D_HEAD: "head_dim dim_head d_kv kv_channels attention_head_dim attention_head_size swa_head_dim d_head v_head_dim "
    "index_head_dim global_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_head "
    "mamba_headdim mamba_head_dim sliding_window window_size sliding_window_size local_attention_window_len "
    "hidden_size_per_layer_input index_topk mamba_chunk_size chunk_size block_size patch_size "
    "max_inference_chunksize swa_v_head_dim local_attn_chunk_length lsh_attn_chunk_length hc_lowrank adapter_rank",
    12: "q_lora_rank kv_lora_rank o_lora_rank time_step_rank mamba_dt_rank laurel_rank gated_norm_rank",
    8: "state_size mamba_d_state ssm_state_size d_rel qk_rope_head_dim qk_nope_head_dim rotary_dim rel_extent",
    N_HEADS: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads n_mamba_heads "
    "linear_num_value_heads linear_num_heads num_query_groups num_experts num_local_experts n_routed_experts "
    "moe_num_experts zero_expert_num split_ngram_parts o_groups",
    N_KV: "num_key_value_heads num_kv_heads n_kv_heads kv_n_heads swa_num_key_value_heads num_global_key_value_heads "
    "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts "
    "n_groups mamba_n_groups mamba_ngroups heads_per_ngram ngram num_buckets n_shared_experts num_shared_experts",
    1: "n_group topk_group num_expert_group first_k_dense_replace num_dense_layers moe_layer_start_index "
    "num_nextn_predict_layers",
    0: "num_kv_shared_layers",
}
PERIODS = {"attn_layer_period": 2, "attn_layer_offset": 1, "attn_layer_indices": [1]}  # every second layer attends
SIZE_OF = {name: size for size, names in SIZES.items() for name in names.split()}
DEPTHS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
    *("num_encoder_layers", "num_decoder_layers", "num_blocks"),
)
HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_n_heads", "num_query_groups")
SPECIAL = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, "decoder_start_token_id": 256}
# says who a config is, or is made anew by the class from the other fields
LEFT_OUT = {"transformers_version", "_name_or_path", "architectures", "id2label", "label2id"}
LEFT_OUT |= {"hybrid_layer_ids", "num_layers_per_stack"}


class Variant(NamedTuple):
    """How to shrink: the first variant that makes a model that runs is taken."""

    listed: bool  # per-layer lists are shortened (else the class makes its own)
    grouped: bool  # fewer key-value heads than heads, where the family has the field
    filled: bool  # sizes that the family leaves open are filled in
    text: bool  # only the text part of a composite family


def variants() -> Iterator[Variant]:
    for text, filled, grouped, listed in itertools.product((False, True), (False, True), (True, False), (True, False)):
        yield Variant(listed=listed, grouped=grouped, filled=filled, text=text)


def shrunken(kind: type[PretrainedConfig], layers: int, overrides: Mapping[str, Any], *, variant: Variant) -> PretrainedConfig:
    """A config of `kind` (with `variant.text`: of its text part) of `layers` layers; `overrides` go to the text part.

    Whatever the class refuses comes out as the class's own exception."""
    fields = _defaults(kind)
    nested = next((k for k in ("text_config", "decoder", "text_encoder") if isinstance(fields.get(k), Mapping)), None)
    if variant.text and nested:
        from transformers import CONFIG_MAPPING

        fields = fields[nested]
        kind, nested = CONFIG_MAPPING[fields["model_type"]], None
    shrunk = _shrink(fields, layers, variant)
    for name, value in overrides.items():
        target = shrunk[nested] if nested and name in shrunk[nested] else shrunk
        target[name] = value
    config = kind(**shrunk)
    for part in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        if hasattr(part, "is_decoder") and not part.is_encoder_decoder:
            part.is_decoder = True
        if variant.filled:
            _lend(part)
    return config


def _defaults(kind: type[PretrainedConfig]) -> dict[str, Any]:
    """The family's default fields; for a default that its own validator refuses, those of its text part alone."""
    try:
        fields = kind().to_dict()
    except ValueError:
        text = getattr(kind, "sub_configs_defaults", {}).get("text_config")
        if text is None:
            raise
        from transformers import CONFIG_MAPPING

        fields = {"text_config": CONFIG_MAPPING[text.model_type]().to_dict()}
    return fields


def _lend(config: PretrainedConfig) -> None:
    """Parts of a config that lost the rotary base they once had get the whole config's."""
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    for part in vars(config).values():
        if theta is not None and hasattr(part, "to_dict") and not hasattr(part, "rope_theta"):
            part.rope_theta = theta


def _shrink(fields: Mapping[str, Any], layers: int, variant: Variant) -> dict[str, Any]:
    """One level of a config, and those below it."""
    depth = next((fields[n] for n in DEPTHS if isinstance(fields.get(n), int)), None)
    picked = _picked(fields, depth, layers)
    out: dict[str, Any] = {}
    for name, value in fields.items():
        if name in LEFT_OUT:
            continue
        if name in SPECIAL:
            out[name] = value if value is None else SPECIAL[name]
        elif name in DEPTHS and isinstance(value, int):
            out[name] = layers
        elif name in PERIODS and layers > 1:
            out[name] = PERIODS[name]
        elif _is_by_index(value):
            by_index = {int(k): v for k, v in value.items()}
            chosen = {i: by_index[p] for i, p in enumerate(picked) if p in by_index}
            out[name] = {i: _shrink(v, layers, variant) for i, v in chosen.items()}
        elif isinstance(value, Mapping):
            out[name] = _shrink(value, layers, variant)
        elif _is_per_layer(name, value, depth):
            if variant.listed:
                out[name] = [_size(name, value[p]) for p in picked]
        elif isinstance(value, (list, tuple)):
            out[name] = _rescaled(value, fields)
        else:
            out[name] = _size(name, value)
    if variant.filled:
        _fill(out, layers)
    _reconcile(out, fields, variant)
    return out


def _size(name: str, value: Any) -> Any:
    return min(value, SIZE_OF[name]) if name in SIZE_OF and type(value) is int else value


def _is_per_layer(name: str, value: Any, depth: int | None) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return name in {"layer_types", "layers_block_type"} if depth is None else len(value) == depth


def _is_by_index(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(str(k).isdigit() for k in value)


def _picked(fields: Mapping[str, Any], depth: int | None, layers: int) -> list[int]:
    """Which of the family's own layers to keep: one of each kind in order of appearance, over and over."""
    lists = [v for k, v in fields.items() if _is_per_layer(k, v, depth)]
    tables = [{int(k): v for k, v in t.items()} for n, t in fields.items() if n not in LEFT_OUT and _is_by_index(t)]
    kinds: dict[str, int] = {}
    for i in range(min((len(v) for v in lists), default=0)):
        kinds.setdefault(repr([v[i] for v in lists] + [t.get(i) for t in tables]), i)
    distinct = list(kinds.values()) or [0]
    return [distinct[i % len(distinct)] for i in range(layers)]


def _rescaled(value: Sequence[Any], fields: Mapping[str, Any]) -> list[Any]:
    """Lists of whole numbers that sum to the model's width, or multiply to its length, do so again."""
    if len(value) == 2 and all(type(v) is int for v in value):
        if sum(value) == fields.get("hidden_size"):
            return [D_MODEL // 4, D_MODEL - D_MODEL // 4]
        if math.prod(value) == fields.get("max_position_embeddings"):
            return [16, SIZE_OF["max_position_embeddings"] // 16]
    return list(value)


def _fill(out: dict[str, Any], layers: int) -> None:
    """Sizes that the class leaves open, though its model can't be built without them."""
    for name, value in out.items():
        if value is not None:
            continue
        if name in SIZE_OF:
            out[name] = SIZE_OF[name]
        elif name.startswith("clip_"):
            out[name] = 8.0
        elif name.startswith("default_") and out.get(name.removeprefix("default_") + "s"):
            out[name] = out[name.removeprefix("default_") + "s"][0]
    if "rope_parameters" in out and not out["rope_parameters"]:
        rotary = {"rope_type": "default", "rope_theta": 10_000.0}
        out["rope_parameters"] = dict.fromkeys(out.get("layer_types") or (), rotary) or rotary
    if "num_hidden_layers" in out and not out.get("layer_types"):
        out["layer_types"] = ["full_attention"] * layers
    if isinstance(out.get("languages"), (list, tuple)) and out.get("default_language", "") is None:
        out["default_language"] = out["languages"][0]


def _reconcile(out: dict[str, Any], fields: Mapping[str, Any], variant: Variant) -> None:
    """Keep relations between a family's defaults: equal head counts, inner width = heads x head width…"""

    def related(name: str, other: str) -> bool:
        return isinstance(fields.get(name), int) and fields.get(name) == fields.get(other)

    heads = next((n for n in HEAD_COUNTS if isinstance(out.get(n), int)), None)
    for name in KV_COUNTS:
        alike = heads is not None and (not variant.grouped or related(name, heads) or "kv_lora_rank" in out)
        if alike and isinstance(out.get(name), int):
            out[name] = out[str(heads)]
    for name, other in (("head_dim", "qk_rope_head_dim"), ("head_dim", "qk_head_dim")):
        if related(name, other):
            out[name] = out[other]
    if isinstance(out.get("qk_head_dim"), int) and isinstance(out.get("qk_nope_head_dim"), int):
        out["qk_head_dim"] = out["qk_nope_head_dim"] + out["qk_rope_head_dim"]
    if isinstance(out.get("attention_hidden_size"), int) and isinstance(fields.get("hidden_size"), int):
        out["attention_hidden_size"] = D_MODEL * max(1, fields["attention_hidden_size"] // fields["hidden_size"])
        if isinstance(out.get("attention_head_dim"), int) and heads:
            out["attention_head_dim"] = out["attention_hidden_size"] // out[heads]
    _reconcile_states(out)
    sections = out.get("mrope_section")
    if isinstance(sections, list) and sections:
        share = D_HEAD // 2 // len(sections)
        out["mrope_section"] = [D_HEAD // 2 - (len(sections) - 1) * share] + [share] * (len(sections) - 1)


def _reconcile_states(out: dict[str, Any]) -> None:
    """State-space heads x their width = expansion x model width."""
    expand = next((out[n] for n in ("mamba_expand", "expand") if isinstance(out.get(n), int)), None)
    if expand is None:
        return
    inner = expand * D_MODEL
    if isinstance(out.get("mamba_d_ssm"), int):
        out["mamba_d_ssm"] = inner
    counts = [n for n in ("mamba_n_heads", "mamba_num_heads") if isinstance(out.get(n), int)]
    counts += ["num_heads"] if "num_heads" in out and "state_size" in out else []
    widths = ("mamba_d_head", "mamba_head_dim", "head_dim")
    width = next((out[n] for n in widths if isinstance(out.get(n), int)), None)
    if counts and width:
        out[counts[0]] = inner // width
    if isinstance(out.get("n_mamba_heads"), int) and isinstance(out.get("mamba_headdim"), int):
        out["mamba_headdim"] = inner // out["n_mamba_heads"]
