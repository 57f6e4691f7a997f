"""Whether a model can be spread over devices, or split over the processes of torchrun, before its weights are read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from probe.errors import BadModel, BadOption

if TYPE_CHECKING:
    from probe.language_model.model import LanguageModel

PLANS = ("auto",)


def processes() -> int:
    """How many processes torchrun started for this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_shared(lm: LanguageModel) -> bool:
    """Whether each of several processes has a part of the model's weights."""
    from probe.instrument import is_sharded

    return is_sharded(lm.model)


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or the first of torchrun's."""
    return os.environ.get("RANK", "0") == "0"


def check_whole(lm: LanguageModel, why: str) -> None:
    """Raises `BadModel` where this process has a part of the weights only. why: what needs all."""
    if is_shared(lm):
        raise BadModel(f"{why} needs all weights, and each process has a part of them", hint="leave out --tp-plan")


def check_launched(plan: str, device: str, device_map: Any) -> None:
    """Raises `BadOption` for another plan than the model's own, beside a place, and in a process that is alone."""
    if plan not in PLANS:
        raise BadOption(f"unknown tensor-parallel plan '{plan}'", hint="auto: the model's own, as transformers has it")
    if device_map is not None or device != "auto":
        raise BadOption("both a tensor-parallel plan and a device", hint="each process takes the device of its number")
    if processes() < 2:
        raise BadOption(
            "--tp-plan splits a model over several processes, and this one is alone",
            hint="torchrun starts them, a process a device: probe help models",
        )


def spread(name: str, config: Any, *, device_map: Any, tp_plan: str | None, code: bool) -> dict[str, Any]:
    """What `from_pretrained` is to be told of it, once the model without its weights has been found to allow it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    if tp_plan is None and not isinstance(device_map, dict):
        return {} if device_map is None else {"device_map": device_map}
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
    if tp_plan is None:
        check_parts(device_map, empty)
        return {"device_map": device_map}
    check_split(name, empty)
    return {"distributed_config": DistributedConfig(tp_plan=tp_plan)}  # type: ignore[arg-type]


def check_parts(device_map: Mapping[str, Any], empty: Any) -> None:
    """Raises `BadOption` for what a device map names and the model does not have: neither a module nor a parameter."""
    parts = {name for named in (empty.named_modules, empty.named_parameters, empty.named_buffers) for name, _ in named()}
    for part in device_map:
        if part not in parts:
            near = difflib.get_close_matches(part, sorted(parts), n=1)
            own = ", ".join(name for name, _ in empty.named_children())
            hint = f"did you mean '{near[0]}'?" if near else f"its parts: {own}, and what is in them"
            raise BadOption(f"the device map names '{part}', which the model does not have", hint=hint)


def check_split(name: str, empty: Any) -> None:
    """Raises `BadModel` where a model has no tensor-parallel plan, or its heads or columns cannot be cut into equal parts."""
    from probe.instrument import SIDES, style

    n = processes()
    if not empty.tp_plan:
        raise BadModel(
            f"transformers has no tensor-parallel plan for '{name}' ({type(empty).__name__})",
            hint="--device-map auto spreads it over the devices of one process",
        )
    for path, module in empty.named_modules():
        side = SIDES.get(style(empty, path))
        if side is None or not isinstance(getattr(module, "out_features", None), int):
            continue
        around = empty.get_submodule(path.rpartition(".")[0])
        head = getattr(around, "head_dim", None) or getattr(around, "head_size", None)
        width = module.out_features if side == "output" else module.in_features
        parts, what = (width // head, "heads") if head else (width, "columns")
        if parts % n:
            raise BadModel(
                f"the {parts:,} {what} of {path} cannot be cut into {n} equal parts",
                hint="have torchrun start a number of processes that divides them",
            )
