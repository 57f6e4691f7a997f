"""Whether a model's weights are its checkpoint's, all of them: none random, none left over. Knows names, loads nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from probe.errors import BadModel

# buffers that older versions of transformers saved and newer ones compute
_BUFFERS = re.compile(
    r"(^|\.)((rotary_emb|rotary_pos_emb|rope)\.(inv_freq|freqs|cos_cached|sin_cached)|inv_freq|original_inv_freq|position_ids"
    r"|masked_bias|relative_position_index|num_batches_tracked|rel_pos_bucket)$"
)
# a causal mask: (1, 1, length, length), where a bias of a projection has one axis
_MASKS = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention|attn\.attention)\.(bias|causal_mask)$")
# heads for other tasks, over the same text: they change no next token
_OTHER_HEADS = re.compile(r"^(v_head|score|classifier|value_head|reward_head|cls|pooler)\.")
_MORE_TOKENS = re.compile(r"(^|\.)(mtp|mtp_layers|mtp_block|nextn)(_[a-z]+)*(\.|$)")
_OTHER_SENSES = re.compile(
    r"(^|\.)(vision|visual|image|video|audio|speech|multi_?modal|mm|vit|v_tower|a_tower|siglip|conformer)(_\w+)?\."
)
_SENSES = re.compile(r"(vision|visual|vit|image|video|audio|speech|sound)\w*_config$")
_CACHE_SCALES = re.compile(r"attn\.(q|k|v|prob)_scale$")

Shape = Callable[[str], tuple[int, ...] | None]


def check_all_there(name: str, missing: Iterable[str]) -> None:
    """`BadModel` if there are weights that the checkpoint did not bring: they are random."""
    keys = sorted(missing)
    if keys:
        raise BadModel(
            f"'{name}' lacks {len(keys)} of its weights ({_shown(keys)}): they would be random",
            hint="the checkpoint is of another class, or not whole",
        )


def check_all_used(name: str, unexpected: Iterable[str], config: Mapping[str, Any], shape: Shape) -> None:
    """`BadModel` if the checkpoint brings weights that the model has no place for: without them it is another model.

    config: the parsed config.json. shape: of a tensor of the checkpoint by its name, None if it is not known.
    """
    keys = [key for key in sorted(unexpected) if not _harmless(key, config, shape)]
    if keys:
        raise BadModel(
            f"'{name}' brings {len(keys)} weights that would be left unused ({_shown(keys)}): its config has no place for them",
            hint="the config is of another model, or lacks what these need (layers, norms, a quantisation)",
        )


def _harmless(key: str, config: Mapping[str, Any], shape: Shape) -> bool:
    """Whether a model without this weight gives the same next tokens."""
    if _BUFFERS.search(key) or _OTHER_HEADS.search(key) or _MORE_TOKENS.search(key):
        return True
    if _MASKS.search(key):
        found = shape(key)
        return found is not None and len(found) == 4 and found[:2] == (1, 1) and found[2] == found[3]
    if _OTHER_SENSES.search(key):
        return any(_SENSES.fullmatch(field) for field in config)
    if _CACHE_SCALES.search(key):
        quantised = config.get("quantization_config")
        return isinstance(quantised, Mapping) and bool(quantised.get("kv_cache_scheme"))
    return _beyond_the_last(key, config)


def _beyond_the_last(key: str, config: Mapping[str, Any]) -> bool:
    """Whether it is of a layer that only predicts further tokens: these are counted apart, and stand after the others."""
    found = re.search(r"(^|\.)layers\.(\d+)\.", key)
    layers = config.get("num_hidden_layers")
    more = config.get("num_nextn_predict_layers") or config.get("mtp_num_hidden_layers") or 0
    if not found or not isinstance(layers, int) or not isinstance(more, int):
        return False
    return layers <= int(found[2]) < layers + more


def _shown(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
