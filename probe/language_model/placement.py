"""Which device and number type a model is loaded to: the user's words checked before anything is downloaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.errors import BadOption

if TYPE_CHECKING:
    import torch

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_KNOWN = ("float32", "bfloat16", "float16")


class Placement(NamedTuple):
    """`dtype` is None for the checkpoint's own; `device_map` is accelerate's, None for a plain load to the CPU."""

    dtype: torch.dtype | None
    device_map: Any
    chosen: bool  # the user asked for this dtype


def place(*, device: str = "auto", dtype: str = "auto", device_map: Any = None) -> Placement:
    """float32 on a CPU and the checkpoint's own type on an accelerator, unless `dtype` says otherwise.

    `device`: auto (an accelerator if there is one), cpu, cuda, cuda:I, mps. `device_map`: accelerate's names, or a
    mapping (also as JSON). Raises `BadOption`.
    """
    import torch

    if device_map is not None and device != "auto":
        raise BadOption("both a device and a device map", hint="give one of --device and --device-map")
    name = _DTYPES.get(dtype, dtype)
    if name not in (*_KNOWN, "auto"):
        raise BadOption(f"unknown dtype '{dtype}'", hint=f"one of auto, {', '.join(_KNOWN)}")
    if device_map is not None:
        on_cpu, where = not torch.accelerator.is_available(), _device_map(device_map)
    else:
        found = _device(device)
        on_cpu, where = found.type == "cpu", None if found.type == "cpu" else {"": found}
    chosen = name != "auto"
    number = getattr(torch, name) if chosen else torch.float32 if on_cpu else None
    return Placement(number, where, chosen)


def _device(name: str) -> torch.device:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    here = ["cpu"]
    if accelerator is not None:
        count = torch.accelerator.device_count()
        here += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(count))]
    if name not in here:
        raise BadOption(f"no device '{name}' here", hint=f"here: {', '.join(here)}")
    return torch.device(name)


def _device_map(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    if given in {"auto", "balanced", "balanced_low_0", "sequential"}:
        return given
    try:
        parsed = json.loads(given)
    except ValueError as error:
        raise BadOption(f"unknown device map '{given}'", hint="auto, balanced, sequential, or a JSON object") from error
    if not isinstance(parsed, dict):
        raise BadOption(f"unknown device map '{given}'", hint="auto, balanced, sequential, or a JSON object")
    return parsed
