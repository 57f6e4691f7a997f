"""Rotary embeddings that are scaled: how long a text they carry, where they change, what a GGUF file says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from probe.errors import BadModel, BadOption

FACTORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


def carried(config: Any, length: int) -> int:
    """How many positions a context of `length` holds with its scaling: what was trained times the factor, if more."""
    own = _whole(config)
    factor = own.get("factor")
    if own.get("rope_type") not in ("linear", "dynamic", "yarn", "longrope", "llama3") or not isinstance(factor, int | float):
        return length
    original = own.get("original_max_position_embeddings") or length
    return max(length, int(original * factor))


def check_extends(name: str, model: Any, n: int) -> None:
    """`BadOption` if the model looks its positions up in a table of fewer than n rows."""
    import torch

    tables = [m for key, m in model.named_modules() if (isinstance(m, torch.nn.Embedding) and "pos" in key) or "wpe" in key]
    rows = min((table.num_embeddings for table in tables if table.num_embeddings), default=n)
    if rows < n:
        raise BadOption(f"the positions of '{name}' are learned: {rows:,} of them", hint=f"at most --context-length {rows}")


class Change(NamedTuple):
    """The length beyond which a longer text has other frequencies at all its positions, and whether they change but once."""

    length: int
    once: bool


def change(config: Any) -> Change | None:
    """Where the rotary frequencies change with a text's length; None if they don't."""
    parameters = getattr(config, "rope_parameters", None) or {}
    found = []
    for own in (one for one in (parameters, *parameters.values()) if isinstance(one, dict)):
        if "dynamic" in str(own.get("rope_type")):
            found.append(Change(config.max_position_embeddings, False))
        if own.get("rope_type") == "longrope" and own["short_factor"] != own["long_factor"]:
            found.append(Change(own["original_max_position_embeddings"], True))
    return min(found, default=None)


def start_over(model: Any) -> None:
    """Have dynamic embeddings forget the longest text so far: they would use its frequencies for a shorter one (5.24)."""
    import torch

    for module in model.modules():
        longest, original = getattr(module, "max_seq_len_cached", None), getattr(module, "original_max_seq_len", None)
        if "dynamic" in str(getattr(module, "rope_type", "")) and longest is not None and longest > original:
            at = module.inv_freq.device
            module(torch.zeros(1, device=at), torch.zeros(1, 1, dtype=torch.long, device=at))


def _whole(config: Any) -> dict[str, Any]:
    """The parameters of a rotary embedding that all layers share; empty if there is none."""
    parameters = getattr(config, "rope_parameters", None)
    return parameters if isinstance(parameters, dict) and "rope_type" in parameters else {}


def scale(name: str, config: Any, metadata: Mapping[str, Any], factors: Mapping[str, Sequence[float]]) -> None:
    """Put what a GGUF file's metadata and tensors of FACTORS say of its rotary embedding into a config made without it.

    transformers reads the base frequency only. llama.cpp divides each frequency by its factor, and so does `longrope`.
    Raises `BadModel` where the config cannot say it.
    """
    scaling = _scaling(metadata, factors, getattr(config, "max_position_embeddings", None))
    if not scaling:
        return
    parameters = getattr(config, "rope_parameters", None)
    own = parameters.get("full_attention", parameters) if isinstance(parameters, dict) else None
    if own is None or (own.get("rope_type", "default") != "default" and own["rope_type"] != scaling["rope_type"]):
        raise _cannot(name, f"a {type(config).__name__} has no place for it")
    own.update(scaling)
    if "original_max_position_embeddings" in scaling and hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = scaling["original_max_position_embeddings"]
    config.validate_rope()


def check_factors(name: str, model: Any, factors: Mapping[str, Sequence[float]]) -> None:
    """`BadModel` unless the model's frequencies are those of its base divided by the factors that it begins with."""
    import torch

    wanted = factors.get("rope_freqs.weight") or factors.get("rope_factors_short.weight")
    if not wanted:
        return
    own = model.config.rope_parameters
    theta = own.get("full_attention", own)["rope_theta"]
    plain = 1 / theta ** (torch.arange(len(wanted), dtype=torch.float64) / len(wanted))
    expected = plain / torch.tensor(wanted, dtype=torch.float64)
    found = [buffer.double().cpu() for key, buffer in model.named_buffers() if key.endswith("inv_freq")]
    if not any(one.shape == expected.shape and torch.allclose(one, expected, rtol=1e-5, atol=0) for one in found):
        raise _cannot(name, "the model that transformers makes does not use it")


def _scaling(metadata: Mapping[str, Any], factors: Mapping[str, Sequence[float]], longest: int | None) -> dict[str, Any] | None:
    """`rope_parameters` of a config, beside the base; None where nothing is scaled."""
    prefix = f"{metadata['general.architecture']}.rope"
    kind = metadata.get(f"{prefix}.scaling.type", "none")
    factor = float(metadata.get(f"{prefix}.scaling.factor") or metadata.get(f"{prefix}.scale_linear") or 1.0)
    original = metadata.get(f"{prefix}.scaling.original_context_length")
    each = list(factors.get("rope_freqs.weight", ()))
    if each and any(one != 1.0 for one in each):
        if factor != 1.0:
            raise _cannot(metadata.get("general.name", "the file"), "it has factors for each frequency and one for all")
        return {
            "rope_type": "longrope", "short_factor": each, "long_factor": each, "factor": 1.0, "attention_factor": 1.0,
            "original_max_position_embeddings": longest,
        }  # fmt: skip
    if "rope_factors_long.weight" in factors:
        attention = metadata.get(f"{prefix}.scaling.attn_factor")
        return {
            "rope_type": "longrope", "long_factor": list(factors["rope_factors_long.weight"]),
            "short_factor": list(factors["rope_factors_short.weight"]), "original_max_position_embeddings": original or longest,
            **({} if attention is None else {"attention_factor": float(attention)}),
        }  # fmt: skip
    if factor == 1.0 or kind in ("none", "longrope"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original or int((longest or 0) / factor),
        }  # fmt: skip
    raise _cannot(metadata.get("general.name", "the file"), f"its kind is '{kind}'")


def _cannot(name: str, why: str) -> BadModel:
    return BadModel(
        f"'{name}' scales its rotary embedding in a way that cannot be applied: {why}",
        hint="its numbers would be wrong: use the safetensors checkpoint",
    )
