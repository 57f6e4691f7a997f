"""Weights that accelerate keeps on disk or in main memory until a module runs: where it computes, and what they are.

Between the calls of its module such a parameter lies on `meta`, without numbers, and is no longer the object that it was tied
to (seen in accelerate 1.15).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probe.instrument.shards import own


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: its weights' device, or the one that they are brought to; the CPU for one without weights."""
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            hook = _offloading(part) if parameter.is_meta else None
            return parameter.device if hook is None else torch.device(hook.execution_device)
    return torch.device("cpu")


def devices(model: nn.Module) -> list[str]:
    """Where a model's weights are kept, in order: devices, and `disk`."""
    found = {str(parameter.device) for parameter in model.parameters()}
    if "meta" in found:
        found = (found - {"meta"}) | {str(where) for where in _places(model).values() if where in ("cpu", "disk")}
    return sorted(found)


def parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter once; of tied ones that are kept apart, one."""
    apart = dict(_apart(model))
    return (parameter for name, parameter in model.named_parameters() if name not in apart)


def held_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights that are in memory at once: those that stay, and of the others the largest module's."""
    stay = sum(_bytes(own(p)) for p in parameters(model) if not p.is_meta)
    comes = (sum(_bytes(p) for p in m.parameters(recurse=False) if p.is_meta) for m in model.modules())
    return stay + max(comes, default=0)


def _bytes(tensor: Tensor) -> int:
    """Of a tensor that stands for others, as a quantised one does, what those take (torch's protocol for such classes)."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
    return sum(_bytes(getattr(tensor, name)) for name in names) or tensor.numel() * tensor.element_size()


def is_readable(model: nn.Module, name: str) -> bool:
    """Whether a parameter is of plain numbers that are there, or are brought in when they are needed."""
    parameter = model.get_parameter(name)
    return parameter.is_floating_point() and (
        not parameter.is_meta or _offloading(model.get_submodule(name.rpartition(".")[0])) is not None
    )


def bytes_elsewhere(module: nn.Module) -> int:
    """Bytes of a module's weights that are not in memory until they are needed."""
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.is_meta)


def weight_of(module: nn.Module, name: str) -> Tensor:
    """The numbers of a parameter within a module, read from where they are kept."""
    parameter = module.get_parameter(name).detach()
    path, _, own = name.rpartition(".")
    hook = _offloading(module.get_submodule(path)) if parameter.is_meta else None
    if hook is None:
        return parameter
    found: Tensor = hook.weights_map[own]
    return found.to(parameter.dtype)


@contextmanager
def in_memory(model: nn.Module, *, without: Collection[nn.Module] = ()) -> Iterator[None]:
    """While active, every weight stands on the device where its module computes, and tied ones are one again. without: modules
    whose weights stay where they are kept; a context within this one, of such a module, brings them in for as long."""
    left = {id(part) for module in without for part in module.modules()}
    with ExitStack() as undo:
        for part in model.modules():
            hook = _offloading(part)
            if hook is not None and id(part) not in left:
                hook.pre_forward(part)
                hook.offload = False  # a call in the meantime neither reads them again nor lets them go
                undo.callback(_let_go, hook, part)
        for target, source in _apart(model):
            path, _, name = target.rpartition(".")
            part, own, one = model.get_submodule(path), model.get_parameter(target), model.get_parameter(source)
            if own.device == one.device:
                undo.callback(setattr, part, name, own)
                setattr(part, name, one)
        yield


def wrapped(module: nn.Module) -> bool:
    """Whether something else than accelerate stands in for the module's own `forward`."""
    return "forward" in vars(module) and not hasattr(module, "_hf_hook")


def _let_go(hook: Any, module: nn.Module) -> None:
    hook.offload = True
    hook.post_forward(module, None)


def _apart(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(target, source) of tied parameters that are two objects since accelerate keeps one of them elsewhere."""
    for target, source in getattr(model, "all_tied_weights_keys", {}).items() if _places(model) else ():
        if model.get_parameter(target) is not model.get_parameter(source):
            yield target, source


def _places(model: nn.Module) -> dict[str, Any]:
    """Where accelerate was told to keep each part."""
    found: dict[str, Any] = getattr(model, "hf_device_map", {})
    return found


def _offloading(module: nn.Module) -> Any:
    """The hook of accelerate that brings this module's own weights in; None where they are there."""
    hook = getattr(module, "_hf_hook", None)
    return next((one for one in getattr(hook, "hooks", (hook,)) if getattr(one, "offload", False)), None)
