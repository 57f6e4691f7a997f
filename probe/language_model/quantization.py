"""Models whose weights are kept in few bits: how one is made while it is loaded, and what cannot be asked of one that is.

A quantised model is another model than the one that it was made from, and it runs as its library computes. Its weights are no
numbers that can be read or changed.
"""

from __future__ import annotations

import difflib
import io
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib.util import find_spec
from logging import ERROR, getLogger
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from probe.errors import BadModel, BadOption
from probe.language_model.checkpoint import refusals
from probe.registries.quantizations import QUANTIZATIONS

if TYPE_CHECKING:
    from torch import nn

# transformers' name of a method, which is that of its extra -> the package that it needs, as it is imported
PACKAGES = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "compressed-tensors": "compressed_tensors"}
_MISSED = 0.25  # rounding of 8 bits moves an output by about 0.01 of its size; a gradient that is lost, by all of it


def bitsandbytes_config(**options: Any) -> Any:
    """transformers' config of a method of bitsandbytes."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**options)


def torchao_config(kind: str, **options: Any) -> Any:
    """transformers' config of a method of torchao: its class, and how that is made."""
    import torchao.quantization
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(torchao.quantization, kind)(**options))


def torchao_intx_config(dtype: str, group: int) -> Any:
    """The one for few bits that runs on every device, by groups of so many columns."""
    import torch
    from torchao.quantization import PerGroup

    return torchao_config("IntxWeightOnlyConfig", weight_dtype=getattr(torch, dtype), granularity=PerGroup(group))


def check_known(name: str | None) -> None:
    """Raises `BadOption` for a value of `--quantize` that is none."""
    if name is not None and name not in QUANTIZATIONS:
        near = difflib.get_close_matches(name, QUANTIZATIONS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise BadOption(f"unknown quantisation '{name}'", hint=f"{hint}there are {', '.join(QUANTIZATIONS)}")


def config_for(model: str, name: str, stored: Any) -> Any:
    """transformers' config of a value of `--quantize`. stored: by which the checkpoint is quantised already, if it is.

    Raises `BadOption` for such a checkpoint, and without the package.
    """
    if stored is not None:
        raise BadOption(f"'{model}' is quantised already ({_method(stored)})", hint="leave out --quantize")
    ready(model, QUANTIZATIONS[name].method)
    return resolve_name(QUANTIZATIONS[name].make)(**QUANTIZATIONS[name].options)


def check_is_not_gguf(model: str, name: str | None) -> None:
    """Raises `BadOption` where --quantize is given for a GGUF file that is too large for a converted copy."""
    if name is not None:
        raise BadOption(f"--quantize takes no GGUF file of this size: '{model}'", hint="give the safetensors checkpoint")


def ready(model: str, method: str) -> None:
    """Raises `BadOption` where a method needs a package that is not here, and has an extra.

    bitsandbytes would say at each call of each layer that float32 is rounded to float16.
    """
    if method in PACKAGES and find_spec(PACKAGES[method]) is None:
        raise BadOption(f"quantised as it is, '{model}' needs the {method} package", hint=f"pip install 'mechprobe[{method}]'")
    getLogger("bitsandbytes").setLevel(ERROR)


def stored_in(config: Any) -> Any:
    """The quantisation that a model's config names, an object of transformers or a mapping; None if it names none."""
    return getattr(config, "quantization_config", None)


def _method(stored: Any) -> str:
    found = _field(stored, "quant_method")
    return str(getattr(found, "value", found))


def _field(stored: Any, name: str) -> Any:
    return stored.get(name) if isinstance(stored, dict) else getattr(stored, name, None)


def method_in(config: Any) -> str | None:
    """The method that a model's config names, as transformers calls it."""
    stored = stored_in(config)
    return None if stored is None else _method(stored)


def quantised(model: nn.Module) -> str | None:
    """How a model's weights are quantised in memory, in words; None where they are numbers, unpacked ones too."""
    stored = stored_in(getattr(model, "config", None))
    if stored is None or _field(stored, "dequantize"):
        return None
    kind = _field(stored, "quant_type")
    detail = {
        "bitsandbytes": lambda: stored.quantization_method(), "torchao": lambda: type(kind).__name__,
        "compressed-tensors": lambda: _field(_field(stored, "quantization_config"), "format"),
    }.get(_method(stored))  # fmt: skip
    found = None if detail is None or isinstance(stored, dict) else detail()
    return f"{_method(stored)} {found}" if found else _method(stored)


def check_numbers(model: nn.Module, name: str, what: str) -> None:
    """Raises `BadModel` where a model's weights are quantised, and `what` needs them as numbers."""
    kind = quantised(model)
    if kind is not None:
        raise BadModel(
            f"the weights of '{name}' are quantised ({kind}): {what} needs them as numbers",
            hint="name the model that it was made from, without --quantize",
        )


def is_quantised(model: nn.Module, parameter: str) -> bool:
    """Whether a parameter of a quantised model is not what its module multiplies by: packed, wrapped, or rounded again at each
    call (compressed-tensors names such a module's scheme)."""
    from torch import nn

    owner, _, own = parameter.rpartition(".")
    module = model.get_submodule(owner)
    value = getattr(module, own)
    plain = type(value) is nn.Parameter and value.is_floating_point() and not hasattr(module, "quantization_scheme")
    return quantised(model) is not None and not plain


@contextmanager
def loading(name: str, stored: Any) -> Iterator[None]:
    """While a model is loaded. stored: the quantisation of its checkpoint. Raises `BadModel` for one that transformers does not
    know, and would leave out; `BadOption` without the package.

    compressed-tensors draws a bar for each of its steps, the first forward's too, and has no setting that keeps it from that.
    """
    if stored is None:
        yield
        return
    from transformers.quantizers import AutoHfQuantizer

    if isinstance(stored, dict) and not AutoHfQuantizer.supports_quant_method(stored):
        raise BadModel(
            f"'{name}' is quantised by '{_method(stored)}', which this transformers does not know", hint="a newer one may"
        )
    ready(name, _method(stored))
    with redirect_stderr(io.StringIO()) if _method(stored) == "compressed-tensors" else nullcontext():
        yield


def settle(model: Any, name: str) -> None:
    """Run a quantised model once, over one token: some libraries pack or unpack weights only then, or say only then that they
    have no kernel for a layer's shape on this device. Raises `BadModel` for such."""
    import torch

    from probe.instrument import device_of

    kind = quantised(model)
    if kind is None:
        return
    ids = torch.zeros(1, 1, dtype=torch.long, device=device_of(model))
    try:
        with torch.no_grad():
            model(ids, use_cache=False)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError, ImportError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadModel(
            f"'{name}' does not run as {kind} on {ids.device.type}: {why}",
            hint="the library has no kernel for these shapes on this device; another --quantize may have",
        ) from error
    if why := _why_not_alone(model.config.quantization_config, kind, ids.device.type):
        warnings.warn(f"{why}: what a text gives depends, within that rounding, on what is computed with it", stacklevel=2)


def _why_not_alone(stored: Any, kind: str, device: str) -> str:
    """What makes a text's numbers others beside other texts than alone; empty if nothing does."""
    if kind == "bitsandbytes llm_int8" and stored.llm_int8_threshold:
        return "LLM.int8() computes a channel in 16 bits, not 8, for all tokens of a call where one of them is an outlier there"
    if kind in ("bitsandbytes nf4", "bitsandbytes fp4") and device == "cpu":
        from bitsandbytes.functional import has_avx512bf16

        if has_avx512bf16():
            return (
                "bitsandbytes multiplies by 4-bit weights in bfloat16 on this processor, sums of one row otherwise than of many"
            )
    return ""


def quantised_copy(model: Any, name: str, quantize: str, **placement: Any) -> Any:
    """A model in memory, quantised as one that is loaded is. placement: its type and device, as transformers takes them."""
    config = config_for(name, quantize, stored_in(model.config))
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        model.save_pretrained(folder)
        with refusals(name):
            copy = type(model).from_pretrained(folder, quantization_config=config, **placement)
            settle(copy, name)
    return copy


def n_parameters(model: Any) -> int:
    """How many numbers a model's weights are, however they are packed; tied ones once."""
    from probe.instrument import parameters

    if quantised(model) is not None:  # bitsandbytes keeps two numbers in one byte
        return int(model.num_parameters())
    return sum(parameter.numel() for parameter in parameters(model))


def lost_gradients(model: Any) -> str | None:
    """The first linear layer of a quantised model whose backward is not that of its forward; None if there is none.

    Of y = f(x), linear but for rounding, <x, gradient of <v, y>> is <v, y>. Where rounding of activations has no backward, or a
    kernel none, torch gives zeros and no error.
    """
    import torch

    from probe.instrument import device_of

    for path, layer in model.named_modules() if quantised(model) else ():
        width = getattr(layer, "in_features", None)
        if not isinstance(width, int) or any(True for _ in layer.children()):
            continue
        draw = torch.Generator().manual_seed(0)
        given = torch.randn(1, 4, width, generator=draw).to(device_of(layer), model.dtype)
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a kernel without a backward, once a process
            x = given.clone().requires_grad_(True)
            y = layer(x) - layer(torch.zeros_like(given)).detach()
            if not y.requires_grad:
                return path
            (found,) = torch.autograd.grad((y * y.detach()).sum(), x, allow_unused=True)
        size = float(y.detach().double().pow(2).sum())
        if found is None or abs(float((found.double() * given.double()).sum()) - size) > _MISSED * size:
            return path
    return None
