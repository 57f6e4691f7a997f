"""A device that is none: its tensors lie on the CPU and refuse what a GPU's would, and what would wait for a GPU is counted.

For a process of its own: from the import on torch takes it for an accelerator, and no tensor is an inference tensor. By what
torch 2.13 offers to backends that are written in Python, which is not for the public.
"""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

NAME = "elsewhere"
# what needs a number of the device, or as many as it says
ASKING = {
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "unique_consecutive",
}  # fmt: skip
CROSSING = {"_to_copy", "copy_"}  # operations that may have tensors here and there
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}

_counts: list[list[str]] = []


class _Same(contextlib.ContextDecorator):
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def _without_inference_tensors(mode: Any = True) -> Any:
    """In place of `torch.inference_mode`: a wrapped tensor can't be an inference tensor."""
    return torch.no_grad()(mode) if callable(mode) else torch.no_grad() if mode else _Same()


torch.inference_mode = _without_inference_tensors  # type: ignore[assignment, misc]
backend_registration._setup_privateuseone_for_python_backend(NAME)


class ElsewhereTensor(Tensor):
    """`inner`, as if it were there."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> ElsewhereTensor:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert a tensor of {NAME} to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: Any) -> ElsewhereTensor:
        return ElsewhereTensor(self.inner.clone())

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Counting(TorchDispatchMode):
    """While active the device is there, and `waits` names each operation of this project that waits for it."""

    def __enter__(self) -> Counting:
        self.waits: list[str] = []
        _counts.append(self.waits)
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        _counts.pop()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def moved(model: nn.Module) -> nn.Module:
    """The model, there."""
    there: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    there.setdefault(id(tensor), ElsewhereTensor(tensor.detach()))
                    own = there[id(tensor)]
                    held[name] = nn.Parameter(own, requires_grad=False) if held is module._parameters else own
    return model


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    there = any(isinstance(one, ElsewhereTensor) for one in tensors)
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    goes = device is not None and device.type == NAME
    if there and name not in CROSSING | INDEXING:
        mixed = [one for one in tensors if one.dim() and not isinstance(one, ElsewhereTensor)]
        if mixed:
            raise RuntimeError(f"expected all tensors to be on the same device: {func}")
    if there and name in INDEXING and not isinstance(args[0], ElsewhereTensor):
        raise RuntimeError(f"a tensor that lies here has no places of another device: {func}")
    if there | goes and _waits(name, args, kwargs, device):
        count(name)
    own, given = tree_map(_inner, args), tree_map(_inner, kwargs)
    if goes:
        given["device"] = torch.device("cpu")
    found = func(*own, **given)
    crossed = name == "_to_copy" and device is not None and isinstance(args[0], ElsewhereTensor) != goes
    if crossed and found is own[0]:
        found = found.clone()
    stays = name == "_to_copy" and device is not None and not goes
    if stays or name == "_local_scalar_dense" or (name == "copy_" and not isinstance(args[0], ElsewhereTensor)):
        return found
    if there or goes:
        found = tree_map(lambda one: ElsewhereTensor(one) if type(one) is Tensor else one, found)
    return return_and_correct_aliasing(func, args, kwargs, found) if there else found


def _waits(name: str, args: Any, kwargs: dict[str, Any], device: torch.device | None) -> bool:
    """Whether a GPU would have to be waited for."""
    if name in INDEXING:  # masks are counted, and places that lie here are copied
        return any(
            isinstance(one, Tensor) and (one.dtype in (torch.bool, torch.uint8) or not isinstance(one, ElsewhereTensor))
            for one in args[1]
        )
    if name == "_to_copy":
        crosses = device is not None and isinstance(args[0], ElsewhereTensor) != (device.type == NAME)
        return crosses and bool(args[0].numel()) and not kwargs.get("non_blocking")
    if name == "copy_":
        return isinstance(args[0], ElsewhereTensor) != isinstance(args[1], ElsewhereTensor) and args[2:3] != (True,)
    return name in ASKING or (name == "repeat_interleave" and kwargs.get("output_size") is None)


def count(name: str) -> None:
    """Keep where a wait is asked for; what transformers asks for by itself is not ours."""
    if not _counts:
        return
    lines = [f for f in traceback.extract_stack() if "/probe/" in f.filename or "/transformers/" in f.filename]
    if lines and "/probe/" in lines[-1].filename.rpartition("/transformers/")[2]:
        _counts[-1].append(f"{name} at {lines[-1].filename.rpartition('/probe/')[2]}:{lines[-1].lineno}")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, ElsewhereTensor) else value
