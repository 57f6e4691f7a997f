"""The values of `--quantize`: whose method each is, what becomes of weights and activations, and where its config is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Quantization(NamedTuple):
    """method: as transformers names it. make: the function that makes transformers' config of `options`."""

    name: str
    method: str
    what: str
    make: str
    options: Mapping[str, Any]


_IN = "probe.language_model.quantization"
QUANTIZATIONS: dict[str, Quantization] = {one.name: one for one in (
    Quantization(
        "bnb-int8", "bitsandbytes", "LLM.int8(): weights and activations in 8 bits, outliers in 16 (2208.07339)",
        f"{_IN}:bitsandbytes_config", {"load_in_8bit": True},
    ),
    Quantization(
        "bnb-nf4", "bitsandbytes", "weights in 4 bits whose values are quantiles of a normal distribution (2305.14314)",
        f"{_IN}:bitsandbytes_config", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    ),
    Quantization(
        "bnb-fp4", "bitsandbytes", "weights in 4-bit floats", f"{_IN}:bitsandbytes_config",
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    ),
    Quantization(
        "torchao-int8", "torchao", "weights in 8 bits, scaled row by row", f"{_IN}:torchao_config",
        {"kind": "Int8WeightOnlyConfig"},
    ),
    Quantization(
        "torchao-int4", "torchao", "weights of 4 bits, scaled by groups of 32, one in each byte",
        f"{_IN}:torchao_intx_config", {"dtype": "int4", "group": 32},
    ),
    Quantization(
        "torchao-float8", "torchao", "weights in 8-bit floats (e4m3), scaled row by row", f"{_IN}:torchao_config",
        {"kind": "Float8WeightOnlyConfig"},
    ),
    Quantization(
        "torchao-int8-dynamic", "torchao", "weights in 8 bits, and activations in 8, scaled token by token",
        f"{_IN}:torchao_config", {"kind": "Int8DynamicActivationInt8WeightConfig"},
    ),
)}  # fmt: skip


def quantize_help() -> str:
    """What `--quantize` takes, in words."""
    return f"Keep the weights in few bits: {', '.join(QUANTIZATIONS)}."
